"""A batch's parameters from the store, on request those of the next batch while one computes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from cuckooflow.embedding_store.api import Floats, Store
from cuckooflow.logs.contract import Position
from cuckooflow.models.base import Lookup, Model, distinct
from cuckooflow.transforms.log_rows import Piece
from cuckooflow.transforms.training_rows import TrainingRows

#: The distinct ids of rows, their parameters by table, and the dense parameters.
Pulled = tuple[Lookup, dict[str, Floats], dict[str, Floats]]


@dataclass(frozen=True)
class _Ahead:
    """Rows that are being fetched for the piece that begins at ``first``."""

    first: Position
    last: Position
    pulled: Future[Pulled]


class RowsAhead:
    """Not thread-safe.

    Args:
        store, model: whose rows.
        prefetch: whether :meth:`fetch` does anything; costs a thread.
    """

    def __init__(self, store: Store, model: Model, prefetch: bool) -> None:
        self._store = store
        self._model = model
        self._executor = ThreadPoolExecutor(1, "prefetch") if prefetch else None
        self._ahead: _Ahead | None = None

    def fetch(self, piece: Piece[TrainingRows] | None) -> None:
        """Begin to fetch what the next piece, if there is one, will need."""
        if self._executor is None or piece is None or piece.rows is None:
            return
        self._ahead = _Ahead(piece.first, piece.last, self._executor.submit(self._pull, piece.rows))

    def pulled(self, piece: Piece[TrainingRows]) -> Pulled:
        """What a piece that has rows needs of the store."""
        assert piece.rows is not None
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            found = ahead.pulled.result()
            if (ahead.first, ahead.last) == (piece.first, piece.last):
                return found
        return self._pull(piece.rows)

    def _pull(self, rows: TrainingRows) -> Pulled:
        lookup = distinct(rows.encoded)
        tables, dense = self._store.pull(self._model.wanted(lookup))
        return lookup, tables, dense

    def forget(self) -> None:
        """What was fetched is not wanted any more."""
        self._ahead = None

    def close(self) -> None:
        """End the thread."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
