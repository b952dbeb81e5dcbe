"""Made-up examples whose truth changes: what an item is worth goes up and down over days, each in its own time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.spec import ModelSpec, OptimizerSpec
from cuckooflow.pipelines.experiments.learner import Learner
from cuckooflow.pipelines.experiments.timeline import Timeline
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.transforms.batch_bytes import encode_batch
from cuckooflow.transforms.training_options import TrainingOptions

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
START_US = 20_000 * DAY_US
BATCH = 32

USER = FeatureSpec(name="user")
ITEM = FeatureSpec(name="item")
RATE = FeatureSpec(name="ctr", kind="rate", by=("item",), label="click", half_life="6h")
#: What an item was worth in the last hours, and nothing else that could tell it.
STREAMING = (USER, RATE)
#: Steps of one size, so that it follows for ever.
LR = ModelSpec(
    kind="lr",
    labels=("click",),
    linear=OptimizerSpec(kind="sgd", learning_rate=0.3),
    dense=OptimizerSpec(kind="adam", learning_rate=0.02),
)


def drifting(rows: int = 6_000, days: float = 10.0, items: int = 20, seed: int = 3) -> pa.Table:
    """Rows in event time, of a whole second each."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, int(days * 86_400), rows)) * 1_000_000
    item, user = rng.integers(0, items, rows), rng.integers(0, 40, rows)
    phase = 2 * np.pi * (times / (8 * DAY_US) + item / items)
    click = rng.random(rows) < 1 / (1 + np.exp(-3 * np.sin(phase)))
    return pa.table(
        {
            "user": [f"u{n}" for n in user],
            "item": pa.array(item),
            "_time": pa.array(START_US + times),
            "_append": pa.array(START_US + times),
            "label_click": pa.array(click.astype(np.uint8)),
            "_id_hi": pa.array(np.arange(rows, dtype=np.uint64)),
            "_id_lo": pa.array(np.zeros(rows, np.uint64)),
        }
    )


def learner(spec: ModelSpec = LR, features: tuple[FeatureSpec, ...] = (USER, ITEM)) -> Learner:
    """A model of the examples."""
    return Learner(spec, features, TrainingOptions(batch_size=BATCH, lag_us=60_000_000))


def timeline(rows: pa.Table | None = None) -> Timeline:
    """Made-up examples, or these."""
    return Timeline(drifting() if rows is None else rows)


JOB = """
name: drift
logs:
  impressions: {path: logs/impressions}
  actions: {path: logs/actions}
  examples: {path: logs/examples, partitions: 2}
columns:
  impressions:
    request: {type: string}
    time: {type: time, unit: ms}
    user: {type: string}
    item: {type: int64}
  actions:
    request: {type: string}
    time: {type: time, unit: ms}
    action: {type: string}
join: {key: [request], impression_time: time, action_time: time, action_type: action}
labels: {click: {action: click, window: 1m}}
features: [{name: user}, {name: item}]
model: {kind: lr, labels: [click], linear: {kind: sgd, learning_rate: 0.3}}
training: {batch_size: 32}
"""


def write_job(folder: Path) -> Path:
    """A job spec, without logs."""
    spec = folder / "job.yaml"
    spec.write_text(JOB)
    return spec


def write_examples(job: JobSpec, rows: pa.Table, message_rows: int = 37) -> None:
    """The examples log: users of even numbers in partition 0; messages hold rows of a few hours, newest first."""
    path = job.path(job.logs.examples.path)  # type: ignore[union-attr]
    LocalLog.create(path, 2, "frames")
    number = np.array([int(user[1:]) for user in rows["user"].to_pylist()])
    with LocalLogWriter(path) as writer:
        for partition in (0, 1):
            of = rows.filter(pa.array(number % 2 == partition))
            for start in range(0, of.num_rows, message_rows):
                part = of.slice(start, message_rows)
                part = part.take(pa.array(np.arange(part.num_rows)[::-1])).combine_chunks()
                writer.append(partition, [encode_batch(part.to_batches()[0])], 7)
