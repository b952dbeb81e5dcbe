"""Deltas: whatever fails to arrive comes again, and nobody's delta takes keys from another's."""

from __future__ import annotations

import numpy as np
import pytest

from cuckooflow.embedding_store.api import (
    DenseConfig,
    Optimizer,
    StoreConfig,
    TableConfig,
    TablePush,
    Version,
)
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.errors import FullDeltaNeeded, LimitExceeded, UnknownVersion, WrongIncarnation
from cuckooflow.logs.contract import Position

CONFIG = StoreConfig(
    (TableConfig("t", dim=2, optimizer=Optimizer("sgd", 1.0), init_stddev=0.0),), (DenseConfig("w", (3,)),)
)


@pytest.fixture
def store():
    return EmbeddedStore(CONFIG)


@pytest.fixture
def touch(store, feeder):
    feed = feeder(store)

    def push(*ids: int) -> None:
        feed.push({"t": TablePush(np.array(ids, np.uint64), np.ones((len(ids), 2), np.float32))})

    return push


def ids_in(delta) -> set[int]:
    ids = delta.tables["t"].ids.tolist()
    assert len(ids) == len(set(ids))
    return set(ids)


def test_full_then_what_was_touched(store, touch):
    touch(1, 2, 3)
    with pytest.raises(FullDeltaNeeded, match="full"):
        store.delta("replica")
    full = store.delta("replica", full=True)
    assert full.base is None and ids_in(full) == {1, 2, 3}
    assert full.marks == {"examples": {0: Position(1)}}
    assert full.dense["w"].shape == (3,)
    with pytest.raises(FullDeltaNeeded):
        store.delta("replica")
    store.ack("replica", full.version)
    assert ids_in(store.delta("replica")) == set()
    touch(3, 4)
    delta = store.delta("replica")
    assert delta.base == full.version and ids_in(delta) == {3, 4}
    np.testing.assert_array_equal(
        delta.tables["t"].weights[np.argsort(delta.tables["t"].ids)], [[-2, -2], [-1, -1]]
    )
    assert delta.tables["t"].tombstones.dtype == np.uint64 and len(delta.tables["t"].tombstones) == 0


def test_a_delta_that_was_not_acknowledged_comes_again(store, touch):
    touch(1)
    store.ack("replica", store.delta("replica", full=True).version)
    touch(2)
    lost = store.delta("replica")
    touch(3)
    again = store.delta("replica")
    assert again.base == lost.base and ids_in(again) == {2, 3}
    # The ack of the first arrives late: what came after it is still owed.
    store.ack("replica", lost.version)
    assert ids_in(store.delta("replica")) == {3}
    store.ack("replica", again.version)
    store.ack("replica", lost.version)
    assert store.delta("replica").base == again.version
    assert ids_in(store.delta("replica")) == set()


def test_rows_touched_between_delta_and_ack_come_with_the_next(store, touch):
    touch(1)
    full = store.delta("replica", full=True)
    touch(1, 5)
    store.ack("replica", full.version)
    assert ids_in(store.delta("replica")) == {1, 5}


def test_consumers_do_not_take_from_each_other(store, touch):
    touch(1)
    for consumer in ("a", "b"):
        store.ack(consumer, store.delta(consumer, full=True).version)
    touch(2)
    store.ack("a", store.delta("a").version)
    touch(3)
    assert ids_in(store.delta("a")) == {3}
    assert ids_in(store.delta("b")) == {2, 3}


def test_acks_of_what_was_never_given(store):
    full = store.delta("a", full=True)
    with pytest.raises(UnknownVersion):
        store.ack("b", full.version)
    with pytest.raises(UnknownVersion):
        store.ack("a", Version(full.version.incarnation, full.version.n + 1))
    with pytest.raises(WrongIncarnation, match="restored"):
        store.ack("a", Version("another", full.version.n))


def test_consumers_are_bounded(store):
    for n in range(64):
        store.delta(f"consumer-{n}", full=True)
    with pytest.raises(LimitExceeded, match="consumer-64"):
        store.delta("consumer-64", full=True)
    store.delta("consumer-0", full=True)


def test_the_journal_is_bounded_while_a_consumer_is_away(store, touch):
    ids = range(100)
    touch(*ids)
    store.ack("away", store.delta("away", full=True).version)
    for _ in range(200):
        touch(*ids)
        store.ack("busy", store.delta("busy", full=True).version)
    assert store.stats()["tables"]["t"]["journal_entries"] <= 2 * len(ids) + 4096 + 1
    touch(7)
    assert ids_in(store.delta("away")) == set(ids)
    assert ids_in(store.delta("busy")) == {7}


def test_deltas_rebuild_the_store(store, feeder, rng):
    """Against a plain dict, with deltas that are lost at random."""
    feed = feeder(store)
    replica: dict[int, list[float]] = {}
    acknowledged = False
    for _ in range(60):
        ids = rng.integers(0, 5_000, rng.integers(1, 400)).astype(np.uint64)
        feed.push({"t": TablePush(ids, rng.integers(-2, 3, (len(ids), 2)).astype(np.float32))})
        if rng.random() < 0.6:
            delta = store.delta("replica", full=not acknowledged)
            if rng.random() < 0.7:
                replica.update(
                    zip(delta.tables["t"].ids.tolist(), delta.tables["t"].weights.tolist(), strict=True)
                )
                store.ack("replica", delta.version)
                acknowledged = True
    delta = store.delta("replica", full=not acknowledged)
    replica.update(zip(delta.tables["t"].ids.tolist(), delta.tables["t"].weights.tolist(), strict=True))
    ids = np.arange(5_000, dtype=np.uint64)
    rows = store.lookup({"t": ids})["t"].tolist()
    assert rows == [replica.get(id_, [0.0, 0.0]) for id_ in ids.tolist()]
