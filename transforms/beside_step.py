"""What a trainer does with the store beside the computing of a step: the batch before goes out, the next one's rows come.

Both are done by one thread, in the order in which they were asked for, so that the rows of a batch miss one push and
no more: that of the batch before it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from cuckooflow.embedding_store.api import PushAnswer, Store
from cuckooflow.logs.contract import Position
from cuckooflow.models.base import Model, Prepared, StepResult, distinct
from cuckooflow.transforms.log_rows import Piece
from cuckooflow.transforms.training_rows import TrainingRows


@dataclass(frozen=True)
class _Ahead:
    """Rows that are being fetched for the piece that begins at ``first``."""

    first: Position
    last: Position
    pulled: Future[Prepared]


@dataclass(frozen=True)
class Sent:
    """A step that is on its way to the store.

    Attributes:
        rows: the piece's.
        result: what it found.
        answer: what the store says, or the error that it answers with.
    """

    piece: Piece[TrainingRows]
    rows: TrainingRows
    result: StepResult
    answer: Future[PushAnswer]


class BesideStep:
    """Not thread-safe.

    Args:
        store, model: whose rows.
        overlap: whether :meth:`fetch` does anything; costs a thread.
    """

    def __init__(self, store: Store, model: Model, overlap: bool) -> None:
        self._store = store
        self._model = model
        self._executor = ThreadPoolExecutor(1, "beside-step") if overlap else None
        self._ahead: _Ahead | None = None
        self._sent: Sent | None = None

    @property
    def overlaps(self) -> bool:
        """Whether there is a thread."""
        return self._executor is not None

    def fetch(self, piece: Piece[TrainingRows] | None) -> None:
        """Begin to fetch what the next piece, if there is one, will need."""
        if self._executor is not None and piece is not None and piece.rows is not None:
            pulled = self._executor.submit(self._pull, piece.rows)
            self._ahead = _Ahead(piece.first, piece.last, pulled)

    def pulled(self, piece: Piece[TrainingRows]) -> Prepared:
        """What a piece that has rows needs of the store."""
        assert piece.rows is not None
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            found = ahead.pulled.result()
            if (ahead.first, ahead.last) == (piece.first, piece.last):
                return found
        return self._pull(piece.rows)

    def send(
        self,
        piece: Piece[TrainingRows],
        rows: TrainingRows,
        result: StepResult,
        push: Callable[[], PushAnswer],
    ) -> None:
        """Begin to push a step. The one before it was taken off by :meth:`take_sent`."""
        assert self._sent is None and self._executor is not None
        self._sent = Sent(piece, rows, result, self._executor.submit(push))

    @property
    def sent(self) -> Sent | None:
        """The step that is on its way."""
        return self._sent

    def take_sent(self) -> Sent | None:
        """The step that is on its way, once."""
        sent, self._sent = self._sent, None
        return sent

    def forget(self) -> None:
        """What is under way is not wanted any more; afterwards nothing is."""
        ahead, self._ahead = self._ahead, None
        sent = self.take_sent()
        if ahead is not None:
            ahead.pulled.exception()  # waits; nobody asks for it
        if sent is not None:
            sent.answer.exception()

    def close(self) -> None:
        """End the thread."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def _pull(self, rows: TrainingRows) -> Prepared:
        lookup = distinct(rows.encoded)
        pulled = self._store.pull(self._model.wanted(lookup))
        prepared = self._model.prepare(rows.encoded, lookup, pulled.rows, pulled.dense)
        return replace(prepared, clock=pulled.clock)
