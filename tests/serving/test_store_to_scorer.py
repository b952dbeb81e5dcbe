"""From the training store to a score: what a scorer answers is what the trainer's own model would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.embedding_store.api import TablePush
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.models.base import Targets, distinct
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import build_model, predict_batch, store_config
from cuckooflow.models.snapshots import SnapshotInfo, write_snapshot
from cuckooflow.models.spec import ModelSpec
from cuckooflow.serving.client import ScorerClient

FEATURES = (
    FeatureSpec(name="user", column="user_id"),
    FeatureSpec(name="item", column="item_id"),
    FeatureSpec(name="genres", pooling="mean", max_length=3),
    FeatureSpec(name="age", kind="bucket", boundaries=(18, 25, 35)),
    FeatureSpec(name="hour", kind="hour"),
    FeatureSpec(name="price", kind="number", log=True),
)
COLUMNS = {
    "user_id": "string",
    "item_id": "uint64",
    "genres": "list<string>",
    "age": "float64",
    "price": "float32",
    "time": "time[s]",
}


def instances(rng: np.random.Generator, rows: int) -> list[dict[str, object]]:
    return [
        {
            "user_id": f"u{rng.integers(30)}",
            "item_id": int(rng.integers(1 << 62)) * 4 + 1 if row % 7 == 0 else int(rng.integers(40)),
            "genres": [f"g{g}" for g in rng.integers(6, size=rng.integers(5))],
            "age": None if row % 5 == 0 else float(rng.integers(10, 60)),
            "price": float(np.float32(rng.exponential(20))),
            "time": 1_650_000_000 + int(rng.integers(1_000_000)),
        }
        for row in range(rows)
    ]


def as_trained(rows: list[dict[str, object]]) -> pa.RecordBatch:
    """The rows as an examples log holds them, built without the scorer's code."""
    frame = {name: [row[name] for row in rows] for name in COLUMNS}
    return pa.RecordBatch.from_pydict(
        {
            "user_id": pa.array(frame["user_id"], pa.string()),
            "item_id": pa.array(frame["item_id"], pa.uint64()),
            "genres": pa.array(frame["genres"], pa.list_(pa.string())),
            "age": pa.array(frame["age"], pa.float64()),
            "price": pa.array(frame["price"], pa.float32()),
            "_time": pa.array(np.array(frame["time"]) * 1_000_000, pa.int64()),
        }
    )


@pytest.mark.parametrize("kind", ["lr", "deepfm", "dcn"])
def test_the_scorer_answers_what_the_training_store_says(
    kind: str, start: Callable[..., str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(7)
    hidden = {"hidden": (16,)} if kind != "lr" else {}
    spec = ModelSpec.model_validate(
        {"kind": kind, "labels": ("click", "like"), "dim": 4, "init_stddev": 0.05, **hidden}
    )
    model = build_model(spec, FEATURES)
    store = EmbeddedStore(store_config(model, counting=True), None)
    store.open_log("examples", "log", {0: Position(0)})
    offset = 0

    def train(rows: int) -> None:
        nonlocal offset
        encoded = model.encode(as_trained(instances(rng, rows)))
        lookup = distinct(encoded)
        pulled, dense, _ = store.pull(model.wanted(lookup))
        positive = rng.integers(0, 2, (rows, 2)).astype(np.float32)
        step = model.train_step(
            model.prepare(encoded, lookup, pulled, dense), Targets(positive, 1 - positive), rows
        )
        range_ = LogRange("examples", "log", 0, Position(offset), Position(offset + rows))
        pushes = {name: TablePush(lookup.ids, g, lookup.counts) for name, g in step.row_gradients.items()}
        store.push(range_, pushes, step.dense_gradients, 0)
        offset += rows

    def publish(full: bool) -> int:
        delta = store.delta("snapshots", full)
        info = SnapshotInfo(
            name="movies",
            created_us=1,
            model=spec.model_dump(mode="json"),
            features=[feature.model_dump(mode="json") for feature in FEATURES],
            columns=COLUMNS,
        )
        manifest = write_snapshot(tmp_path / "snapshots", delta, info)
        store.ack("snapshots", delta.version)
        assert manifest.marks == {"examples": {0: Position(offset)}}
        return manifest.sequence

    asked = instances(rng, 50)  # users and items that were trained, and some that never were
    url = start()
    with ScorerClient(url, "movies") as client:
        for round_ in range(3):
            train(64)
            client.wait_ready(120, version=publish(full=round_ == 0))
            expected = predict_batch(model, as_trained(asked), store.pull)
            answer = client.predict(asked)
            for label in ("click", "like"):
                got = [row[label] for row in answer.values]
                np.testing.assert_allclose(got, expected[label], atol=2e-6)
    store.close()
