"""Columns of the examples log as numpy: what the trainer and streaming features read of a row besides its features.

See the join's output for what they mean: ``label_<name>`` (null: unknown; positive where it is not 0), and where they are
there ``_kind`` (0 primary, 1 late) and ``_rate`` (the share that was kept of examples that are negative in every label).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.embedding_store.api import Floats


def example_column(batch: pa.RecordBatch, name: str) -> pa.Array | None:
    """The column of this name, None where there is none."""
    index = batch.schema.get_field_index(name)
    return None if index < 0 else batch.column(index)


def numbers_of(column: pa.Array | None, dtype: type, default: float = 0, rows: int = 0) -> npt.NDArray[Any]:
    """The column as numpy with nulls as ``default``; ``rows`` times the default where it is absent."""
    if column is None or pa.types.is_null(column.type):
        return np.full(rows if column is None else len(column), default, dtype)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if column.null_count:
        column = column.fill_null(pa.scalar(default, column.type))
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    return values


def label_values(batch: pa.RecordBatch, name: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Of a label (n,) bool: where it is known, and where it is positive."""
    column = example_column(batch, f"label_{name}")
    if column is None:
        nowhere = np.zeros(batch.num_rows, np.bool_)
        return nowhere, nowhere
    known = column.is_valid().to_numpy(zero_copy_only=False)
    return known, numbers_of(column, np.float64) != 0


def is_late(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """(n,) bool: rows that correct an earlier one."""
    return numbers_of(example_column(batch, "_kind"), np.int8, 0, batch.num_rows) == 1


def sampling_rates(batch: pa.RecordBatch) -> Floats:
    """(n,) float32: ``_rate``, 1 where there is none."""
    found: Floats = numbers_of(example_column(batch, "_rate"), np.float32, 1.0, batch.num_rows)
    return found


def stands_for(batch: pa.RecordBatch) -> Floats:
    """(n,) float32: how many examples of the unsampled stream a row stands for: 1/rate where it was sampled.

    Those are negative in every label of the log, the model's or not, and not late.
    """
    sampled = ~is_late(batch)
    for index, name in enumerate(batch.schema.names):
        if name.startswith("label_"):
            sampled = sampled & (numbers_of(batch.column(index), np.float64) == 0)
    return np.where(sampled, 1.0 / sampling_rates(batch), 1.0).astype(np.float32)
