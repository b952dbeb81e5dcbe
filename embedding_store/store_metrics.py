"""What a store's process exports to Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cuckooflow.embedding_store.checkpoint_files import checkpoints
from cuckooflow.embedding_store.server_limits import Turns
from cuckooflow.embedding_store.store import EmbeddedStore

_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 20.0, 60.0)
_CHECKPOINT_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class VerbMetrics(NamedTuple):
    """What is counted of one verb's calls."""

    verb: str
    calls: Counter
    seconds: Histogram
    rows: Counter


class StoreMetrics:
    """Counters and histograms of one store's process, in a registry of its own. Thread-safe.

    Attributes:
        registry: what ``GET /metrics`` shows.
        calls: calls that were answered, by verb.
        errors: calls that were refused, by verb and error.
        seconds: from a call's arrival to its answer, its wait for a turn included, by verb.
        rows: ids in calls, by verb.
        received, sent: bytes of arrays.
        checkpoint_seconds: time to write a checkpoint.
        checkpoints_failed: periodic checkpoints that could not be written.
    """

    def __init__(self) -> None:
        self._of_verb: dict[str, VerbMetrics] = {}
        self.registry = CollectorRegistry()
        self.calls = Counter("cuckooflow_store_calls", "Calls answered.", ["verb"], registry=self.registry)
        self.errors = Counter(
            "cuckooflow_store_errors", "Calls refused.", ["verb", "error"], registry=self.registry
        )
        self.seconds = Histogram(
            "cuckooflow_store_call_seconds",
            "Time to answer.",
            ["verb"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.rows = Counter("cuckooflow_store_rows", "Ids in calls.", ["verb"], registry=self.registry)
        self.received = Counter(
            "cuckooflow_store_received_bytes", "Bytes of arrays received.", registry=self.registry
        )
        self.sent = Counter("cuckooflow_store_sent_bytes", "Bytes of arrays sent.", registry=self.registry)
        self.checkpoint_seconds = Histogram(
            "cuckooflow_store_checkpoint_seconds",
            "Time to write one.",
            buckets=_CHECKPOINT_S,
            registry=self.registry,
        )
        self.checkpoints_failed = Counter(
            "cuckooflow_store_checkpoints_failed", "Checkpoints that failed.", registry=self.registry
        )

    def of_verb(self, verb: str) -> VerbMetrics:
        """Those of one verb; ``unknown`` for whatever is none."""
        found = self._of_verb.get(verb)
        if found is None:
            made = VerbMetrics(
                verb, self.calls.labels(verb), self.seconds.labels(verb), self.rows.labels(verb)
            )
            found = self._of_verb.setdefault(verb, made)
        return found

    def watch(self, store: EmbeddedStore, turns: Turns, data: Path | None) -> None:
        """Also show what the store holds, as of each scrape."""
        self.registry.register(_StoreCollector(store, turns, data))


class _StoreCollector(Collector):
    def __init__(self, store: EmbeddedStore, turns: Turns, data: Path | None) -> None:
        self._store = store
        self._turns = turns
        self._data = data

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        stats: Mapping[str, Any] = self._store.stats()
        yield _gauge("calls_working", "Calls that are worked on.", self._turns.working)
        yield _gauge("calls_waiting", "Calls that wait for a turn.", self._turns.waiting)
        yield _gauge("pushes_applied", "Pushes applied, over all incarnations.", stats["pushes_applied"])
        if stats["event_time_us"] is not None:
            yield _gauge("event_time_seconds", "Newest event time trained.", stats["event_time_us"] / 1e6)
        age_s = None if self._data is None else _checkpoint_age_s(self._data)
        if age_s is not None:
            yield _gauge("checkpoint_age_seconds", "Since the newest checkpoint was written.", age_s)
        for name, meaning in (
            ("rows", "Rows held."),
            (
                "bytes",
                "Bytes of all that the table keeps: rows, index, filter, backlog of deltas, a cut's images.",
            ),
            ("load_factor", "Rows over places in the index."),
            ("index_segments", "Segments of the index; it grows by one."),
            ("free_rows", "Rows of evicted ids, whose memory new ones take first."),
            ("filter_entries", "Ids that exact admission counts now."),
            ("journal_entries", "Touched rows that consumers of deltas have not acknowledged."),
            ("tombstones", "Evicted ids that they, or the next checkpoint, have not taken."),
            ("cut_bytes", "Bytes of rows as they were when a checkpoint began that is still being written."),
        ):
            family = GaugeMetricFamily(f"cuckooflow_store_table_{name}", meaning, labels=["table"])
            for table, of_table in stats["tables"].items():
                family.add_metric([table], float(of_table[name]))
            yield family
        for name, meaning in (
            ("not_admitted", "Pushed ids that were not admitted yet."),
            ("filter_forgotten", "Counts that admission gave up for want of memory."),
            (
                "refused_new_ids",
                "Pushed ids that got no row at the memory limit; their gradients are dropped.",
            ),
            ("evicted_expired", "Rows evicted because their time-to-live was over."),
            ("evicted_memory", "Rows evicted at the memory limit."),
        ):
            counted = CounterMetricFamily(f"cuckooflow_store_table_{name}", meaning, labels=["table"])
            for table, of_table in stats["tables"].items():
                counted.add_metric([table], float(of_table[name]))
            yield counted


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"cuckooflow_store_{name}", meaning, float(value))


def _checkpoint_age_s(data: Path) -> float | None:
    found = checkpoints(data)
    try:
        return max(0.0, time.time() - (found[-1][1] / "manifest.json").stat().st_mtime) if found else None
    except OSError:  # pruned since it was listed
        return None
