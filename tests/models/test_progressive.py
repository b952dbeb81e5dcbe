"""Progressive figures against scikit-learn, and that they merge."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from cuckooflow.models.progressive import LabelMetrics, Progressive


def _draw(seed: int, n: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1, 1.5, n)
    p = 1 / (1 + np.exp(-logit))
    return p.astype(np.float32), (rng.random(n) < p).astype(np.uint8), rng.uniform(0.5, 2, n)


def test_figures_agree_with_scikit_learn() -> None:
    p, y, w = _draw(1)
    metrics = LabelMetrics()
    metrics.add(p, y, w)
    assert metrics.auc() == pytest.approx(roc_auc_score(y, p, sample_weight=w), abs=2e-4)
    assert metrics.log_loss() == pytest.approx(log_loss(y, p.astype(float), sample_weight=w), abs=1e-6)
    assert metrics.calibration() == pytest.approx((w * p).sum() / (w * y).sum())
    curve = metrics.calibration_curve(10)
    assert len(curve) == 10
    assert sum(weight for _, _, weight in curve) == pytest.approx(w.sum())
    assert all(abs(predicted - share) < 0.05 for predicted, share, _ in curve)


def test_parts_merge_to_the_whole_through_json() -> None:
    p, y, w = _draw(2)
    whole, merged = LabelMetrics(), LabelMetrics()
    whole.add(p, y, w)
    for part in np.array_split(np.arange(len(p)), 7):
        metrics = LabelMetrics()
        metrics.add(p[part], y[part], w[part])
        merged.merge(LabelMetrics.from_json(json.loads(json.dumps(metrics.to_json()))))
    assert merged.rows == whole.rows
    assert merged.auc() == pytest.approx(whole.auc())
    assert merged.log_loss() == pytest.approx(whole.log_loss())


def test_ties_count_half_and_extremes_are_finite() -> None:
    metrics = LabelMetrics()
    metrics.add(np.array([0.5, 0.5]), np.array([0, 1]))
    assert metrics.auc() == 0.5
    metrics.add(np.array([0.0, 1.0]), np.array([1, 0]))
    assert math.isfinite(metrics.log_loss())


def test_nothing_counted_is_not_a_number() -> None:
    metrics = LabelMetrics()
    metrics.add(np.array([]), np.array([]))
    assert math.isnan(metrics.auc())
    assert math.isnan(metrics.log_loss())
    assert math.isnan(metrics.calibration())
    assert metrics.calibration_curve() == []


def test_windows_are_kept_apart_and_given_once() -> None:
    progressive = Progressive(["a", "b"], window_us=10)
    p = np.full((3, 2), 0.25)
    y = np.array([[0, 1], [1, 0], [0, 0]])
    weights = np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    progressive.add(np.array([-1, 5, 19]), p, y, weights)
    taken = [(start, label, figures.rows) for start, label, figures in progressive.take()]
    assert taken == [(-10, "a", 1), (-10, "b", 1), (0, "a", 1), (10, "a", 1), (10, "b", 1)]
    assert progressive.take() == []
