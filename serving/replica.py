"""A replica: follows a folder of snapshots and holds the newest version that can be reached.

Snapshots are applied whole and in publication order. Where one is damaged or missing, the replica keeps
the last good version, asks for a full snapshot once, and goes on with the first one that it can stand
on. Every full snapshot gets a read store and, where its model differs, a model of its own, ready before it
is switched to; a delta is applied to the store in place, which switches whole versions itself.

A pinned folder (:mod:`cuckooflow.models.snapshot_pin`) is followed up to its pin and no further; a replica that is past it
goes back to the full snapshot before the pin, and from there up to it.

One thread calls :meth:`Replica.poll`; any number of threads call :meth:`Replica.served`.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pydantic import ValidationError

from cuckooflow.embedding_store.api import Delta, Version
from cuckooflow.embedding_store.native_core import RowFormat
from cuckooflow.embedding_store.read_store import ReadStore
from cuckooflow.errors import CuckooflowError, NoSnapshot, SnapshotDamaged
from cuckooflow.models import snapshots
from cuckooflow.models.base import Model
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import build_model, predict_batch
from cuckooflow.models.snapshot_pin import Pin, read_pin
from cuckooflow.models.snapshots import Manifest
from cuckooflow.models.spec import ModelSpec

_log = logging.getLogger(__name__)

#: How many applied snapshots a replica remembers.
HISTORY_MAX = 1024
#: A store's version may be one ahead of the manifest that a request saw; a few are remembered.
_MANIFESTS_MAX = 8


@dataclass(frozen=True)
class Applied:
    """One applied snapshot, for reports.

    Attributes:
        manifest: what was applied.
        applied_us: when it became what is served, microseconds since the epoch, UTC.
    """

    manifest: Manifest
    applied_us: int

    @property
    def freshness_s(self) -> tuple[float, ...]:
        """Seconds from the arrival of an action to its effect being served, for the manifest's sample."""
        return tuple((self.applied_us - arrival) / 1e6 for arrival in self.manifest.arrivals_us)


@dataclass(frozen=True)
class Served:
    """What requests are answered from; stays usable after the replica has moved on.

    Attributes:
        model: the model.
        store: its weights; ``store.version`` moves on while deltas are applied.
        manifest: of the newest snapshot in the store.
        manifests: version -> manifest, for the last few versions of this store.
    """

    model: Model
    store: ReadStore
    manifest: Manifest
    manifests: dict[Version, Manifest]


@dataclass(frozen=True)
class ReplicaCounts:
    """What happened so far.

    Attributes:
        applied: snapshots that were applied.
        damaged: snapshots that were refused: damaged, or of a model that cannot be built.
        gaps: how often the chain broke and a full snapshot became necessary.
    """

    applied: int = 0
    damaged: int = 0
    gaps: int = 0


