"""The trainer against a store and a log that fail in every way: each example counts exactly once."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.errors import LogNotOpened, OffsetOutOfRange, StoreUnavailable, TrainingGap
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.transforms.examples_reader import ExamplesReader
from cuckooflow.transforms.ranges import RangeHeader, attach_range
from cuckooflow.transforms.trainer import Trainer
from cuckooflow.transforms.training_options import TrainingOptions
from tests.transforms.plain_store import BUCKETS, MODEL, SECOND, Examples, new_store, new_trainer


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    return Examples(tmp_path, [7, 1, 30, 12, 3])


def _until_it_goes(call: Callable[[Any], object], given: object) -> None:
    """As a runner does, which brings again what failed; the push that failed may be one of before."""
    for _ in range(5):
        with contextlib.suppress(StoreUnavailable):
            call(given)
            return
    pytest.fail("expected the store to be there again")


@pytest.mark.slow
@settings(max_examples=60)
@given(data=st.data())
def test_whatever_is_killed_every_example_counts_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 25), min_size=1, max_size=8), "sizes")
    examples = Examples(tmp_path_factory.mktemp("log"), sizes)
    store = new_store()
    options = {
        "batch_size": data.draw(st.integers(1, 20), "batch_size"),
        "max_delay_us": data.draw(st.sampled_from([0, 2 * SECOND, 3600 * SECOND]), "delay"),
        "marks_interval_us": data.draw(st.sampled_from([0, 2 * SECOND, 3600 * SECOND]), "interval"),
        **data.draw(
            st.sampled_from(
                [
                    {"overlap": overlap, "staleness_max": most}
                    for overlap in (False, True)
                    for most in (0, 1, None)
                    if most or most is None or not overlap
                ]
            ),
            "overlap",
        ),
        "fill_rows_max": data.draw(st.integers(1, 30), "fill"),
    }
    trainers = [new_trainer(store, examples, **options)]
    killed: list[Trainer] = []
    checkpoints = [store.checkpoint()]
    elements = list(examples.elements(data.draw(st.integers(1, 30), "rows")))
    at = 0
    while at < len(elements):
        event = data.draw(
            st.sampled_from(["next"] * 6 + ["save", "restore", "part", "kill", "zombie", "again", "fail"])
        )
        if event == "next":
            for trainer in trainers:
                _until_it_goes(trainer.accept, elements[at])
            at += 1
        elif event == "save":
            checkpoints.append(store.checkpoint())
        elif event in ("restore", "part"):
            buckets = range(BUCKETS) if event == "restore" else range(data.draw(st.integers(1, BUCKETS)))
            store.restore(data.draw(st.sampled_from(checkpoints)), buckets)
        elif event == "kill":
            killed += trainers
            trainers = [new_trainer(store, examples, **options)]
        elif event == "zombie" and len(trainers) < 3:
            trainers.append(new_trainer(store, examples, **options))
        elif event == "again":
            at = max(0, at - data.draw(st.integers(1, 3)))
        elif event == "fail":
            store.fail_after = data.draw(st.integers(0, 3))
            with contextlib.suppress(StoreUnavailable):  # the runner brings the element again
                trainers[0].accept(elements[at])
            store.fail_after = None
    for trainer in trainers:
        _until_it_goes(trainer.finish, 10**9)
    for trainer in trainers + killed:
        trainer.close()
    assert store.counts() == examples.expected()
    assert len(store.marks("examples")[0]) == 1


def test_a_restored_store_learns_again_but_is_not_measured_again(
    examples: Examples, caplog: pytest.LogCaptureFixture
) -> None:
    store = new_store()
    trainer = new_trainer(store, examples, max_delay_us=0)
    elements = list(examples.elements(10))
    outs = [trainer.accept(element) for element in elements[:3]]
    saved = store.checkpoint()
    outs += [trainer.accept(element) for element in elements[3:5]]
    store.restore(saved)
    outs += [trainer.accept(element) for element in elements[5:]]
    assert store.counts() == examples.expected()
    records = [record for out in outs for record in out.metrics]
    assert sum(record["rows"] for record in records) == len(examples.users)
    positions = [p for out in outs for batch in out.predictions for p in batch.column("_offset").to_pylist()]
    assert len(positions) == len(examples.users)
    (told,) = [record.getMessage() for record in caplog.records if "store_fell_back" in record.getMessage()]
    assert "log=examples partition=0 from=" in told


def test_a_store_set_back_is_filled_before_the_input_counts_as_finished(examples: Examples) -> None:
    store = new_store()
    trainer = new_trainer(store, examples, marks_interval_us=3600 * SECOND)
    empty = None
    for element in examples.elements(10):
        trainer.accept(element)
        empty = empty or store.checkpoint()
    store.restore(empty)
    trainer.finish(0)
    assert store.counts() == examples.expected()


def test_a_gap_that_cannot_be_read_again_is_named(examples: Examples) -> None:
    store = new_store()
    elements = list(examples.elements(10))
    trainer = new_trainer(store, None)
    trainer.accept(elements[0])
    trainer.accept(elements[2])
    with pytest.raises(TrainingGap, match="reader"):
        trainer.finish(0)


def test_deleted_offsets_are_named(tmp_path: Path) -> None:
    examples = Examples(tmp_path, [10] * 6)
    store = new_store()
    elements = list(examples.elements(10))
    new_trainer(store, examples).accept(elements[0])

    class Deleted:
        dead_letters = pa.record_batch({"x": []})

        def read(self, *_: object) -> Any:
            raise OffsetOutOfRange("deleted")

    trainer = Trainer(store, MODEL, Deleted, TrainingOptions(counting=True))  # type: ignore[arg-type]
    trainer.accept(elements[2])
    with pytest.raises(OffsetOutOfRange):
        trainer.flush(0)


def test_a_store_that_forgot_the_log_is_named(examples: Examples) -> None:
    store = new_store()
    trainer = new_trainer(store, examples)
    elements = list(examples.elements(10))
    trainer.accept(elements[0])
    store.logs.clear()
    with pytest.raises((LogNotOpened, KeyError)):
        trainer.accept(elements[0])


def test_heartbeats_move_the_mark_over_holes_only_when_due(examples: Examples) -> None:
    store = new_store()
    trainer = new_trainer(store, examples, max_delay_us=2 * SECOND)
    empty = pa.record_batch({"user": pa.array([], pa.string())})

    def heartbeat(first: int, last: int, polled: int) -> pa.RecordBatch:
        range_ = LogRange("examples", "i", 0, Position(first), Position(last))
        return attach_range(empty, RangeHeader(range_, Position(0), polled))

    trainer.accept(heartbeat(0, 0, 0))
    trainer.accept(heartbeat(0, 5, SECOND))
    assert store.marks("examples")[0] == (Position(0),)
    trainer.accept(heartbeat(5, 5, 3 * SECOND))
    assert store.marks("examples")[0] == (Position(5),)


@given(order=st.permutations(range(6)), held=st.sampled_from([0, 2, 16]))
def test_elements_in_any_order_count_once(
    order: list[int], held: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first element to come, heartbeat or end mark included, does not decide where training begins."""
    examples = Examples(tmp_path_factory.mktemp("examples"), [7, 1, 30, 12, 3])
    elements = list(examples.elements(10))
    assert len(elements) == len(order)
    store = new_store()
    trainer = new_trainer(store, examples, held_elements_max=held)
    outs = [trainer.accept(elements[n]) for n in order]
    outs.append(trainer.finish(0))
    assert store.counts() == examples.expected()
    assert sum(tick.rows for out in outs for tick in out.ticks) == len(examples.users)
    assert not trainer.waiting


def test_readers_are_opened_only_when_an_element_does_not_come(examples: Examples) -> None:
    opened = []

    def reader() -> ExamplesReader:
        opened.append(1)
        return examples.reader()

    options = TrainingOptions(batch_size=8, max_delay_us=2 * SECOND)
    trainer = Trainer(new_store(), MODEL, functools.partial(reader), options)  # type: ignore[arg-type]
    elements = list(examples.elements(8, end=False))
    for n in (1, 2, 0):  # polled a second apart
        trainer.accept(elements[n])
    assert trainer.position > Position(0)
    trainer.accept(elements[4])
    assert trainer.waiting
    assert not opened
    trainer.accept(elements[6])
    assert opened
