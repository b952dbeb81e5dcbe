"""Reads what lies between two positions of the examples log again, where a trainer needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import pyarrow as pa

from cuckooflow.errors import TrainingGap
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.transforms.ranges import RangeHeader


class RangeReader(Protocol):
    """Reads a range of the examples log again, with the same rows dropped as the first time.

    Attributes:
        dead_letters: of the last read: messages in its range that hold no examples.
    """

    dead_letters: pa.RecordBatch

    def read(
        self, partition: int, first: Position, last: Position | None, max_rows: int
    ) -> tuple[pa.RecordBatch, RangeHeader]:
        """Rows from ``first`` on and the range they are; at most ``max_rows``."""
        ...


class LogAgain:
    """Not thread-safe.

    Args:
        open_reader: opens the log, at the first read; None where nothing can be read again.
        rows_max: rows read at once.
    """

    def __init__(self, open_reader: Callable[[], RangeReader] | None, rows_max: int) -> None:
        self._open_reader = open_reader
        self._reader: RangeReader | None = None
        self._rows_max = rows_max

    def read(self, range_: LogRange) -> tuple[pa.RecordBatch, Position, pa.RecordBatch]:
        """Rows of a range from its beginning, up to where they go, and dead letters of messages among them.

        Raises:
            TrainingGap: nothing can be read again, or the log ends before.
            OffsetOutOfRange: retention has deleted it.
        """
        if self._open_reader is None:
            raise TrainingGap(
                f"expected to read {range_} again, but this trainer has no reader; "
                "give TrainStep a reader of the log"
            )
        if self._reader is None:
            self._reader = self._open_reader()
        batch, header = self._reader.read(range_.partition, range_.first, range_.last, self._rows_max)
        if header.range.last <= range_.first:
            raise TrainingGap(
                f"expected rows of {range_}, received none from {range_.first} on; the log ends "
                "before the store's marks: was it recreated or truncated?"
            )
        return batch, header.range.last, self._reader.dead_letters

    def between(self, range_: LogRange) -> Iterator[tuple[pa.RecordBatch, Position]]:
        """All of a range, piece by piece: rows, and up to where they go. Errors as :meth:`read`."""
        first = range_.first
        while first < range_.last:
            batch, first, _ = self.read(range_._replace(first=first))
            yield batch, first
