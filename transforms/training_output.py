"""What a trainer gives back: ticks, figures, dead letters, predictions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cuckooflow.embedding_store.api import Floats
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.transforms.dead_letters import DEAD_LETTER_SCHEMA
from cuckooflow.transforms.training_rows import TrainingRows

#: Append times of newly trained actions that one tick carries, at most.
ARRIVALS_PER_TICK_MAX = 64

#: A feature cannot take the type that its column has in this row.
NOT_ENCODABLE = "not_encodable"
#: The loss or a gradient of the row's batch is NaN or infinite.
GRADIENT_NOT_FINITE = "gradient_not_finite"


@dataclass(frozen=True)
class Tick:
    """News of a partition, for whoever makes snapshots.

    Attributes:
        log, partition: which.
        first: up to where it was trained.
        polled_us: the poller's clock, microseconds; paces snapshots.
        event_time_us: newest event time trained on so far, or None.
        rows: rows trained since the last tick.
        rate: the sampling rate of the newest row, or 1.
        arrivals_us: a sample of the append times of the actions trained since the last tick.
        metrics: the records that went out on the metrics output with this tick.
        end: nothing will follow from this partition.
    """

    log: str
    partition: int
    first: Position
    polled_us: int
    event_time_us: int | None
    rows: int
    rate: float
    arrivals_us: tuple[int, ...]
    metrics: tuple[Mapping[str, Any], ...] = ()
    end: bool = False


@dataclass
class Output:
    """What came of one call.

    Attributes:
        ticks: at most one.
        metrics: progressive figures, JSON-ready increments: those of one window and label add up. Besides
            the figures (see ``LabelMetrics.to_json``) each says ``kind`` ("progressive"), ``log``,
            ``partition``, ``label``, ``window_start_us``, ``window_us``, ``polled_us`` and ``position``
            (up to where it was trained).
        dead: batches of dead letters.
        counted: name of a counter of :mod:`~cuckooflow.transforms.metric_names` -> by how much it moved.
        predictions: batches of ``_offset``, ``_row``, ``_time`` and for each label ``label_<name>`` and
            ``p_<name>`` (float32, before learning, of the sampled stream), where they are asked for.
    """

    ticks: list[Tick] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    dead: list[pa.RecordBatch] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    predictions: list[pa.RecordBatch] = field(default_factory=list)


def shifted(probabilities: Floats, rates: Floats) -> Floats:
    """Probabilities of the unsampled stream, from those of one where ``rates`` of the negatives were kept.

    The log odds move by ln(rate). Shapes (B, L) and (B,).
    """
    kept = rates[:, None] * probabilities
    result: Floats = (kept / (1.0 - probabilities + kept)).astype(np.float32)
    return result


def prediction_batch(labels: tuple[str, ...], rows: TrainingRows, probabilities: Floats) -> pa.RecordBatch:
    """Positions, labels and probabilities of rows; see :class:`Output`."""
    columns: dict[str, Any] = {"_offset": rows.offsets, "_row": rows.rows, "_time": rows.times_us}
    for k, label in enumerate(labels):
        columns[f"label_{label}"] = rows.labels[:, k]
        columns[f"p_{label}"] = probabilities[:, k]
    return pa.record_batch({name: pa.array(values) for name, values in columns.items()})


def dead_rows(
    batches: Sequence[pa.RecordBatch], range_: LogRange, reason: str, detail: str
) -> pa.RecordBatch:
    """Dead letters for all rows of some batches of one partition; ``value`` is the row as JSON."""
    rows = [row for batch in batches for row in batch.to_pylist()]
    return pa.RecordBatch.from_pylist(
        [
            {
                "log": range_.log,
                "partition": range_.partition,
                "offset": row["_offset"],
                "row": row["_row"],
                "reason": reason,
                "detail": detail,
                "value": json.dumps(row, default=str).encode(),
                "append": row.get("_append"),
            }
            for row in rows
        ],
        schema=DEAD_LETTER_SCHEMA,
    )
