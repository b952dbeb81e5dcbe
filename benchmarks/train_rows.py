"""The rows of benchmarks/train.py: ids with few that are frequent, and a label that follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.spec import ModelSpec
from cuckooflow.transforms.ranges import RangeHeader, attach_range

FIELDS = 26
#: How many values each column has: from a few to many, as the 26 of advertising logs; a million in all.
VALUES = tuple(int(count) for count in np.geomspace(4, 400_000, FIELDS))
#: Where each column's values begin in one table of all, and how many rows that has.
BEGINS = np.cumsum([0, *VALUES[:-1]])
ALL_VALUES = sum(VALUES)
DIM = 16
HIDDEN = (256, 128, 64)
LABEL = "click"
LOG = "examples"
#: Event time between two rows.
EVERY_US = 200

COLUMNS = tuple(f"c{field}" for field in range(FIELDS))
FEATURES = tuple(FeatureSpec(name=column) for column in COLUMNS)
#: Ten rates and two histories besides.
STREAMING = (
    *(
        FeatureSpec(name=f"rate{k}", kind="rate", by=by, label=LABEL, half_life="7d")
        for k, by in enumerate(
            [(column,) for column in COLUMNS[:6]] + [(COLUMNS[0], column) for column in COLUMNS[1:5]]
        )
    ),
    FeatureSpec(
        name="yes", kind="recent", by=COLUMNS[:1], column=COLUMNS[1], label=LABEL, max_length=10, like="c1"
    ),
    FeatureSpec(
        name="no",
        kind="recent",
        by=COLUMNS[:1],
        column=COLUMNS[1],
        label=LABEL,
        when="negative",
        max_length=10,
        like="c1",
    ),
)
MODEL = ModelSpec(kind="deepfm", labels=(LABEL,), dim=DIM, hidden=HIDDEN)


@dataclass(frozen=True)
class Rows:
    """N rows.

    Attributes:
        values: (N, FIELDS) int64, 0 to VALUES - 1 of each column.
        labels: (N,) uint8.
    """

    values: npt.NDArray[np.int64]
    labels: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """(N, FIELDS): each value's row in one table of all columns."""
        return self.values + BEGINS

    def elements(self, size: int, partition: int = 0) -> Iterator[pa.RecordBatch]:
        """What the source of a training pipeline gives: a partition of a log, in elements of ``size`` rows."""
        n = len(self)
        times = pa.array(EVERY_US * np.arange(n, dtype=np.int64))
        columns = {column: pa.array(self.values[:, k]) for k, column in enumerate(COLUMNS)}
        batch = pa.record_batch(
            {
                **columns,
                f"label_{LABEL}": pa.array(self.labels),
                "_time": times,
                "_append": times,
                "_offset": pa.array(np.arange(n)),
                "_row": pa.array(np.zeros(n, np.int32)),
            }
        )
        for start in range(0, n, size):
            stop = min(start + size, n)
            range_ = LogRange(LOG, "benchmark", partition, Position(start), Position(stop))
            yield attach_range(
                batch.slice(start, stop - start), RangeHeader(range_, Position(0), polled_us=start)
            )


def generate(rows: int, seed: int = 1) -> Rows:
    """Values by a power law, labels by a logistic regression on them."""
    rng = np.random.default_rng(seed)
    uniform = rng.random((rows, FIELDS), np.float32)
    values = (np.array(VALUES, np.float32) * uniform * uniform * uniform).astype(np.int64)
    weights = np.random.default_rng(0).standard_normal(ALL_VALUES).astype(np.float32) / np.sqrt(FIELDS)
    logits = weights[values + BEGINS].sum(axis=1) * 2 - 1
    labels = rng.random(rows) < 1 / (1 + np.exp(-logits))
    return Rows(values, labels.astype(np.uint8))
