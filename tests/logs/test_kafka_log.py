"""What only a broker has: holes, aborted transactions, retention, recreated topics, compression, groups."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuckooflow.errors import (
    LogError,
    LogRecreated,
    LogUnavailable,
    MessageTooLarge,
    OffsetOutOfRange,
    SpecError,
)
from cuckooflow.logs.address import KafkaAddress
from cuckooflow.logs.client_properties import resolved
from tests.recreated_topic import recreate

pytestmark = pytest.mark.cluster
NOW_US = 1_767_225_600_123_000


@contextlib.contextmanager
def admin(address: KafkaAddress) -> Iterator[Any]:
    from kafka.admin import KafkaAdminClient

    client = KafkaAdminClient(bootstrap_servers=address.bootstrap)
    try:
        yield client
    finally:
        client.close()


def values(address: KafkaAddress, partition: int = 0, offset: int = 0) -> list[tuple[int, bytes | None]]:
    reader = address.open_reader()
    found: list[tuple[int, bytes | None]] = []
    end = reader.end_offset(partition)
    while offset < end:
        batch = reader.read(partition, offset, max_messages=3)
        assert batch.next_offset > offset
        found += zip(batch.offsets.tolist(), batch.values.to_pylist(), strict=True)
        offset = batch.next_offset
    assert offset == end
    return found


def transactions(address: KafkaAddress, outcomes: str) -> None:
    """One message in a transaction for each letter: c commits, a aborts, o leaves it open."""
    from confluent_kafka import Producer

    for n, outcome in enumerate(outcomes):
        # A producer each, so that transactions overlap nothing and an open one stays open.
        producer = Producer(
            {"bootstrap.servers": address.bootstrap, "transactional.id": f"{address.topic}-{n}"}
        )
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce(address.topic, b"%s%d" % (outcome.encode(), n), partition=0)
        producer.flush(30)
        if outcome != "o":
            (producer.commit_transaction if outcome == "c" else producer.abort_transaction)(30)


def test_only_committed_messages_are_seen_and_markers_are_holes(library: str, topic, wait_for) -> None:
    address = topic(library)
    reader = address.create_missing()
    transactions(address, "acca")
    # The marker is written after the commit was answered.
    wait_for(lambda: reader.end_offset(0) == 8, "the last transaction's marker", 60)
    assert reader.start_offset(0) == 0
    assert values(address) == [(2, b"c1"), (4, b"c2")]
    batch = reader.read(0, 5)  # only markers and an aborted message from here on
    while batch.next_offset < 8:
        assert len(batch) == 0
        batch = reader.read(0, batch.next_offset)
    assert (len(batch), batch.next_offset) == (0, 8)
    assert [b.values.to_pylist() for b in reader.read_range(0, 3, 8) if len(b)] == [[b"c2"]]
    writer = address.open_writer()
    assert writer.append(0, [b"plain"], NOW_US) == 8
    writer.close()
    assert reader.read(0, 5).offsets.tolist() == [8]
    at_end = reader.read(0, 9)
    assert (len(at_end), at_end.held_back) == (0, False)


def test_what_an_open_transaction_holds_back_is_not_there_yet(library: str, topic) -> None:
    address = topic(library)
    reader = address.create_missing()
    writer = address.open_writer()
    writer.append(0, [b"before"], NOW_US)
    transactions(address, "o")
    writer.append(0, [b"after"], NOW_US)
    writer.close()
    assert reader.end_offset(0) == 1
    assert reader.read(0, 0).values.to_pylist() == [b"before"]
    held = reader.read(0, 1)
    assert (len(held), held.next_offset, held.held_back) == (0, 1, True)
    with pytest.raises(OffsetOutOfRange):
        reader.read(0, 9)


@pytest.mark.deep
@pytest.mark.slow
def test_compaction_leaves_holes(library: str, topic, wait_for) -> None:
    from kafka import KafkaProducer

    compacted = {
        "cleanup.policy": "compact",
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.001",
        "max.compaction.lag.ms": "200",
        "delete.retention.ms": "600000",
    }
    address = topic(library, config=compacted)
    reader = address.create_missing()
    producer = KafkaProducer(bootstrap_servers=address.bootstrap)
    for n in range(40):
        key = b"alone" if n == 20 else b"k%d" % (n % 4)
        producer.send(address.topic, None if n == 38 else b"%d" % n, key=key, partition=0)
        producer.flush()
        if n % 10 == 9:
            time.sleep(0.15)  # segment.ms: the next message begins a segment
    producer.send(address.topic, b"last", key=b"other", partition=0)
    producer.close()

    wait_for(lambda: len(values(address)) <= 6, "compaction of all but the newest of each key")
    assert values(address) == [(20, b"20"), (36, b"36"), (37, b"37"), (38, None), (39, b"39"), (40, b"last")]
    assert reader.read(0, 3).offsets[0] == 20
    assert reader.read(0, 21, max_messages=2).offsets.tolist() == [36, 37]
    assert [b.offsets.tolist() for b in reader.read_range(0, 22, 37)] == [[36]]


def test_offsets_that_retention_deleted_are_refused(library: str, topic) -> None:
    from kafka import TopicPartition

    address = topic(library)
    reader = address.create_missing()
    writer = address.open_writer()
    writer.append(0, [b"%d" % n for n in range(100)], NOW_US)
    writer.close()
    assert reader.read(0, 0, max_messages=10).next_offset == 10
    with admin(address) as client:  # what retention does, at once
        client.delete_records({TopicPartition(address.topic, 0): 60})
    fresh = address.open_reader()
    assert (fresh.start_offset(0), fresh.end_offset(0)) == (60, 100)
    with pytest.raises(OffsetOutOfRange, match="60 to 100, received 59"):
        fresh.read(0, 59)
    with pytest.raises(OffsetOutOfRange):
        list(fresh.read_range(0, 59, 70))
    assert fresh.read(0, 60).values[0].as_py() == b"60"


def test_a_recreated_topic_is_another_log(
    library: str, topic, wait_for, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = topic(library)
    reader = address.create_missing()
    writer = address.open_writer()
    writer.append(0, [b"old"] * 3, NOW_US)
    writer.close()
    old = reader.incarnation()
    recreate(address, wait_for)
    writer = address.open_writer()
    writer.append(0, [b"new"] * 9, NOW_US)
    writer.close()
    if library == "confluent-kafka":
        monkeypatch.setattr("cuckooflow.logs.confluent_source.LOOK_S", 0.0)  # else within ten seconds
    with pytest.raises(LogRecreated, match=old):
        reader.read(0, 3)
    assert reader.incarnation() != old
    with pytest.raises(LogRecreated, match=old):
        reader.read(0, 3)
    assert [value for _, value in values(address)] == [b"new"] * 9


def test_a_broker_that_finds_a_message_too_large_is_named(library: str, topic) -> None:
    larger = "message.max.bytes" if library == "confluent-kafka" else "max_request_size"
    address = topic(library, config={"max.message.bytes": "10000"}, client={larger: 1_000_000})
    reader = address.create_missing()
    writer = address.open_writer()
    with pytest.raises(MessageTooLarge, match=r"max\.message\.bytes"):
        writer.append(0, [b"x" * 20_000], NOW_US)
    assert writer.append(0, [b"after"], NOW_US) == 0
    writer.close()
    assert reader.read(0, 0).values.to_pylist() == [b"after"]


def test_the_brokers_own_append_time_wins_where_the_topic_says_so(library: str, topic) -> None:
    address = topic(library, config={"message.timestamp.type": "LogAppendTime"})
    reader = address.create_missing()
    before_ms = time.time_ns() // 1_000_000
    writer = address.open_writer()
    writer.append(0, [b"a", b"b"], NOW_US)
    writer.close()
    after_ms = time.time_ns() // 1_000_000
    append_us = reader.read(0, 0).append_us
    assert (append_us % 1_000 == 0).all()
    assert before_ms - 1_000 <= append_us.min() // 1_000 <= append_us.max() // 1_000 <= after_ms + 1_000


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_batches_are_read(library: str, topic, codec: str) -> None:
    address = topic(library)
    reader = address.create_missing()
    packed = address.model_copy(update={"library": "confluent-kafka", "client": {"compression.codec": codec}})
    messages = [b"compressible " * (n % 50) for n in range(1_000)]
    writer = packed.open_writer()
    writer.append(0, messages, NOW_US)
    writer.close()
    assert [value for _, value in values(address)] == messages
    assert reader.read(0, 500).offsets[0] == 500


def test_both_libraries_read_what_either_wrote_and_name_it_alike(topic) -> None:
    address = topic("kafka-python")
    other = address.model_copy(update={"library": "confluent-kafka"})
    readers = address.create_missing(), other.open_reader()
    assert readers[0].incarnation() == readers[1].incarnation()
    for n, place in enumerate((address, other)):
        writer = place.open_writer()
        writer.append(0, [b"%d" % n, None], NOW_US + n * 1_000)
        writer.close()
    batches = [reader.read(0, 0) for reader in readers]
    for batch in batches:
        assert batch.values.to_pylist() == [b"0", None, b"1", None]
        assert batch.append_us.tolist() == [NOW_US, NOW_US, NOW_US + 1_000, NOW_US + 1_000]


def test_a_look_at_several_partitions_changes_nothing_that_is_read(library: str, topic) -> None:
    address = topic(library, 3)
    reader, writer = address.create_missing(), address.open_writer()
    for n in range(20):
        writer.append(n % 3, [b"%d" % n] * 30, NOW_US)
    at = dict.fromkeys(range(3), 0)
    found: dict[int, list[bytes]] = {p: [] for p in range(3)}
    for n in range(40):
        reader.prefetch(at)
        if n == 3:
            writer.append(1, [b"new"], NOW_US)
        for p in range(3):
            batch = reader.read(p, at[p], max_messages=40)
            found[p] += batch.values.to_pylist()
            at[p] = batch.next_offset
    writer.close()
    assert found == {
        p: [b"%d" % n for n in range(p, 20, 3) for _ in range(30)] + [b"new"] * (p == 1) for p in range(3)
    }


def test_partitions_that_are_added_are_seen(
    library: str, topic, wait_for, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"metadata_max_age_ms": 100} if library == "kafka-python" else {}
    address = topic(library, 2, client=quick)
    reader = address.create_missing()
    if library == "confluent-kafka":
        monkeypatch.setattr("cuckooflow.logs.confluent_source.LOOK_S", 0.1)
    assert list(reader.partitions()) == [0, 1]
    with admin(address) as client:
        client.create_partitions({address.topic: 5})
    wait_for(lambda: list(reader.partitions()) == [0, 1, 2, 3, 4], "five partitions", 60)
    writer = address.open_writer()
    writer.append(4, [b"there"], NOW_US)
    writer.close()
    wait_for(lambda: len(reader.read(4, 0)), "a message in the new partition", 60)


def test_progress_is_reported_for_lag_tools_only(library: str, topic) -> None:
    address = topic(library, 2, group="lag-of-this-test")
    reader, writer = address.create_missing(), address.open_writer()
    writer.append(1, [b"a"] * 10, NOW_US)
    writer.close()
    reader.report({0: 0, 1: 7})
    with admin(address) as client:
        offsets = client.list_group_offsets("lag-of-this-test")["lag-of-this-test"]
    told = {place.partition: o.offset for place, o in offsets.items() if place.topic == address.topic}
    assert told == {0: 0, 1: 7}
    assert address.open_reader().read(1, 0).offsets[0] == 0


def test_a_topics_configuration_is_told(library: str, topic) -> None:
    address = topic(library, config={"retention.ms": 123_456, "max.message.bytes": "55555"})
    config = address.create_missing().config()
    assert config["retention.ms"] == "123456"
    assert config["max.message.bytes"] == "55555"
    assert config["cleanup.policy"] == "delete"


def test_an_impossible_topic_is_refused(library: str, topic) -> None:
    with pytest.raises(LogError, match="refused"):
        topic(library, config={"retention.ms": "soon"}).create_missing()
    with pytest.raises(LogError, match="refused"):
        topic(library, replication=3).create_missing()


# --- client properties ----------------------------------------------------------------------


def test_secrets_come_from_environment_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("from-file\n")
    monkeypatch.setenv("TEST_USER", "someone")
    client = {"sasl.username": "${env:TEST_USER}", "sasl.password": f"${{file:{tmp_path / 'password'}}}"}
    address = KafkaAddress(bootstrap="h:1", topic="t", client=client)
    assert resolved(address.client) == {"sasl.username": "someone", "sasl.password": "from-file"}
    for text in (repr(address), str(address)):
        assert "someone" not in text and "from-file" not in text and "TEST_USER" not in text
    monkeypatch.delenv("TEST_USER")
    with pytest.raises(SpecError, match="TEST_USER"):
        resolved(address.client)
    with pytest.raises(SpecError, match="nowhere"):
        resolved({"sasl.password": "${file:/nowhere/at/all}"})


@pytest.mark.parametrize(
    ("client", "fault"),
    [
        ({"enable.idempotence": False}, "always on"),
        ({"isolation_level": "read_uncommitted"}, "read_committed"),
        ({"bootstrap.servers": "h:1"}, "bootstrap"),
        ({"sasl.password": "${vault:secret}"}, "another reference"),
        ({"sasl.password": "${env:OPEN"}, "another reference"),
    ],
)
def test_properties_that_would_break_a_promise_are_refused(client: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        KafkaAddress(bootstrap="h:1", topic="t", client=client)
    assert "vault" not in str(caught.value.errors(include_input=False))  # type: ignore[attr-defined]


def test_a_property_that_the_library_does_not_know_is_named(library: str, topic) -> None:
    address = topic(library, client={"no.such.property": "secret-value"})
    for open_ in (address.create_missing, address.open_reader, address.open_writer):
        with pytest.raises(SpecError, match=r"no[._]such[._]property") as caught:
            open_()
        assert "secret-value" not in str(caught.value)


def test_a_broker_that_is_not_there_is_named_within_the_bound(library: str) -> None:
    address = KafkaAddress(bootstrap="127.0.0.1:1", topic="t", library=library, read_timeout_s=1)
    for open_ in (address.open_reader, address.create_missing):
        begin = time.monotonic()
        with pytest.raises(LogUnavailable, match=r"127\.0\.0\.1:1"):
            open_()
        assert time.monotonic() - begin < 30
