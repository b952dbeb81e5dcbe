"""Feature specs: what is allowed, what is refused, and slots."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cuckooflow.errors import SpecError
from cuckooflow.models.features import FeatureSpec, input_columns, slots
from cuckooflow.models.spec import ModelSpec


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": "a", "poling": "mean"}, "poling"),
        ({"name": ""}, "name"),
        ({"name": "a", "kind": "bucket"}, "boundaries"),
        ({"name": "a", "kind": "bucket", "boundaries": [2, 1]}, "ascend"),
        ({"name": "a", "kind": "bucket", "boundaries": [1, float("nan")]}, "finite"),
        ({"name": "a", "boundaries": [1]}, "boundaries"),
        ({"name": "a", "columns": ["x"]}, "two columns"),
        ({"name": "a", "columns": ["x", "y"], "column": "z"}, "no column"),
        ({"name": "a", "kind": "cross"}, "columns"),
        ({"name": "a", "kind": "hour", "zone": "Mars/Olympus"}, "IANA"),
        ({"name": "a", "kind": "number", "pooling": "sum"}, "pooling"),
        ({"name": "a", "log": True}, "number"),
        ({"name": "a", "kind": "number", "scale": 0}, "scale"),
        ({"name": "a", "slot": 4096}, "slot"),
        ({"name": "a", "max_length": 0}, "max_length"),
    ],
)
def test_wrong_specs_are_refused_by_field(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        FeatureSpec(**given)


def test_columns_make_a_cross_and_inputs_have_defaults() -> None:
    features = [
        FeatureSpec(name="user", column="user_id"),
        FeatureSpec(name="tab"),
        FeatureSpec(name="both", columns=("user_id", "tab")),
        FeatureSpec(name="hour", kind="hour"),
    ]
    assert features[2].kind == "cross"
    assert input_columns(features) == ("user_id", "tab", "_time")


def test_slots_follow_the_list_unless_given() -> None:
    assert slots([FeatureSpec(name="a"), FeatureSpec(name="b", slot=7), FeatureSpec(name="c")]) == {
        "a": 0,
        "b": 7,
        "c": 2,
    }


@pytest.mark.parametrize(
    "features",
    [
        [],
        [FeatureSpec(name="a"), FeatureSpec(name="a")],
        [FeatureSpec(name="a"), FeatureSpec(name="b", slot=0)],
    ],
)
def test_colliding_features_are_refused(features: list[FeatureSpec]) -> None:
    with pytest.raises(SpecError):
        slots(features)


@pytest.mark.parametrize(
    "given",
    [
        {"labels": []},
        {"labels": ["a", "a"]},
        {"labels": ["a"], "dim": 0},
        {"labels": ["a"], "hidden": [0]},
        {"labels": ["a"], "hidden": [], "fm": False},
        {"labels": ["a"], "kind": "deepfn"},
        {"labels": ["a"], "embedding": {"learning_rate": -1}},
    ],
)
def test_wrong_models_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ModelSpec(**given)


def test_specs_survive_json() -> None:
    feature = FeatureSpec(name="g", pooling="mean", max_length=3)
    assert FeatureSpec.model_validate(feature.model_dump(mode="json")) == feature
    spec = ModelSpec(labels=("like",), hidden=(16,), kind="dcn")
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
