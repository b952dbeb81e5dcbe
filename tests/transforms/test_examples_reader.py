"""Reading examples by position: the same rows from any start, in any pieces; a plain list is the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.errors import OffsetOutOfRange
from cuckooflow.logs.contract import Position
from cuckooflow.logs.local_log import LocalLog, LocalLogReader, LocalLogWriter
from cuckooflow.transforms.coders import encode_batch
from cuckooflow.transforms.examples_reader import ExamplesReader
from cuckooflow.transforms.ranges import read_range_header
from cuckooflow.transforms.repeat_window import RepeatWindow

Row = tuple[int, int, int]  # identity, offset, row


def message(ids: list[int], **more: Any) -> bytes:
    columns = {
        "_id_hi": pa.array(ids, pa.uint64()),
        "_id_lo": pa.array([i % 3 for i in ids], pa.uint64()),
        **more,
    }
    return encode_batch(pa.RecordBatch.from_pydict(columns))


def make_log(path: Path, messages: list[bytes | None]) -> LocalLogReader:
    reader = LocalLog.create(path, 1, "frames")
    with LocalLogWriter(path, segment_bytes=2_000, fsync=False) as writer:
        for value in messages:
            writer.append(0, [value], 7)
    return reader


def oracle(messages: list[list[int] | None], window: int) -> list[Row]:
    """What a reader must give: by definition, row by row."""
    seen: list[int] = []
    kept = []
    for offset, ids in enumerate(messages):
        for row, identity in enumerate(ids or []):
            if identity not in seen[max(0, len(seen) - window) :]:
                kept.append((identity, offset, row))
            seen.append(identity)
    return kept


def rows_of(batch: pa.RecordBatch) -> list[Row]:
    names = ("_id_hi", "_offset", "_row")
    if batch.num_rows == 0:
        return []
    return list(zip(*(batch.column(name).to_pylist() for name in names), strict=True))


def read_all(
    reader: ExamplesReader, first: Position, last: Position | None, sizes: list[int]
) -> tuple[list[Row], int, int]:
    """Rows, how many repeats and how many dead letters, reading piece by piece; ranges must chain."""
    found: list[Row] = []
    repeated = dead = 0
    at, turn = first, 0
    while True:
        batch, header = reader.read(0, at, last, sizes[turn % len(sizes)])
        assert read_range_header(batch) == header
        assert header.range.first == at
        assert all(header.range.first <= Position(o, r) < header.range.last for _, o, r in rows_of(batch))
        found += rows_of(batch)
        repeated += header.repeated
        dead += reader.dead_letters.num_rows
        if header.range.last == at:
            return found, repeated, dead
        at, turn = header.range.last, turn + 1


contents = st.lists(st.one_of(st.none(), st.lists(st.integers(0, 12), max_size=5)), max_size=14)


@settings(max_examples=120, deadline=None)
@given(
    messages=contents,
    window=st.integers(0, 15),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    where=st.data(),
)
def test_any_start_any_end_any_pieces(
    tmp_path_factory: pytest.TempPathFactory,
    messages: list[list[int] | None],
    window: int,
    sizes: list[int],
    where: st.DataObject,
) -> None:
    log = make_log(
        tmp_path_factory.mktemp("log") / "examples", [b"junk" if m is None else message(m) for m in messages]
    )
    expected = oracle(messages, window)
    reader = ExamplesReader(log, window)
    found, repeated, dead = read_all(reader, Position(0), None, sizes)
    assert found == expected
    assert repeated == sum(len(m or []) for m in messages) - len(expected)
    assert dead == sum(m is None for m in messages)
    positions = [Position(o, r) for o, m in enumerate(messages) for r in range(len(m or []) + 1)]
    positions.append(Position(len(messages)))
    first, last = sorted(where.draw(st.tuples(st.sampled_from(positions), st.sampled_from(positions))))
    inside = [row for row in expected if first <= Position(*row[1:]) < last]
    for again in (reader, ExamplesReader(log, window)):
        found, _, _ = read_all(again, first, last, sizes)
        assert found == inside
    _, header = ExamplesReader(log, window).read(0, first, last, 1_000)
    assert header.range.last == last


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=80),
    window=st.integers(0, 30),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_the_window_is_its_definition(rows: list[tuple[int, int]], window: int, cuts: list[int]) -> None:
    """Few identities that often share their high half, pushed in pieces of any size."""
    tested, found, at, turn = RepeatWindow(window), [], 0, 0
    while at < len(rows):
        piece = rows[at : at + cuts[turn % len(cuts)]]
        hi, lo = (np.array([row[i] for row in piece], np.uint64) for i in (0, 1))
        found += tested.push(hi, lo).tolist()
        at, turn = at + len(piece), turn + 1
    assert found == [row in rows[max(0, i - window) : i] for i, row in enumerate(rows)]


def test_the_window_stays_bounded() -> None:
    window = RepeatWindow(1_000)
    random = np.random.default_rng(3)
    for _ in range(500):
        ids = random.integers(0, 1 << 62, 50).astype(np.uint64)
        window.push(ids, ids)
    assert sum(len(chunk.hi) for chunk in window._chunks) <= 4_000


def test_schemas_that_change_are_unified_and_those_that_cannot_end_a_piece(tmp_path: Path) -> None:
    log = make_log(
        tmp_path / "examples",
        [
            message([1], a=pa.array([1], pa.int32())),
            message([2], a=pa.array([1 << 40], pa.int64()), b=pa.array(["x"])),
            message([3], b=pa.array(["y"])),
            message([4], b=pa.array([5.5])),
        ],
    )
    reader = ExamplesReader(log)
    batch, header = reader.read(0, Position(0))
    assert batch.select(["a", "b"]).to_pylist() == [
        {"a": 1, "b": None},
        {"a": 1 << 40, "b": "x"},
        {"a": None, "b": "y"},
    ]
    assert header.range.last == Position(3)
    batch, header = reader.read(0, header.range.last)
    assert batch.column("b").to_pylist() == [5.5] and header.range.last == Position(4)


def test_messages_without_examples_are_dead_letters_inside_the_range(tmp_path: Path) -> None:
    whole = message([1, 2])
    bad: list[bytes | None] = [
        whole[: len(whole) // 2],
        None,
        b"",
        encode_batch(pa.RecordBatch.from_pydict({"_id_hi": pa.array([1], pa.uint64())})),
        encode_batch(pa.RecordBatch.from_pydict({"_id_hi": [1], "_id_lo": [1]})),
    ]
    reader = ExamplesReader(make_log(tmp_path / "examples", [*bad, whole, *bad]))
    batch, header = reader.read(0, Position(0))
    assert rows_of(batch) == [(1, 5, 0), (2, 5, 1)]
    assert (header.range.first, header.range.last) == (Position(0), Position(11))
    reasons = ["malformed", "tombstone", "malformed", "missing_column", "wrong_type"]
    assert reader.dead_letters.column("reason").to_pylist() == reasons * 2
    assert reader.dead_letters.column("offset").to_pylist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    reader.read(0, header.range.last)
    assert reader.dead_letters.num_rows == 0


def test_ranges_that_are_not_there_are_refused(tmp_path: Path) -> None:
    log = make_log(tmp_path / "examples", [message(list(range(100)))] * 5)
    reader = ExamplesReader(log)
    for first, last in ((Position(6), None), (Position(0), Position(5, 1)), (Position(3), Position(2))):
        with pytest.raises(OffsetOutOfRange):
            reader.read(0, first, last)
    with LocalLogWriter(log.path) as writer:
        assert writer.retain(0, 3) > 0
    with pytest.raises(OffsetOutOfRange):
        reader.read(0, Position(0))


def test_a_tailing_reader_goes_on_where_it_was(tmp_path: Path) -> None:
    log = make_log(tmp_path / "examples", [message([1, 2])])
    reader = ExamplesReader(log)
    _, header = reader.read(0, Position(0))
    _, nothing = reader.read(0, header.range.last)
    assert nothing.range.last == header.range.last == Position(1)
    with LocalLogWriter(log.path) as writer:
        writer.append(0, [message([2, 3])], 1)
    batch, header = reader.read(0, nothing.range.last)
    assert rows_of(batch) == [(3, 1, 1)] and header.repeated == 1
