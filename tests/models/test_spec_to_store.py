"""What a job says of its model's tables reaches the store's configuration."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cuckooflow.embedding_store.api import Optimizer
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import build_model, store_config
from cuckooflow.models.spec import ModelSpec, OptimizerSpec

DAY_US = 86_400_000_000


def test_optimizers_admission_and_expiry_reach_the_tables() -> None:
    spec = ModelSpec.model_validate(
        {
            "kind": "deepfm",
            "labels": ["like"],
            "embedding": {"kind": "rowwise_adagrad"},
            "linear": {"kind": "ftrl", "learning_rate": 0.1, "beta": 2, "l1": 0.5, "l2": 0.25},
            "admission": 3,
            "admission_mode": "probabilistic",
            "ttl": "30d",
        }
    )
    features = [
        FeatureSpec(name="user"),
        FeatureSpec.model_validate({"name": "item", "ttl": "2d", "admission": 5}),
    ]
    linear, embedding = store_config(build_model(spec, features)).tables
    assert embedding.optimizer.kind == "rowwise_adagrad"
    assert linear.optimizer == Optimizer("ftrl", 0.1, beta=2.0, l1=0.5, l2=0.25)
    for table in (linear, embedding):
        assert (table.admission, table.admission_mode, table.slot_admission) == (3, "probabilistic", {1: 5})
        assert (table.ttl_us, table.slot_ttl_us) == (30 * DAY_US, {1: 2 * DAY_US})
    # As a snapshot's manifest has it, and back.
    assert ModelSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert FeatureSpec.model_validate(features[1].model_dump(mode="json")) == features[1]


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValidationError, match="go with kind ftrl"):
        OptimizerSpec(kind="adam", l1=0.1)
    with pytest.raises(ValidationError, match="for tables"):
        ModelSpec(labels=("like",), dense=OptimizerSpec(kind="rowwise_adagrad"))
