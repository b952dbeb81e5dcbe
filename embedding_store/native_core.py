"""The native core of a configuration, and the checks that its arrays go through first.

The core trusts its callers: every array is checked here for dtype, shape and contiguity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.api import (
    SLOT_BITS,
    AnyPush,
    DenseConfig,
    Floats,
    Ids,
    Optimizer,
    StoreConfig,
    TableConfig,
    TableDelta,
    TablePush,
)
from cuckooflow.embedding_store.config_json import filter_bytes
from cuckooflow.embedding_store.dense_init import initial_dense
from cuckooflow.embedding_store.kind_checks import (
    check_as_of,
    check_push_kind,
    checked_array,
    checked_times,
    counter_rows,
    recent_rows,
    state_bytes,
    times_of,
)
from cuckooflow.embedding_store.kinds import AsOf, CounterPush, RecentPush, RowsAt
from cuckooflow.errors import BadShape, NonFiniteGradient, UnknownTable

#: How rows of weights are kept; all but float32 are for tables in read role.
RowFormat = Literal["float32", "float16", "int8"]


class NativeCore:
    """Tables and dense parameters by name, over the native core. Thread-safe as the core is."""

    def __init__(
        self,
        tables: Sequence[TableConfig],
        dense: Sequence[DenseConfig],
        buckets: int,
        rows: RowFormat = "float32",
        delta_backlog_max: int = (1 << 63) - 1,
    ) -> None:
        self.tables = tuple(tables)
        self.dense = tuple(dense)
        self.table_number = {table.name: i for i, table in enumerate(self.tables)}
        self.dense_number = {parameter.name: i for i, parameter in enumerate(self.dense)}
        self.raw = _native.Core(buckets, delta_backlog_max)
        for table in self.tables:
            self.raw.add_table(
                dim=table.dim,
                optimizer=_optimizer(table.optimizer if table.kind == "embedding" else Optimizer("sgd")),
                clip_norm=table.clip_norm,
                l2=table.l2,
                stddev=table.init_stddev if table.kind == "embedding" else 0.0,
                seed=table.seed,
                admission=_by_slot(table.admission, table.slot_admission, np.uint8),
                admission_mode=table.admission_mode,
                filter_bytes=filter_bytes(table),
                ttl_us=_by_slot(table.ttl_us, table.slot_ttl_us, np.int64),
                memory_limit_bytes=table.memory_limit_bytes,
                evict_least_recent=table.memory_policy == "evict_least_recent",
                rows=rows if table.kind == "embedding" else table.kind,
                half_lives_us=list(table.half_lives_us),
            )
        for parameter in self.dense:
            self.raw.add_dense(
                optimizer=_optimizer(parameter.optimizer),
                value=initial_dense(parameter).ravel(),
                bucket=dense_bucket(parameter.name, buckets),
            )

    @classmethod
    def of(cls, config: StoreConfig) -> NativeCore:
        return cls(config.tables, config.dense, config.buckets, delta_backlog_max=config.delta_backlog_max)

    def lookup(
        self, ids: Mapping[str, Ids], with_dense: bool = False
    ) -> tuple[dict[str, Floats], dict[str, Floats], int]:
        """Rows, dense parameters (where asked for) and the epoch, all of one moment.

        Raises:
            UnknownTable, BadShape.
        """
        for name in ids:
            kind = self.tables[self.number(name)].kind
            if kind != "embedding":
                raise BadShape(f"table {name!r} is of kind {kind}, which has no weights. Use lookup_at.")
        asked = [(self.number(name), checked_ids(name, values)) for name, values in ids.items()]
        rows, dense, epoch, _ = self.raw.lookup(asked, with_dense)
        return dict(zip(ids, rows, strict=True)), self.shaped(dense) if with_dense else {}, epoch

    def lookup_at(
        self, ids: Mapping[str, Ids], as_of_us: AsOf, with_dense: bool = False
    ) -> tuple[RowsAt, int]:
        """Rows of tables of any kind, dense parameters and the epoch, all of one moment.

        Raises:
            UnknownTable, BadShape.
        """
        self.check_times(ids, as_of_us)
        checked = {name: checked_ids(name, values) for name, values in ids.items()}
        kinds = {name: self.tables[self.number(name)].kind for name in ids}
        embeddings = [name for name in ids if kinds[name] == "embedding"]
        streams = [name for name in ids if kinds[name] != "embedding"]
        rows, dense, epoch, answers = self.raw.lookup(
            [(self.number(name), checked[name]) for name in embeddings],
            with_dense,
            [
                (self.number(name), checked[name], times_of(name, as_of_us, len(checked[name])))
                for name in streams
            ],
        )
        found = dict(zip(streams, answers, strict=True))
        counters = {name: counter_rows(*found[name]) for name in streams if kinds[name] == "counter"}
        recents = {name: recent_rows(*found[name]) for name in streams if kinds[name] == "recent"}
        weights = dict(zip(embeddings, rows, strict=True))
        return RowsAt(weights, counters, recents, self.shaped(dense) if with_dense else {}), epoch

    def check_times(self, ids: Mapping[str, Ids], as_of_us: AsOf) -> None:
        """Refuse times of tables that are not there, or that do not fit their ids.

        Raises:
            UnknownTable, BadShape.
        """
        check_as_of(as_of_us)
        if as_of_us is not None and not isinstance(as_of_us, int | np.integer):
            for name in as_of_us:
                self.number(name)
            for name, values in ids.items():
                times_of(name, as_of_us, len(checked_ids(name, values)))

    def shaped(self, flat: Sequence[Floats]) -> dict[str, Floats]:
        """Dense parameters by name, in their shapes."""
        return {
            parameter.name: value.reshape(parameter.shape)
            for parameter, value in zip(self.dense, flat, strict=True)
        }

    def prepare(self, tables: Mapping[str, AnyPush], dense: Mapping[str, Floats]) -> Any:
        """A push, checked and its duplicates summed, without holding any lock.

        Raises:
            UnknownTable, BadShape, NonFiniteGradient.
        """
        prepared = _native.Push()
        for name, push in tables.items():
            check_push_kind(self.tables[self.number(name)], push)
        checked_tables = [
            (name, *self._checked_push(name, push))
            for name, push in tables.items()
            if isinstance(push, TablePush)
        ]
        checked_dense = [(name, self._checked_dense(name, gradient)) for name, gradient in dense.items()]
        for name, ids, gradients, counts in checked_tables:
            if not prepared.add_table(self.raw, self.table_number[name], ids, gradients, counts):
                raise NonFiniteGradient(_non_finite(f"table {name!r}"))
        for name, push in tables.items():
            if not isinstance(push, TablePush) and not self._add_stream(prepared, name, push):
                raise NonFiniteGradient(_non_finite(f"table {name!r}"))
        for name, gradient in checked_dense:
            if not prepared.add_dense(self.dense_number[name], gradient):
                raise NonFiniteGradient(_non_finite(f"dense parameter {name!r}"))
        return prepared

    def _add_stream(self, prepared: Any, name: str, push: CounterPush | RecentPush) -> bool:
        number = self.number(name)
        ids = checked_ids(name, push.ids)
        times = checked_times(name, push.times_us, len(ids))
        if isinstance(push, CounterPush):
            shape = (len(ids), self.tables[number].dim)
            amounts = checked_array(name, "amounts", push.amounts, shape, np.float32)
            return bool(prepared.add_counters(number, ids, amounts, times))
        values = checked_array(name, "values", push.values, (len(ids),), np.uint64)
        prepared.add_recents(number, ids, values, times)
        return True

    def checked_delta(self, name: str, delta: TableDelta) -> tuple[int, Ids, Floats]:
        """The table's number and a delta's rows, fit for the core.

        Raises:
            UnknownTable, BadShape.
        """
        table = self.tables[self.number(name)]
        if table.kind == "embedding":
            return self.checked_rows(name, delta.ids, delta.weights)
        ids = checked_ids(name, delta.ids)
        if not len(ids):
            return self.number(name), ids, np.empty((0, state_bytes(table) // 4), np.float32)
        shape = (len(ids), state_bytes(table))
        state = checked_array(name, f"a {table.kind}'s state", delta.state, shape, np.uint8)
        return self.number(name), ids, state.view(np.float32)

    def checked_rows(self, name: str, ids: Ids, weights: Floats) -> tuple[int, Ids, Floats]:
        """The table's number and its rows, fit for the core.

        Raises:
            UnknownTable, BadShape.
        """
        number = self.number(name)
        ids = checked_ids(name, ids)
        return number, ids, _checked_floats(name, weights, (len(ids), self.tables[number].dim), "weights")

    def stats(self) -> dict[str, dict[str, Any]]:
        """Table name -> what :meth:`~cuckooflow.embedding_store.store.EmbeddedStore.stats` says of it."""
        return {table.name: self.raw.table_stats(i) for i, table in enumerate(self.tables)}

    def number(self, name: str) -> int:
        """A table's number in the native core.

        Raises:
            UnknownTable.
        """
        if name not in self.table_number:
            raise UnknownTable(
                f"expected one of the tables {sorted(self.table_number)}, received {name!r}. "
                "Name the table as in the store's configuration."
            )
        return self.table_number[name]

    def number_of_kind(self, name: str, kinds: Sequence[str]) -> int:
        """The number of a table that must be of one of these kinds.

        Raises:
            UnknownTable, BadShape.
        """
        number = self.number(name)
        kind = self.tables[number].kind
        if kind not in kinds:
            raise BadShape(
                f"expected a table of kind {' or '.join(kinds)}, received {name!r}, which is of kind {kind}."
            )
        return number

    def _checked_push(self, name: str, push: TablePush) -> tuple[Ids, Floats, npt.NDArray[np.uint32] | None]:
        number = self.number(name)
        ids = checked_ids(name, push.ids)
        shape = (len(ids), self.tables[number].dim)
        gradients = _checked_floats(name, push.gradients, shape, "gradients")
        counts = push.counts
        if counts is not None:
            counts = checked_array(name, "counts", counts, ids.shape, np.uint32)
        return ids, gradients, counts

    def _checked_dense(self, name: str, gradient: Floats) -> Floats:
        if name not in self.dense_number:
            raise UnknownTable(
                f"expected one of the dense parameters {sorted(self.dense_number)}, received {name!r}. "
                "Name the parameter as in the store's configuration."
            )
        shape = self.dense[self.dense_number[name]].shape
        return _checked_floats(name, gradient, shape, "gradients").ravel()


def dense_bucket(name: str, buckets: int) -> int:
    """The logical bucket that a dense parameter belongs to, by its name alone."""
    raw = name.encode()
    name_hash = _native.hash_strings32(np.array([0, len(raw)], np.int32), np.frombuffer(raw, np.uint8), 0)
    return int(_native.buckets_of(name_hash, buckets)[0])


def checked_ids(name: str, ids: Ids) -> Ids:
    """A table's ids, contiguous.

    Raises:
        BadShape: not one axis of uint64.
    """
    if not isinstance(ids, np.ndarray) or ids.dtype != np.uint64 or ids.ndim != 1:
        raise BadShape(f"table {name!r}: expected ids of shape (n,) and dtype uint64, received {_seen(ids)}")
    return np.ascontiguousarray(ids)


def _checked_floats(name: str, values: Floats, shape: tuple[int, ...], what: str) -> Floats:
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.shape != shape:
        raise BadShape(
            f"{name!r}: expected {what} of shape {shape} and dtype float32, received {_seen(values)}"
        )
    # Not ascontiguousarray: that would give a scalar parameter an axis.
    return np.require(values, requirements="C")


def _seen(values: object) -> str:
    if isinstance(values, np.ndarray):
        return f"{values.shape} and {values.dtype}"
    return f"a {type(values).__name__}; make it a numpy array"


def _non_finite(where: str) -> str:
    return (
        f"expected finite gradients, received NaN or infinity for {where}. "
        "Nothing was applied; set the batch aside and push its range empty."
    )


def _by_slot(value: int, of_slots: Mapping[int, int], dtype: type[np.integer[Any]]) -> npt.NDArray[Any]:
    """One value for all slots, or one for each where some differ."""
    if not of_slots:
        return np.array([value], dtype)
    values = np.full(1 << SLOT_BITS, value, dtype)
    for slot, differing in of_slots.items():
        values[slot] = differing
    return values


def _optimizer(options: Optimizer) -> Any:
    return _native.Optimizer(
        kind=options.kind,
        learning_rate=options.learning_rate,
        initial_accumulator=options.initial_accumulator,
        beta1=options.beta1,
        beta2=options.beta2,
        epsilon=options.epsilon,
        beta=options.beta,
        l1=options.l1,
        l2=options.l2,
    )
