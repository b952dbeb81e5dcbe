"""What a decoder of one message format answers: rows, what it refused, and what it knowingly left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.transforms.dead_letters import Refused

I64 = npt.NDArray[np.int64]

#: Why a row or a message was left out, as :attr:`Decoded.left_out` counts it.
NO_ITEMS = "no_items"
OTHER_ACTION = "other_action"


@dataclass(frozen=True)
class Rows:
    """Decoded rows, not yet checked.

    Attributes:
        table: (n,) rows with any of the declared columns, each in a type that
            :func:`~cuckooflow.transforms.row_checks.check_rows` takes.
        message: (n,) int64, index of each row's message in the batch.
        row: (n,) int64, its row in that message.
        bytes_of: index of a row -> its own bytes, for its dead letter; None: those of its message.
        shared: (n,) int64, equal for rows that ``bytes_of`` gives the same bytes; of these only the first
            that is refused brings them. None: all bring theirs.
    """

    table: pa.Table
    message: I64
    row: I64
    bytes_of: Callable[[int], bytes] | None = None
    shared: I64 | None = None

    def filter(self, keep: npt.NDArray[np.bool_]) -> Rows:
        """The rows where ``keep``, (n,) bool, is true."""
        kept, bytes_of = np.flatnonzero(keep), self.bytes_of
        return Rows(
            self.table.filter(pa.array(keep)),
            self.message[keep],
            self.row[keep],
            None if bytes_of is None else lambda row: bytes_of(int(kept[row])),
            None if self.shared is None else self.shared[keep],
        )


@dataclass
class Decoded:
    """What became of some messages.

    Attributes:
        parts: rows, in any order.
        refused: messages and rows that could not be decoded.
        left_out: reason -> how many; ``NO_ITEMS`` messages with nothing to explode, ``OTHER_ACTION`` rows.
    """

    parts: list[Rows] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def add(self, other: Decoded) -> None:
        """Take over what another decoder answered."""
        self.parts += other.parts
        self.refused += other.refused
        for reason, count in other.left_out.items():
            self.leave_out(reason, count)

    def leave_out(self, reason: str, count: int) -> None:
        """Count what was left out."""
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count
