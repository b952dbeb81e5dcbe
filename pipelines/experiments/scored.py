"""Which rows of a pass are scored, and the figures of one variant over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cuckooflow.embedding_store.api import Floats
from cuckooflow.errors import NoExamples
from cuckooflow.models.progressive import LabelMetrics, Progressive
from cuckooflow.pipelines.curves import Curve, total
from cuckooflow.pipelines.experiments.timeline import Timeline
from cuckooflow.transforms.training_output import shifted
from cuckooflow.transforms.training_rows import Correction, TrainingRows

#: Points of a curve over the scored time.
CURVE_POINTS = 24


@dataclass(frozen=True)
class Scored:
    """The rows that are scored: all from ``first`` on, up to ``last``, half open.

    Attributes:
        first, last: places in the timeline.
        from_us, until_us: event times of the first and the last of them, microseconds.
    """

    first: int
    last: int
    from_us: int
    until_us: int

    @property
    def window_us(self) -> int:
        """Event time that a point of a curve covers."""
        return max(1, -(-(self.until_us - self.from_us + 1) // CURVE_POINTS))


def after_warm_up(timeline: Timeline, share: float) -> Scored:
    """All rows after the first ``share`` of them, 0 up to 1.

    Raises:
        NoExamples: none is left.
    """
    first = int(len(timeline) * share)
    return scored(timeline, first, len(timeline))


def scored(timeline: Timeline, first: int, last: int) -> Scored:
    """Rows ``first`` to ``last``, half open.

    Raises:
        NoExamples: there are none.
    """
    if first >= last:
        raise NoExamples(
            f"expected examples to score from number {first:,} on, received {len(timeline):,} in all; take a longer time"
        )
    return Scored(first, last, int(timeline.times_us[first]), int(timeline.times_us[last - 1]))


@dataclass(frozen=True)
class Variant:
    """How well one variant predicted.

    Attributes:
        name: as the table shows it.
        curves: label -> figures by window of event time.
        facts: what else its line of the table says, by column.
    """

    name: str
    curves: Mapping[str, Curve]
    facts: Mapping[str, float | None] = field(default_factory=dict)

    def total(self, label: str) -> LabelMetrics:
        """Over all scored rows."""
        return total(self.curves[label])


class Scores:
    """Adds up the figures of one variant, those of the unsampled stream.

    Args:
        labels: of the model.
        which: the rows that count; others are passed over.
        correction: of negative sampling.
    """

    def __init__(self, labels: tuple[str, ...], which: Scored, correction: Correction) -> None:
        self._labels = labels
        self._which = which
        self._correction = correction
        self._figures = Progressive(labels, which.window_us)

    def add(self, rows: TrainingRows, probabilities: Floats) -> None:
        """Count rows with (B, L) probabilities, of the sampled stream as a model gives them."""
        inside = (rows.offsets >= self._which.first) & (rows.offsets < self._which.last)
        if not inside.any():
            return
        if self._correction == "log_odds":
            probabilities = shifted(probabilities, rows.rates)
        weights = np.where(inside[:, None], rows.metric_weights, np.float32(0))
        self._figures.add(rows.times_us, probabilities, rows.labels, weights)

    def variant(self, name: str, **facts: float | None) -> Variant:
        """What was added up; nothing more is added then."""
        curves: dict[str, Curve] = {label: {} for label in self._labels}
        for start, label, figures in self._figures.take():
            curves[label][start] = figures
        return Variant(name, curves, facts)
