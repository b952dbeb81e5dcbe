"""One call that a store's process answers, and what is counted of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from cuckooflow.embedding_store.store_metrics import StoreMetrics
from cuckooflow.embedding_store.verbs import VERBS, Message
from cuckooflow.embedding_store.wire import Piece, messages, whole
from cuckooflow.embedding_store.wire_errors import error_to_head
from cuckooflow.embedding_store.wire_head import Array


class ServedCall:
    """From a call's arrival to the last byte of its answer.

    Attributes:
        verb: as the call names it.
    """

    def __init__(self, metrics: StoreMetrics) -> None:
        self._began = time.perf_counter()
        self._metrics = metrics
        self._of_verb = metrics.of_verb("unknown")
        self.verb = "unknown"

    def names(self, verb: str) -> None:
        """It asks for this verb, which may be none."""
        self.verb = verb
        if verb in VERBS:
            self._of_verb = self._metrics.of_verb(verb)

    def received(self, arrays: Mapping[str, Array]) -> None:
        """These arrays came with it."""
        self._metrics.received.inc(sum(array.nbytes for array in arrays.values()))

    def asks(self, rows: int) -> None:
        """So many ids are in it, which is within bounds."""
        self._of_verb.rows.inc(rows)

    def done(self) -> None:
        """It was answered."""
        self._of_verb.calls.inc()

    def refused(self, error: Exception) -> Message:
        """It was not; the answer that says so."""
        head = error_to_head(error)
        self._metrics.errors.labels(self._of_verb.verb, head["error"]).inc()
        return head, {}

    def sending(self, head: dict[str, Any], arrays: dict[str, Array]) -> Iterator[Piece]:
        """The pieces of its answer; once they are sent, the call's time is taken."""
        yield from messages(head, arrays)
        self._sent(head, arrays)

    def sent_whole(self, head: dict[str, Any], arrays: dict[str, Array]) -> Any:
        """A small answer to a get, as Flight will send it; the call's time is taken up to here."""
        answer = whole(head, arrays)
        self._sent(head, arrays)
        return answer

    def _sent(self, head: dict[str, Any], arrays: dict[str, Array]) -> None:
        self._metrics.sent.inc(sum(array.nbytes for array in arrays.values()))
        seconds = time.perf_counter() - self._began
        self._of_verb.seconds.observe(seconds)
        if self.verb == "checkpoint" and "error" not in head:
            self._metrics.checkpoint_seconds.observe(seconds)
