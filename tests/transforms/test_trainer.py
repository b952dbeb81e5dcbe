"""The trainer against a store that fails in every way: each example counts exactly once.

The store here is plain dictionaries with a mark for each bucket, so that single buckets can be set back.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.embedding_store.api import Ids, Pulled, PushAnswer, ReadAt, StoreConfig, TablePush
from cuckooflow.embedding_store.hashing import hash_column
from cuckooflow.errors import (
    LogNotOpened,
    MarkMismatch,
    OffsetOutOfRange,
    StaleRows,
    StoreError,
    StoreUnavailable,
    TrainingGap,
)
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import COUNT_TABLE, build_model, store_config
from cuckooflow.models.spec import ModelSpec
from cuckooflow.transforms.examples_reader import ExamplesReader
from cuckooflow.transforms.ranges import RangeHeader, attach_range
from cuckooflow.transforms.trainer import Trainer
from cuckooflow.transforms.training_options import TrainingOptions
from cuckooflow.transforms.training_rows import TrainingRows

MODEL = build_model(
    ModelSpec(kind="lr", labels=("like",)), [FeatureSpec(name="user"), FeatureSpec(name="item")]
)
BUCKETS = 4
SECOND = 1_000_000


class PlainStore:
    """The store's verbs over dictionaries, as far as a trainer uses them. Thread-safe where it changes."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self.logs: dict[tuple[str, int], list[Position]] = {}
        self.starts: dict[tuple[str, int], Position] = {}
        self.rows: list[dict[str, Counter[int]]] = [{} for _ in range(BUCKETS)]
        self.poisoned: set[int] = set()
        self.fail_after: int | None = None
        self.pushed: list[LogRange] = []
        self.lock = threading.Lock()
        self.clock = 0

    def open_log(self, log: str, _incarnation: str, starts: Mapping[int, Position]) -> None:
        for partition, start in starts.items():
            self.starts.setdefault((log, partition), start)
            self.logs.setdefault((log, partition), [start] * BUCKETS)

    def marks(self, log: str) -> dict[int, tuple[Position, ...]]:
        return {p: tuple(sorted(set(marks))) for (name, p), marks in self.logs.items() if name == log}

    def pull(self, ids: Mapping[str, Ids]) -> Pulled:
        dims = {t.name: t.dim for t in self.config.tables}
        rows = {name: np.zeros((len(values), dims[name]), np.float32) for name, values in ids.items()}
        for name, values in ids.items():
            rows[name][[int(i) in self.poisoned for i in values]] = np.nan
        return Pulled(rows, {d.name: np.zeros(d.shape, np.float32) for d in self.config.dense}, (self.clock,))

    def push(
        self,
        range_: LogRange,
        tables: Mapping[str, TablePush],
        _dense: Mapping[str, Any],
        _time_us: int,
        read: ReadAt | None = None,
    ) -> PushAnswer:
        with self.lock:
            return self._push(range_, tables, read)

    def _push(self, range_: LogRange, tables: Mapping[str, TablePush], read: ReadAt | None) -> PushAnswer:
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                self.fail_after = None
                raise StoreUnavailable("gone")
        marks = self.logs[range_.log, range_.partition]
        other = sorted({m for m in marks if m != range_.first and m < range_.last})
        if other:
            raise MarkMismatch("cut", other)
        taking = [b for b, mark in enumerate(marks) if mark == range_.first and mark < range_.last]
        missed = 0 if read is None or not taking else self.clock - read.clock[0]
        if read is not None and read.staleness_max is not None and missed > read.staleness_max:
            raise StaleRows("stale")
        for name, push in tables.items():
            for id_, gradient in zip(push.ids.tolist(), push.gradients[:, 0].tolist(), strict=True):
                if id_ % BUCKETS in taking and name == COUNT_TABLE:
                    self.rows[id_ % BUCKETS].setdefault(name, Counter())[id_] -= round(gradient)
        for b in taking:
            marks[b] = range_.last
        self.pushed.append(range_)
        self.clock += 1
        return PushAnswer(len(taking), BUCKETS - len(taking), missed)

    def counts(self) -> Counter[int]:
        total: Counter[int] = Counter()
        for bucket in self.rows:
            total.update(bucket.get(COUNT_TABLE, Counter()))
        return total

    def checkpoint(self) -> Any:
        with self.lock:
            return copy.deepcopy((self.logs, self.rows))

    def restore(self, checkpoint: Any, buckets: range = range(BUCKETS)) -> None:
        logs, rows = copy.deepcopy(checkpoint)
        with self.lock:
            for b in buckets:
                self.rows[b] = rows[b]
                for key, start in self.starts.items():
                    self.logs[key][b] = logs[key][b] if key in logs else start


