"""The train pipeline: examples by position into the store, snapshots out on the side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import apache_beam as beam

from cuckooflow.embedding_store.client import connect
from cuckooflow.logs.address import LogAddress
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.join.pipeline import create_missing
from cuckooflow.pipelines.options import (
    correction,
    late_labels,
    snapshot_options,
    store_addresses,
    training_options,
)
from cuckooflow.pipelines.train.skips import read_skips
from cuckooflow.transforms.emit_snapshots import EmitSnapshots
from cuckooflow.transforms.examples_reader import ExamplesReader, Skip
from cuckooflow.transforms.feature_feed import features_log
from cuckooflow.transforms.front_ends import FrontEnd, wall_clock_us
from cuckooflow.transforms.log_again import RangeReader
from cuckooflow.transforms.read_examples import ExamplesOptions, ReadExamples
from cuckooflow.transforms.retention_check import check_retention
from cuckooflow.transforms.send_snapshots import SendSnapshots
from cuckooflow.transforms.sinks import WriteJsonLines, examples_partitions
from cuckooflow.transforms.train_step import TrainConfig, TrainStep


def build_train(pipeline: beam.Pipeline, job: JobSpec, front_end: FrontEnd, stop_at_end: bool) -> None:
    """Add the trainer's stages to a pipeline. It begins where the store stands.

    Raises:
        StoreUnavailable: the store does not answer.
        OffsetOutOfRange: the store is ahead of the examples log, or what it needs was deleted.
        RetentionTooShort: what it needs will be deleted.
        PartitionsChanged: the examples topic has another number of partitions than the spec says.
    """
    logs = job.logs
    create_missing(job, logs.examples, "frames")
    create_reports(job)
    examples = job.address(logs.examples)
    examples_partitions(examples)
    store = connect(store_addresses(job))
    try:
        marks = store.marks(examples.name)
        fed = store.marks(features_log(examples.name))
    finally:
        store.close()
    starts = {partition: min(positions) for partition, positions in marks.items()}
    reader = examples.open_reader()
    skip = read_skips(job, reader.incarnation())
    # What streaming features wait for is read again too.
    needed = {partition: min(start, *fed.get(partition, (start,))) for partition, start in starts.items()}
    check_retention(reader, needed, job.store.checkpoint_interval, wall_clock_us())
    reader.close()
    elements = pipeline | "ReadExamples" >> ReadExamples(
        examples,
        ExamplesOptions(
            starts=starts,
            dedupe_rows=job.training.dedupe_rows,
            stop_at_end=stop_at_end,
            skip=skip,
        ),
        front_end,
    )
    train_elements(job, elements.main, partial(_open_reader, examples, job.training.dedupe_rows, skip))
    elements.dead | "WriteUndecodable" >> WriteJsonLines(job.address(logs.train_dead_letters))


def create_reports(job: JobSpec) -> None:
    """Create the logs that a trainer writes, where they are not there."""
    for log in (job.logs.train_metrics, job.logs.train_dead_letters):
        create_missing(job, log, "lines")


def train_elements(job: JobSpec, elements: beam.PCollection, reader: Callable[[], RangeReader]) -> None:
    """Train elements of whichever log of examples, and hand on what comes of it.

    Args:
        elements: ``(partition, RecordBatch)`` with range headers.
        reader: opens the same log to read a part of it again.
    """
    open_store = partial(connect, store_addresses(job))
    trained = elements | "TrainStep" >> TrainStep(
        TrainConfig(
            store=open_store,
            model=job.model,
            features=tuple(job.features),
            reader=reader,
            options=training_options(job),
            correction=correction(job),
            late_labels=late_labels(job),
        )
    )
    published = trained.ticks | "EmitSnapshots" >> EmitSnapshots(open_store, snapshot_options(job))
    snapshots_log = job.snapshots_log()
    if snapshots_log is not None:
        snapshots_log.create_missing().close()
        published | "SendSnapshots" >> SendSnapshots(job.path(job.snapshots.dir), snapshots_log)
    trained.metrics | "WriteMetrics" >> WriteJsonLines(job.address(job.logs.train_metrics))
    trained.dead | "WriteRefusedBatches" >> WriteJsonLines(job.address(job.logs.train_dead_letters))


def _open_reader(address: LogAddress, dedupe_rows: int, skip: Mapping[int, Sequence[Skip]]) -> ExamplesReader:
    return ExamplesReader(address.open_reader(), dedupe_rows, skip)
