"""What a trainer tells about the rows that the store took: figures, ticks, predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store.api import Floats
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.models.progressive import Progressive
from cuckooflow.transforms.training_options import TrainingOptions
from cuckooflow.transforms.training_output import (
    ARRIVALS_PER_TICK_MAX,
    Output,
    Tick,
    prediction_batch,
    shifted,
)
from cuckooflow.transforms.training_rows import Correction, TrainingRows


class TrainingReport:
    """Of one partition. Each row is told once, however often a restored store learns it again.

    Args:
        labels: of the model.
        options: windows and intervals of the figures.
        correction: of negative sampling; the figures are of the unsampled stream.
        predictions: give out every row's probabilities.

    Attributes:
        measured: rows before this position have been told.
        event_time_us: newest event time trained on, or None.
    """

    def __init__(
        self, labels: tuple[str, ...], options: TrainingOptions, correction: Correction, predictions: bool
    ) -> None:
        self.measured = Position(0)
        self.event_time_us: int | None = None
        self._labels = labels
        self._options = options
        self._correction = correction
        self._predictions = predictions
        self._progressive = Progressive(labels, options.metrics_window_us)
        self._emitted_us: int | None = None
        self._rate = 1.0
        self._trained = 0
        self._arrivals: list[npt.NDArray[np.int64]] = []

    def learned(self, rows: TrainingRows, probabilities: Floats, out: Output) -> None:
        """Count rows that the store took, with what was predicted before."""
        newest_us = int(rows.times_us.max())
        self.event_time_us = newest_us if self.event_time_us is None else max(newest_us, self.event_time_us)
        new = rows.before(self.measured)
        if new == len(rows):
            return
        rows, probabilities = rows.slice(new, len(rows)), probabilities[new:]
        last = rows.position(len(rows) - 1)
        self.measured = Position(last.offset, last.row + 1)
        self._trained += len(rows)
        self._rate = float(rows.rates[-1])
        self._arrivals.append(rows.appends_us[rows.labels.any(axis=1)])
        if self._predictions:
            out.predictions.append(prediction_batch(self._labels, rows, probabilities))
        if self._correction == "log_odds":
            probabilities = shifted(probabilities, rows.rates)
        self._progressive.add(rows.times_us, probabilities, rows.labels, rows.metric_weights)

    def tell(self, log: LogRange, first: Position, now_us: int, out: Output, end: bool) -> None:
        """Put a tick into ``out``, and the figures if they are due or the partition ends."""
        if end or self._emitted_us is None or now_us - self._emitted_us >= self._options.metrics_interval_us:
            self._emitted_us = now_us
            out.metrics += self._records(log, now_us)
        arrivals = np.concatenate(self._arrivals) if self._arrivals else np.empty(0, np.int64)
        if len(arrivals) > ARRIVALS_PER_TICK_MAX:
            picked = np.linspace(0, len(arrivals) - 1, ARRIVALS_PER_TICK_MAX).astype(np.int64)
            arrivals = np.sort(arrivals)[picked]
        out.ticks.append(
            Tick(
                log=log.log,
                partition=log.partition,
                first=first,
                polled_us=now_us,
                event_time_us=self.event_time_us,
                rows=self._trained,
                rate=self._rate,
                arrivals_us=tuple(arrivals.tolist()),
                metrics=tuple(out.metrics),
                end=end,
            )
        )
        self._trained = 0
        self._arrivals = []

    def _records(self, log: LogRange, now_us: int) -> list[dict[str, Any]]:
        return [
            {
                "kind": "progressive",
                "log": log.log,
                "partition": log.partition,
                "label": label,
                "window_start_us": start,
                "window_us": self._options.metrics_window_us,
                "polled_us": now_us,
                "position": list(self.measured),
                **figures.to_json(),
            }
            for start, label, figures in self._progressive.take()
        ]
