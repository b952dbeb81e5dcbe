"""When a snapshot is due, and what goes into it. No Beam.

The clock is the poller's, which comes with every tick. A snapshot is made when the interval has passed
and something new was trained; dense parameters may come less often than rows. It is full on a schedule, on a
reader's request, and whenever the store has no base for a delta (at first, and after the store was restored). None
is made behind a closed gate (:mod:`cuckooflow.models.publish_gate`); the first one after it holds all that was
trained meanwhile.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cuckooflow.embedding_store.api import Store
from cuckooflow.errors import FullDeltaNeeded, StoreUnavailable, WrongIncarnation
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.progressive import LabelMetrics
from cuckooflow.models.publish_gate import ClosedGate, GateSpec, PublishGate
from cuckooflow.models.snapshots import (
    ARRIVALS_MAX,
    Manifest,
    SnapshotInfo,
    full_requested,
    list_manifests,
    write_snapshot,
)
from cuckooflow.models.spec import ModelSpec
from cuckooflow.transforms.training_output import Tick
from cuckooflow.transforms.training_rows import Correction

_log = logging.getLogger(__name__)

#: Metric records that the figures in a manifest cover, at most: the newest.
_RECORDS_MAX = 256


@dataclass(frozen=True)
class SnapshotOptions:
    """Where snapshots go and how often.

    Attributes:
        folder: where they are published.
        name: of the model, as clients ask for it.
        model, features: what a scorer needs to build it again.
        columns: input column -> type, see ``SnapshotInfo``.
        correction: of negative sampling, default none.
        interval_us: between snapshots on average, default 2 s. Shorter is fresher; each costs the touched rows.
        dense_interval_us: between those that hold the dense parameters, default 0: all do. Where they are large and the rows
            of a few seconds are not, snapshots get smaller; a scorer then has newer rows beside older dense parameters.
            Full ones, and the last before a pause, hold them always.
        full_interval_us: between full ones, default 1 day. More often makes a new replica start sooner.
        fulls_kept: full ones that retention keeps, with the deltas on them, default 2.
        consumer: name under which the store keeps this publisher's base; default ``snapshots``.
        gate: label -> bounds of its figures, past which nothing is published; default none.
    """

    folder: Path
    name: str
    model: ModelSpec
    features: tuple[FeatureSpec, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    correction: Correction = "none"
    interval_us: int = 2_000_000
    dense_interval_us: int = 0
    full_interval_us: int = 86_400_000_000
    fulls_kept: int = 2
    consumer: str = "snapshots"
    gate: Mapping[str, GateSpec] = field(default_factory=dict)


class SnapshotPublisher:
    """Turns ticks into published snapshots. Not thread-safe.

    Args:
        store: asked for deltas.
        options: see :class:`SnapshotOptions`.
    """

    def __init__(self, store: Store, options: SnapshotOptions) -> None:
        self._store = store
        self._options = options
        self._due_us: int | None = None
        self._last_dense_us: int | None = None
        self._dense_waits = False
        self._gate = PublishGate(options.folder, options.gate)
        manifests = list_manifests(options.folder)
        # Whoever published before may have died with news that no snapshot holds.
        self._rows = 1 if manifests else 0
        self._event_time_us: int | None = None
        self._rate = 1.0
        self._arrivals: deque[int] = deque(maxlen=16 * ARRIVALS_MAX)
        self._records: deque[Mapping[str, Any]] = deque(maxlen=_RECORDS_MAX)
        fulls = [m.created_us for m in manifests if m.kind == "full"]
        self._last_full_us = fulls[-1] if fulls else None
        self._before = manifests[-1].version.incarnation if manifests else None

    @property
    def waiting(self) -> bool:
        """Whether something was trained that no snapshot holds."""
        return self._rows > 0 or self._dense_waits

    @property
    def gate_closed(self) -> ClosedGate | None:
        """Since when and why nothing is published; None: it is."""
        return self._gate.closed

    def tick(self, tick: Tick) -> Manifest | None:
        """Take news of a partition; the snapshot that was due, if one was."""
        self._rows += tick.rows
        if tick.event_time_us is not None:
            self._event_time_us = max(tick.event_time_us, self._event_time_us or tick.event_time_us)
        if tick.rows:
            self._rate = tick.rate
        self._arrivals.extend(tick.arrivals_us)
        self._records.extend(tick.metrics)
        for record in tick.metrics:
            self._gate.add(record)
        return self.publish(tick.polled_us, force=tick.end)

    def publish(self, now_us: int, force: bool = False) -> Manifest | None:
        """A snapshot if one is due at ``now_us``; with ``force``, if there is anything new."""
        wanted = full_requested(self._options.folder)
        waited = self._due_us is None or now_us >= self._due_us
        with_dense = (
            force
            or self._last_dense_us is None
            or now_us - self._last_dense_us >= self._options.dense_interval_us
        )
        news = self._rows > 0 or (self._dense_waits and with_dense)
        if not (news or wanted) or not (waited or force):
            return None
        full = (
            wanted
            or self._last_full_us is None
            or now_us - self._last_full_us >= self._options.full_interval_us
        )
        # Also after a failure the next try waits for the interval, which is the mean of those between snapshots: ticks
        # come when they come, and from the last of them on it would be longer by half of what lies between two.
        interval_us = self._options.interval_us
        due_us = (
            now_us if self._due_us is None else min(self._due_us, now_us)
        )  # it may have been forced before
        self._due_us = max(due_us + interval_us, now_us + interval_us // 2)
        if not self._gate.look(now_us):
            return None
        try:
            return self._write(now_us, full, with_dense)
        except StoreUnavailable as error:
            _log.warning("snapshot=skipped name=%s reason=%s", self._options.name, error)
            return None

    def _write(self, now_us: int, full: bool, with_dense: bool) -> Manifest:
        try:
            delta = self._store.delta(self._options.consumer, full)
        except FullDeltaNeeded:
            delta = self._store.delta(self._options.consumer, True)
        if delta.base is not None and self._before not in (None, delta.base.incarnation):
            # The folder's newest is of another store: replicas hold nothing that this delta stands on.
            delta = self._store.delta(self._options.consumer, True)
        self._before = delta.version.incarnation
        with_dense = with_dense or delta.base is None
        if not with_dense:
            delta = replace(delta, dense={})
        manifest = write_snapshot(self._options.folder, delta, self._info(now_us), self._options.fulls_kept)
        try:
            self._store.ack(self._options.consumer, delta.version)
        except (WrongIncarnation, StoreUnavailable) as error:
            # Restored in between: the next delta has no base there, so the store asks for a full one.
            _log.warning("snapshot=unacknowledged name=%s reason=%s", self._options.name, error)
        if manifest.kind == "full":
            self._last_full_us = now_us
        if with_dense:
            self._last_dense_us = now_us
        self._dense_waits = not with_dense
        self._rows = 0
        self._arrivals.clear()
        return manifest

    def _info(self, now_us: int) -> SnapshotInfo:
        arrivals = sorted(self._arrivals)
        step = -(-len(arrivals) // ARRIVALS_MAX) or 1
        return SnapshotInfo(
            name=self._options.name,
            created_us=now_us,
            event_time_us=self._event_time_us,
            model=self._options.model.model_dump(mode="json"),
            features=[feature.model_dump(mode="json") for feature in self._options.features],
            columns=dict(self._options.columns),
            sampling_rate=self._rate,
            correction=self._options.correction,
            arrivals_us=tuple(arrivals[::step]),
            metrics=self._figures(),
        )

    def _figures(self) -> dict[str, float | None]:
        """Progressive figures over the newest records, by label."""
        by_label: dict[str, LabelMetrics] = {}
        for record in self._records:
            by_label.setdefault(record["label"], LabelMetrics()).merge(LabelMetrics.from_json(record))
        figures: dict[str, float | None] = {}
        for label, metrics in by_label.items():
            figures[f"{label}/auc"] = metrics.auc()
            figures[f"{label}/log_loss"] = metrics.log_loss()
            figures[f"{label}/calibration"] = metrics.calibration()
            figures[f"{label}/rows"] = float(metrics.rows)
        return figures
