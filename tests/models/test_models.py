"""Every kind of model against numpy: probabilities, gradients by finite differences, shapes, options."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from cuckooflow.embedding_store.api import Optimizer
from cuckooflow.models.base import Lookup, Model, Targets, distinct
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import COUNT_TABLE, build_model, predict_batch, store_config
from cuckooflow.models.spec import ModelSpec

FEATURES = (
    FeatureSpec(name="user"),
    FeatureSpec(name="tags", pooling="mean", max_length=3),
    FeatureSpec(name="age", kind="number"),
)
BATCH = pa.record_batch(
    {
        "user": ["a", "b", "a", None],
        "tags": [["x", "y"], [], ["y"], ["x", "y", "z", "cut"]],
        "age": [1.0, None, -0.5, 2.0],
    }
)
Arrays = dict[str, npt.NDArray[np.float32]]


def _parameters(model: Model, lookup: Lookup, seed: int = 0) -> tuple[Arrays, Arrays]:
    rng = np.random.default_rng(seed)
    rows = {t.name: rng.normal(0, 0.5, (len(lookup.ids), t.dim)).astype(np.float32) for t in model.tables}
    dense = {d.name: rng.normal(0, 0.5, d.shape).astype(np.float32) for d in model.dense}
    return rows, dense


def _reference(model: Model, rows: Arrays, dense: Arrays) -> npt.NDArray[np.float64]:
    """Logits in float64, row by row."""
    encoded, spec = model.encode(BATCH), model.spec
    lookup = distinct(encoded)
    logits = []
    for r in range(len(encoded)):
        fields: dict[str, Any] = {
            name: np.zeros((model.encoder.num_fields, value.shape[1])) for name, value in rows.items()
        }
        for c, weight in enumerate(encoded.weights[r]):
            if weight:
                at = int(np.flatnonzero(lookup.ids == encoded.ids[r, c])[0])
                for name, value in rows.items():
                    fields[name][np.searchsorted(encoded.bounds, c, "right") - 1] += weight * value[
                        at
                    ].astype(np.float64)
        numbers = encoded.numbers[r].astype(np.float64)
        z = fields["linear"].sum(0) + dense["linear/bias"] + numbers @ dense["linear/numbers"]
        if spec.kind != "lr":
            v = fields["embedding"]
            x = np.concatenate([v.reshape(-1), numbers])
            if spec.kind in ("fm", "deepfm") and spec.fm:
                pairs = sum(v[i] * v[j] for i in range(len(v)) for j in range(i))
                z = z + pairs @ dense["fm/weights"]
            if spec.kind == "dcn":
                z = z + _crossed(spec, x, dense) @ dense["cross/outputs"]
            if spec.kind == "shared_bottom":
                bottom = _layers("shared", spec.hidden, x, dense)
                z = z + [
                    (
                        _layers(f"tower/{n}", spec.tower, bottom, dense)
                        @ dense[f"tower/{n}/{len(spec.tower)}/kernel"]
                    )[0]
                    for n in spec.labels
                ]
            elif spec.hidden:
                z = z + _layers("deep", spec.hidden, x, dense) @ dense[f"deep/{len(spec.hidden)}/kernel"]
        logits.append(z)
    return np.array(logits)


def _layers(name: str, widths: tuple[int, ...], x: Any, dense: Arrays) -> Any:
    for layer in range(len(widths)):
        x = np.maximum(x @ dense[f"{name}/{layer}/kernel"] + dense[f"{name}/{layer}/bias"], 0)
    return x


def _crossed(spec: ModelSpec, first: Any, dense: Arrays) -> Any:
    x = first
    for layer in range(spec.cross_layers):
        name = f"cross/{layer}"
        kernel = (
            dense[f"{name}/kernel"]
            if spec.cross_rank is None
            else dense[f"{name}/down"] @ dense[f"{name}/up"]
        )
        x = np.array([first[i] * (x @ kernel[:, i] + dense[f"{name}/bias"][i]) + x[i] for i in range(len(x))])
    return x


SPECS = [
    ModelSpec(kind="lr", labels=("a", "b")),
    ModelSpec(labels=("a",), dim=3, hidden=(5, 4)),
    ModelSpec(labels=("a", "b"), dim=3, hidden=()),
    ModelSpec(labels=("a", "b"), dim=2, hidden=(4,), fm=False),
    ModelSpec(kind="fm", labels=("a",), dim=2, label_weights={"a": 0.5}),
    ModelSpec(kind="dcn", labels=("a", "b"), dim=2, hidden=(4,), cross_layers=2),
    ModelSpec(kind="dcn", labels=("a",), dim=2, hidden=(), cross_layers=1, cross_rank=2),
    ModelSpec(
        kind="shared_bottom", labels=("a", "b"), dim=2, hidden=(4,), tower=(3,), label_weights={"b": 0.25}
    ),
    ModelSpec(kind="shared_bottom", labels=("a", "b"), dim=2, hidden=(), tower=()),
]
IDS = [
    "lr",
    "deepfm",
    "deepfm-no-hidden",
    "deep",
    "fm",
    "dcn",
    "dcn-low-rank",
    "shared-bottom",
    "towers-only",
]


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_probabilities_and_gradients(spec: ModelSpec) -> None:
    model = build_model(spec, FEATURES)
    encoded = model.encode(BATCH)
    lookup = distinct(encoded)
    rows, dense = _parameters(model, lookup)
    rng = np.random.default_rng(5)
    shape = (len(encoded), len(spec.labels))
    targets = Targets(
        rng.choice([0, 1, 2], shape).astype(np.float32), rng.choice([-1, 0, 1], shape).astype(np.float32)
    )
    result = model.train_step(model.prepare(encoded, lookup, rows, dense), targets, step_rows=8)

    def loss(rows: Arrays, dense: Arrays) -> float:
        z = _reference(model, rows, dense)
        losses = targets.positive * np.logaddexp(0, -z) + targets.negative * np.logaddexp(0, z)
        return float((losses * [spec.label_weights.get(label, 1) for label in spec.labels]).sum())

    expected = 1 / (1 + np.exp(-_reference(model, rows, dense)))
    assert result.probabilities == pytest.approx(expected, abs=1e-5)
    assert model.predict(encoded, lookup, rows, dense) == pytest.approx(expected, abs=1e-5)
    assert result.loss == pytest.approx(loss(rows, dense), abs=1e-4)
    assert result.finite()
    # Gradients by finite differences of the float64 reference; dense ones are divided by a full batch.
    wide_rows = {name: value.astype(np.float64) for name, value in rows.items()}
    wide_dense = {name: value.astype(np.float64) for name, value in dense.items()}
    checked: list[tuple[Any, Any, float]] = [
        (wide_rows[n], g, 1.0) for n, g in result.row_gradients.items()
    ] + [(wide_dense[n], g, 8.0) for n, g in result.dense_gradients.items()]
    assert set(result.row_gradients) == set(wide_rows)
    assert set(result.dense_gradients) == set(wide_dense)
    for values, gradients, divided in checked:
        assert gradients.shape == values.shape
        for at in list(np.ndindex(values.shape))[:12]:
            kept, step = values[at], 1e-5
            values[at] = kept + step
            above = loss(wide_rows, wide_dense)
            values[at] = kept - step
            below = loss(wide_rows, wide_dense)
            values[at] = kept
            assert gradients[at] * divided == pytest.approx((above - below) / (2 * step), abs=2e-3)


def test_weights_for_late_labels_are_those_of_the_paper() -> None:
    """Against the plain step with weights made by hand from its own predictions."""
    model = build_model(ModelSpec(labels=("a", "b"), dim=3, hidden=(4,)), FEATURES)
    encoded = model.encode(BATCH)
    lookup = distinct(encoded)
    rows, dense = _parameters(model, lookup)
    positive = np.array([[1, 0], [0, 1], [0, 0], [1, 1]], np.float32)
    negative = 1 - positive
    share = np.broadcast_to(np.array([1.0, 0.25], np.float32), (4, 2))
    shift = np.broadcast_to(np.log(np.array([[1], [0.5], [0.1], [1]], np.float32)), (4, 2))
    p = 1 / (1 + np.exp(-_reference(model, rows, dense) - shift))
    by_hand = Targets(
        (positive * (1 + share * p)).astype(np.float32),
        (negative * (1 - p) * (1 + share * p) / (1 - p + share * p)).astype(np.float32),
    )
    assert by_hand.negative[1:3, 0] == pytest.approx(((1 - p) * (1 + p))[1:3, 0])  # all late: the paper's
    expected = model.train_step(model.prepare(encoded, lookup, rows, dense), by_hand, 4)
    found = model.train_step(
        model.prepare(encoded, lookup, rows, dense), Targets(positive, negative, share, shift), 4
    )
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.probabilities == pytest.approx(expected.probabilities)
    for name, gradient in expected.row_gradients.items():
        assert found.row_gradients[name] == pytest.approx(gradient, abs=1e-5)
    for name, gradient in expected.dense_gradients.items():
        assert found.dense_gradients[name] == pytest.approx(gradient, abs=1e-5)


def test_weights_for_late_labels_stay_finite() -> None:
    model = build_model(SPECS[0], FEATURES)
    encoded = model.encode(BATCH)
    lookup = distinct(encoded)
    rows, dense = _parameters(model, lookup)
    dense["linear/bias"][:] = [80, -80]
    ones = np.ones((4, 2), np.float32)
    assert model.train_step(
        model.prepare(encoded, lookup, rows, dense), Targets(ones, ones, ones, 0 * ones), 4
    ).finite()


def test_distinct_counts_used_places_only() -> None:
    encoded = build_model(SPECS[0], FEATURES).encode(BATCH)
    lookup = distinct(encoded)
    used = encoded.weights != 0
    assert np.array_equal(lookup.ids[lookup.inverse][used], encoded.ids[used])
    assert lookup.counts.sum() == used.sum() == 4 + 2 + 1 + 1 + 3
    assert 0 not in lookup.ids.tolist()


def test_a_later_batch_of_another_size_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(SPECS[1], FEATURES)
    traced: list[Any] = []
    forward = model.forward

    def noted(inputs: Any, dense: Any) -> Any:
        traced.append(inputs)
        return forward(inputs, dense)

    monkeypatch.setattr(model, "forward", noted)
    for rows in (4, 1, 3):
        encoded = model.encode(BATCH.slice(0, rows))
        lookup = distinct(encoded)
        pulled = _parameters(model, lookup)
        ones = np.ones((rows, 1), np.float32)
        result = model.train_step(model.prepare(encoded, lookup, *pulled), Targets(ones, 0 * ones), 4)
        assert result.probabilities == pytest.approx(model.predict(encoded, lookup, *pulled), abs=1e-6)
    assert len(traced) == 3  # both steps and the prediction, once each


def test_predict_batch_names_labels_and_takes_no_rows() -> None:
    model = build_model(SPECS[0], FEATURES)

    def pull(ids: Any) -> Any:
        rows = {name: np.zeros((len(values), 2), np.float32) for name, values in ids.items()}
        return rows, {d.name: np.zeros(d.shape, np.float32) for d in model.dense}

    assert {k: v.tolist() for k, v in predict_batch(model, BATCH, pull).items()} == {
        "a": [0.5] * 4,
        "b": [0.5] * 4,
    }
    assert predict_batch(model, BATCH.slice(0, 0), pull)["a"].shape == (0,)


def test_a_gradient_that_is_not_finite_is_seen() -> None:
    model = build_model(SPECS[1], FEATURES)
    encoded = model.encode(BATCH)
    lookup = distinct(encoded)
    rows, dense = _parameters(model, lookup)
    rows["embedding"][0, 0] = np.inf
    ones = np.ones((4, 1), np.float32)
    assert not model.train_step(
        model.prepare(encoded, lookup, rows, dense), Targets(ones, 0 * ones), 4
    ).finite()


def test_the_store_is_declared_without_tensorflow() -> None:
    code = (
        "import sys\n"
        "from cuckooflow.models.features import FeatureSpec\n"
        "from cuckooflow.models.registry import build_model, store_config\n"
        "from cuckooflow.models.spec import ModelSpec\n"
        "model = build_model(ModelSpec(labels=('like',)), [FeatureSpec(name='user')])\n"
        "print([t.name for t in store_config(model, counting=True).tables])\n"
        "assert not {'tensorflow', 'apache_beam'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "['linear', 'embedding', '_count']"


def test_tables_carry_the_spec() -> None:
    spec = ModelSpec(labels=("a",), dim=5, admission=2, seed=3)
    model = build_model(spec, [FeatureSpec(name="u", admission=4), FeatureSpec(name="v")])
    config = store_config(model, counting=True, buckets=16)
    linear, embedding, count = config.tables
    assert (linear.dim, linear.init_stddev, embedding.dim, embedding.init_stddev) == (1, 0.0, 5, 1e-3)
    assert (embedding.admission, dict(embedding.slot_admission), embedding.seed) == (2, {0: 4}, 3)
    assert count.name == COUNT_TABLE
    assert (count.optimizer, count.admission) == (Optimizer(kind="sgd", learning_rate=1.0), 1)
    assert config.buckets == 16
