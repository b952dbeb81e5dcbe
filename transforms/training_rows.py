"""Rows of the examples log as the trainer takes them: encoded features, targets, positions.

Columns read beside the features' (see the join's output): ``_offset``, ``_row``, ``_time``, ``_append``,
``label_<name>`` (null: unknown; positive where it is not 0), and where they are there ``_kind`` (0 primary,
1 late), ``_rate`` (the share that was kept of all-negative examples; of a late row, of examples such as the one that it
corrects) and ``_negative_kept`` (late rows: whether the earlier negative was trained on).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.embedding_store.api import Floats
from cuckooflow.models.base import Model, Targets
from cuckooflow.models.encoding import Encoded
from cuckooflow.models.example_columns import (
    example_column,
    is_late,
    label_values,
    numbers_of,
    sampling_rates,
    stands_for,
)
from cuckooflow.transforms.log_rows import LogRows, positions

#: How the loss of sampled negatives is made up for; see ``negative_sampling`` in the job.
Correction = Literal["none", "log_odds", "weight"]
#: What a late positive does; see :class:`LateLabels`.
LateMode = Literal["ignore", "take_back", "weights"]


@dataclass(frozen=True)
class LateLabels:
    """What becomes of a positive that comes when its impression was trained as a negative already.

    Attributes:
        mode: ``ignore``: nothing. ``take_back`` (default): it is trained, and the step of the negative is
            taken back, at today's parameters, where sampling had kept it. ``weights``: it is trained, and
            importance weights on every row make up for the negatives, see
            :mod:`cuckooflow.models.late_weights`.
        share: label -> of its positives the share that comes late, 0 to 1, for ``weights``; default 1: all.
    """

    mode: LateMode = "take_back"
    share: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingRows(LogRows):
    """B rows of one partition, in position order.

    Attributes:
        batches: the rows as they came.
        encoded: their features.
        targets: what each says about each label.
        labels: (B, L) uint8, 0 where unknown.
        metric_weights: (B, L) float32: what a row counts in the figures of the unsampled stream; 0 for
            late rows and unknown labels.
        rates: (B,) float32, ``_rate`` or 1.
        offsets, rows, times_us, appends_us: (B,) int64.
    """

    batches: tuple[pa.RecordBatch, ...]
    encoded: Encoded
    targets: Targets
    labels: npt.NDArray[np.uint8]
    metric_weights: Floats
    rates: Floats
    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    times_us: npt.NDArray[np.int64]
    appends_us: npt.NDArray[np.int64]

    def slice(self, start: int, stop: int) -> TrainingRows:
        """Rows ``start <= row < stop``, without a copy."""
        if start <= 0 and stop >= len(self):
            return self
        start, stop = max(start, 0), min(stop, len(self))
        return TrainingRows(
            batches=_slice(self.batches, start, stop),
            encoded=self.encoded.slice(start, stop),
            targets=self.targets.slice(start, stop),
            **{f.name: getattr(self, f.name)[start:stop] for f in fields(self)[3:]},
        )

    @staticmethod
    def concat(parts: Sequence[TrainingRows]) -> TrainingRows:
        """The rows of all parts, in order; there must be at least one part."""
        if len(parts) == 1:
            return parts[0]
        return TrainingRows(
            batches=tuple(batch for part in parts for batch in part.batches),
            encoded=Encoded.concat([part.encoded for part in parts]),
            targets=Targets.concat([part.targets for part in parts]),
            **{
                f.name: np.concatenate([getattr(part, f.name) for part in parts])
                for f in fields(TrainingRows)[3:]
            },
        )


def training_rows(
    model: Model, batch: pa.RecordBatch, correction: Correction, late_labels: LateLabels | None = None
) -> TrainingRows:
    """Encode a batch of the examples log.

    Args:
        correction: of negative sampling.
        late_labels: default: taken back.

    Raises:
        SpecError: a feature cannot take its column.
    """
    rows = batch.num_rows
    known = np.zeros((rows, len(model.labels)), np.bool_)
    labels = np.zeros((rows, len(model.labels)), np.uint8)
    for k, name in enumerate(model.labels):
        known[:, k], labels[:, k] = label_values(batch, name)
    rates = sampling_rates(batch)
    late = is_late(batch)
    kept = _integers(batch, "_negative_kept", np.uint8) != 0
    made_up = (1.0 / rates)[:, None].astype(np.float32)
    row_weight = np.broadcast_to(stands_for(batch)[:, None], known.shape)
    step_weight = row_weight if correction == "weight" else np.ones_like(row_weight)

    primary = (known & ~late[:, None]).astype(np.float32)
    positive = primary * step_weight * labels
    negative = primary * step_weight * (1 - labels)
    # A late row adds only the label that came.
    late_labels = late_labels or LateLabels()
    if late_labels.mode != "ignore":
        added = (late[:, None] & (labels == 1)).astype(np.float32)
        positive += added
        if late_labels.mode == "take_back":
            negative -= added * kept[:, None] * (made_up if correction == "weight" else 1.0)
    targets = Targets(positive.astype(np.float32), negative.astype(np.float32))
    if late_labels.mode == "weights":
        share = np.array([late_labels.share.get(name, 1.0) for name in model.labels], np.float32)
        shift = np.log(rates) if correction == "log_odds" else np.zeros_like(rates)
        targets = Targets(targets.positive, targets.negative, *_everywhere(share, shift))
    offsets, places = positions(batch)
    return TrainingRows(
        batches=(batch,),
        encoded=model.encode(batch),
        targets=targets,
        labels=labels,
        metric_weights=(primary * row_weight).astype(np.float32),
        rates=rates,
        offsets=offsets,
        rows=places,
        times_us=_integers(batch, "_time"),
        appends_us=_integers(batch, "_append"),
    )


def _integers(batch: pa.RecordBatch, name: str, dtype: type = np.int64) -> npt.NDArray[Any]:
    return numbers_of(example_column(batch, name), dtype, 0, batch.num_rows)


def _everywhere(of_labels: Floats, of_rows: Floats) -> tuple[Floats, Floats]:
    """Both as (B, L)."""
    shape = (len(of_rows), len(of_labels))
    return np.broadcast_to(of_labels, shape), np.broadcast_to(of_rows[:, None], shape)


def _slice(batches: Sequence[pa.RecordBatch], start: int, stop: int) -> tuple[pa.RecordBatch, ...]:
    parts: list[pa.RecordBatch] = []
    for batch in batches:
        low, high = max(start, 0), min(stop, batch.num_rows)
        if low < high:
            parts.append(batch.slice(low, high - low))
        start, stop = start - batch.num_rows, stop - batch.num_rows
    return tuple(parts)
