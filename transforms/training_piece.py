"""A range of the examples log with its rows: what one push carries."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from cuckooflow.logs.contract import Position
from cuckooflow.transforms.training_rows import TrainingRows


@dataclass(frozen=True)
class Piece:
    """A range and its rows: a step to make.

    Attributes:
        first, last: the range, half open.
        rows: None where the range holds none that can be trained.
    """

    first: Position
    last: Position
    rows: TrainingRows | None

    def cut(self, at: Sequence[Position]) -> list[Piece]:
        """The piece in parts that meet at the given ascending positions, those inside it."""
        cuts = [self.first, *(position for position in at if self.first < position < self.last), self.last]
        return [
            Piece(first, last, self._rows_between(first, last)) for first, last in itertools.pairwise(cuts)
        ]

    def _rows_between(self, first: Position, last: Position) -> TrainingRows | None:
        rows = self.rows
        return None if rows is None else rows.slice(rows.before(first), rows.before(last))
