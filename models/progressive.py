"""Progressive validation: every row is predicted before it is learned, and these figures say how well.

All of them merge by addition, so records of many partitions, bundles and restarts sum to the whole.
AUC comes from a histogram over the logit (width 24 / 4096, so within about 1e-4 of the exact figure, ties
counted half); log loss and calibration are exact sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

_BINS = 4096
_LOGIT_MAX = 12.0
#: Probabilities are held this far from 0 and 1 in the log loss.
_CLIP = 1e-7

_Array = npt.NDArray[np.floating[Any]]


def _zeros() -> npt.NDArray[np.float64]:
    return np.zeros(_BINS)


@dataclass
class LabelMetrics:
    """How well one label is predicted, over some rows.

    Attributes:
        rows: unweighted number of rows.
        weight, positive_weight: summed weights of all rows and of the positive ones.
        loss_sum: summed weighted log loss, natural logarithm.
        prediction_sum: summed weighted probability.
        positives, negatives: (4096,) weights by bin of the predicted logit.
    """

    rows: int = 0
    weight: float = 0.0
    positive_weight: float = 0.0
    loss_sum: float = 0.0
    prediction_sum: float = 0.0
    positives: npt.NDArray[np.float64] = field(default_factory=_zeros)
    negatives: npt.NDArray[np.float64] = field(default_factory=_zeros)

    def add(self, probabilities: _Array, labels: npt.NDArray[Any], weights: _Array | None = None) -> None:
        """Count rows: (n,) probabilities, (n,) labels of 0 and 1, (n,) weights (default 1 each)."""
        p = np.clip(np.asarray(probabilities, np.float64), _CLIP, 1 - _CLIP)
        y = np.asarray(labels) != 0
        w = np.ones(len(p)) if weights is None else np.asarray(weights, np.float64)
        logit = np.log(p) - np.log1p(-p)
        bins = ((logit + _LOGIT_MAX) * (_BINS / (2 * _LOGIT_MAX))).astype(np.int64).clip(0, _BINS - 1)
        self.rows += len(p)
        self.weight += float(w.sum())
        self.positive_weight += float(w[y].sum())
        self.loss_sum += float(-(w * np.where(y, np.log(p), np.log1p(-p))).sum())
        self.prediction_sum += float((w * p).sum())
        self.positives += np.bincount(bins[y], w[y], _BINS)
        self.negatives += np.bincount(bins[~y], w[~y], _BINS)

    def merge(self, other: LabelMetrics) -> None:
        """Count what ``other`` counted as well."""
        self.rows += other.rows
        self.weight += other.weight
        self.positive_weight += other.positive_weight
        self.loss_sum += other.loss_sum
        self.prediction_sum += other.prediction_sum
        self.positives += other.positives
        self.negatives += other.negatives

    def auc(self) -> float:
        """Area under the ROC curve; NaN without rows of both kinds."""
        below = np.cumsum(self.negatives) - self.negatives
        pairs = self.positives.sum() * self.negatives.sum()
        return float((self.positives * (below + 0.5 * self.negatives)).sum() / pairs) if pairs else math.nan

    def log_loss(self) -> float:
        """Mean log loss; NaN without rows."""
        return self.loss_sum / self.weight if self.weight else math.nan

    def calibration(self) -> float:
        """Mean probability over the share of positives; 1 is perfect, NaN without positives."""
        return self.prediction_sum / self.positive_weight if self.positive_weight else math.nan

    def calibration_curve(self, points: int = 10) -> list[tuple[float, float, float]]:
        """Up to ``points`` groups of about equal weight: (mean predicted, share positive, weight)."""
        total = self.positives + self.negatives
        if not total.sum():
            return []
        centres = (np.arange(_BINS) + 0.5) * (2 * _LOGIT_MAX / _BINS) - _LOGIT_MAX
        predicted = 1 / (1 + np.exp(-centres))
        group = np.minimum((np.cumsum(total) - total / 2) / total.sum() * points, points - 1).astype(int)
        weight = np.bincount(group, total, points)
        mean = np.bincount(group, total * predicted, points)
        share = np.bincount(group, self.positives, points)
        return [
            (float(m / w), float(s / w), float(w)) for m, s, w in zip(mean, share, weight, strict=True) if w
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values; only the bins that hold something."""
        used = np.flatnonzero(self.positives + self.negatives)
        return {
            "rows": self.rows,
            "weight": self.weight,
            "positive_weight": self.positive_weight,
            "loss_sum": self.loss_sum,
            "prediction_sum": self.prediction_sum,
            "bins": used.tolist(),
            "positives": self.positives[used].tolist(),
            "negatives": self.negatives[used].tolist(),
        }

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> LabelMetrics:
        """What :meth:`to_json` wrote."""
        made = LabelMetrics(
            body["rows"], body["weight"], body["positive_weight"], body["loss_sum"], body["prediction_sum"]
        )
        made.positives[body["bins"]] = body["positives"]
        made.negatives[body["bins"]] = body["negatives"]
        return made


class Progressive:
    """Figures by event-time window and label since the last :meth:`take`.

    Args:
        labels: their names.
        window_us: width of a window of event time; a window's start is a multiple of it.
    """

    def __init__(self, labels: Iterable[str], window_us: int) -> None:
        self._labels = tuple(labels)
        self._window_us = window_us
        self._windows: dict[int, dict[str, LabelMetrics]] = {}

    def add(
        self,
        times_us: npt.NDArray[np.int64],
        probabilities: _Array,
        labels: npt.NDArray[Any],
        weights: _Array,
    ) -> None:
        """Count rows.

        Args:
            times_us: (n,) event times, microseconds.
            probabilities, labels, weights: (n, L); a weight of 0 leaves the label of that row out.
        """
        starts = times_us // self._window_us * self._window_us
        for start in np.unique(starts):
            here = starts == start
            figures = self._windows.setdefault(int(start), {label: LabelMetrics() for label in self._labels})
            for k, label in enumerate(self._labels):
                rows = here & (weights[:, k] != 0)
                figures[label].add(probabilities[rows, k], labels[rows, k], weights[rows, k])

    def take(self) -> list[tuple[int, str, LabelMetrics]]:
        """(window start, label, figures) counted since the last call, then forget them."""
        taken = [
            (start, label, figures)
            for start, by_label in sorted(self._windows.items())
            for label, figures in by_label.items()
            if figures.rows
        ]
        self._windows.clear()
        return taken
