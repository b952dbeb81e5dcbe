"""The embedded store: a process's own tables, with the verbs of :class:`~cuckooflow.embedding_store.api.Store`."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store.api import (
    AnyPush,
    Delta,
    Floats,
    Ids,
    Pulled,
    PushAnswer,
    ReadAt,
    StoreConfig,
    TableDelta,
    TablePush,
    Version,
)
from cuckooflow.embedding_store.checkpoint import read_newest, write_checkpoint
from cuckooflow.embedding_store.checkpoint_chain import CheckpointPolicy, Link
from cuckooflow.embedding_store.config_json import check_config
from cuckooflow.embedding_store.consumers import DeltaConsumers
from cuckooflow.embedding_store.data_folder import DataFolder
from cuckooflow.embedding_store.kind_checks import as_kind, state_bytes
from cuckooflow.embedding_store.kinds import AsOf, RowsAt
from cuckooflow.embedding_store.marks import Marks
from cuckooflow.embedding_store.native_core import NativeCore
from cuckooflow.embedding_store.range_checks import checked_event_time, checked_range, checked_starts
from cuckooflow.embedding_store.row_images import table_rows, table_states
from cuckooflow.embedding_store.shards import WHOLE, Ownership, Shard
from cuckooflow.errors import BadShape, CheckpointNotFound, StaleRows, StoreError, WrongIncarnation
from cuckooflow.logs.contract import LogRange, Position

log = logging.getLogger(__name__)
_DEFAULT_POLICY = CheckpointPolicy()

#: Rows that are swept at once, with pushes and lookups waiting: a few milliseconds.
SWEEP_ROWS = 65_536


class EmbeddedStore:
    """A store in this process. Thread-safe; lookups run beside each other, pushes one at a time.

    Args:
        config: tables, dense parameters, logical buckets.
        data: the folder for checkpoints and the logs' start positions; None keeps everything in memory.
            A folder that holds a store already is refused: :func:`open_store` takes either.
        shard: which part of the store this is; by default the whole. Buckets counted by :class:`PushAnswer`
            are this part's own.
        policy: when checkpoints hold everything and when just what changed.

    Raises:
        SpecError: the configuration is wrong.
        StoreLocked: the folder is in use.
        StoreError: the folder holds a store.

    >>> import numpy as np
    >>> from cuckooflow.embedding_store.api import StoreConfig, TableConfig, TablePush
    >>> store = EmbeddedStore(StoreConfig((TableConfig("user", dim=2, init_stddev=0.0),)))
    >>> store.open_log("examples", "made-once", {0: Position(0)})
    >>> ids = np.array([7, 7], np.uint64)
    >>> push = TablePush(ids, np.ones((2, 2), np.float32))
    >>> first_message = LogRange("examples", "made-once", 0, Position(0), Position(1))
    >>> store.push(first_message, {"user": push}, {}, event_time_us=0)
    PushAnswer(applied=64, skipped=0, staleness=0)
    >>> store.push(first_message, {"user": push}, {}, event_time_us=0)
    PushAnswer(applied=0, skipped=64, staleness=0)
    >>> bool((store.lookup({"user": ids})["user"] < 0).all())
    True
    """

    def __init__(
        self,
        config: StoreConfig,
        data: Path | None = None,
        shard: Shard = WHOLE,
        policy: CheckpointPolicy = _DEFAULT_POLICY,
    ) -> None:
        check_config(config)
        owned = Ownership(config, shard)
        folder = None if data is None else DataFolder(Path(data))
        try:
            if folder is not None:
                if folder.config() is not None:
                    raise StoreError(f"{folder.path} holds a store already. Open it with open_store.")
                folder.claim(config, shard)
            self._begin(config, owned, folder, NativeCore.of(config), Marks(owned.buckets), {})
            self._follow(policy)
        except BaseException:
            if folder is not None:
                folder.close()
            raise

    @classmethod
    def restore(cls, data: Path, policy: CheckpointPolicy = _DEFAULT_POLICY) -> EmbeddedStore:
        """The store that lies in a folder, from its newest whole checkpoint, in a new incarnation.

        Without any checkpoint it is empty and its marks are at the logs' start positions.

        Raises:
            CheckpointNotFound: the folder holds no store.
            CheckpointDamaged: there are checkpoints, but none is whole.
            StoreLocked: the folder is in use.
        """
        if not (Path(data) / "store.json").exists():
            raise CheckpointNotFound(
                f"{data} holds no store. Create one with open_store, or correct the path."
            )
        folder = DataFolder(Path(data))
        try:
            config = folder.config()
            assert config is not None
            owned = Ownership(config, folder.shard())
            found = read_newest(folder.path, config, owned)
            core, marks, body = found or (NativeCore.of(config), Marks(owned.buckets), {})
            marks.restore_opened(folder.opened_logs())
            store = cls.assemble(config, owned, folder, core, marks, body)
            store._follow(policy)
        except BaseException:
            folder.close()
            raise
        log.info(
            "event=store_restored data=%s incarnation=%s checkpoint=%s",
            data,
            store.incarnation(),
            "none" if store._newest is None else store._newest.name,
        )
        return store

    @classmethod
    def assemble(
        cls,
        config: StoreConfig,
        owned: Ownership,
        folder: DataFolder,
        core: NativeCore,
        marks: Marks,
        body: dict[str, Any],
    ) -> EmbeddedStore:
        """A store in a new incarnation, of what a checkpoint held; ``body``: the rest of its manifest."""
        store = cls.__new__(cls)
        store._begin(config, owned, folder, core, marks, body)
        return store

    def _begin(
        self,
        config: StoreConfig,
        owned: Ownership,
        folder: DataFolder | None,
        core: NativeCore,
        marks: Marks,
        body: dict[str, Any],
    ) -> None:
        self._config = config
        self._owned = owned
        self._folder = folder
        self._core = core
        self._marks = marks
        self._consumers = DeltaConsumers()
        self._incarnation = secrets.token_hex(8)
        self._event_time_us: int | None = body.get("event_time_us")
        self._pushes_applied: int = body.get("pushes_applied", 0)
        self._follow(_DEFAULT_POLICY)
        self._newest: Link | None = body.get("link")
        self._clock = 0
        self._changes = 0
        self._changes_in_checkpoint = 0 if body else -1
        # Pushes, marks and consumers; lookups take the core's own lock only.
        self._lock = threading.Lock()
        self._checkpoint_lock = threading.Lock()
        self._closed = False

    def _follow(self, policy: CheckpointPolicy) -> None:
        self._policy = policy
        self._core.raw.bound_cut(policy.cut_bytes_max, policy.cut_wait_s)

    @property
    def config(self) -> StoreConfig:
        """As it was created."""
        return self._config

    @property
    def shard(self) -> Shard:
        """Which part of the store this is."""
        return self._owned.shard

    def incarnation(self) -> str:
        """Changes with every creation and every restore."""
        return self._incarnation

    def open_log(self, log: str, incarnation: str, starts: Mapping[int, Position]) -> None:
        """See :meth:`~cuckooflow.embedding_store.api.Store.open_log`."""
        starts = checked_starts(log, incarnation, starts)
        with self._lock:
            missing = self._marks.missing(log, incarnation, starts)
            if not missing and self._marks.incarnation(log) is not None:
                return
            if self._folder is not None:
                # On disk before in memory: a push can only be accepted where a restart knows the log.
                recorded = Marks(self._owned.buckets)
                recorded.restore_opened(self._marks.opened())
                recorded.open(log, incarnation, missing)
                self._folder.record_logs(recorded.opened())
            self._marks.open(log, incarnation, missing)

    def share_lookups(self, threads: int) -> None:
        """From now on so many threads of their own help with lookups of thousands of rows, where they are free.

        0, as in the beginning: none. For a process that answers others; not while a lookup is under way.
        """
        self._core.raw.set_helpers(threads)

    def lookup(self, ids: Mapping[str, Ids]) -> dict[str, Floats]:
        """Table name -> (n, dim) float32 weights for its (n,) uint64 ids.

        Raises:
            UnknownTable, BadShape, WrongShard.
        """
        rows = self._core.lookup(ids)[0]
        self._owned.check_ids(ids)
        return rows

    def dense(self) -> dict[str, Floats]:
        """All dense parameters; of a shard, its own."""
        return self._owned.own_dense(self._core.lookup({}, with_dense=True)[1])

    def pull(self, ids: Mapping[str, Ids]) -> Pulled:
        """Rows and all dense parameters, of one moment."""
        clock = self._clock  # before: a push in between counts as missed, whether these rows have it or not
        rows, dense, _ = self._core.lookup(ids, with_dense=True)
        self._owned.check_ids(ids)
        return Pulled(rows, self._owned.own_dense(dense), (clock,))

    def lookup_at(self, ids: Mapping[str, Ids], as_of_us: AsOf = None, with_dense: bool = False) -> RowsAt:
        """See :meth:`~cuckooflow.embedding_store.api.Store.lookup_at`."""
        rows = self._core.lookup_at(ids, as_of_us, with_dense)[0]
        self._owned.check_ids(ids)
        return rows._replace(dense=self._owned.own_dense(rows.dense))

    def push(
        self,
        range_: LogRange,
        tables: Mapping[str, AnyPush],
        dense: Mapping[str, Floats],
        event_time_us: int,
        read: ReadAt | None = None,
    ) -> PushAnswer:
        """See :meth:`~cuckooflow.embedding_store.api.Store.push`."""
        range_, event_time_us = checked_range(range_), checked_event_time(event_time_us)
        prepared = self._core.prepare(tables, dense)
        self._owned.check_ids({name: push.ids for name, push in tables.items()})
        self._owned.check_dense(dense)
        self._core.raw.await_cut_room()
        with self._lock:
            mask = self._marks.plan(range_)
            applied = int(np.count_nonzero(mask))
            missed = self._missed(read) if applied else 0
            if applied:
                # An empty push too: it moves the clock.
                prepared.apply(self._core.raw, self._owned.over_all(mask), event_time_us)
                self._marks.advance(range_, mask)
                self._event_time_us = max(event_time_us, self._event_time_us or event_time_us)
                self._pushes_applied += 1
                self._clock += bool(dense) or any(isinstance(push, TablePush) for push in tables.values())
                self._changes += 1
        return PushAnswer(applied, self._owned.buckets - applied, missed)

    def _missed(self, read: ReadAt | None) -> int:
        """Pushes since the rows were read."""
        if read is None or read.clock == (-1,):
            return 0
        if len(read.clock) != 1:
            raise BadShape(f"expected the clock of one shard, received {read.clock}")
        (clock,) = read.clock
        missed = max(0, self._clock - clock)  # a store that was restored since counts anew
        if read.staleness_max is not None and missed > read.staleness_max:
            raise StaleRows(
                f"expected rows that miss at most {read.staleness_max} pushes, received gradients of rows that miss "
                f"{missed}. Pull them anew."
            )
        return missed

    def marks(self, log: str) -> dict[int, tuple[Position, ...]]:
        """Partition -> the distinct marks over the buckets, ascending. Empty for an unopened log."""
        with self._lock:
            return self._marks.distinct(log)

    def log_incarnation(self, log: str) -> str | None:
        """The incarnation that ``open_log`` recorded, or None."""
        with self._lock:
            return self._marks.incarnation(log)

    def delta(self, consumer: str, full: bool = False) -> Delta:
        """See :meth:`~cuckooflow.embedding_store.api.Store.delta`. Lookups go on, pushes wait meanwhile."""
        with self._lock:
            base = self._consumers.base(consumer, full, self._core.raw.lost_epoch())
            tables, dense, version = self._core.raw.collect(base or 0, base is None)
            self._consumers.given(consumer, version)
            marks = self._marks.lowest()
        return Delta(
            version=Version(self._incarnation, version),
            base=None if base is None else Version(self._incarnation, base),
            tables={
                table.name: as_kind(table, TableDelta(ids, weights, gone))
                for table, (ids, weights, gone) in zip(self._config.tables, tables, strict=True)
            },
            dense=self._owned.own_dense(self._core.shaped(dense)),
            marks=marks,
        )

    def ack(self, consumer: str, version: Version) -> None:
        """The consumer has that delta safely; the next one stands on it.

        Raises:
            WrongIncarnation: the version is of another incarnation of the store.
            UnknownVersion: no such version was given to this consumer.
        """
        version = Version(*version)
        if version.incarnation != self._incarnation:
            raise WrongIncarnation(
                f"expected a version of incarnation {self._incarnation!r}, received {version.incarnation!r}: "
                "the store was restored since. Ask for a full delta."
            )
        with self._lock:
            self._consumers.ack(consumer, version.n)
            self._core.raw.forget_touched(self._consumers.floor(self._core.raw.lost_epoch()))

    def checkpoint(self) -> str:
        """Write a checkpoint into the data folder; its name. Pushes go on while it is written.

        Raises:
            StoreError: the store has no folder, or is closed.
            CheckpointGivenUp: see :class:`~cuckooflow.embedding_store.checkpoint_chain.CheckpointPolicy`.
        """
        with self._checkpoint_lock:
            if self._folder is None:
                raise StoreError("this store has no data folder, so no checkpoints. Create it with one.")
            if self._closed:
                raise StoreError("this store is closed, nothing was written. Open it again with open_store.")
            changes = 0

            def begin_cut(since: int) -> tuple[int, int, dict[str, Any]]:
                nonlocal changes
                with self._lock:
                    epoch, since = self._core.raw.begin_cut(since, saving=True)
                    changes = self._changes
                    return (
                        epoch,
                        since,
                        {
                            "rows": [table["rows"] for table in self._core.stats().values()],
                            "marks": self._marks.dump(),
                            "shard": list(self.shard),
                            "incarnation": self._incarnation,
                            "event_time_us": self._event_time_us,
                            "pushes_applied": self._pushes_applied,
                            "clocks": [self._core.raw.clock(i) for i in range(len(self._config.tables))],
                        },
                    )

            self._newest = write_checkpoint(
                self._folder.path, self._config, self._core, begin_cut, self._newest, self._policy
            )
            self._changes_in_checkpoint = changes
            return self._newest.name

    def rows(self, table: str) -> tuple[Ids, Floats]:
        """All rows of an embedding table, (n,) ids and (n, dim) weights, of one moment; takes the memory of a copy.

        Raises:
            UnknownTable.
            BadShape: the table is of another kind, whose rows are not weights: see :meth:`states`.
        """
        number = self._core.number_of_kind(table, ("embedding",))
        with self._checkpoint_lock:
            pieces = list(table_rows(self._core, number))
        empty = np.empty(0, np.uint64), np.empty((0, self._config.tables[number].dim), np.float32)
        ids, weights = zip(empty, *pieces, strict=True)
        return np.concatenate(ids), np.concatenate(weights)

    def states(self, table: str) -> tuple[Ids, npt.NDArray[np.uint8]]:
        """All rows of a counter or recent table: (n,) ids and their state as in a TableDelta, of one moment.

        Raises:
            UnknownTable.
            BadShape: it is an embedding table: see :meth:`rows`.
        """
        number = self._core.number_of_kind(table, ("counter", "recent"))
        with self._checkpoint_lock:
            pieces = list(table_states(self._core, number))
        empty = np.empty(0, np.uint64), np.empty((0, state_bytes(self._config.tables[number])), np.uint8)
        ids, states = zip(empty, *pieces, strict=True)
        return np.concatenate(ids), np.concatenate(states)

    def changed_since_checkpoint(self) -> bool:
        """Whether a push was applied that the newest checkpoint does not hold, or there is none."""
        return self._changes != self._changes_in_checkpoint

    def evict_expired(self) -> dict[str, int]:
        """Evict every row whose time-to-live is over by the newest event time pushed; table name -> how many.

        Piece by piece: pushes and lookups get their turn meanwhile.
        """
        evicted = {}
        for number, table in enumerate(self._config.tables):
            first = count = 0
            while first < self._core.raw.row_numbers(number):
                self._core.raw.await_cut_room()
                with self._lock:
                    found = self._core.raw.evict_expired(number, first, SWEEP_ROWS)
                    self._changes += found > 0
                first, count = first + SWEEP_ROWS, count + found
            evicted[table.name] = count
        return evicted

    def stats(self) -> dict[str, object]:
        """Counts since this incarnation began, and sizes.

        ``incarnation``, ``shard``, ``pushes_applied``, ``event_time_us``, ``tables``: name -> rows, bytes (of rows,
        free ones among them, index and filter, and of what is kept for consumers of deltas and checkpoints),
        load_factor, index_segments, not_admitted (pushed ids that
        were not admitted yet), filter_entries (ids that exact admission counts now), filter_forgotten (counts it
        gave up for want of memory), journal_entries, free_rows (whose memory new rows take first),
        evicted_expired, evicted_memory, refused_new_ids (for the memory limit), tombstones (kept for
        consumers of deltas and the next checkpoint), cut_bytes (of rows as they were when a checkpoint that is being
        written began), slots (slot number as a string -> rows).
        """
        with self._lock:
            return {
                "incarnation": self._incarnation,
                "shard": list(self.shard),
                "pushes_applied": self._pushes_applied,
                "event_time_us": self._event_time_us,
                "tables": self._core.stats(),
            }

    def close(self) -> None:
        """Release the data folder, without a checkpoint. Idempotent."""
        with self._checkpoint_lock:
            self._closed = True
            if self._folder is not None:
                self._folder.close()


def open_store(
    config: StoreConfig, data: Path, shard: Shard = WHOLE, policy: CheckpointPolicy = _DEFAULT_POLICY
) -> EmbeddedStore:
    """The store that lies in ``data``, restored, or a new one where there is none.

    ``policy``: when its checkpoints hold everything and when just what changed.

    Raises:
        ConfigDiffers: the folder holds a store of another configuration.
        WrongShard: the folder holds another shard.
        CheckpointDamaged: there are checkpoints, but none is whole.
        StoreLocked: the folder is in use.
        SpecError: the configuration is wrong.
    """
    check_config(config)
    data = Path(data)
    if not (data / "store.json").exists():
        return EmbeddedStore(config, data, shard, policy)
    folder = DataFolder(data)
    try:
        folder.claim(config, shard)
    finally:
        folder.close()
    return EmbeddedStore.restore(data, policy)
