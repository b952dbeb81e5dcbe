"""Claim: one pass through the real code learns as well as it should, beside a tuned linear learner.

Progressive AUC and log loss on KuaiRand-Pure: every row of the second half is predicted before it is
trained on, rows that repeat an earlier event are left out of the figures. The rows go through the
real code: feature encoding, the trainer that TrainStep runs for each partition, and an embedded store, as
`cuckooflow experiment` has them. Vowpal Wabbit gets the same rows and the base features in the same run. The last line is JSON.

    python benchmarks/quality.py --dataset kuairand --label is_click --json
    python benchmarks/quality.py --dataset kuairand --label is_click --model dcn --json
    python benchmarks/quality.py --dataset kuairand --label is_click --features streaming --lag-s 60 --json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kuairand
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import vowpal
from sklearn.metrics import log_loss, roc_auc_score

from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.models.registry import build_model, store_config
from cuckooflow.models.spec import ModelSpec
from cuckooflow.pipelines.experiments.learner import Learner
from cuckooflow.pipelines.experiments.one_pass import one_pass
from cuckooflow.pipelines.experiments.timeline import Timeline
from cuckooflow.pipelines.options import training_options
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.transforms.training_options import TrainingOptions

#: Rows of a run with --quick: the first so many, so its figures are not the claim's.
QUICK_ROWS = 60_000


def job_learner(streaming: bool, lag_s: float | None, batch_size: int | None) -> Learner:
    """The job spec's, with another lag or batch size where one is given.

    Args:
        streaming: with its streaming features; else with its others alone.
    """
    job = load_spec(kuairand.STREAMING_JOB)
    changes: dict[str, int] = {}
    if lag_s is not None:
        changes["lag_us"] = round(lag_s * 1e6)
    if batch_size is not None:
        changes["batch_size"] = batch_size
    features = [feature for feature in job.features if streaming or not feature.streaming]
    return Learner(job.model, tuple(features), training_options(job).model_copy(update=changes))


def train(feed: kuairand.Feed, learner: Learner) -> tuple[dict[str, npt.NDArray[np.float64]], float]:
    """One pass: label -> every row's probability in row order, and examples a second.

    The time includes the compilation of the model; TensorFlow was imported before.
    """
    model = build_model(learner.spec, learner.features)
    store = EmbeddedStore(store_config(model))
    timeline = Timeline(pa.Table.from_batches([feed.batch]))
    begun = time.perf_counter()
    outs = list(one_pass(timeline, learner, model, store, predictions=True))
    seconds = time.perf_counter() - begun
    store.close()
    table = pa.Table.from_batches([batch for out in outs for batch in out.predictions])
    offsets = np.asarray(table["_offset"])
    if not np.array_equal(offsets, np.arange(len(feed))):
        raise RuntimeError(f"expected a prediction for each of {len(feed)} rows in order, got {len(offsets)}")
    found = {label: np.asarray(table[f"p_{label}"]).astype(np.float64) for label in learner.spec.labels}
    return found, len(feed) / seconds


def figures(feed: kuairand.Feed, label: str, probabilities: npt.NDArray[np.float64]) -> tuple[float, float]:
    """AUC and log loss over the second half of the rows without repeats."""
    scored = (np.arange(len(feed)) >= len(feed) // 2) & ~feed.repeated
    labels = np.asarray(feed.batch.column(f"label_{label}"))[scored]
    p = probabilities[scored].clip(1e-7, 1 - 1e-7)
    return float(roc_auc_score(labels, p)), float(log_loss(labels, p))


def measure(label: str, learner: Learner, quick: bool) -> dict[str, Any]:
    """Both learners on the same rows; Vowpal Wabbit with the base features in any case."""
    from cuckooflow.models.base import tensorflow

    feed = kuairand.load(kuairand.data_folder(), QUICK_ROWS if quick else None)
    tensorflow()
    probabilities, rate = train(feed, learner)
    auc, loss = figures(feed, label, probabilities[label])
    others = [name for name in learner.spec.labels if name != label]
    with tempfile.TemporaryDirectory() as folder:
        reference = vowpal.run(feed, label, Path(folder), quick)
    vw_auc, vw_loss = figures(feed, label, reference.probabilities)
    return {
        "dataset": "kuairand",
        "label": label,
        "features": "streaming" if learner.streaming else "base",
        "lag_s": learner.options.lag_us / 1e6 if learner.streaming else None,
        "auc": round(auc, 4),
        "logloss": round(loss, 4),
        "vw_auc": round(vw_auc, 4),
        "vw_logloss": round(vw_loss, 4),
        "examples_per_s": round(rate),
        "other_labels": {
            name: [round(x, 4) for x in figures(feed, name, probabilities[name])] for name in others
        },
        "batch_size": learner.options.batch_size,
        "model": learner.spec.kind if learner.spec.kind != "deepfm" or learner.spec.fm else "dnn+linear",
        "rows": len(feed),
        "quick": quick,
        "vw_options": reference.options,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 measured, 1 no data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=["kuairand"], default="kuairand")
    parser.add_argument("--label", choices=kuairand.LABELS, default="is_click")
    parser.add_argument(
        "--model",
        choices=["dnn", "deepfm", "lr", "dcn"],
        default="dnn",
        help=f"dcn: model and features of {kuairand.STREAMING_JOB.name}, for both labels, without streaming ones",
    )
    parser.add_argument(
        "--features",
        choices=["base", "streaming"],
        default="base",
        help=f"streaming: features and model of {kuairand.STREAMING_JOB.name}",
    )
    parser.add_argument("--lag-s", type=float, help="of streaming features; default: the job spec's")
    parser.add_argument(
        "--batch-size", type=int, help="default 256, with the job spec's model the job spec's"
    )
    parser.add_argument("--quick", action="store_true", help=f"the first {QUICK_ROWS} rows, no grid for VW")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    given = parser.parse_args(arguments)
    if not kuairand.data_folder().is_dir():
        print(f"no data at {kuairand.data_folder()}: set CUCKOOFLOW_DATA", file=sys.stderr)
        return 1
    if given.features == "streaming" or given.model == "dcn":
        learner = job_learner(given.features == "streaming", given.lag_s, given.batch_size)
    else:
        kind = "lr" if given.model == "lr" else "deepfm"
        spec = ModelSpec(kind=kind, labels=(given.label,), fm=given.model == "deepfm")
        learner = Learner(spec, kuairand.FEATURES, TrainingOptions(batch_size=given.batch_size or 256))
    found = measure(given.label, learner, given.quick)
    if not given.json:
        if given.quick:
            print(f"quick: the first {QUICK_ROWS} rows only, so these are not the figures of the claim")
        print(f"cuckooflow ({found['model']})  AUC {found['auc']:.4f}  log loss {found['logloss']:.4f}")
        print(f"Vowpal Wabbit      AUC {found['vw_auc']:.4f}  log loss {found['vw_logloss']:.4f}")
        print(f"  {found['vw_options']}")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
