"""The serving side of the tables: weights only, moved on by deltas."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cuckooflow.embedding_store.api import Delta, Floats, Ids, Optimizer, StoreConfig, TableConfig, Version
from cuckooflow.embedding_store.config_json import check_config
from cuckooflow.embedding_store.kinds import AsOf, RowsAt
from cuckooflow.embedding_store.native_core import NativeCore, RowFormat, checked_ids
from cuckooflow.errors import SnapshotGap, SpecError


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
        tables: as the training store has them; of their options only name, dim, kind, half-lives,
            init_stddev and seed count.
        rows: how weights are kept. ``float16`` takes half the bytes of a ``float32`` row besides its header
            of 16, and answers within 2^-11 of a weight's size (within 2^-25 absolutely for weights below
            2^-14; finite ones over 65504 become that). ``int8`` takes a quarter, and answers within 1/254
            of the row's largest weight; a row that holds NaN or an infinity reads as NaN throughout.
            Ids without a row answer their exact initial values.
    """

    def __init__(self, tables: Sequence[TableConfig], rows: RowFormat = "float32") -> None:
        if rows not in ("float32", "float16", "int8"):
            raise SpecError(f"rows: expected float32, float16 or int8, received {rows!r}")
        self._rows = rows
        self._tables = tuple(_in_read_role(table) for table in tables)
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

        Dense parameters that a delta does not hold stay as they are.
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
            rows = [core.checked_delta(name, table) for name, table in delta.tables.items()]
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
            content.dense = {before: content.dense[before], version: content.dense[before] | dense}
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

    def lookup_at(self, ids: Mapping[str, Ids], as_of_us: AsOf = None, with_dense: bool = False) -> RowsAt:
        """See :meth:`~cuckooflow.embedding_store.api.Store.lookup_at`."""
        rows, _ = self.pull_at(ids, as_of_us)
        return rows if with_dense else rows._replace(dense={})

    def pull_at(self, ids: Mapping[str, Ids], as_of_us: AsOf = None) -> tuple[RowsAt, Version | None]:
        """Rows of tables of any kind, dense parameters and the version that all are of.

        Raises:
            UnknownTable, BadShape.
        """
        while True:
            content = self._content
            rows, epoch = content.core.lookup_at(ids, as_of_us)
            dense = content.dense.get(epoch)
            # As in pull.
            if dense is not None:
                version = None if content.incarnation is None else Version(content.incarnation, epoch)
                return rows._replace(dense=dict(dense)), version

    def rows(self, table: str) -> int:
        """How many rows a table holds.

        Raises:
            UnknownTable.
        """
        core = self._content.core
        return int(core.raw.table_stats(core.number(table))["rows"])

    def stats(self) -> dict[str, dict[str, float]]:
        """Table name -> ``rows``, ``row_bytes``, ``bytes`` (of rows and index), ``load_factor``."""
        core = self._content.core
        return {
            name: {
                "row_bytes": core.raw.row_bytes(core.number(name)),
                **{key: found[key] for key in ("rows", "bytes", "load_factor")},
            }
            for name, found in core.stats().items()
        }

    def _new_core(self) -> NativeCore:
        return NativeCore(self._tables, (), 1, self._rows)


def _in_read_role(table: TableConfig) -> TableConfig:
    """No optimizer slots, no admission, no expiry: a replica holds what it is given."""
    lasting = replace(table, ttl_us=0, slot_ttl_us={}, memory_limit_bytes=0)
    if table.kind != "embedding":
        return lasting
    return replace(lasting, optimizer=Optimizer(kind="sgd"), admission=1, slot_admission={})
