"""The native core of a configuration, and the checks that its arrays go through first.

The core trusts its callers: every array is checked here for dtype, shape and contiguity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.api import (
    SLOT_BITS,
    DenseConfig,
    Floats,
    Ids,
    Optimizer,
    StoreConfig,
    TableConfig,
    TablePush,
)
from cuckooflow.embedding_store.dense_init import initial_dense
from cuckooflow.errors import BadShape, NonFiniteGradient, UnknownTable


class NativeCore:
    """Tables and dense parameters by name, over the native core. Thread-safe as the core is."""

    def __init__(self, tables: Sequence[TableConfig], dense: Sequence[DenseConfig], buckets: int) -> None:
        self.tables = tuple(tables)
        self.dense = tuple(dense)
        self.table_number = {table.name: i for i, table in enumerate(self.tables)}
        self.dense_number = {parameter.name: i for i, parameter in enumerate(self.dense)}
        self.raw = _native.Core(buckets)
        for table in self.tables:
            admission = _admissions(table)
            self.raw.add_table(
                dim=table.dim,
                optimizer=_optimizer(table.optimizer),
                stddev=table.init_stddev,
                seed=table.seed,
                admission=admission,
                filter_bytes=table.filter_bytes if int(admission.max()) > 1 else 0,
            )
        for parameter in self.dense:
            self.raw.add_dense(
                optimizer=_optimizer(parameter.optimizer),
                value=initial_dense(parameter).ravel(),
                bucket=dense_bucket(parameter.name, buckets),
            )

    @classmethod
    def of(cls, config: StoreConfig) -> NativeCore:
        return cls(config.tables, config.dense, config.buckets)

    def lookup(
        self, ids: Mapping[str, Ids], with_dense: bool = False
    ) -> tuple[dict[str, Floats], dict[str, Floats], int]:
        """Rows, dense parameters (where asked for) and the epoch, all of one moment.

        Raises:
            UnknownTable, BadShape.
        """
        asked = [(self.number(name), checked_ids(name, values)) for name, values in ids.items()]
        rows, dense, epoch = self.raw.lookup(asked, with_dense)
        return dict(zip(ids, rows, strict=True)), self.shaped(dense) if with_dense else {}, epoch

    def shaped(self, flat: Sequence[Floats]) -> dict[str, Floats]:
        """Dense parameters by name, in their shapes."""
        return {
            parameter.name: value.reshape(parameter.shape)
            for parameter, value in zip(self.dense, flat, strict=True)
        }

    def prepare(self, tables: Mapping[str, TablePush], dense: Mapping[str, Floats]) -> Any:
        """A push, checked and its duplicates summed, without holding any lock.

        Raises:
            UnknownTable, BadShape, NonFiniteGradient.
        """
        prepared = _native.Push()
        checked_tables = [(name, *self._checked_push(name, push)) for name, push in tables.items()]
        checked_dense = [(name, self._checked_dense(name, gradient)) for name, gradient in dense.items()]
        for name, ids, gradients, counts in checked_tables:
            if not prepared.add_table(self.raw, self.table_number[name], ids, gradients, counts):
                raise NonFiniteGradient(_non_finite(f"table {name!r}"))
        for name, gradient in checked_dense:
            if not prepared.add_dense(self.dense_number[name], gradient):
                raise NonFiniteGradient(_non_finite(f"dense parameter {name!r}"))
        return prepared

    def checked_rows(self, name: str, ids: Ids, weights: Floats) -> tuple[int, Ids, Floats]:
        """The table's number and its rows, fit for the core.

        Raises:
            UnknownTable, BadShape.
        """
        number = self.number(name)
        ids = checked_ids(name, ids)
        return number, ids, _checked_floats(name, weights, (len(ids), self.tables[number].dim), "weights")

    def stats(self) -> dict[str, dict[str, float]]:
        """Table name -> rows, bytes, load_factor, index_segments, not_admitted, journal_entries."""
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

    def _checked_push(self, name: str, push: TablePush) -> tuple[Ids, Floats, npt.NDArray[np.uint32] | None]:
        number = self.number(name)
        ids = checked_ids(name, push.ids)
        shape = (len(ids), self.tables[number].dim)
        gradients = _checked_floats(name, push.gradients, shape, "gradients")
        counts = push.counts
        if counts is not None:
            if counts.dtype != np.uint32 or counts.shape != ids.shape:
                raise BadShape(
                    f"table {name!r}: expected counts of shape {ids.shape} and dtype uint32, received "
                    f"{counts.shape} and {counts.dtype}"
                )
            counts = np.ascontiguousarray(counts)
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


def _admissions(table: TableConfig) -> npt.NDArray[np.uint8]:
    if not table.slot_admission:
        return np.array([table.admission], np.uint8)
    admissions = np.full(1 << SLOT_BITS, table.admission, np.uint8)
    for slot, admission in table.slot_admission.items():
        admissions[slot] = admission
    return admissions


def _optimizer(options: Optimizer) -> Any:
    return _native.Optimizer(
        kind=options.kind,
        learning_rate=options.learning_rate,
        initial_accumulator=options.initial_accumulator,
        beta1=options.beta1,
        beta2=options.beta2,
        epsilon=options.epsilon,
    )