class Examples:
    """An examples log of one partition: ``sizes`` rows a message, every fifth row a repeat."""

    def __init__(self, folder: Path, sizes: list[int]) -> None:
        self.path = folder / "examples"
        LocalLog.create(self.path, partitions=1, encoding="frames")
        self.users: list[str] = []
        n = 0
        with LocalLogWriter(self.path) as writer:
            for size in sizes:
                ids = [i - 1 if i % 5 == 4 else i for i in range(n, n + size)]
                kept = [i for k, i in enumerate(range(n, n + size)) if i % 5 != 4]
                self.users += [f"u{i % 7}" for i in kept]
                writer.append(0, [_message(ids)], 1)
                n += size
            writer.append(0, [b"not arrow"], 1)

    def reader(self) -> ExamplesReader:
        return ExamplesReader(LocalLog.open(self.path), dedupe_rows=1000)

    def elements(self, rows: int, end: bool = True) -> Iterator[pa.RecordBatch]:
        reader, at, polled = self.reader(), Position(0), 0
        while True:
            batch, header = reader.read(0, at, None, rows)
            at, polled = header.range.last, polled + SECOND
            done = at == Position(reader.reader.end_offset(0))
            yield attach_range(
                batch, RangeHeader(header.range, Position(0), polled, done and end, header.repeated)
            )
            if done:
                return

    def expected(self) -> Counter[int]:
        """How often each feature id must have been counted."""
        users = hash_column(pa.array(self.users)) & np.uint64((1 << 52) - 1)
        counts = Counter(int(i) for i in users)
        counts[1 << 52 | int(hash_column(pa.array(["it"]))[0]) & ((1 << 52) - 1)] = len(self.users)
        return counts


