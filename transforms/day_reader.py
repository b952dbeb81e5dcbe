"""Reads the examples of days as files by position, as :mod:`~cuckooflow.transforms.examples_reader` reads the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cuckooflow.errors import DayNotWhole, OffsetOutOfRange
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.transforms.day_log import DayLog
from cuckooflow.transforms.dead_letters import no_dead_letters
from cuckooflow.transforms.examples_reader import Skip
from cuckooflow.transforms.placed_merge import PlacedMerge
from cuckooflow.transforms.ranges import RangeHeader, attach_range

#: How often a read looks at the folder again because a file that it named is gone: its day is being made anew.
LOOKS_MAX = 5
_POSITION_SCHEMA = pa.schema([pa.field("_offset", pa.int64()), pa.field("_row", pa.int32())])


@dataclass
class _Cursor:
    """Where the last read of a partition ended, and the rows that follow there."""

    position: Position
    merge: PlacedMerge
    rows: pa.Table | None = None


class DayReader:
    """Not thread-safe; make one per thread.

    Args:
        look: looks at the folder; it holds days of one log.
        skip: partition -> (first, last) offsets, both included, whose rows are left out; of an archive.

    Attributes:
        dead_letters: none, ever: files hold decoded rows.
        days: the last look.
    """

    def __init__(self, look: Callable[[], DayLog], skip: Mapping[int, Sequence[Skip]] | None = None) -> None:
        self._look = look
        self._skip = skip or {}
        self._cursors: dict[int, _Cursor] = {}
        self._schemas: dict[int, pa.Schema] = {}
        self.dead_letters: pa.RecordBatch = no_dead_letters()
        self.days = look()

    def look_again(self) -> None:
        """Take in what has come into the folder, and what was made anew."""
        self.days = self._look()
        self._cursors.clear()

    def read(
        self,
        partition: int,
        first: Position,
        last: Position | None = None,
        max_rows: int = 65_536,
        *,
        start: Position | None = None,
        polled_us: int = 0,
    ) -> tuple[pa.RecordBatch, RangeHeader]:
        """Rows from ``first`` on, up to ``last`` or to where the files are whole, at most ``max_rows``.

        Returns:
            The rows and the header with the range that was read, which is also attached to the batch. A range that
            reaches ``last`` ends there exactly.

        Raises:
            OffsetOutOfRange: the files do not hold all of the range.
            DayNotWhole: a file is gone for good.
        """
        for tries in range(LOOKS_MAX):
            try:
                return self._read(partition, first, last, max_rows, start, polled_us)
            except DayNotWhole:
                if tries == LOOKS_MAX - 1:
                    raise
                self.look_again()
        raise AssertionError("unreachable")

    def _read(
        self,
        partition: int,
        first: Position,
        last: Position | None,
        max_rows: int,
        start: Position | None,
        polled_us: int,
    ) -> tuple[pa.RecordBatch, RangeHeader]:
        end = self.days.end(partition, first)
        if last == first:
            end = first  # nothing, wherever that is
        if end is None or (last is not None and last > end):
            raise OffsetOutOfRange(
                f"expected a range of {self.days.log}/{partition} that the files in {self.days.out} hold whole, "
                f"received {tuple(first)} to {None if last is None else tuple(last)}; they hold "
                f"{self.days.ranges.get(partition, ())}: make the days that are missing"
            )
        bound = end if last is None else last
        cursor = self._cursors.get(partition)
        if cursor is None or cursor.position != first:
            merge = PlacedMerge(self.days.out, self.days.files.get(partition, ()), first)
            cursor = self._cursors[partition] = _Cursor(first, merge)
        try:
            rows, at = self._next(cursor, bound, max_rows)
        except BaseException:
            del self._cursors[partition]
            raise
        cursor.position = at
        batch = self._batch(partition, rows)
        kept = self._without_skipped(partition, batch)
        range_ = LogRange(self.days.log, self.days.incarnation, partition, first, at)
        skipped = batch.num_rows - kept.num_rows
        header = RangeHeader(range_, first if start is None else start, polled_us, skipped=skipped)
        return attach_range(kept, header), header

    def _next(self, cursor: _Cursor, bound: Position, max_rows: int) -> tuple[pa.Table | None, Position]:
        """The next rows before a bound, and up to where they go."""
        if cursor.rows is None or not cursor.rows.num_rows:
            cursor.rows = cursor.merge.next() if cursor.position < bound else None
        if cursor.rows is None:
            return None, bound
        rows = cursor.rows.slice(0, max_rows)
        inside = _before(rows, bound)
        cursor.rows = cursor.rows.slice(inside)
        if inside < rows.num_rows:
            return rows.slice(0, inside), bound
        return rows, Position(rows.column("_offset")[-1].as_py(), rows.column("_row")[-1].as_py() + 1)

    def _batch(self, partition: int, rows: pa.Table | None) -> pa.RecordBatch:
        if rows is None or not rows.num_rows:
            return pa.RecordBatch.from_pylist([], schema=self._schemas.get(partition, _POSITION_SCHEMA))
        self._schemas[partition] = rows.schema
        (batch,) = rows.combine_chunks().to_batches()
        return batch

    def _without_skipped(self, partition: int, batch: pa.RecordBatch) -> pa.RecordBatch:
        ranges = self._skip.get(partition, ())
        if not ranges or not batch.num_rows:
            return batch
        offsets = batch.column("_offset").to_numpy()
        skipped = np.zeros(len(offsets), np.bool_)
        for first, last in ranges:
            skipped |= (offsets >= first) & (offsets <= last)
        return batch.filter(pa.array(~skipped))


def _before(rows: pa.Table, bound: Position) -> int:
    """How many of some rows, in order, stand before a position."""
    offsets = rows.column("_offset").to_numpy()
    places = rows.column("_row").to_numpy()
    return int(((offsets < bound.offset) | ((offsets == bound.offset) & (places < bound.row))).sum())
