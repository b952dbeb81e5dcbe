"""TrainStep as a Beam transform: outputs, several partitions, and each timer where only it can do its work."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_stream import TestStream as Stream
from apache_beam.testing.util import assert_that, equal_to

from cuckooflow.embedding_store.api import Store
from cuckooflow.embedding_store.hashing import hash_column
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.errors import CuckooflowError, StoreUnavailable
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import COUNT_TABLE, build_model, store_config
from cuckooflow.models.snapshots import list_manifests
from cuckooflow.models.spec import ModelSpec
from cuckooflow.transforms import train_step
from cuckooflow.transforms.emit_snapshots import EmitSnapshots
from cuckooflow.transforms.ranges import RangeHeader, attach_range, read_range_header
from cuckooflow.transforms.shared_stores import share_store, shared_store, unshare_store
from cuckooflow.transforms.snapshot_publisher import SnapshotOptions
from cuckooflow.transforms.train_step import TrainConfig, TrainStep
from cuckooflow.transforms.training_options import TrainingOptions
from cuckooflow.transforms.training_output import Tick

FEATURES = (FeatureSpec(name="user"),)
MODEL = ModelSpec(kind="lr", labels=("like",))
FAR = 1 << 33  # seconds: past every timer that the wall clock set

Shared = tuple[Store, Callable[[], Store]]


@pytest.fixture
def shared() -> Iterator[Shared]:
    store = EmbeddedStore(store_config(build_model(MODEL, FEATURES), counting=True, buckets=4), None)
    name = uuid.uuid4().hex
    yield store, share_store(name, store)
    unshare_store(name)
    store.close()


def element(partition: int, first: int, last: int, end: bool = False) -> tuple[int, pa.RecordBatch]:
    numbers = range(first, last)
    batch = pa.record_batch(
        {
            "user": [f"u{n}" for n in numbers],
            "label_like": pa.array([n % 2 for n in numbers], pa.uint8()),
            "_offset": pa.array(numbers, pa.int64()),
            "_row": pa.array([0] * len(numbers), pa.int32()),
            "_time": pa.array([n * 1_000_000 for n in numbers], pa.int64()),
            "_append": pa.array(list(numbers), pa.int64()),
        }
    )
    range_ = LogRange("examples", "made", partition, Position(first), Position(last))
    return partition, attach_range(batch, RangeHeader(range_, Position(0), polled_us=0, end=end))


def config(shared: Shared, **options: Any) -> TrainConfig:
    made = TrainingOptions(**{"batch_size": 8, "counting": True, "max_delay_us": 3_600_000_000, **options})
    return TrainConfig(shared[1], MODEL, FEATURES, options=made, predictions=True)


def counted(store: Store, users: int) -> list[float]:
    hashes = hash_column(pa.array([f"u{n}" for n in range(users)])) & np.uint64((1 << 52) - 1)
    return [float(row[0]) for row in store.lookup({COUNT_TABLE: hashes})[COUNT_TABLE]]


def streaming() -> beam.Pipeline:
    # TestStream drives processing time only on this runner.
    return beam.Pipeline(runner=BundleBasedDirectRunner(), options=PipelineOptions(["--streaming"]))


def trained_ticks(ticks: beam.PCollection) -> beam.PCollection:
    """(rows, end) of the ticks that bring news of training."""
    return ticks | beam.Filter(lambda t: t.rows > 0) | beam.Map(lambda t: (t.rows, t.end))


def test_several_partitions_in_process(shared: Shared) -> None:
    elements = [
        element(0, 0, 20),
        element(1, 0, 3),
        element(0, 20, 30, end=True),
        element(1, 3, 30, end=True),
    ]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        out = pipeline | beam.Create(elements) | TrainStep(config(shared))
        assert_that(summed("Ticks", out.ticks, _tick_rows), equal_to([60]), "RowsOfTicks")
        assert_that(summed("Predicted", out.predictions, _batch_rows), equal_to([60]), "RowsPredicted")
        assert_that(summed("Measured", out.metrics, _record_rows), equal_to([60]), "RowsMeasured")
        assert_that(out.dead, equal_to([]), "NoDeadLetters")
    assert counted(shared[0], 30) == [2.0] * 30
    assert shared[0].marks("examples") == {0: (Position(30),), 1: (Position(30),)}
    assert not train_step._registry


def summed(name: str, values: beam.PCollection, rows: Callable[[Any], int]) -> beam.PCollection:
    return values | f"Rows{name}" >> beam.Map(rows) | f"Sum{name}" >> beam.CombineGlobally(sum)


def _tick_rows(tick: Tick) -> int:
    return tick.rows


def _batch_rows(batch: pa.RecordBatch) -> int:
    return int(batch.num_rows)


def _record_rows(record: dict[str, Any]) -> int:
    return int(record["rows"])


def test_no_input_is_no_output(shared: Shared) -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        out = (
            pipeline
            | beam.Create([]).with_output_types(tuple[int, pa.RecordBatch])
            | TrainStep(config(shared))
        )
        assert_that(out.ticks, equal_to([]))
    assert shared[0].marks("examples") == {}


def test_repeated_and_overlapping_elements_count_once(shared: Shared) -> None:
    stream = Stream()
    for first, last in [(0, 10), (0, 10), (4, 16), (10, 20)]:
        stream.add_elements([element(0, first, last)])
    stream.advance_watermark_to_infinity()
    with streaming() as pipeline:
        pipeline | stream | TrainStep(config(shared))
    assert counted(shared[0], 20) == [1.0] * 20


def test_only_the_processing_time_timer_pushes_while_the_input_pauses(shared: Shared) -> None:
    stream = (
        Stream().add_elements([element(0, 0, 5)]).advance_processing_time(FAR).advance_watermark_to_infinity()
    )
    with streaming() as pipeline:
        out = pipeline | stream | TrainStep(config(shared))
        # Not at the end: that tick would say so.
        assert_that(trained_ticks(out.ticks), equal_to([(5, False)]))


def test_only_the_event_time_timer_pushes_the_rest_at_the_end(shared: Shared) -> None:
    stream = Stream().add_elements([element(0, 0, 5)]).advance_watermark_to_infinity()
    with streaming() as pipeline:
        pipeline | stream | TrainStep(config(shared))
    # Processing time never moved, so no other timer can have fired.
    assert counted(shared[0], 5) == [1.0] * 5


class Again:
    """Reads the log that :func:`element` makes."""

    dead_letters = pa.record_batch({"reason": pa.array([], pa.string())})

    def read(self, partition: int, first: Position, last: Position, max_rows: int) -> Any:
        batch = element(partition, first.offset, min(last.offset, first.offset + max_rows))[1]
        return batch, read_range_header(batch)


def _lose_the_worker(_: Tick) -> None:
    train_step._registry.clear()


@pytest.mark.parametrize("paused", [True, False], ids=["at a pause", "at the end"])
def test_what_a_lost_worker_held_is_trained_by_the_next(shared: Shared, paused: bool) -> None:
    stream = Stream().add_elements([element(0, 0, 5)])
    if paused:
        stream.advance_processing_time(FAR)
    stream.advance_watermark_to_infinity()
    with streaming() as pipeline:
        out = pipeline | stream | TrainStep(dataclasses.replace(config(shared), reader=Again))
        out.ticks | beam.Map(_lose_the_worker)
    assert counted(shared[0], 5) == [1.0] * 5


def test_a_worker_of_another_version_is_refused(shared: Shared) -> None:
    fn = train_step._TrainFn(config(shared), "run", "0.0.0-other")
    with pytest.raises(CuckooflowError, match="version"):
        fn.setup()


def test_a_store_that_is_not_shared_is_named() -> None:
    with pytest.raises(StoreUnavailable, match="no-such-store"):
        shared_store("no-such-store")


def test_a_new_transform_goes_on_where_the_store_stands(shared: Shared) -> None:
    for elements in ([element(0, 0, 12)], [element(0, 0, 12), element(0, 12, 20, end=True)]):
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            pipeline | beam.Create(elements) | TrainStep(config(shared))
    assert counted(shared[0], 20) == [1.0] * 20


class Live(beam.DoFn):
    """A source that ends only if what it gave was published meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def process(self, _: object) -> Iterator[tuple[int, pa.RecordBatch]]:
        yield element(0, 0, 8)
        if not list_manifests(self._folder):
            raise RuntimeError("expected a snapshot of the first batch while the source still runs")
        yield element(0, 8, 16, end=True)


def test_in_process_snapshots_come_while_the_source_still_runs(tmp_path: Path, shared: Shared) -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        out = pipeline | beam.Create([0]) | beam.ParDo(Live(tmp_path)) | TrainStep(config(shared))
        out.ticks | EmitSnapshots(shared[1], SnapshotOptions(tmp_path, "films", MODEL, FEATURES))
    assert list_manifests(tmp_path)[-1].marks["examples"] == {0: Position(16)}
