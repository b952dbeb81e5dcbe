"""Snapshots as the trainer's side output: when they are made, full or not, and each timer alone."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_stream import TestStream as Stream
from apache_beam.testing.util import assert_that, equal_to

from cuckooflow.embedding_store.api import Store, TablePush
from cuckooflow.embedding_store.read_store import ReadStore
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.errors import StoreUnavailable, WrongIncarnation
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.progressive import LabelMetrics
from cuckooflow.models.registry import build_model, store_config
from cuckooflow.models.snapshots import Manifest, list_manifests, read_snapshot, request_full
from cuckooflow.models.spec import ModelSpec
from cuckooflow.transforms import emit_snapshots
from cuckooflow.transforms.emit_snapshots import EmitSnapshots
from cuckooflow.transforms.shared_stores import share_store, unshare_store
from cuckooflow.transforms.snapshot_publisher import SnapshotOptions, SnapshotPublisher
from cuckooflow.transforms.training_output import Tick

SECOND = 1_000_000
BIAS = "linear/bias"
FEATURES = (FeatureSpec(name="user"),)
MODEL = ModelSpec(kind="lr", labels=("like",))
Shared = tuple[Store, Callable[[], Store]]


@pytest.fixture
def shared() -> Iterator[Shared]:
    store = EmbeddedStore(store_config(build_model(MODEL, FEATURES), buckets=4), None)
    store.open_log("examples", "made", {0: Position(0)})
    name = uuid.uuid4().hex
    yield store, share_store(name, store)
    unshare_store(name)
    store.close()


def options(folder: Path, **given: Any) -> SnapshotOptions:
    return SnapshotOptions(
        folder, "films", MODEL, FEATURES, **{"interval_us": 10 * SECOND, "full_interval_us": 1 << 62, **given}
    )


def tick(polled_s: int, rows: int = 1, **given: Any) -> Tick:
    return Tick(
        **{
            "log": "examples",
            "partition": 0,
            "first": Position(polled_s),
            "polled_us": polled_s * SECOND,
            "event_time_us": polled_s * SECOND - 5,
            "rows": rows,
            "rate": 1.0,
            "arrivals_us": (),
            **given,
        }
    )


def push(store: Store, ids: list[int], bias: float = 0.0) -> None:
    mark = store.marks("examples")[0][0]
    range_ = LogRange("examples", "made", 0, mark, Position(mark.offset + 1))
    gradients = np.ones((len(ids), 1), np.float32)
    dense = {BIAS: np.full(1, bias, np.float32)} if bias else {}
    store.push(range_, {"linear": TablePush(np.array(ids, np.uint64), gradients)}, dense, 0)


def test_first_full_then_deltas_at_the_interval(tmp_path: Path, shared: Shared) -> None:
    store = shared[0]
    publisher = SnapshotPublisher(store, options(tmp_path))
    push(store, [1, 2])
    first = publisher.tick(tick(0))
    assert first is not None and first.kind == "full"
    push(store, [3])
    assert publisher.tick(tick(9)) is None
    second = publisher.tick(tick(10, rows=0))
    assert second is not None and second.kind == "delta" and second.base == first.version
    assert read_snapshot(tmp_path, second).tables["linear"].ids.tolist() == [3]
    assert publisher.tick(tick(60, rows=0)) is None  # nothing new
    assert [m.sequence for m in list_manifests(tmp_path)] == [first.sequence, second.sequence]


def test_the_interval_is_the_mean_of_those_between_snapshots(tmp_path: Path, shared: Shared) -> None:
    publisher = SnapshotPublisher(shared[0], options(tmp_path))
    at_s = []
    for polled_s in [*range(0, 100, 7), *range(200, 240, 7)]:
        push(shared[0], [polled_s])
        if publisher.tick(tick(polled_s)):
            at_s.append(polled_s)
    # After the gap none is made up for, and the next one comes half an interval later at the soonest.
    assert at_s == [0, 14, 21, 35, 42, 56, 63, 77, 84, 98, 200, 207, 221, 228]


def test_full_ones_come_on_schedule_and_on_request(tmp_path: Path, shared: Shared) -> None:
    publisher = SnapshotPublisher(shared[0], options(tmp_path, full_interval_us=100 * SECOND))
    kinds = []
    for at in (0, 20, 100, 120):
        push(shared[0], [at])
        manifest = publisher.tick(tick(at))
        kinds.append(manifest.kind if manifest else None)
    assert kinds == ["full", "delta", "full", "delta"]
    request_full(tmp_path, "a reader lost its way")
    manifest = publisher.tick(tick(140, rows=0))
    assert manifest is not None and manifest.kind == "full"


def test_a_new_publisher_goes_on_from_the_folder(tmp_path: Path, shared: Shared) -> None:
    push(shared[0], [1])
    SnapshotPublisher(shared[0], options(tmp_path)).tick(tick(0))
    push(shared[0], [2])
    again = SnapshotPublisher(shared[0], options(tmp_path)).tick(tick(50))
    assert again is not None and again.kind == "delta"


def test_a_restored_store_has_no_base_so_the_next_is_full(tmp_path: Path) -> None:
    config = store_config(build_model(MODEL, FEATURES), buckets=4)
    before = EmbeddedStore(config, None)
    SnapshotPublisher(before, options(tmp_path)).tick(tick(0))
    after = EmbeddedStore(config, None)
    manifest = SnapshotPublisher(after, options(tmp_path)).tick(tick(50))
    assert manifest is not None and manifest.kind == "full"
    before.close()
    after.close()


class Failing:
    """Passes everything on, but for one verb that fails once."""

    def __init__(self, store: Store, verb: str, error: Exception) -> None:
        self._store, self._verb, self._error = store, verb, error

    def __getattr__(self, name: str) -> Any:
        if name == self._verb and self._error is not None:
            error, self._error = self._error, None  # type: ignore[assignment]

            def fail(*_: object) -> None:
                raise error

            return fail
        return getattr(self._store, name)


def test_a_store_that_is_gone_costs_one_interval(tmp_path: Path, shared: Shared) -> None:
    store: Any = Failing(shared[0], "delta", StoreUnavailable("gone"))
    publisher = SnapshotPublisher(store, options(tmp_path))
    push(shared[0], [1])
    assert publisher.tick(tick(0)) is None
    assert publisher.tick(tick(9)) is None
    assert publisher.waiting
    manifest = publisher.tick(tick(10))
    assert manifest is not None


def test_an_ack_that_fails_loses_nothing(tmp_path: Path, shared: Shared) -> None:
    store: Any = Failing(shared[0], "ack", WrongIncarnation("restored"))
    publisher = SnapshotPublisher(store, options(tmp_path))
    push(shared[0], [1])
    assert publisher.tick(tick(0)) is not None
    push(shared[0], [2])
    manifest = publisher.tick(tick(10))
    assert manifest is not None and manifest.kind == "full"
    assert sorted(read_snapshot(tmp_path, manifest).tables["linear"].ids.tolist()) == [1, 2]


def test_the_manifest_says_what_a_scorer_needs(tmp_path: Path, shared: Shared) -> None:
    figures = LabelMetrics()
    figures.add(np.array([0.2, 0.8]), np.array([0, 1]))
    publisher = SnapshotPublisher(
        shared[0], options(tmp_path, correction="log_odds", columns={"user": "string"})
    )
    push(shared[0], [1])
    manifest = publisher.tick(
        tick(7, rate=0.25, arrivals_us=tuple(range(3000)), metrics=({"label": "like", **figures.to_json()},))
    )
    assert manifest is not None
    assert (manifest.name, manifest.sampling_rate, manifest.correction) == ("films", 0.25, "log_odds")
    assert ModelSpec.model_validate(manifest.model) == MODEL
    assert [FeatureSpec.model_validate(f) for f in manifest.features] == list(FEATURES)
    assert (manifest.event_time_us, manifest.columns) == (7 * SECOND - 5, {"user": "string"})
    assert len(manifest.arrivals_us) <= 256 and manifest.arrivals_us[-1] > 2900
    assert manifest.metrics["like/auc"] == 1.0 and manifest.metrics["like/rows"] == 2.0
    assert manifest.marks["examples"][0] == Position(1)


def streaming() -> beam.Pipeline:
    # TestStream drives processing time only on this runner.
    return beam.Pipeline(runner=BundleBasedDirectRunner(), options=PipelineOptions(["--streaming"]))


def test_manifests_come_out_of_the_pipeline(tmp_path: Path, shared: Shared) -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        manifests = (
            pipeline
            | beam.Create([tick(0), tick(5), tick(20), tick(21)])
            | EmitSnapshots(shared[1], options(tmp_path))
        )
        assert_that(manifests | beam.Map(lambda m: m.kind), equal_to(["full", "delta", "delta"]))
    assert not emit_snapshots._registry


def test_only_the_processing_time_timer_publishes_while_ticks_pause(tmp_path: Path, shared: Shared) -> None:
    stream = Stream().add_elements([tick(0)]).add_elements([tick(1)]).advance_processing_time(1 << 33)
    stream.add_elements([tick(2)]).advance_watermark_to_infinity()
    with streaming() as pipeline:
        pipeline | stream | EmitSnapshots(shared[1], options(tmp_path))
    # At once, at the pause, at the end.
    assert [m.kind for m in list_manifests(tmp_path)] == ["full", "delta", "delta"]


def test_only_the_event_time_timer_publishes_the_rest_at_the_end(tmp_path: Path, shared: Shared) -> None:
    stream = Stream().add_elements([tick(0)]).add_elements([tick(1)]).advance_watermark_to_infinity()
    with streaming() as pipeline:
        pipeline | stream | EmitSnapshots(shared[1], options(tmp_path))
    # Processing time never moved, so no other timer can have fired.
    assert [m.kind for m in list_manifests(tmp_path)] == ["full", "delta"]


def test_news_that_a_lost_publisher_held_come_with_the_next(tmp_path: Path, shared: Shared) -> None:
    push(shared[0], [1])
    lost = SnapshotPublisher(shared[0], options(tmp_path))
    lost.tick(tick(0))
    push(shared[0], [2])
    assert lost.tick(tick(5)) is None
    manifest = SnapshotPublisher(shared[0], options(tmp_path)).publish(30 * SECOND, force=True)
    assert manifest is not None
    assert read_snapshot(tmp_path, manifest).tables["linear"].ids.tolist() == [2]


def test_no_ticks_no_snapshots(tmp_path: Path, shared: Shared) -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        assert_that(pipeline | beam.Create([]) | EmitSnapshots(shared[1], options(tmp_path)), equal_to([]))
    assert list_manifests(tmp_path) == []


def test_a_folder_that_another_store_published_into_gets_a_full_one_first(
    shared: Shared, tmp_path: Path
) -> None:
    """Otherwise a store that published elsewhere before would begin there with a delta that no replica can take."""
    store = shared[0]
    other = EmbeddedStore(store_config(build_model(MODEL, FEATURES), buckets=4), None)
    SnapshotPublisher(other, options(tmp_path / "live")).tick(tick(0))
    push(store, [1])
    SnapshotPublisher(store, options(tmp_path / "beside")).tick(tick(0))
    push(store, [2])
    publisher = SnapshotPublisher(store, options(tmp_path / "live"))
    assert [publisher.tick(tick(at)).kind for at in (20, 40)] == ["full", "delta"]
    other.close()


def test_dense_parameters_come_at_their_own_interval_and_before_a_pause(
    tmp_path: Path, shared: Shared
) -> None:
    store = shared[0]
    publisher = SnapshotPublisher(store, options(tmp_path, dense_interval_us=60 * SECOND))
    held = ReadStore(store_config(build_model(MODEL, FEATURES)).tables)
    served = []

    def look(manifest: Manifest | None) -> None:
        assert manifest is not None
        delta = read_snapshot(tmp_path, manifest)
        held.apply(delta)
        served.append((sorted(delta.dense), float(held.dense()[BIAS][0])))
        assert held.version == manifest.version

    for at in (0, 20, 40, 60):
        push(store, [at], bias=1.0)
        look(publisher.tick(tick(at)))
    names = [dense for dense, _ in served]
    assert names == [[BIAS], [], [], [BIAS]]
    assert served[0][1] == served[1][1] == served[2][1]
    assert served[3][1] == float(store.dense()[BIAS][0]) != served[0][1]

    push(store, [80], bias=1.0)
    look(publisher.tick(tick(80)))
    assert served[-1][0] == [] and publisher.waiting  # for dense parameters alone
    assert publisher.tick(tick(90, rows=0)) is None
    look(publisher.publish(91 * SECOND, force=True))
    assert served[-1] == ([BIAS], float(store.dense()[BIAS][0]))
    assert not publisher.waiting


def test_dense_parameters_that_are_due_come_without_new_rows(tmp_path: Path, shared: Shared) -> None:
    publisher = SnapshotPublisher(shared[0], options(tmp_path, dense_interval_us=60 * SECOND))
    push(shared[0], [1])
    publisher.tick(tick(0))
    push(shared[0], [2], bias=1.0)
    publisher.tick(tick(20))
    assert publisher.tick(tick(40, rows=0)) is None
    due = publisher.tick(tick(60, rows=0))
    assert due is not None and list(read_snapshot(tmp_path, due).dense) == [BIAS]
    assert not publisher.waiting
