"""Which rows of a pass are scored, and the figures of one variant over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
class Figures:
    """How well a label is predicted; NaN where it cannot be told. See LabelMetrics."""

    rows: int
    auc: float
    log_loss: float
    calibration: float


@dataclass(frozen=True)
class Variant:
    """How well one variant predicted.

    Attributes:
        name: as the table shows it.
        passes: of each time that the rows were predicted, label -> figures by window of event time. What is told is the mean.
        facts: what else its line of the table says, by column.
    """

    name: str
    passes: Sequence[Mapping[str, Curve]]
    facts: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Of the model."""
        return list(self.passes[0])

    def figures(self, label: str) -> Figures:
        """Over all scored rows."""
        return _mean([total(curves[label]) for curves in self.passes])

    def over_time(self, label: str) -> list[tuple[int, Figures]]:
        """By window of event time: its start, microseconds, and the figures."""
        starts = sorted({start for curves in self.passes for start in curves[label]})
        return [(start, _mean([curves[label][start] for curves in self.passes])) for start in starts]


def _mean(several: Sequence[LabelMetrics]) -> Figures:
    return Figures(
        several[0].rows,
        float(np.mean([each.auc() for each in several])),
        float(np.mean([each.log_loss() for each in several])),
        float(np.mean([each.calibration() for each in several])),
    )


class Scores:
    """Adds up the figures of one variant, those of the unsampled stream.

    Args:
        labels: of the model.
        which: the rows that count; others are passed over.
        correction: of negative sampling.
    """

    def __init__(
        self, labels: tuple[str, ...], which: Scored, correction: Correction, times: int = 1
    ) -> None:
        self._times = times
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

    def curves(self) -> dict[str, Curve]:
        """Label -> what was added up, by window of event time; nothing more is added then."""
        found: dict[str, Curve] = {label: {} for label in self._labels}
        for start, label, figures in self._figures.take():
            found[label][start] = figures
        return found
