"""How many pushes the rows of a push have missed: counted by each shard, and refused past a bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cuckooflow.embedding_store.api import (
    CounterPush,
    DenseConfig,
    Floats,
    Optimizer,
    PushAnswer,
    ReadAt,
    Store,
    StoreConfig,
    TableConfig,
    TablePush,
)
from cuckooflow.embedding_store.shards import Ownership, Shard
from cuckooflow.errors import BadShape, StaleRows
from cuckooflow.logs.contract import LogRange, Position
from tests.embedding_store.store_forms import FORMS, store_form

CONFIG = StoreConfig(
    (
        TableConfig("user", dim=2, optimizer=Optimizer("sgd", 1.0), init_stddev=0.0),
        TableConfig("clicks", dim=1, kind="counter", half_lives_us=(0,)),
    ),
    (DenseConfig("w", (2,), Optimizer("sgd", 1.0)),),
    buckets=8,
)
IDS = np.arange(1, 41, dtype=np.uint64)


class Pusher:
    """Pushes one range after the other."""

    def __init__(self, store: Store) -> None:
        self.store = store
        store.open_log("examples", "made-once", {0: Position(0)})
        self.at = 0

    def __call__(
        self, tables: dict[str, Any], dense: dict[str, Floats], read: ReadAt | None = None
    ) -> PushAnswer:
        answer = self.again(tables, dense, read)
        self.at += 1
        return answer

    def again(
        self, tables: dict[str, Any], dense: dict[str, Floats], read: ReadAt | None = None
    ) -> PushAnswer:
        """Push the next range, which stays the next one."""
        range_ = LogRange("examples", "made-once", 0, Position(self.at), Position(self.at + 1))
        return self.store.push(range_, tables, dense, 0, read)


@pytest.fixture(params=FORMS)
def pusher(request: pytest.FixtureRequest) -> Iterator[Pusher]:
    with store_form(request.param, CONFIG) as store:
        yield Pusher(store)


def gradients(ids: np.ndarray = IDS) -> dict[str, Any]:
    return {"user": TablePush(ids, np.ones((len(ids), 2), np.float32))}


ONES = np.ones(2, np.float32)


def test_pushes_between_reading_and_pushing_are_counted(pusher: Pusher) -> None:
    clock = pusher.store.pull({"user": IDS}).clock
    assert pusher(gradients(), {"w": ONES}, ReadAt(clock)).staleness == 0
    for others in (1, 2, 3):
        assert pusher(gradients(), {"w": ONES}, ReadAt(clock)).staleness == others
    clock = pusher.store.pull({"user": IDS}).clock
    assert pusher(gradients(), {"w": ONES}, ReadAt(clock)).staleness == 0
    assert pusher(gradients(), {"w": ONES}).staleness == 0, "nobody said when they were read"


def test_what_carries_no_gradients_makes_no_rows_old(pusher: Pusher) -> None:
    clock = pusher.store.pull({"user": IDS}).clock
    pusher({}, {})
    sums = {"clicks": CounterPush(IDS, np.ones((len(IDS), 1), np.float32), np.zeros(len(IDS), np.int64))}
    pusher(sums, {})
    assert pusher(gradients(), {}, ReadAt(clock, 0)).staleness == 0


def test_past_the_bound_nothing_is_applied_and_fresh_rows_are_taken(pusher: Pusher) -> None:
    clock = pusher.store.pull({"user": IDS}).clock
    for _ in range(3):
        pusher(gradients(), {"w": ONES})
    before = pusher.store.lookup({"user": IDS})["user"], pusher.store.dense()["w"]
    with pytest.raises(StaleRows, match="at most 2 pushes, received gradients of rows that miss 3"):
        pusher.again(gradients(), {"w": ONES}, ReadAt(clock, 2))
    after = pusher.store.lookup({"user": IDS})["user"], pusher.store.dense()["w"]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert pusher.store.marks("examples") == {0: (Position(3),)}
    fresh = pusher.store.pull({"user": IDS}).clock
    answer = pusher.again(gradients(), {"w": ONES}, ReadAt(fresh, 0))
    assert (answer.applied, answer.staleness) == (CONFIG.buckets, 0)
    # The answer was lost, and the range comes again with the clock of then: it is there already, so it is skipped.
    pusher.store.pull({"user": IDS})
    assert pusher.again(gradients(), {"w": ONES}, ReadAt(clock, 0)) == PushAnswer(0, CONFIG.buckets)


def test_a_clock_of_other_shards_is_refused(pusher: Pusher) -> None:
    clock = pusher.store.pull({"user": IDS}).clock
    with pytest.raises(BadShape, match="clock of"):
        pusher.again(gradients(), {}, ReadAt((*clock, 0), 0))


def test_shards_that_took_a_range_skip_it_when_the_others_get_fresh_gradients() -> None:
    config = StoreConfig(CONFIG.tables, (), CONFIG.buckets)
    one, two = (IDS[Ownership(config, Shard(i, 2)).owned(IDS)] for i in range(2))
    with store_form("sharded", config) as store:
        pusher = Pusher(store)
        clock = store.pull({"user": IDS}).clock
        for _ in range(2):
            pusher(gradients(two), {})
        with pytest.raises(StaleRows, match="shard 1"):
            pusher.again(gradients(), {}, ReadAt(clock, 1))
        answer = pusher.again(gradients(), {}, ReadAt(store.pull({"user": IDS}).clock, 1))
        assert (answer.applied, answer.skipped) == (CONFIG.buckets // 2, CONFIG.buckets // 2)
        weights = store.lookup({"user": one})["user"], store.lookup({"user": two})["user"]
        assert [set(of.ravel().tolist()) for of in weights] == [{-1.0}, {-3.0}]
        # Of a shard that nothing was read from, nothing is missed.
        pusher.at += 1
        clock = store.pull({"user": one}).clock
        assert clock[1] == -1
        pusher(gradients(two), {})
        assert pusher(gradients(one), {}, ReadAt(clock, 0)).staleness == 0
