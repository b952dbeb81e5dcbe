"""What every log must do, whichever lies behind it. Plain lists are the oracle."""

from __future__ import annotations

import os
import pickle
import random

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.errors import LogError, LogNotFound, MessageTooLarge, OffsetOutOfRange, SpecError
from cuckooflow.logs.address import to_address
from cuckooflow.logs.contract import LogReader, MessageBatch

NOW_US = 1_767_225_600_123_000


def read_all(reader: LogReader, partition: int = 0, offset: int = 0, **bounds: int) -> list[MessageBatch]:
    """Batches up to the end, which must be contiguous."""
    found = []
    while len(batch := reader.read(partition, offset, **bounds)):
        assert (
            batch.partition == partition
            and batch.next_offset > batch.offsets[-1] >= batch.offsets[0] >= offset
        )
        assert batch.offsets.dtype == batch.append_us.dtype == np.int64 and isinstance(
            batch.values, pa.BinaryArray
        )
        found.append(batch)
        offset = batch.next_offset
    assert batch.next_offset == offset
    return found


def rows(batches: list[MessageBatch]) -> list[tuple[int, int, bytes | None]]:
    return [
        row
        for b in batches
        for row in zip(b.offsets.tolist(), b.append_us.tolist(), b.values.to_pylist(), strict=True)
    ]


def test_what_was_appended_is_read_whatever_the_bounds(new_log) -> None:
    seed = int(os.environ.get("CUCKOOFLOW_SEED", "3"))
    print(f"seed={seed}")
    rng = random.Random(seed)
    address = new_log(2)
    reader = address.create_missing()
    expected: list[list[tuple[int, int, bytes | None]]] = [[], []]
    writer = address.open_writer()
    for n in range(12):
        partition = rng.randrange(2)
        values = [
            None if rng.random() < 0.1 else rng.randbytes(rng.randrange(300))
            for _ in range(rng.randrange(1, 40))
        ]
        us = NOW_US + n * 1_000
        first = writer.append(partition, pa.array(values, pa.binary()) if n % 2 else values, us)
        assert first == len(expected[partition])
        expected[partition] += [(first + i, us, value) for i, value in enumerate(values)]
    writer.close()
    for bounds in ({}, {"max_messages": 1}, {"max_messages": 7}, {"max_bytes": 1}, {"max_bytes": 900}):
        for partition in (0, 1):
            batches = read_all(reader, partition, **bounds)
            assert rows(batches) == expected[partition]
            if "max_messages" in bounds:
                assert max(map(len, batches)) == bounds["max_messages"]
            if bounds.get("max_bytes") == 900:
                assert all(
                    len(b) == 1 or sum(len(v or b"") for v in b.values.to_pylist()) <= 900 for b in batches
                )
    middle = rng.randrange(len(expected[0]))
    assert rows(read_all(reader, 0, middle)) == expected[0][middle:]


def test_the_end_is_empty_at_once_and_what_comes_then_is_seen(new_log) -> None:
    address = new_log(2)
    reader, writer = address.create_missing(), address.open_writer()
    assert (reader.start_offset(1), reader.end_offset(1), reader.sealed(1)) == (0, 0, False)
    for n in range(5):
        batch = reader.read(1, n)
        assert (len(batch), batch.next_offset) == (0, n)
        assert writer.append(1, [b"%d" % n], NOW_US) == n
        assert reader.read(1, n).values.to_pylist() == [b"%d" % n]
        assert (reader.end_offset(1), reader.end_offset(0)) == (n + 1, 0)
    writer.close()


def test_offsets_that_are_not_there_are_refused(new_log) -> None:
    address = new_log()
    reader, writer = address.create_missing(), address.open_writer()
    writer.append(0, [b"a", b"b"], NOW_US)
    writer.close()
    assert len(reader.read(0, 2)) == 0
    for ask in (
        lambda: reader.read(0, 3),
        lambda: list(reader.read_range(0, 0, 3)),
        lambda: list(reader.read_range(0, 2, 1)),
        lambda: list(reader.read_range(0, -1, 1)),
    ):
        with pytest.raises(OffsetOutOfRange):
            ask()
    with pytest.raises(LogError, match="below 1, received 1"):
        reader.read(1, 0)
    with pytest.raises(LogError, match="at least 1"):
        reader.read(0, 0, max_messages=0)
    assert rows(read_all(reader)) == [(0, NOW_US, b"a"), (1, NOW_US, b"b")]


