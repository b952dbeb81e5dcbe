"""The live model's rivals on the same examples: the model frozen at half, logistic regression, the running mean.

All are measured as the live model was: each example is predicted before any of them learns from it, and
counts in the same windows with the same weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.embedding_store.api import Floats, Ids
from cuckooflow.embedding_store.read_store import ReadStore
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.models.base import Model
from cuckooflow.models.progressive import Progressive
from cuckooflow.models.registry import build_model, predict_batch, store_config
from cuckooflow.models.snapshots import list_manifests, read_snapshot
from cuckooflow.pipelines import options
from cuckooflow.pipelines.curves import Curve, curve_of_records
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.transforms.ranges import read_range_header
from cuckooflow.transforms.trainer import Trainer
from cuckooflow.transforms.training_rows import training_rows


def frozen_curve(job: JobSpec, examples: Iterable[pa.RecordBatch], snapshots: Path, label: str) -> Curve:
    """How a model that stopped learning predicts what came after its newest training row.

    Args:
        snapshots: a folder that begins with a full snapshot; all in it are applied.
    """
    model = build_model(job.model, job.features)
    tables = store_config(model).tables
    store = ReadStore(tables)
    read = {table.name for table in tables}
    manifests = list_manifests(snapshots)
    for manifest in manifests:
        delta = read_snapshot(snapshots, manifest)
        wanted = {name: table for name, table in delta.tables.items() if name in read}  # not the counts
        store.apply(dataclasses.replace(delta, tables=wanted))
    frozen_us = max(m.event_time_us for m in manifests if m.event_time_us is not None)

    def pull(ids: Mapping[str, Ids]) -> tuple[dict[str, Floats], dict[str, Floats]]:
        return store.lookup(ids), store.dense()

    column = model.labels.index(label)
    measured = Progressive([label], job.training.metrics_window)
    correction = options.correction(job)
    for batch in examples:
        later = batch.filter(pa.array(batch.column("_time").to_numpy() > frozen_us))
        if not later.num_rows:
            continue
        rows = training_rows(model, later, correction)
        probabilities = predict_batch(model, later, pull)[label]
        _add(measured, rows.times_us, probabilities, rows.labels[:, column], rows.metric_weights[:, column])
    return _curve(measured)


def lr_curve(job: JobSpec, examples: Iterable[pa.RecordBatch], label: str) -> Curve:
    """Logistic regression on the job's own features, trained by the same trainer in one pass."""
    spec = job.model.model_copy(update={"kind": "lr"})
    model = build_model(spec, job.features)
    store = EmbeddedStore(store_config(model), None)
    correction = options.correction(job)
    train_options = options.training_options(job).model_copy(update={"counting": False})
    trainers: dict[int, Trainer] = {}
    records: list[Mapping[str, Any]] = []
    for batch in examples:
        partition = _partition(batch)
        if partition not in trainers:
            trainers[partition] = Trainer(store, model, None, train_options, correction)
        records += trainers[partition].accept(batch).metrics
    for trainer in trainers.values():
        records += trainer.finish(0).metrics
        trainer.close()
    return curve_of_records(records, label)


def mean_curve(job: JobSpec, examples: Iterable[pa.RecordBatch], label: str) -> Curve:
    """Predicting for everything the share of positives seen so far."""
    model = build_model(job.model, job.features)
    column = model.labels.index(label)
    measured = Progressive([label], job.training.metrics_window)
    positive, weight = 0.5, 1.0
    for batch in examples:
        if not batch.num_rows:
            continue
        rows = training_rows(model, batch, options.correction(job))
        labels, weights = rows.labels[:, column], rows.metric_weights[:, column].astype(np.float64)
        positives = positive + np.cumsum(weights * labels)
        sums = weight + np.cumsum(weights)
        seen = np.concatenate([[positive / weight], (positives / sums)[:-1]])
        positive, weight = float(positives[-1]), float(sums[-1])
        _add(measured, rows.times_us, seen.astype(np.float32), labels, rows.metric_weights[:, column])
    return _curve(measured)


def count_features(model: Model, examples: Iterable[pa.RecordBatch]) -> tuple[Ids, npt.NDArray[np.int64]]:
    """How often each feature id occurs in the examples, counted by sorting: (n,) ascending ids, counts."""
    ids = np.empty(0, np.uint64)
    counts = np.empty(0, np.int64)
    for batch in examples:
        if not batch.num_rows:
            continue
        encoded = model.encode(batch)
        new, occurred = np.unique(encoded.ids[encoded.weights != 0], return_counts=True)
        merged, place = np.unique(np.concatenate([ids, new]), return_inverse=True)
        sums = np.zeros(len(merged), np.int64)
        np.add.at(sums, place, np.concatenate([counts, occurred]))
        ids, counts = merged, sums
    return ids, counts


def _partition(batch: pa.RecordBatch) -> int:
    return read_range_header(batch).range.partition


def _add(
    measured: Progressive,
    times_us: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    weights: Floats,
) -> None:
    measured.add(times_us, probabilities[:, None], labels[:, None], weights[:, None])


def _curve(measured: Progressive) -> Curve:
    return {start: figures for start, _, figures in measured.take()}
