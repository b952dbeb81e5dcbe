"""Reading Kafka's record batches by column; kafka-python's own reader, record by record, is the oracle."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatchBuilder

from cuckooflow.errors import LogDamaged, LogError
from cuckooflow.logs.record_batches import decode_records

GZIP, ZSTD = 1, 4
Message = tuple[int, int, bytes | None, bytes | None]  # gap before it, time, key, value

messages = st.tuples(
    st.integers(0, 3),
    st.integers(0, 1 << 42),
    st.none() | st.binary(max_size=3),
    st.none() | st.binary(max_size=300),
)


def batch(
    base: int, messages: list[Message], codec: int = 0, producer: int = -1, transactional: bool = False
) -> bytes:
    """One batch whose first offset is ``base``, as kafka-python writes it."""
    builder = DefaultRecordBatchBuilder(2, codec, transactional, producer, 0, 0, 1 << 20)
    offset = -1
    for gap, ms, key, value in messages:
        offset += 1 + (gap if offset >= 0 else 0)
        builder.append(offset, ms, key, value, [("h", b"x")] if ms % 2 else [])
    return with_header(bytes(builder.build()), base=base, last_delta=offset)


def with_header(
    blob: bytes, base: int, last_delta: int | None = None, attributes: int | None = None
) -> bytes:
    """A batch moved to another offset, or with other attributes, its checksum made anew."""
    raw = bytearray(blob)
    struct.pack_into(">q", raw, 0, base)
    if attributes is not None:
        struct.pack_into(">h", raw, 21, attributes)
    if last_delta is not None:
        struct.pack_into(">i", raw, 23, last_delta)
    struct.pack_into(">I", raw, 17, crc32c(memoryview(raw)[21:]))
    return bytes(raw)


def marker(base: int, producer: int, kind: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, True, producer, 0, -1, 1 << 10)
    builder.append(0, 5, struct.pack(">hh", 0, kind), struct.pack(">hi", 0, 0), [])
    return with_header(bytes(builder.build()), base, attributes=0x10 | 0x20)


def rows(
    blob: bytes, first: int, aborted: tuple[tuple[int, int], ...] = ()
) -> list[tuple[int, int, bytes | None]]:
    found = decode_records(blob, 3, first, aborted)
    assert found.partition == 3
    return list(zip(found.offsets.tolist(), found.append_us.tolist(), found.values.to_pylist(), strict=True))


@given(
    st.lists(
        st.tuples(st.lists(messages, min_size=1, max_size=9), st.sampled_from([0, GZIP, ZSTD])), max_size=5
    ),
    st.data(),
)
def test_the_columns_are_what_a_reader_of_single_records_finds(batches, data) -> None:  # type: ignore[no-untyped-def]
    blob, base = b"", 100
    for content, codec in batches:
        blob += batch(base, content, codec)
        base += 1_000
    oracle = [
        (record.offset, record.timestamp * 1_000, None if record.value is None else bytes(record.value))
        for part in MemoryRecords(blob)
        for record in part
    ]
    first = data.draw(st.integers(90, base + 10))
    assert rows(blob, first) == [row for row in oracle if row[0] >= first]
    whole = decode_records(blob, 0, 90)
    assert whole.next_offset == (oracle[-1][0] + 1 if oracle else 90)


@given(st.lists(messages, min_size=2, max_size=9), st.integers(0, 400))
def test_a_cut_batch_is_left_for_the_next_fetch(content: list[Message], cut: int) -> None:
    one, two = batch(0, content), batch(500, content)
    found = decode_records((one + two)[: len(one) + min(cut, len(two) - 1)], 0, 0)
    assert found.offsets.tolist() == [offset for offset in found.offsets.tolist() if offset < 500]
    assert len(found) == len(content) and found.next_offset == found.offsets[-1] + 1


def test_an_aborted_transaction_and_its_marker_are_holes() -> None:
    one: list[Message] = [(0, 7, None, b"x")]
    parts = [
        batch(0, one, producer=1, transactional=True),  # aborted
        batch(1, one, producer=2, transactional=True),  # committed
        batch(2, one),
        marker(3, 1, 0),
        batch(4, one, producer=1, transactional=True),  # the same producer's next one, committed
        marker(5, 2, 1),
        marker(6, 1, 1),
    ]
    found = decode_records(b"".join(parts), 0, 0, [(1, 0)])
    assert found.offsets.tolist() == [1, 2, 4]
    assert found.next_offset == 7
    assert decode_records(b"".join(parts), 0, 5).offsets.tolist() == []


def test_the_brokers_append_time_is_the_whole_batchs() -> None:
    content: list[Message] = [(0, 1_000, None, b"a"), (0, 3_000, None, b"b")]
    at_broker = with_header(batch(0, content), 0, attributes=0x08)
    assert [us for _, us, _ in rows(at_broker + batch(2, content), 0)] == [
        3_000_000,
        3_000_000,
        1_000_000,
        3_000_000,
    ]


def test_an_empty_batch_that_compaction_left_moves_the_position() -> None:
    empty = bytearray(batch(0, [(0, 1, None, b"a")])[:61])
    struct.pack_into(">i", empty, 8, 61 - 12)
    struct.pack_into(">i", empty, 57, 0)
    found = decode_records(with_header(bytes(empty), 40, last_delta=9), 0, 40)
    assert (len(found), found.next_offset) == (0, 50)


def test_damage_is_named() -> None:
    good = batch(0, [(0, 1, None, b"value")])
    for at in (21, len(good) - 2):
        bad = bytearray(good)
        bad[at] ^= 1
        with pytest.raises(LogDamaged, match="checksum"):
            decode_records(bytes(bad), 0, 0, what="clicks/0")
    lying = bytearray(good)
    lying[61] += 2  # the record says that it is one byte longer
    with pytest.raises(LogDamaged, match="could not read"):
        decode_records(with_header(bytes(lying), 0), 0, 0)
    old = bytearray(good)
    old[16] = 1
    with pytest.raises(LogError, match="format 2"):
        decode_records(bytes(old), 0, 0)
    with pytest.raises(LogError, match="codec 7"):
        decode_records(with_header(good, 0, attributes=7), 0, 0)


def test_what_reading_costs_is_printed() -> None:
    blob = b"".join(batch(n * 100, [(0, n, None, b"v" * 200)] * 100) for n in range(500))
    begin = time.perf_counter()
    found = decode_records(blob, 0, 0)
    print(f"messages_per_s={len(found) / (time.perf_counter() - begin):.0f}")
    assert len(found) == 50_000 and np.all(np.diff(found.offsets) == 1)
