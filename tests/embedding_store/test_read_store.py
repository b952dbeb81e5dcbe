"""The serving tables: deltas whole and in order, lookups beside them."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cuckooflow.embedding_store.api import (
    Delta,
    DenseConfig,
    Optimizer,
    StoreConfig,
    TableConfig,
    TableDelta,
    TablePush,
    Version,
)
from cuckooflow.embedding_store.read_store import ReadStore
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.errors import BadShape, SnapshotGap, SpecError, UnknownTable

TABLES = (TableConfig("user", dim=4, admission=2, init_stddev=0.5, seed=3), TableConfig("item", dim=1))
NONE = np.empty(0, np.uint64)


def delta_of(n: int, base: int | None, value: float, ids: np.ndarray, incarnation: str = "one") -> Delta:
    """All weights and the dense parameter are ``value``."""
    return Delta(
        version=Version(incarnation, n),
        base=None if base is None else Version(incarnation, base),
        tables={
            "user": TableDelta(ids, np.full((len(ids), 4), value, np.float32), NONE),
            "item": TableDelta(ids, np.full((len(ids), 1), value, np.float32), NONE),
        },
        dense={"w": np.full(2, value, np.float32)},
        marks={},
    )


def test_follows_a_training_store(feeder, rng):
    config = StoreConfig(TABLES, (DenseConfig("w", (2,), Optimizer("sgd")),))
    store, replica = EmbeddedStore(config), ReadStore(TABLES)
    feed = feeder(store)
    ids = np.array([*range(3_000), 2**63, 2**64 - 1], np.uint64)
    assert replica.version is None and replica.dense() == {}
    # Before anything, and for ids that never come, both know the initial values.
    np.testing.assert_array_equal(replica.lookup({"user": ids})["user"], store.lookup({"user": ids})["user"])
    for round_ in range(6):
        for _ in range(3):
            some = rng.choice(ids, 400)
            feed.push(
                {
                    "user": TablePush(some, rng.normal(size=(400, 4)).astype(np.float32)),
                    "item": TablePush(some, rng.normal(size=(400, 1)).astype(np.float32)),
                },
                {"w": rng.normal(size=2).astype(np.float32)},
            )
        delta = store.delta("replica", full=round_ in (0, 4))
        replica.apply(delta)
        store.ack("replica", delta.version)
        assert replica.version == delta.version
        rows, dense, version = replica.pull({"user": ids, "item": ids})
        assert version == delta.version
        for name, values in store.lookup({"user": ids, "item": ids}).items():
            np.testing.assert_array_equal(rows[name], values)
        np.testing.assert_array_equal(dense["w"], store.dense()["w"])
        for name in ("user", "item"):
            assert replica.rows(name) == store.stats()["tables"][name]["rows"]


def test_a_delta_must_stand_on_what_is_held():
    replica = ReadStore(TABLES)
    ids = np.arange(3, dtype=np.uint64)
    with pytest.raises(SnapshotGap, match="newest full"):
        replica.apply(delta_of(2, 1, 9.0, ids))
    replica.apply(delta_of(5, None, 1.0, ids))
    for wrong in (delta_of(7, 6, 9.0, ids), delta_of(7, 4, 9.0, ids), delta_of(7, 5, 9.0, ids, "two")):
        with pytest.raises(SnapshotGap):
            replica.apply(wrong)
    assert replica.version == Version("one", 5)
    assert (replica.lookup({"user": ids})["user"] == 1).all()
    replica.apply(delta_of(7, 5, 2.0, ids[:1]))
    assert replica.lookup({"item": ids})["item"].tolist() == [[2], [1], [1]]
    # A full one replaces everything, also what it does not mention.
    replica.apply(delta_of(1, None, 3.0, ids[:2], "two"))
    assert replica.version == Version("two", 1)
    assert replica.rows("item") == 2
    assert replica.lookup({"item": ids})["item"][2] != 1


@pytest.mark.parametrize(
    ("table", "rows", "error"),
    [
        ("nope", TableDelta(NONE, np.empty((0, 1), np.float32), NONE), UnknownTable),
        ("item", TableDelta(NONE, np.empty((0, 2), np.float32), NONE), BadShape),
        ("item", TableDelta(NONE.astype(np.int64), np.empty((0, 1), np.float32), NONE), BadShape),
        ("item", TableDelta(NONE, np.empty((0, 1)), NONE), BadShape),
        ("item", TableDelta(NONE, np.empty((0, 1), np.float32), np.ones(1, np.int64)), BadShape),
    ],
)
def test_a_delta_that_does_not_fit_changes_nothing(table, rows, error):
    replica = ReadStore(TABLES)
    ids = np.arange(3, dtype=np.uint64)
    replica.apply(delta_of(1, None, 1.0, ids))
    for base in (None, 1):
        delta = delta_of(2, base, 9.0, ids)
        wrong = Delta(delta.version, delta.base, {**delta.tables, table: rows}, delta.dense, {})
        with pytest.raises(error):
            replica.apply(wrong)
        assert replica.version == Version("one", 1)
        assert (replica.lookup({"user": ids})["user"] == 1).all()
        assert replica.dense()["w"].tolist() == [1, 1]


def test_an_id_that_comes_twice_in_a_delta_is_one_row():
    replica = ReadStore(TABLES)
    replica.apply(delta_of(1, None, 1.0, np.array([7, 7, 8], np.uint64)))
    assert replica.rows("user") == 2


def test_faults_of_the_caller():
    with pytest.raises(SpecError):
        ReadStore([TableConfig("t", dim=0)])
    with pytest.raises(UnknownTable):
        ReadStore(TABLES).rows("nope")
    with pytest.raises(UnknownTable):
        ReadStore(TABLES).lookup({"nope": NONE})


def test_lookups_beside_deltas_see_one_version():
    """All weights of version n are n: a mixture would show."""
    replica = ReadStore(TABLES)
    ids = np.arange(20_000, dtype=np.uint64)
    replica.apply(delta_of(2, None, 2.0, ids))
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                rows, dense, version = replica.pull({"user": ids, "item": ids})
                assert version is not None
                for values in (*rows.values(), *dense.values()):
                    assert values.min() == values.max() == version.n
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for n in range(3, 60):
        replica.apply(delta_of(n, None if n % 10 == 0 else n - 1, float(n), ids))
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
