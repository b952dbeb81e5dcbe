"""One partition of a log as the store knows it: how far it was applied, and pushes that are applied once.

Gradients and streaming features are pushed by the same rules, each under a log name of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from cuckooflow.embedding_store.api import Store
from cuckooflow.errors import LogNotOpened, MarkMismatch, StoreError
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.transforms.log_rows import Piece, Rows

_log = logging.getLogger(__name__)


class StorePartition:
    """Not thread-safe; its owner locks.

    Args:
        store: opens the log there, if it was not yet.
        log: name, incarnation and partition; positions do not matter.
        start: where the partition begins. Where it is open already its marks stay.
        attempts_max: refusals in a row before it gives up.

    Raises:
        WrongIncarnation: the log is not the one the store was trained on.
        StoreError: the store refused, or is gone.
    """

    def __init__(self, store: Store, log: LogRange, start: Position, attempts_max: int) -> None:
        self._store = store
        self._attempts_max = attempts_max
        self.log = log
        store.open_log(log.log, log.incarnation, {log.partition: start})

    def range(self, first: Position, last: Position) -> LogRange:
        """A range of this partition."""
        return self.log._replace(first=first, last=last)

    def marks(self) -> tuple[Position, ...]:
        """How far the store's buckets are, the distinct marks, ascending; at least one."""
        marks = self._store.marks(self.log.log).get(self.log.partition)
        if not marks:
            raise LogNotOpened(
                f"expected the store to know partition {self.log.partition} of log {self.log.log!r}, which "
                "was open before; it has lost its data folder: give it back, or begin again from the start"
            )
        return marks

    def apply(
        self,
        piece: Piece[Rows],
        push: Callable[[Piece[Rows], bool], None],
        missing: Callable[[Position, Position], Sequence[Piece[Rows]]],
    ) -> None:
        """Push one range, whatever the store answers: cut where it stands inside, fill what it lacks before.

        Args:
            push: makes one push; told whether nothing else is left to do.
            missing: the next pieces between two positions, from the log; at least the first of them.

        Raises:
            StoreError: it refused over and over.
        """
        todo = [piece]
        refused = 0
        while todo:
            piece = todo.pop()
            try:
                push(piece, not todo)
                refused = 0
            except MarkMismatch as mismatch:
                refused += 1
                if refused > self._attempts_max:
                    raise StoreError(
                        f"expected the store to take {self.range(piece.first, piece.last)} within "
                        f"{self._attempts_max} attempts, received {mismatch}; stop the other trainer of this partition"
                    ) from mismatch
                marks = sorted(Position(*mark) for mark in mismatch.marks)
                if marks and marks[0] < piece.first:
                    self._tell_gap(marks[0], piece.first)
                    todo.append(piece)
                    todo.extend(reversed(missing(marks[0], piece.first)))
                else:
                    todo.extend(reversed(piece.cut(marks)))

    def settle(self, reached: Position, fill: Callable[[Position, Position], None]) -> None:
        """See that every bucket stands at ``reached`` or past it.

        Args:
            fill: applies what lies between two positions.

        Raises:
            StoreError: it falls back over and over.
        """
        for _ in range(self._attempts_max):
            mark = self.marks()[0]
            if mark >= reached:
                return
            self._tell_gap(mark, reached)
            fill(mark, reached)
        raise StoreError(
            f"expected the store to reach {reached} of {self.log.log!r}, it stands at {self.marks()[0]} after "
            f"{self._attempts_max} attempts; is it being restarted over and over?"
        )

    def _tell_gap(self, first: Position, last: Position) -> None:
        """A shard was restored: say what of the log it is given again."""
        _log.warning(
            "event=store_fell_back log=%s partition=%d from=%d/%d to=%d/%d action=train_again",
            *(self.log.log, self.log.partition, *first, *last),
        )
