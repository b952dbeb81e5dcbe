"""What a row of the examples log asks the model to learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.logs.contract import Position
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import build_model
from cuckooflow.models.spec import ModelSpec
from cuckooflow.transforms.training_output import shifted
from cuckooflow.transforms.training_rows import LateLabels, TrainingRows, training_rows

MODEL = build_model(ModelSpec(kind="lr", labels=("like",)), [FeatureSpec(name="user")])


def rows(correction: Any = "none", late: LateLabels | None = None, **columns: Any) -> TrainingRows:
    n = len(next(iter(columns.values())))
    base = {"user": pa.array([f"u{i}" for i in range(n)]), "_offset": pa.array(range(n)), "_row": [0] * n}
    return training_rows(MODEL, pa.record_batch({**base, **columns}), correction, late)


def test_unknown_labels_teach_nothing() -> None:
    made = rows(label_like=pa.array([1, 0, None], pa.uint8()))
    assert made.targets.positive.tolist() == [[1], [0], [0]]
    assert made.targets.negative.tolist() == [[0], [1], [0]]
    assert made.metric_weights.tolist() == [[1], [1], [0]]
    assert rows(other=[1, 2]).metric_weights.tolist() == [[0], [0]]


def test_a_late_positive_takes_back_the_negative_that_was_trained() -> None:
    made = rows(
        label_like=pa.array([1, 1, 0], pa.uint8()),
        _kind=pa.array([1, 1, 1], pa.int8()),
        _negative_kept=[True, False, True],
    )
    assert made.targets.positive.tolist() == [[1], [1], [0]]
    assert made.targets.negative.tolist() == [[-1], [0], [0]]
    assert made.metric_weights.tolist() == [[0], [0], [0]]


def test_what_is_taken_back_is_what_was_trained() -> None:
    """A negative that stood for four, and one that was kept for another label of it."""
    late = {
        "label_like": pa.array([1, 1], pa.uint8()),
        "_kind": pa.array([1, 1], pa.int8()),
        "_negative_kept": [True, True],
        "_rate": pa.array([0.25, 1.0], pa.float32()),
    }
    assert rows("weight", **late).targets.negative.tolist() == [[-4], [-1]]
    assert rows("log_odds", **late).targets.negative.tolist() == [[-1], [-1]]
    ignored = rows("weight", LateLabels("ignore"), **late).targets
    assert (ignored.positive.tolist(), ignored.negative.tolist()) == ([[0], [0]], [[0], [0]])
    weighted = rows("log_odds", LateLabels("weights", {"like": 0.5}), **late).targets
    assert (weighted.positive.tolist(), weighted.negative.tolist()) == ([[1], [1]], [[0], [0]])
    assert weighted.late_share is not None and weighted.late_share.tolist() == [[0.5], [0.5]]
    assert weighted.shift == pytest.approx(np.log([[0.25], [1.0]]))


def test_only_rows_negative_in_every_label_stand_for_those_sampled_out() -> None:
    columns = {
        "label_like": pa.array([1, 0, 0], pa.uint8()),
        "label_click": pa.array([1, 1, 0], pa.uint8()),
        "_rate": pa.array([0.25, 0.25, 0.25], pa.float32()),
    }
    weighted = rows("weight", **columns)
    assert weighted.targets.positive.tolist() == [[1], [0], [0]]
    assert weighted.targets.negative.tolist() == [[0], [1], [4]]
    plain = rows("log_odds", **columns)
    assert plain.targets.negative.tolist() == [[0], [1], [1]]
    assert plain.metric_weights.tolist() == [[1], [1], [4]]


def test_the_shift_gives_back_the_unsampled_probability() -> None:
    true = np.array([[0.1], [0.5], [0.9]])
    rates = np.array([0.5, 0.1, 1.0])
    sampled = true / (true + (1 - true) * rates[:, None])
    assert shifted(sampled.astype(np.float32), rates.astype(np.float32)) == pytest.approx(true, abs=1e-6)


def test_positions_slices_and_concat() -> None:
    made = training_rows(
        MODEL,
        pa.record_batch({"user": list("abcd"), "_offset": [3, 3, 7, 7], "_row": pa.array([0, 2, 0, 1])}),
        "none",
    )
    assert made.position(1) == Position(3, 2)
    befores = [made.before(Position(*p)) for p in [(0, 0), (3, 0), (3, 1), (4, 0), (7, 1), (9, 0)]]
    assert befores == [0, 0, 1, 2, 3, 4]
    again = TrainingRows.concat([made.slice(0, 1), made.slice(1, 4)])
    assert again.offsets.tolist() == made.offsets.tolist()
    inner = again.slice(1, 3)
    assert [row["user"] for batch in inner.batches for row in batch.to_pylist()] == ["b", "c"]
