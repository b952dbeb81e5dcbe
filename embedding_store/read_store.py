"""The serving side of the tables: weights only, moved on by deltas."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cuckooflow.embedding_store.api import Delta, Floats, Ids, Optimizer, StoreConfig, TableConfig, Version
from cuckooflow.embedding_store.config_json import check_config
from cuckooflow.embedding_store.native_core import NativeCore, checked_ids
from cuckooflow.errors import SnapshotGap


@dataclass
class _Content:
    """One incarnation's tables; a full delta replaces all of it."""

    core: NativeCore
    incarnation: str | None = None
    #: version -> dense parameters; the newest and the one before, for lookups that began earlier.
    dense: dict[int, dict[str, Floats]] = field(default_factory=lambda: {1: {}})


class ReadStore:
    """Weights to look up while deltas are applied.

    Thread-safe: a lookup sees all tables before a delta or all after it, never a mixture. An id
    without a row has its initial value, as in the training store.

    Args:
        tables: as the training store has them; of their options only name, dim, init_stddev and seed count.
    """

    def __init__(self, tables: Sequence[TableConfig]) -> None:
        # No optimizer slots, no admission, no expiry: a replica holds what it is given.
        self._tables = tuple(
            replace(
                table,
                optimizer=Optimizer(kind="sgd"),
                admission=1,
                slot_admission={},
                ttl_us=0,
                slot_ttl_us={},
                memory_limit_bytes=0,
            )
            for table in tables
        )
        check_config(StoreConfig(self._tables))
        self._content = _Content(self._new_core())
        self._apply_lock = threading.Lock()

    @property
    def version(self) -> Version | None:
        """Of the last delta applied; None before the first."""
        content = self._content
        return None if content.incarnation is None else Version(content.incarnation, content.core.raw.epoch())

    def apply(self, delta: Delta) -> None:
        """Take a delta over, whole: a full one replaces everything.

        Of ids in a table's tombstones a lookup answers the initial values from then on.

        Lookups wait while a delta's rows are written (some 10 million rows a second) and not at all
        for a full one, which is built aside, with both in memory meanwhile.

        Raises:
            SnapshotGap: the delta does not stand on :attr:`version`.
            UnknownTable, BadShape: it does not fit the tables. Nothing was applied.
        """
        with self._apply_lock:
            content = self._content
            if delta.base is not None and delta.base != self.version:
                raise SnapshotGap(
                    f"expected a delta on {self.version}, received one on {delta.base}. Load the newest full one."
                )
            if delta.base is not None and delta.version.incarnation != content.incarnation:
                raise SnapshotGap(
                    f"expected a delta of incarnation {content.incarnation!r}, received {delta.version}. "
                    "Load the newest full one."
                )
            core = self._new_core() if delta.base is None else content.core
            rows = [core.checked_rows(name, table.ids, table.weights) for name, table in delta.tables.items()]
            gone = [
                (core.number(name), checked_ids(name, table.tombstones))
                for name, table in delta.tables.items()
            ]
            version, dense = delta.version.n, dict(delta.dense)
            if delta.base is None:
                core.raw.assign(rows, version)
                self._content = _Content(core, delta.version.incarnation, {version: dense})
                return
            before = core.raw.epoch()
            # Known before the rows are: a lookup of the new version must find its dense parameters.
            content.dense = {before: content.dense[before], version: dense}
            core.raw.assign(rows, version, gone)

    def lookup(self, ids: Mapping[str, Ids]) -> dict[str, Floats]:
        """Table name -> (n, dim) float32 weights for its (n,) uint64 ids.

        Raises:
            UnknownTable, BadShape.
        """
        return self._content.core.lookup(ids)[0]

    def dense(self) -> dict[str, Floats]:
        """All dense parameters; empty before the first delta."""
        return self.pull({})[1]

    def pull(self, ids: Mapping[str, Ids]) -> tuple[dict[str, Floats], dict[str, Floats], Version | None]:
        """Rows, dense parameters and the version that both are of."""
        while True:
            content = self._content
            rows, _, epoch = content.core.lookup(ids)
            dense = content.dense.get(epoch)
            # Absent only if two more deltas were applied since the lookup: then look again.
            if dense is not None:
                version = None if content.incarnation is None else Version(content.incarnation, epoch)
                return rows, dict(dense), version

    def rows(self, table: str) -> int:
        """How many rows a table holds.

        Raises:
            UnknownTable.
        """
        core = self._content.core
        return int(core.raw.table_stats(core.number(table))["rows"])

    def _new_core(self) -> NativeCore:
        return NativeCore(self._tables, (), 1)
