"""The trainer's steps: what is pushed when, beside what, how old, and what is refused."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cuckooflow.embedding_store.api import Ids, PushAnswer, StoreConfig
from cuckooflow.embedding_store.hashing import hash_column
from cuckooflow.errors import StoreError
from cuckooflow.logs.contract import Position
from cuckooflow.models.registry import store_config
from cuckooflow.transforms.trainer import Trainer
from cuckooflow.transforms.training_options import TrainingOptions
from cuckooflow.transforms.training_rows import TrainingRows
from tests.transforms.plain_store import MODEL, SECOND, Examples, PlainStore, new_store, new_trainer


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    return Examples(tmp_path, [7, 1, 30, 12, 3])


def test_full_batches_and_the_rest_at_the_end(examples: Examples) -> None:
    store = new_store()
    trainer = new_trainer(store, examples, max_delay_us=3600 * SECOND)
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
    trainer = new_trainer(store, examples, overlap=True, max_delay_us=3600 * SECOND)
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
    trainer = new_trainer(
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
    store = new_store()
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
    trainer = new_trainer(store, examples, staleness_max=1, max_delay_us=3600 * SECOND)
    out = trainer.accept(next(iter(examples.elements(1000))))
    assert store.counts() == examples.expected()
    steps = -(-len(examples.users) // 8)
    # The first came again with one missed, the third with none.
    assert out.counted == {"training_steps": steps, "training_staleness_pushes": 1, "training_steps_stale": 2}
    assert [len(p) for p in out.predictions] == [8] * (steps - 1) + [len(examples.users) - 8 * (steps - 1)]


def test_staleness_is_measured_without_a_bound(examples: Examples) -> None:
    store = BusyStore(store_config(MODEL, counting=True), [2, 1, 0, 5])
    out = new_trainer(store, examples).accept(next(iter(examples.elements(1000))))
    assert (out.counted["training_staleness_pushes"], out.counted["training_steps_stale"]) == (8, 0)


def test_a_bound_that_others_never_let_it_keep_is_named(examples: Examples) -> None:
    store = BusyStore(store_config(MODEL, counting=True), [1] * 100)
    trainer = new_trainer(store, examples, staleness_max=0, push_attempts_max=5)
    with pytest.raises(StoreError, match=r"5 attempts, .*staleness_max, or run fewer"):
        trainer.accept(next(iter(examples.elements(1000))))
    assert len(store.others) == 95
    with pytest.raises(ValueError, match="expected staleness_max of 1 or more"):
        TrainingOptions(overlap=True, staleness_max=0)


def test_a_row_waits_no_longer_than_asked(examples: Examples) -> None:
    store = new_store()
    trainer = new_trainer(store, examples, batch_size=1000, max_delay_us=3 * SECOND)
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


@pytest.mark.parametrize("overlap", [False, True])
def test_a_batch_that_is_not_finite_becomes_dead_letters_and_the_rest_goes_on(
    examples: Examples, overlap: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = new_store()
    store.poisoned = {int(hash_column(pa.array(["u3"]))[0]) & ((1 << 52) - 1)}
    trainer = new_trainer(store, examples, batch_size=1, overlap=overlap)
    outs = [trainer.accept(element) for element in examples.elements(10)]
    trainer.close()
    dead = [row for out in outs for batch in out.dead for row in batch.to_pylist()]
    bad = [row for row in dead if row["reason"] == "gradient_not_finite"]
    assert len(bad) == examples.users.count("u3")
    assert b'"user": "u3"' in bad[0]["value"]
    # The letters may be lost with this process: the log has said which range it was.
    at = f"partition=0 first={bad[0]['offset']}:{bad[0]['row']} last="
    assert at in caplog.text and caplog.text.count("event=gradient_not_finite") == len(bad)
    assert sum(out.ticks[0].rows for out in outs) == len(examples.users) - len(bad)
    assert store.marks("examples")[0] == (Position(6),)


def test_a_column_of_another_type_becomes_dead_letters(examples: Examples) -> None:
    store = new_store()
    trainer = new_trainer(store, examples)
    elements = list(examples.elements(10))
    broken = elements[0].set_column(
        elements[0].schema.get_field_index("user"), "user", pa.array([{"a": 1}] * elements[0].num_rows)
    )
    out = trainer.accept(broken)
    assert out.dead[0].num_rows == elements[0].num_rows
    assert set(out.dead[0].column("reason").to_pylist()) == {"not_encodable"}
    outs = [trainer.accept(element) for element in elements[1:]]
    assert sum(tick.rows for o in outs for tick in o.ticks) == len(examples.users) - elements[0].num_rows


def test_arrivals_are_of_actions_only_and_bounded(tmp_path: Path) -> None:
    examples = Examples(tmp_path, [1000])
    trainer = new_trainer(new_store(), examples, batch_size=512)
    outs = [trainer.accept(element) for element in examples.elements(5000)]
    arrivals = [us for out in outs for tick in out.ticks for us in tick.arrivals_us]
    assert 0 < len(arrivals) <= 64
    assert all(us // 10 % 3 == 0 for us in arrivals)
