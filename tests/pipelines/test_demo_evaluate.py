"""The rivals of the live model, on a small examples log, against plain loops."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.embedding_store.api import TablePush
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.models.registry import build_model, store_config
from cuckooflow.models.snapshots import SnapshotInfo, write_snapshot
from cuckooflow.pipelines.curves import total
from cuckooflow.pipelines.demo import evaluate
from cuckooflow.pipelines.demo.job import LABEL, write_job
from cuckooflow.pipelines.examples_log import read_examples
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.transforms.batch_bytes import encode_batch

DAY_US = 86_400_000_000
ROWS = 1_200
RATE = 0.5


def made_examples(seed: int = 5) -> pa.Table:
    """Examples over six days; users 0 to 4 like what is even, the others what is odd."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 10, ROWS), rng.integers(0, 30, ROWS)
    likes = (item % 2 == (user >= 5)) & (rng.random(ROWS) < 0.6)
    return pa.table(
        {
            "request_id": [f"r{n}" for n in range(ROWS)],
            "item_id": [str(n) for n in item],
            "user_id": [str(n) for n in user],
            "genres": [["Drama", "War"][: 1 + n % 2] for n in range(ROWS)],
            "age": pa.array(rng.integers(15, 70, ROWS), pa.float64()),
            "_time": pa.array(np.sort(rng.integers(0, 6 * DAY_US, ROWS))),
            "_append": pa.array(np.arange(ROWS)),
            "label_click": pa.array(likes.astype(np.uint8)),
            "label_like": pa.array(likes.astype(np.uint8)),
            "_kind": pa.array(np.zeros(ROWS, np.int8)),
            "_id_hi": pa.array(np.arange(ROWS, dtype=np.uint64)),
            "_id_lo": pa.array(np.zeros(ROWS, np.uint64)),
            "_rate": pa.array(np.full(ROWS, RATE, np.float32)),
        }
    )


@pytest.fixture(scope="module")
def examples() -> pa.Table:
    return made_examples()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, examples: pa.Table) -> JobSpec:
    """The demo's job with an examples log of two partitions, in which one message is repeated."""
    job = load_spec(write_job(tmp_path_factory.mktemp("job")))
    path = job.path(job.logs.examples.path)
    LocalLog.create(path, 2, "frames")
    with LocalLogWriter(path) as writer:
        for n, batch in enumerate(examples.to_batches(max_chunksize=100)):
            writer.append(n % 2, [encode_batch(batch)], 7)
        writer.append(0, [encode_batch(examples.slice(0, 100).combine_chunks().to_batches()[0])], 8)
    return job


def weights_of(table: pa.Table) -> np.ndarray:
    liked = table["label_like"].to_numpy() != 0
    return np.where(liked, 1.0, 1.0 / RATE)


def test_every_example_is_read_once(job: JobSpec, examples: pa.Table) -> None:
    read = pa.concat_tables([pa.table(b) for b in read_examples(job) if b.num_rows])
    assert sorted(read["_id_hi"].to_pylist()) == sorted(examples["_id_hi"].to_pylist())


def test_features_are_counted_as_a_plain_loop_does(job: JobSpec) -> None:
    model = build_model(job.model, job.features)
    batches = list(read_examples(job))
    want: Counter[int] = Counter()
    for batch in batches:
        encoded = model.encode(batch)
        for ids, weights in zip(encoded.ids.tolist(), encoded.weights.tolist(), strict=True):
            want.update(id_ for id_, weight in zip(ids, weights, strict=True) if weight)
    ids, counts = evaluate.count_features(model, batches)
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == want
    assert (np.diff(ids.astype(object)) > 0).all()


def test_running_mean_knows_only_the_past(job: JobSpec) -> None:
    batches = [b for b in read_examples(job) if b.num_rows]
    read = pa.concat_tables([pa.table(b) for b in batches])
    positive, weight, loss = 0.5, 1.0, 0.0
    for label, w in zip(read["label_like"].to_pylist(), weights_of(read), strict=True):
        p = positive / weight
        loss -= w * np.log(p if label else 1 - p)
        positive, weight = positive + w * label, weight + w
    whole = total(evaluate.mean_curve(job, batches, LABEL))
    assert whole.rows == ROWS
    assert whole.loss_sum == pytest.approx(loss, rel=1e-4)


def test_logistic_regression_learns_and_is_measured_once_a_row(job: JobSpec) -> None:
    whole = total(evaluate.lr_curve(job, read_examples(job), LABEL))
    assert whole.rows == ROWS
    assert whole.weight == pytest.approx(weights_of(made_examples()).sum())
    assert 0.0 < whole.log_loss() < 1.0


def test_a_frozen_model_is_measured_on_what_came_after_it(
    job: JobSpec, examples: pa.Table, tmp_path: Path
) -> None:
    model = build_model(job.model, job.features)
    store = EmbeddedStore(store_config(model), None)
    # Adagrad's first step is its learning rate, 0.05, whatever the gradient: eight features add up to 0.4.
    ids = evaluate.count_features(model, read_examples(job))[0]
    range_ = LogRange("examples", "x", 0, Position(0), Position(1))
    store.open_log("examples", "x", {0: Position(0)})
    linear = next(table for table in store.config.tables if table.dim == 1)
    store.push(range_, {linear.name: TablePush(ids, np.full((len(ids), 1), -1e6, np.float32))}, {}, 0)
    half_us = int(examples["_time"][ROWS // 2].as_py())
    info = SnapshotInfo(name="films", created_us=1, event_time_us=half_us)
    write_snapshot(tmp_path, store.delta("test", full=True), info)
    whole = total(evaluate.frozen_curve(job, read_examples(job), tmp_path, LABEL))
    times = examples["_time"].to_numpy()
    assert whole.rows == int((times > half_us).sum())
    share = examples.filter(pa.array(times > half_us))
    assert whole.prediction_sum / whole.weight == pytest.approx(1 / (1 + np.exp(-0.4)), abs=0.005)
    assert whole.positive_weight == share["label_like"].to_numpy().sum()