class Replica:
    """Follows one folder.

    Args:
        folder: where snapshots are published; may not exist yet.
        clock_us: the wall clock, microseconds since the epoch; stamps what was applied when.
        on_applied: called in the polling thread after each applied snapshot.
        relist_polls: a poll looks for the next number only; every this many, default 50, it lists the
            folder, which finds the way again after the next number was deleted as too old.
        rows: how weights are kept, see :class:`~cuckooflow.embedding_store.read_store.ReadStore`.
    """

    def __init__(
        self,
        folder: Path,
        clock_us: Callable[[], int],
        on_applied: Callable[[Applied], None] | None = None,
        relist_polls: int = 50,
        rows: RowFormat = "float32",
    ) -> None:
        self._folder = folder
        self._clock_us = clock_us
        self._on_applied = on_applied
        self._relist_polls = relist_polls
        self._rows = rows
        self._polls = 0
        self._seen = 0  # every number up to here was looked at, or is too old to be wanted
        self._refused: set[int] = set()
        self._in_gap = False
        self._pin: Pin | None = None
        self._served: Served | None = None
        self._counts = ReplicaCounts()
        self._history: deque[Applied] = deque(maxlen=HISTORY_MAX)
        self._history_lock = threading.Lock()

    def served(self) -> Served:
        """What is served now.

        Raises:
            NoSnapshot: nothing could be applied yet.
        """
        served = self._served
        if served is None:
            raise NoSnapshot(
                f"expected a snapshot in {self._folder}, none could be applied yet "
                f"({self._counts.damaged} refused); wait for the trainer's first one"
            )
        return served

    @property
    def counts(self) -> ReplicaCounts:
        """What happened so far."""
        return self._counts

    def history(self) -> list[Applied]:
        """The last applied snapshots, oldest first, at most :data:`HISTORY_MAX`."""
        with self._history_lock:
            return list(self._history)

    def poll(self) -> int:
        """Apply everything that is there; how many were applied.

        Raises:
            OSError: the folder cannot be read; the next poll may succeed.
        """
        before = self._counts.applied
        self._look_at_pin()
        look = self._served is None or self._polls % self._relist_polls == 0
        self._polls += 1
        if self._pin is not None:
            if look and not self._holds(self._pin.sequence):
                self._go_to(self._pin.sequence)
            return self._counts.applied - before
        if look:
            self._find_way()
        while snapshots.is_published(self._folder, self._seen + 1):
            self._seen += 1
            obstacle = self._try(self._seen)
            if obstacle:
                self._note_gap(f"snapshot {self._seen} {obstacle}")
        return self._counts.applied - before

    def follow(self, stop: threading.Event, interval_s: float) -> None:
        """Poll until ``stop`` is set, every ``interval_s``; a folder that fails for a while is only logged."""
        while not stop.is_set():
            try:
                self.poll()
            except OSError as error:
                _log.warning("event=snapshot_folder_failed folder=%s error=%s", self._folder, error)
            stop.wait(interval_s)

    @property
    def folder(self) -> Path:
        """What it follows."""
        return self._folder

    @property
    def pin(self) -> Pin | None:
        """What the folder holds its replicas at, as the last poll found."""
        return self._pin

    def _look_at_pin(self) -> None:
        try:
            pin = read_pin(self._folder)
        except SnapshotDamaged as error:
            _log.error("event=pin_refused error=%s", error)
            return  # the last one holds
        if pin != self._pin:
            self._pin, self._polls = pin, 0
            _log.warning("event=snapshot_pin sequence=%s", "none" if pin is None else pin.sequence)

    def _go_to(self, sequence: int) -> None:
        """To a number, from what is held or from the full one before it; where that cannot be had nothing changes."""
        try:
            way = snapshots.way_to(self._folder, sequence)
            numbers = [manifest.sequence for manifest in way]
            if self._served is not None and self._served.manifest in way:
                way = way[numbers.index(self._served.manifest.sequence) + 1 :]
            for manifest in way:
                snapshots.read_snapshot(self._folder, manifest)
        except SnapshotDamaged as error:
            _log.error("event=pinned_snapshot_missing sequence=%d error=%s", sequence, error)
            return
        for manifest in way:
            obstacle = self._try(manifest.sequence)
            if obstacle:
                _log.error("event=pinned_snapshot_missing sequence=%d error=%r", sequence, obstacle)
                return
        self._seen = sequence

    def _find_way(self) -> None:
        """Where the next number is not there but later ones are, or nothing is held: start from a full one."""
        numbers = snapshots.sequences(self._folder)
        if not numbers or numbers[-1] <= self._seen or (self._served and self._seen + 1 in numbers):
            return
        for sequence in reversed(snapshots.full_sequences(self._folder)):
            if sequence > self._seen and self._try(sequence) is None and self._holds(sequence):
                self._seen = sequence
                return
        # No full one can be applied: what is there is looked at in order, and found not to stand.
        self._seen = min(number for number in numbers if number > self._seen) - 1

    def _holds(self, sequence: int) -> bool:
        return self._served is not None and self._served.manifest.sequence == sequence

    def _try(self, sequence: int) -> str | None:
        """Apply one number if it is whole and stands on what is held; else why not.

        None also where it was deleted as too old meanwhile: the next listing finds the way.
        """
        if sequence in self._refused:
            return "was refused before"
        try:
            manifest = snapshots.read_manifest(self._folder, sequence)
            held = self._served.store.version if self._served else None
            if not snapshots.stands_on(manifest, held):
                return f"stands on {manifest.base}, held is {held}"
            if not self._same_model(manifest):
                return "is a delta of another model than the one held"
            self._apply(manifest)
        except FileNotFoundError:
            return None
        except (CuckooflowError, ValidationError) as error:
            if isinstance(error, SnapshotDamaged) and not snapshots.is_published(self._folder, sequence):
                return None
            self._refused.add(sequence)
            self._counts = dataclasses.replace(self._counts, damaged=self._counts.damaged + 1)
            _log.error("event=snapshot_refused sequence=%d error=%s", sequence, error)
            return f"was refused: {error}"
        return None

    def _same_model(self, manifest: Manifest) -> bool:
        """Whether a delta is of the model that is held; a full one brings its own."""
        if manifest.base is None or self._served is None:
            return True
        held = self._served.manifest
        return (manifest.model, manifest.features) == (held.model, held.features)

    def _apply(self, manifest: Manifest) -> None:
        delta = snapshots.read_snapshot(self._folder, manifest)
        served = self._served
        if manifest.base is None or served is None:
            model = self._model_for(manifest)
            store = ReadStore(model.store_tables, self._rows)
            store.apply(_for_model(delta, model))
            _warm_up(model, store)
            manifests = {manifest.version: manifest}
        else:
            model, store = served.model, served.store
            # The manifest is known before the store moves, so every version a request can see has one.
            served.manifests[manifest.version] = manifest
            manifests = served.manifests
            # The delta's values are absolute: it also stands on versions past its base.
            store.apply(dataclasses.replace(_for_model(delta, model), base=store.version))
            while len(manifests) > _MANIFESTS_MAX:
                del manifests[next(iter(manifests))]
        self._served = Served(model, store, manifest, manifests)
        self._counts = dataclasses.replace(self._counts, applied=self._counts.applied + 1)
        self._in_gap = False
        self._refused = {number for number in self._refused if number > manifest.sequence}
        applied = Applied(manifest, self._clock_us())
        with self._history_lock:
            self._history.append(applied)
        _log.info(
            "event=snapshot_applied sequence=%d kind=%s version=%s:%d rows=%d",
            manifest.sequence,
            manifest.kind,
            *manifest.version,
            sum(table.rows for table in manifest.tables.values()),
        )
        if self._on_applied is not None:
            self._on_applied(applied)

    def _model_for(self, manifest: Manifest) -> Model:
        served = self._served
        if served is not None:
            held = served.manifest
            if (manifest.model, manifest.features) == (held.model, held.features):
                return served.model  # already compiled
        spec = ModelSpec.model_validate(manifest.model)
        return build_model(spec, [FeatureSpec.model_validate(feature) for feature in manifest.features])

    def _note_gap(self, reason: str) -> None:
        if self._in_gap:
            return
        self._in_gap = True
        self._counts = dataclasses.replace(self._counts, gaps=self._counts.gaps + 1)
        _log.warning("event=snapshot_gap reason=%r", reason)
        try:
            snapshots.request_full(self._folder, reason)
        except OSError as error:
            _log.error("event=full_snapshot_not_requested folder=%s error=%s", self._folder, error)


