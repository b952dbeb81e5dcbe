"""Rows of one partition by their positions, and a range of it with its rows: what one push carries."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.logs.contract import Position
from cuckooflow.models.example_columns import example_column, numbers_of


class LogRows(ABC):
    """Rows in position order.

    Attributes:
        offsets, rows: (n,) int64: where each stands, the message and its place in it.
    """

    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets)

    def position(self, row: int) -> Position:
        """Where a row stands in the log."""
        return Position(int(self.offsets[row]), int(self.rows[row]))

    def before(self, position: Position) -> int:
        """How many rows stand before ``position``."""
        return rows_before(self.offsets, self.rows, position)

    @abstractmethod
    def slice(self, start: int, stop: int) -> Self:
        """Rows ``start <= row < stop``, without a copy."""


Rows = TypeVar("Rows", bound=LogRows)


@dataclass(frozen=True)
class Piece(Generic[Rows]):
    """A range and its rows: a step to make.

    Attributes:
        first, last: the range, half open.
        rows: None where the range holds none that count.
    """

    first: Position
    last: Position
    rows: Rows | None

    def cut(self, at: Sequence[Position]) -> list[Piece[Rows]]:
        """The piece in parts that meet at the given ascending positions, those inside it."""
        cuts = [self.first, *(position for position in at if self.first < position < self.last), self.last]
        return [
            Piece(first, last, self._rows_between(first, last)) for first, last in itertools.pairwise(cuts)
        ]

    def _rows_between(self, first: Position, last: Position) -> Rows | None:
        rows = self.rows
        return None if rows is None else rows.slice(rows.before(first), rows.before(last))


def positions(batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(n,) int64 offsets and (n,) int64 rows in their messages, of a batch of the examples log."""
    offsets, rows = (_integers(batch, name) for name in ("_offset", "_row"))
    return offsets, rows


def rows_before(offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], position: Position) -> int:
    """How many of some ascending positions stand before ``position``."""
    low, high = np.searchsorted(offsets, [position.offset, position.offset + 1])
    return int(low + np.searchsorted(rows[low:high], position.row))


def _integers(batch: pa.RecordBatch, name: str) -> npt.NDArray[Any]:
    return numbers_of(example_column(batch, name), np.int64, 0, batch.num_rows)
