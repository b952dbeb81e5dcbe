"""The columns in which streaming features travel from where they are computed to the encoder, and what a model sees.

They are named ``@feature`` or ``@feature.part``, which no column of a log can be: ``@f.positive`` and ``@f.shown``
(float64, decayed sums) of a ``rate``, ``@f`` of a ``count`` (float64), of ``age`` and ``since_last`` (int64
microseconds, null: there was none) and of ``recent`` (lists of uint64 hashes, newest first).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.embedding_store.api import Floats
from cuckooflow.models.example_columns import example_column, numbers_of
from cuckooflow.models.features import FeatureSpec

#: Half of what the logarithm of a count, or of a time in seconds, comes to.
_COUNT_SCALE = 3.0
_TIME_SCALE = 6.0


def column_names(feature: FeatureSpec) -> tuple[str, ...]:
    """The columns of a streaming feature."""
    if feature.kind == "rate":
        return f"@{feature.name}.positive", f"@{feature.name}.shown"
    return (f"@{feature.name}",)


def streaming_numbers(feature: FeatureSpec, batch: pa.RecordBatch) -> Floats:
    """(n, ``feature.numbers``) float32 for a streaming feature that is no list.

    ``rate``: log odds of the smoothed rate minus those of the prior, and log(1 + examples) / 3. ``count``: the latter.
    ``age`` and ``since_last``: log(1 + seconds) / 6, and 1 where there was none. Without the columns: as if there
    had been nothing.
    """
    n = batch.num_rows
    columns = [example_column(batch, name) for name in column_names(feature)]
    if feature.kind in ("age", "since_last"):
        column = columns[0]
        known = np.zeros(n, np.bool_) if column is None else column.is_valid().to_numpy(zero_copy_only=False)
        seconds = np.maximum(numbers_of(column, np.float64, 0, n), 0.0) / 1e6
        return np.stack([np.where(known, np.log1p(seconds) / _TIME_SCALE, 0.0), ~known], axis=1).astype(
            np.float32
        )
    sums = [np.maximum(numbers_of(column, np.float64, 0.0, n), 0.0) for column in columns]
    counted = np.log1p(sums[-1]) / _COUNT_SCALE
    if feature.kind == "count":
        return counted[:, None].astype(np.float32)
    positive = sums[0] + feature.prior * feature.prior_weight
    negative = np.maximum(sums[1] - sums[0], 0.0) + (1 - feature.prior) * feature.prior_weight
    odds = np.log(positive / negative) - np.log(feature.prior / (1 - feature.prior))
    return np.stack([odds, counted], axis=1).astype(np.float32)


def listed_values(
    feature: FeatureSpec, batch: pa.RecordBatch
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Of a ``recent`` feature: (n,) lengths, and the hashes of all lists one after the other."""
    column = example_column(batch, column_names(feature)[0])
    if column is None:
        return np.zeros(batch.num_rows, np.int64), np.empty(0, np.uint64)
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths, column.flatten().to_numpy(zero_copy_only=False)