def _for_model(delta: Delta, model: Model) -> Delta:
    """The delta without what serving does not read, such as tables that only checks use."""
    for parameter in model.dense:
        value = delta.dense.get(parameter.name)
        if value is None and delta.base is not None:  # not every delta holds them
            continue
        if value is None or value.shape != tuple(parameter.shape):
            raise SnapshotDamaged(
                f"expected dense parameter {parameter.name!r} of shape {tuple(parameter.shape)}, received "
                f"{'none' if value is None else value.shape}; publish a full snapshot of this model"
            )
    for table in model.store_tables:
        rows = delta.tables.get(table.name)
        if rows is None or (table.kind == "embedding" and rows.weights.shape[1] != table.dim):
            raise SnapshotDamaged(
                f"expected table {table.name!r} of dim {table.dim}, received "
                f"{'none' if rows is None else rows.weights.shape[1]}; publish a full snapshot of this model"
            )
    wanted_tables = {table.name for table in model.store_tables}
    wanted_dense = {parameter.name for parameter in model.dense}
    return dataclasses.replace(
        delta,
        tables={name: table for name, table in delta.tables.items() if name in wanted_tables},
        dense={name: value for name, value in delta.dense.items() if name in wanted_dense},
    )


def _warm_up(model: Model, store: ReadStore) -> None:
    """Compile before the switch, so that no request pays for it; also proves that the shapes fit."""
    nothing_known = pa.record_batch({"_time": pa.array([0], pa.int64())})
    predict_batch(model, nothing_known, lambda ids: store.pull(ids)[:2], store.lookup_at)
