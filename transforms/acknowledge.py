"""Acknowledges what was read once what became of it is durable.

A runner finalizes a bundle when its outcome is durable, so that is when messages may be acknowledged. Flink
finalizes, each time that a checkpoint has completed, every bundle that has ended by then: also those that ended
after the checkpoint was taken, which it does not hold. So a message is acknowledged with the second round: when a
bundle that ended after its own was finalized is finalized too. By then a later checkpoint has completed.

What a lost worker did not acknowledge is delivered again, is known, and is acknowledged then.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import apache_beam as beam

from cuckooflow.logs.pubsub_address import PubSubAddress

if TYPE_CHECKING:
    from google.pubsub_v1 import SubscriberClient

#: Log -> receipts, of one poll. An element may be empty: it carries forward what earlier ones brought.
ToAcknowledge = Mapping[int, tuple[str, ...]]


class _FinalizedOnce:
    """Receipts whose bundle was finalized, by log of a source. Thread-safe, as runners finalize in their own thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: dict[tuple[str, int], list[str]] = {}

    def add(self, source: str, receipts: ToAcknowledge) -> None:
        with self._lock:
            for log, ids in receipts.items():
                self._ids.setdefault((source, log), []).extend(ids)

    def take(self, source: str, log: int) -> list[str]:
        with self._lock:
            return self._ids.pop((source, log), [])


_FINALIZED_ONCE = _FinalizedOnce()


class Acknowledge(beam.DoFn):
    """Acknowledges the receipts that a poller gives, see the module.

    Args:
        source: name of the source, one of its own in a worker's process.
        addresses: log -> where its receipts are from.
    """

    def __init__(self, source: str, addresses: Mapping[int, PubSubAddress]) -> None:
        self._source = source
        self._addresses = dict(addresses)
        self._clients: dict[int, SubscriberClient] = {}

    def process(self, receipts: ToAcknowledge, finalizer: Any = beam.DoFn.BundleFinalizerParam) -> None:
        """One poll's receipts."""
        before = {log: _FINALIZED_ONCE.take(self._source, log) for log in self._addresses}

        def finalized() -> None:
            for log, ids in before.items():
                if ids:
                    self._acknowledge(log, ids)
            _FINALIZED_ONCE.add(self._source, receipts)

        finalizer.register(finalized)

    def _acknowledge(self, log: int, ids: list[str]) -> None:
        from cuckooflow.logs.pubsub_reader import acknowledge, open_client

        if log not in self._clients:
            self._clients[log] = open_client(self._addresses[log])
        acknowledge(self._clients[log], self._addresses[log], ids)

    def teardown(self) -> None:
        """Close the clients."""
        for client in self._clients.values():
            client.transport.close()  # type: ignore[no-untyped-call]
        self._clients = {}