def test_a_range_is_exact_and_leaves_reading_on_alone(new_log) -> None:
    address = new_log()
    reader, writer = address.create_missing(), address.open_writer()
    values = [b"%d" % n for n in range(50)]
    writer.append(0, values, NOW_US)
    writer.close()
    at = reader.read(0, 0, max_messages=20).next_offset
    found = [value for batch in reader.read_range(0, 5, 17) for value in batch.values.to_pylist()]
    assert found == values[5:17]
    assert list(reader.read_range(0, 9, 9)) == []
    assert rows(read_all(reader, 0, at)) == [(n, NOW_US, values[n]) for n in range(at, 50)]


def test_a_message_over_the_readers_bound_is_read_alone(new_log) -> None:
    address = new_log()
    reader, writer = address.create_missing(), address.open_writer()
    large = os.urandom(3 << 20)
    writer.append(0, [b"small", large, b"small"], NOW_US)
    writer.close()
    assert [len(b) for b in read_all(reader, max_bytes=1_000)] == [1, 1, 1]
    assert rows(read_all(reader))[1][2] == large


def test_a_message_over_the_logs_bound_is_refused_whole(new_log) -> None:
    address = new_log(config={"max.message.bytes": "20000"})
    reader, writer = address.create_missing(), address.open_writer()
    writer.append(0, [b"x" * 15_000], NOW_US)
    with pytest.raises(MessageTooLarge, match="at most"):
        writer.append(0, [b"small", b"x" * (writer.max_message_bytes + 1)], NOW_US)
    assert reader.end_offset(0) == 1
    assert writer.append(0, [b"after"], NOW_US) == 1
    writer.close()


def test_many_sent_at_once_keep_their_order(new_log) -> None:
    address = new_log(2)
    reader, writer = address.create_missing(), address.open_writer()
    sent = [writer.send(n % 2, [b"%d" % n, b"+"], NOW_US) for n in range(100)]
    assert [s.wait() for s in sent] == [2 * (n // 2) for n in range(100)]
    for partition in (0, 1):
        found = [value for _, _, value in rows(read_all(reader, partition))]
        assert found == [v for n in range(partition, 100, 2) for v in (b"%d" % n, b"+")]
    writer.close()
    writer.close()


def test_an_incarnation_lasts_as_long_as_the_log(new_log) -> None:
    address = new_log(3)
    reader = address.create_missing()
    assert list(reader.partitions()) == [0, 1, 2]
    assert reader.name == address.name
    same = pickle.loads(pickle.dumps(address))
    assert same == address and hash(same) == hash(address)
    assert same.create_missing().incarnation() == same.open_reader().incarnation() == reader.incarnation()
    assert new_log().create_missing().incarnation() != reader.incarnation()
    with pytest.raises(LogError, match="found one"):
        address.create()


def test_what_is_not_there_is_named(new_log) -> None:
    address = new_log()
    for open_ in (address.open_reader, address.open_writer):
        with pytest.raises(LogNotFound, match=address.name):
            open_()


def test_places_as_text() -> None:
    address = to_address(
        "kafka://h1:9092,h2:9093/clicks.v2?partitions=4&library=confluent-kafka&client.security.protocol=SSL"
        "&config.retention.ms=1000"
    )
    assert (address.bootstrap, address.name, address.partitions) == ("h1:9092,h2:9093", "clicks.v2", 4)
    assert address.client == {"security.protocol": "SSL"} and address.config == {"retention.ms": "1000"}
    assert to_address("logs/clicks").name == "clicks"
    for text, fault in (
        ("http://h:1/t", "'http'"),
        ("kafka://h/t", "bootstrap"),
        ("kafka://h:1/t?partition=2", "partition"),
    ):
        with pytest.raises(SpecError, match=fault):
            to_address(text)
