"""What a scorer exports to Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cuckooflow.errors import NoSnapshot
from cuckooflow.models.publish_gate import read_closed_gate
from cuckooflow.models.snapshots import newest_sequence
from cuckooflow.serving.replica import Applied, Replica

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_FRESHNESS_S = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


class ScorerMetrics:
    """Counters and histograms of one scorer, in a registry of its own. Thread-safe.

    Attributes:
        registry: what ``GET /metrics`` shows.
        requests: predict requests by HTTP code.
        seconds: from a request's body to its answer, also of refused ones.
        rows: scored rows.
        logged: rows written to the impressions log.
        freshness: from an action's arrival in its log to its effect being served.
        mirror_failures: times that the log of snapshots could not be read, where one is followed.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cuckooflow_predict_requests", "Predict requests.", ["code"], registry=self.registry
        )
        self.seconds = Histogram(
            "cuckooflow_predict_seconds", "Time to answer.", buckets=_SECONDS, registry=self.registry
        )
        self.rows = Counter("cuckooflow_predict_rows", "Rows scored.", registry=self.registry)
        self.logged = Counter("cuckooflow_logged_rows", "Impressions logged.", registry=self.registry)
        self.freshness = Histogram(
            "cuckooflow_freshness_seconds",
            "From an action's arrival to its effect being served.",
            buckets=_FRESHNESS_S,
            registry=self.registry,
        )

        self.mirror_failures = Counter(
            "cuckooflow_snapshot_log_failures",
            "Times that the log of snapshots could not be read.",
            registry=self.registry,
        )

    def watch(self, replica: Replica, clock_us: Callable[[], int]) -> None:
        """Also show what the replica holds, as of each scrape."""
        self.registry.register(_ReplicaCollector(replica, clock_us))

    def applied(self, applied: Applied) -> None:
        """Take the freshness sample of an applied snapshot."""
        for seconds in applied.freshness_s:
            self.freshness.observe(max(0.0, seconds))


class _ReplicaCollector(Collector):
    def __init__(self, replica: Replica, clock_us: Callable[[], int]) -> None:
        self._replica = replica
        self._clock_us = clock_us

    def collect(self) -> Iterator[Metric]:
        counts = self._replica.counts
        folder, pin = self._replica.folder, self._replica.pin
        closed = read_closed_gate(folder) is not None
        yield GaugeMetricFamily(
            "cuckooflow_publish_gate_closed", "1 while nothing is published.", float(closed)
        )
        yield GaugeMetricFamily(
            "cuckooflow_snapshot_pinned",
            "Number that replicas are held at, or 0.",
            pin.sequence if pin else 0,
        )
        yield CounterMetricFamily("cuckooflow_snapshots_applied", "Snapshots applied.", counts.applied)
        yield CounterMetricFamily("cuckooflow_snapshots_damaged", "Snapshots refused.", counts.damaged)
        yield CounterMetricFamily("cuckooflow_snapshot_gaps", "Breaks in the chain.", counts.gaps)
        try:
            served = self._replica.served()
        except NoSnapshot:
            return
        age_s = (self._clock_us() - served.manifest.created_us) / 1e6
        yield GaugeMetricFamily(
            "cuckooflow_snapshot_sequence", "Number of the served snapshot.", served.manifest.sequence
        )
        yield GaugeMetricFamily("cuckooflow_snapshot_age_seconds", "Since it was taken.", age_s)
        wanted = pin.sequence if pin else newest_sequence(folder)
        yield GaugeMetricFamily(
            "cuckooflow_snapshots_behind",
            "Published ones that are not served yet.",
            max(0, wanted - served.manifest.sequence),
        )
        rows = GaugeMetricFamily("cuckooflow_table_rows", "Rows held.", labels=["table"])
        size = GaugeMetricFamily("cuckooflow_table_bytes", "Of rows and index.", labels=["table"])
        for table, found in served.store.stats().items():
            rows.add_metric([table], found["rows"])
            size.add_metric([table], found["bytes"])
        yield rows
        yield size
