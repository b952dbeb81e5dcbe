"""Kafka through the contract of logs beside the bare client libraries, on one broker on this machine.

Prints one JSON line last: for each library and message size, messages/s and MB/s of appending and reading
through the contract, and of the library's own producer and consumer on the same topic.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cuckooflow.logs.address import KafkaAddress
from cuckooflow.runners.cluster import LocalCluster

LIBRARIES = ("kafka-python", "confluent-kafka")
#: A chunk that is handed over at once, as a bundle's sink does.
CHUNK_BYTES = 2 << 20
FETCH_BYTES = 8 << 20


def messages_of(size: int, count: int) -> list[bytes]:
    """Messages of one size: an Arrow stream where there is room for one, else a record's bytes."""
    if size < 4_096:
        return [os.urandom(size) for _ in range(min(count, 10_000))] * -(-count // min(count, 10_000))
    rows = pa.record_batch({"x": np.random.default_rng(1).random(size // 8 - 60)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return [sink.getvalue().to_pybytes()] * count


def chunks(messages: list[bytes]) -> Iterator[list[bytes]]:
    """Of about :data:`CHUNK_BYTES`."""
    step = max(1, CHUNK_BYTES // len(messages[0]))
    for at in range(0, len(messages), step):
        yield messages[at : at + step]


def contract_append(address: KafkaAddress, messages: list[bytes]) -> float:
    """Seconds from the first send to the last acknowledgement."""
    writer = address.open_writer()
    writer.append(0, messages[:1], 1_000)  # connects
    begin = time.perf_counter()
    for sent in [writer.send(0, chunk, 1_000) for chunk in chunks(messages)]:
        sent.wait()
    took = time.perf_counter() - begin
    writer.close()
    return took


def contract_read(address: KafkaAddress, count: int) -> float:
    """Seconds to read so many messages."""
    reader = address.open_reader()
    at = reader.read(0, 0, max_messages=1).next_offset
    begin, found = time.perf_counter(), 0
    while found < count:
        batch = reader.read(0, at, max_bytes=FETCH_BYTES)
        found += len(batch)
        at = batch.next_offset
    took = time.perf_counter() - begin
    reader.close()
    return took


def idle_read(address: KafkaAddress, calls: int) -> float:
    """Seconds of this process's processor for one look at a partition that has nothing new."""
    reader = address.open_reader()
    end = reader.end_offset(0)
    reader.read(0, end)
    begin = time.process_time()
    for _ in range(calls):
        reader.read(0, end)
    took = (time.process_time() - begin) / calls
    reader.close()
    return took


def bare_kafka_python(address: KafkaAddress, messages: list[bytes]) -> tuple[float, float]:
    """Seconds of its producer and of its consumer."""
    from kafka import KafkaConsumer, KafkaProducer, TopicPartition

    producer = KafkaProducer(
        bootstrap_servers=address.bootstrap, linger_ms=5, batch_size=1 << 20, max_request_size=8_000_000
    )
    producer.send(address.topic, b"connects", partition=0).get(30)
    begin = time.perf_counter()
    for message in messages:
        producer.send(address.topic, message, partition=0)
    producer.flush()
    append_s = time.perf_counter() - begin
    producer.close()
    consumer = KafkaConsumer(
        bootstrap_servers=address.bootstrap,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=FETCH_BYTES,
        isolation_level="read_committed",
        max_poll_records=100_000,
    )
    consumer.assign([TopicPartition(address.topic, 0)])
    found = 0
    while not found:
        found = sum(map(len, consumer.poll(1_000, max_records=1).values()))
    begin, found = time.perf_counter(), 0
    while found < len(messages):
        found += sum(map(len, consumer.poll(1_000).values()))
    read_s = time.perf_counter() - begin
    consumer.close()
    return append_s, read_s


def bare_confluent(address: KafkaAddress, messages: list[bytes]) -> tuple[float, float]:
    """Seconds of its producer and of its consumer."""
    from confluent_kafka import Consumer, Producer, TopicPartition

    common = {"bootstrap.servers": address.bootstrap}
    producer = Producer(
        {**common, "enable.idempotence": True, "linger.ms": 5, "message.max.bytes": 8_000_000,
         "queue.buffering.max.messages": 10_000_000, "queue.buffering.max.kbytes": 2_097_151}
    )  # fmt: skip
    producer.produce(address.topic, b"connects", partition=0)
    producer.flush()
    begin = time.perf_counter()
    for message in messages:
        producer.produce(address.topic, message, partition=0)
    producer.flush()
    append_s = time.perf_counter() - begin
    consumer = Consumer(
        {**common, "group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    )
    consumer.assign([TopicPartition(address.topic, 0, 0)])
    while not consumer.consume(1, 1.0):
        pass
    begin, found = time.perf_counter(), 0
    while found < len(messages):
        found += len(consumer.consume(20_000, 1.0))
    read_s = time.perf_counter() - begin
    consumer.close()
    return append_s, read_s


BARE: dict[str, Callable[[KafkaAddress, list[bytes]], tuple[float, float]]] = {
    "kafka-python": bare_kafka_python,
    "confluent-kafka": bare_confluent,
}


def measure(bootstrap: str, library: str, size: int, count: int, rounds: int) -> dict[str, float]:
    """The best of some rounds, each on a topic of its own, the two sides one after the other."""
    messages = messages_of(size, count)
    best: dict[str, float] = {}
    for _ in range(rounds):
        for side in ("contract", "bare"):
            address = KafkaAddress(bootstrap=bootstrap, topic=f"bench-{uuid.uuid4().hex}", library=library)
            address.create_missing().close()
            if side == "contract":
                took = contract_append(address, messages), contract_read(address, count)
                idle_s = idle_read(address, 200)
                best["idle_read_us"] = min(best.get("idle_read_us", np.inf), 1e6 * idle_s)
            else:
                took = BARE[library](address, messages)
            for verb, seconds in zip(("append", "read"), took, strict=True):
                name = f"{side}_{verb}_per_s"
                best[name] = max(best.get(name, 0.0), count / seconds)
    megabytes = len(messages[0]) / 1e6
    rates = {
        name.replace("_per_s", "_mb_per_s"): r * megabytes for name, r in best.items() if "per_s" in name
    }
    return {name: round(value, 1) for name, value in {**best, **rates}.items()}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give back what was printed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few messages, one round")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    given = parser.parse_args(arguments)
    sizes = {200: 20_000, 65_536: 400} if given.quick else {200: 200_000, 65_536: 4_000}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="cuckooflow-bench-") as folder:
        cluster = LocalCluster(Path(folder))
        try:
            bootstrap = cluster.up(["kafka"]).kafka
            assert bootstrap is not None
            for library in LIBRARIES:
                for size, count in sizes.items():
                    rounds = 1 if given.quick else given.rounds
                    found[f"{library}, {size} bytes"] = measure(bootstrap, library, size, count, rounds)
                    print(f"{library}, {size} bytes: {found[f'{library}, {size} bytes']}", flush=True)
        finally:
            cluster.down()
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    main()