def _message(numbers: list[int]) -> bytes:
    batch = pa.record_batch(
        {
            "user": [f"u{n % 7}" for n in numbers],
            "item": ["it"] * len(numbers),
            "label_like": pa.array([n % 3 == 0 for n in numbers], pa.bool_()).cast(pa.uint8()),
            "_time": pa.array([n * SECOND for n in numbers], pa.int64()),
            "_append": pa.array([n * 10 for n in numbers], pa.int64()),
            "_id_hi": pa.array(numbers, pa.uint64()),
            "_id_lo": pa.array(numbers, pa.uint64()),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _store() -> PlainStore:
    return PlainStore(store_config(MODEL, counting=True))


def _trainer(store: PlainStore, examples: Examples | None, **options: Any) -> Trainer:
    made = TrainingOptions(**{"batch_size": 8, "counting": True, "marks_interval_us": 0, **options})
    return Trainer(store, MODEL, examples.reader if examples else None, made, predictions=True)  # type: ignore[arg-type]


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    return Examples(tmp_path, [7, 1, 30, 12, 3])


def test_full_batches_and_the_rest_at_the_end(examples: Examples) -> None:
    store = _store()
    trainer = _trainer(store, examples, max_delay_us=3600 * SECOND)
    outs = [trainer.accept(element) for element in examples.elements(10)]
    assert store.counts() == examples.expected()
    predicted = [len(p) for out in outs for p in out.predictions]
    assert predicted == [8] * (len(examples.users) // 8) + [len(examples.users) % 8]
    pushed = store.pushed
    assert pushed[0].first == Position(0)
    assert all(a.last == b.first for a, b in itertools.pairwise(pushed))
    # The message that holds no examples lies inside the last range.
    assert store.marks("examples")[0] == (Position(6),)
    assert not trainer.waiting
    assert outs[-1].ticks[0].end
    assert sum(tick.rows for out in outs for tick in out.ticks) == len(examples.users)


class MeetingStore(PlainStore):
    """Its pushes, but for the last, end only once the next batch is being computed, and notes what a pull knew."""

    def __init__(self, config: StoreConfig, pushes: int) -> None:
        super().__init__(config)
        self.computing = [threading.Event() for _ in range(pushes + 1)]
        self.known: list[int] = []

    def push(self, *args: Any) -> PushAnswer:
        assert self.computing[len(self.pushed) + 1].wait(20), "expected the next step to begin meanwhile"
        return super().push(*args)

    def pull(self, ids: Mapping[str, Ids]) -> Any:
        self.known.append(len(self.pushed))
        return super().pull(ids)


def test_a_push_goes_out_beside_the_next_step_whose_rows_miss_that_push_alone(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushes = -(-len(examples.users) // 8)
    store = MeetingStore(store_config(MODEL, counting=True), pushes)
    steps = 0
    train_step = MODEL.train_step

    def counted(*args: Any) -> Any:
        nonlocal steps
        store.computing[steps].set()
        steps += 1
        if steps == pushes:
            store.computing[steps].set()  # nothing follows that one
        return train_step(*args)

    monkeypatch.setattr(MODEL, "train_step", counted)
    trainer = _trainer(store, examples, overlap=True, max_delay_us=3600 * SECOND)
    out = trainer.accept(next(iter(examples.elements(1000))))
    trainer.close()
    assert store.counts() == examples.expected()
    assert [len(p) for p in out.predictions] == [8] * (pushes - 1) + [len(examples.users) - 8 * (pushes - 1)]
    assert store.known == [0, 0, *range(1, pushes - 1)]


def test_the_last_push_of_an_element_goes_out_beside_the_next_element(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MeetingStore(store_config(MODEL, counting=True), 3)
    store.computing[1].set()  # the first push is seen at once, since marks are looked at
    train_step = MODEL.train_step
    steps = iter(store.computing)

    def counted(*args: Any) -> Any:
        next(steps).set()
        return train_step(*args)

    monkeypatch.setattr(MODEL, "train_step", counted)
    trainer = _trainer(
        store, examples, overlap=True, max_delay_us=3600 * SECOND, marks_interval_us=3600 * SECOND
    )
    elements = examples.elements(10, end=False)
    assert [len(p) for p in trainer.accept(next(elements)).predictions] == [8]
    reached = trainer.position
    assert not trainer.waiting
    second = trainer.accept(next(elements))
    assert (second.predictions, second.ticks[0].rows) == ([], 0)  # the store has not answered
    assert second.ticks[0].first == trainer.position == reached
    assert trainer.waiting
    third = trainer.accept(next(elements))
    assert [len(p) for p in third.predictions] == [8]
    store.computing[3].set()  # nothing follows
    assert [len(p) for p in trainer.flush(0).predictions] == [8]
    assert not trainer.waiting
    trainer.close()
    assert sum(store.counts().values()) == 2 * 3 * 8


def test_a_step_is_told_while_the_store_is_as_it_was(examples: Examples) -> None:
    store = _store()
    told: list[tuple[list[int], int, int]] = []

    def before_push(rows: TrainingRows, probabilities: Any) -> None:
        told.append((rows.offsets.tolist(), len(probabilities), len(store.pushed)))

    options = TrainingOptions(batch_size=8, counting=True, max_delay_us=3600 * SECOND)
    trainer = Trainer(store, MODEL, examples.reader, options, before_push=before_push)
    out = trainer.accept(next(iter(examples.elements(1000))))
    assert sum(tick.rows for tick in out.ticks) == len(examples.users)
    assert [pushes for _, _, pushes in told] == list(range(len(store.pushed)))[: len(told)]
    assert [rows for _, rows, _ in told] == [len(offsets) for offsets, _, _ in told]
    assert sum(rows for _, rows, _ in told) == len(examples.users)
    with pytest.raises(ValueError, match="without overlap"):
        Trainer(store, MODEL, None, TrainingOptions(overlap=True), before_push=before_push)


class BusyStore(PlainStore):
    """Before each of the first pushes another trainer's come in."""

    def __init__(self, config: StoreConfig, others: list[int]) -> None:
        super().__init__(config)
        self.others = others

    def push(self, *args: Any) -> PushAnswer:
        self.clock += self.others.pop(0) if self.others else 0
        return super().push(*args)


def test_a_step_that_missed_too_many_pushes_is_computed_anew(examples: Examples) -> None:
    store = BusyStore(store_config(MODEL, counting=True), [2, 1, 0, 5, 0])
    trainer = _trainer(store, examples, staleness_max=1, max_delay_us=3600 * SECOND)
    out = trainer.accept(next(iter(examples.elements(1000))))
    assert store.counts() == examples.expected()
    steps = -(-len(examples.users) // 8)
    # The first came again with one missed, the third with none.
    assert out.counted == {"training_steps": steps, "training_staleness_pushes": 1, "training_steps_stale": 2}
    assert [len(p) for p in out.predictions] == [8] * (steps - 1) + [len(examples.users) - 8 * (steps - 1)]


def test_staleness_is_measured_without_a_bound(examples: Examples) -> None:
    store = BusyStore(store_config(MODEL, counting=True), [2, 1, 0, 5])
    out = _trainer(store, examples).accept(next(iter(examples.elements(1000))))
    assert (out.counted["training_staleness_pushes"], out.counted["training_steps_stale"]) == (8, 0)


def test_a_bound_that_others_never_let_it_keep_is_named(examples: Examples) -> None:
    store = BusyStore(store_config(MODEL, counting=True), [1] * 100)
    trainer = _trainer(store, examples, staleness_max=0, push_attempts_max=5)
    with pytest.raises(StoreError, match=r"5 attempts, .*staleness_max, or run fewer"):
        trainer.accept(next(iter(examples.elements(1000))))
    assert len(store.others) == 95
    with pytest.raises(ValueError, match="expected staleness_max of 1 or more"):
        TrainingOptions(overlap=True, staleness_max=0)


def test_a_row_waits_no_longer_than_asked(examples: Examples) -> None:
    store = _store()
    trainer = _trainer(store, examples, batch_size=1000, max_delay_us=3 * SECOND)
    elements = list(examples.elements(5, end=False))
    for element in elements[:3]:
        assert not trainer.accept(element).predictions
    assert trainer.waiting
    assert trainer.accept(elements[3]).predictions
    assert not trainer.waiting
    trainer.accept(elements[4])
    assert trainer.waiting
    assert trainer.flush(8 * SECOND).predictions
    assert not trainer.flush(9 * SECOND).ticks


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
    store = _store()
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
    trainers = [_trainer(store, examples, **options)]
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
            trainers = [_trainer(store, examples, **options)]
        elif event == "zombie" and len(trainers) < 3:
            trainers.append(_trainer(store, examples, **options))
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
    store = _store()
    trainer = _trainer(store, examples, max_delay_us=0)
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
    store = _store()
    trainer = _trainer(store, examples, marks_interval_us=3600 * SECOND)
    empty = None
    for element in examples.elements(10):
        trainer.accept(element)
        empty = empty or store.checkpoint()
    store.restore(empty)
    trainer.finish(0)
    assert store.counts() == examples.expected()


def test_a_gap_that_cannot_be_read_again_is_named(examples: Examples) -> None:
    store = _store()
    elements = list(examples.elements(10))
    trainer = _trainer(store, None)
    trainer.accept(elements[0])
    trainer.accept(elements[2])
    with pytest.raises(TrainingGap, match="reader"):
        trainer.finish(0)


def test_deleted_offsets_are_named(tmp_path: Path) -> None:
    examples = Examples(tmp_path, [10] * 6)
    store = _store()
    elements = list(examples.elements(10))
    _trainer(store, examples).accept(elements[0])

    class Deleted:
        dead_letters = pa.record_batch({"x": []})

        def read(self, *_: object) -> Any:
            raise OffsetOutOfRange("deleted")

    trainer = Trainer(store, MODEL, Deleted, TrainingOptions(counting=True))  # type: ignore[arg-type]
    trainer.accept(elements[2])
    with pytest.raises(OffsetOutOfRange):
        trainer.flush(0)


def test_a_store_that_forgot_the_log_is_named(examples: Examples) -> None:
    store = _store()
    trainer = _trainer(store, examples)
    elements = list(examples.elements(10))
    trainer.accept(elements[0])
    store.logs.clear()
    with pytest.raises((LogNotOpened, KeyError)):
        trainer.accept(elements[0])


@pytest.mark.parametrize("overlap", [False, True])
def test_a_batch_that_is_not_finite_becomes_dead_letters_and_the_rest_goes_on(
    examples: Examples, overlap: bool
) -> None:
    store = _store()
    store.poisoned = {int(hash_column(pa.array(["u3"]))[0]) & ((1 << 52) - 1)}
    trainer = _trainer(store, examples, batch_size=1, overlap=overlap)
    outs = [trainer.accept(element) for element in examples.elements(10)]
    trainer.close()
    dead = [row for out in outs for batch in out.dead for row in batch.to_pylist()]
    bad = [row for row in dead if row["reason"] == "gradient_not_finite"]
    assert len(bad) == examples.users.count("u3")
    assert b'"user": "u3"' in bad[0]["value"]
    assert sum(out.ticks[0].rows for out in outs) == len(examples.users) - len(bad)
    assert store.marks("examples")[0] == (Position(6),)


def test_a_column_of_another_type_becomes_dead_letters(examples: Examples) -> None:
    store = _store()
    trainer = _trainer(store, examples)
    elements = list(examples.elements(10))
    broken = elements[0].set_column(
        elements[0].schema.get_field_index("user"), "user", pa.array([{"a": 1}] * elements[0].num_rows)
    )
    out = trainer.accept(broken)
    assert out.dead[0].num_rows == elements[0].num_rows
    assert set(out.dead[0].column("reason").to_pylist()) == {"not_encodable"}
    outs = [trainer.accept(element) for element in elements[1:]]
    assert sum(tick.rows for o in outs for tick in o.ticks) == len(examples.users) - elements[0].num_rows


def test_heartbeats_move_the_mark_over_holes_only_when_due(examples: Examples) -> None:
    store = _store()
    trainer = _trainer(store, examples, max_delay_us=2 * SECOND)
    empty = pa.record_batch({"user": pa.array([], pa.string())})

    def heartbeat(first: int, last: int, polled: int) -> pa.RecordBatch:
        range_ = LogRange("examples", "i", 0, Position(first), Position(last))
        return attach_range(empty, RangeHeader(range_, Position(0), polled))

    trainer.accept(heartbeat(0, 0, 0))
    trainer.accept(heartbeat(0, 5, SECOND))
    assert store.marks("examples")[0] == (Position(0),)
    trainer.accept(heartbeat(5, 5, 3 * SECOND))
    assert store.marks("examples")[0] == (Position(5),)


def test_arrivals_are_of_actions_only_and_bounded(tmp_path: Path) -> None:
    examples = Examples(tmp_path, [1000])
    trainer = _trainer(_store(), examples, batch_size=512)
    outs = [trainer.accept(element) for element in examples.elements(5000)]
    arrivals = [us for out in outs for tick in out.ticks for us in tick.arrivals_us]
    assert 0 < len(arrivals) <= 64
    assert all(us // 10 % 3 == 0 for us in arrivals)


@given(order=st.permutations(range(6)), held=st.sampled_from([0, 2, 16]))
def test_elements_in_any_order_count_once(
    order: list[int], held: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first element to come, heartbeat or end mark included, does not decide where training begins."""
    examples = Examples(tmp_path_factory.mktemp("examples"), [7, 1, 30, 12, 3])
    elements = list(examples.elements(10))
    assert len(elements) == len(order)
    store = _store()
    trainer = _trainer(store, examples, held_elements_max=held)
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
    trainer = Trainer(_store(), MODEL, functools.partial(reader), options)  # type: ignore[arg-type]
    elements = list(examples.elements(8, end=False))
    for n in (1, 2, 0):  # polled a second apart
        trainer.accept(elements[n])
    assert trainer.position > Position(0)
    trainer.accept(elements[4])
    assert trainer.waiting
    assert not opened
    trainer.accept(elements[6])
    assert opened
