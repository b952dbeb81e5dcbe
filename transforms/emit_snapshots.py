"""EmitSnapshots: the trainer's ticks in, manifests of published snapshots out.

One key for the whole job owns the interval, so there is one publisher. It lives in a registry of the
worker's process; what a lost one knew is in the store (its base) and in the folder (what is published),
but for a sample of arrival times. A timer in processing time publishes when ticks stop coming; one at the
end of the input publishes what is left.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow

from cuckooflow.embedding_store.api import Store
from cuckooflow.models.snapshots import Manifest
from cuckooflow.transforms.snapshot_publisher import SnapshotOptions, SnapshotPublisher
from cuckooflow.transforms.training_output import Tick


class EmitSnapshots(beam.PTransform):
    """Ticks of ``TrainStep`` -> :class:`~cuckooflow.models.snapshots.Manifest` of every published snapshot.

    Args:
        store: opens the store; picklable, see :mod:`cuckooflow.transforms.shared_stores`.
        options: where and how often.
    """

    def __init__(self, store: Callable[[], Store], options: SnapshotOptions) -> None:
        super().__init__()
        self._store = store
        self._options = options

    def expand(self, ticks: beam.PCollection) -> beam.PCollection:
        return (
            ticks
            | "OneKey" >> beam.Map(_one_key).with_output_types(tuple[int, Any])
            | "Publish" >> beam.ParDo(_PublishFn(self._store, self._options, uuid.uuid4().hex))
        )


def _one_key(tick: Tick) -> tuple[int, Tick]:
    return 0, tick


_registry: dict[str, SnapshotPublisher] = {}
_registry_lock = threading.Lock()


class _PublishFn(beam.DoFn):
    SEEN = ReadModifyWriteStateSpec("seen", beam.coders.BooleanCoder())
    DUE = TimerSpec("due", TimeDomain.REAL_TIME)
    END = TimerSpec("snapshots_end", TimeDomain.WATERMARK)

    def __init__(self, store: Callable[[], Store], options: SnapshotOptions, run_id: str) -> None:
        self._store = store
        self._options = options
        self._run_id = run_id
        self._published = Metrics.counter("cuckooflow", "snapshots_published")
        self._gate_closed = Metrics.gauge("cuckooflow", "snapshots_gate_closed")

    def process(
        self,
        element: tuple[int, Tick],
        seen: Any = beam.DoFn.StateParam(SEEN),
        due: Any = beam.DoFn.TimerParam(DUE),
        end: Any = beam.DoFn.TimerParam(END),
    ) -> Iterator[Manifest]:
        with _registry_lock:
            publisher = self._publisher()
            manifest = publisher.tick(element[1])
            waiting = publisher.waiting
            self._gate_closed.set(int(publisher.gate_closed is not None))
        seen.write(True)
        end.set(GlobalWindow().max_timestamp())
        if waiting:
            due.set(time.time() + self._options.interval_us / 1e6)
        yield from self._counted(manifest)

    @on_timer(DUE)
    def on_due(self, seen: Any = beam.DoFn.StateParam(SEEN)) -> Iterator[Manifest]:
        """The ticks paused: what was trained since the last snapshot is due."""
        if seen.read():  # else the end has come already
            yield from self._forced()

    @on_timer(END)
    def on_end(self, seen: Any = beam.DoFn.StateParam(SEEN)) -> Iterator[Manifest]:
        """The input ended: publish what is left."""
        yield from self._forced()
        seen.clear()
        with _registry_lock:
            _registry.pop(self._run_id, None)

    def _forced(self) -> Iterator[Manifest]:
        with _registry_lock:
            manifest = self._publisher().publish(time.time_ns() // 1000, force=True)
        yield from self._counted(manifest)

    def _publisher(self) -> SnapshotPublisher:
        if self._run_id not in _registry:
            _registry[self._run_id] = SnapshotPublisher(self._store(), self._options)
        return _registry[self._run_id]

    def _counted(self, manifest: Manifest | None) -> Iterator[Manifest]:
        if manifest is not None:
            self._published.inc()
            yield manifest
