"""What a push is answered, by where the store stands."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cuckooflow.embedding_store.api import DenseConfig, Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.marks import Marks
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.errors import (
    BadShape,
    LogNotOpened,
    MarkMismatch,
    NonFiniteGradient,
    UnknownTable,
    WrongIncarnation,
)
from cuckooflow.logs.contract import LogRange, Position

COUNTING = Optimizer(kind="sgd", learning_rate=1.0)
CONFIG = StoreConfig(
    (TableConfig("t", dim=1, optimizer=COUNTING, init_stddev=0.0),), (DenseConfig("w", (2,), COUNTING),)
)
IDS = np.arange(100, dtype=np.uint64)


def minus_ones(n: int = 100) -> dict[str, TablePush]:
    return {"t": TablePush(IDS[:n], np.full((n, 1), -1.0, np.float32))}


def span(
    first: tuple[int, int], last: tuple[int, int], log: str = "examples", partition: int = 0
) -> LogRange:
    return LogRange(log, "made-once", partition, Position(*first), Position(*last))


@pytest.fixture
def store():
    store = EmbeddedStore(CONFIG)
    store.open_log("examples", "made-once", {0: Position(10, 2), 3: Position(0)})
    return store


def total(store) -> float:
    return float(store.lookup({"t": IDS})["t"].sum())


def test_applied_once_then_skipped(store):
    for answer, sum_ in (((64, 0, 0), 100), ((0, 64, 0), 100)):
        assert store.push(span((10, 2), (12, 0)), minus_ones(), {}, 0) == answer
        assert total(store) == sum_
    assert store.marks("examples") == {0: (Position(12, 0),), 3: (Position(0, 0),)}
    # A shorter repeat lies behind the marks as well.
    assert store.push(span((10, 2), (11, 5)), minus_ones(), {}, 0) == (0, 64, 0)
    assert total(store) == 100


@pytest.mark.parametrize("first", [(12, 1), (9, 0), (12, 0)])
def test_a_range_that_begins_elsewhere_is_refused_whole(store, first):
    store.push(span((10, 2), (11, 0)), minus_ones(), {}, 0)
    with pytest.raises(MarkMismatch) as caught:
        store.push(span(first, (20, 0)), minus_ones(), {"w": np.ones(2, np.float32)}, 0)
    assert caught.value.marks == ((11, 0),)
    assert "(11, 0)" in str(caught.value)
    assert total(store) == 100
    assert not store.dense()["w"].any()
    assert store.marks("examples")[0] == (Position(11, 0),)


def test_an_empty_push_moves_the_marks(store):
    assert store.push(span((10, 2), (50, 0)), {}, {}, 0) == (64, 0, 0)
    assert store.marks("examples")[0] == (Position(50, 0),)


def test_an_empty_range_applies_nothing(store):
    assert store.push(span((10, 2), (10, 2)), minus_ones(), {}, 0) == (0, 64, 0)
    assert total(store) == 0


def test_partitions_and_logs_have_their_own_marks(store):
    store.open_log("other", "made-once", {0: Position(0)})
    store.push(span((0, 0), (1, 0), partition=3), minus_ones(), {}, 0)
    store.push(span((0, 0), (7, 0), log="other"), minus_ones(), {}, 0)
    assert store.marks("examples") == {0: (Position(10, 2),), 3: (Position(1, 0),)}
    assert store.marks("other") == {0: (Position(7, 0),)}
    assert store.marks("never opened") == {}


def test_buckets_at_several_marks():
    marks = Marks(4)
    marks.open("examples", "made-once", {0: Position(5)})
    early = span((5, 0), (8, 0))
    marks.advance(early, np.array([1, 1, 0, 0], np.uint8))
    np.testing.assert_array_equal(marks.plan(early), [0, 0, 1, 1])
    np.testing.assert_array_equal(marks.plan(span((5, 0), (7, 0))), [0, 0, 1, 1])
    with pytest.raises(MarkMismatch) as caught:
        marks.plan(span((5, 0), (9, 0)))
    assert caught.value.marks == ((8, 0),)
    with pytest.raises(MarkMismatch) as caught:
        marks.plan(span((6, 0), (9, 0)))
    assert caught.value.marks == ((5, 0), (8, 0))
    assert marks.distinct("examples") == {0: (Position(5), Position(8))}
    assert marks.lowest() == {"examples": {0: Position(5)}}


def test_unopened_log_partition_and_incarnation(store):
    with pytest.raises(LogNotOpened, match="'nothing' partition 0"):
        store.push(span((0, 0), (1, 0), log="nothing"), {}, {}, 0)
    with pytest.raises(LogNotOpened, match="partition 1"):
        store.push(span((0, 0), (1, 0), partition=1), {}, {}, 0)
    with pytest.raises(WrongIncarnation, match="recreated"):
        store.push(LogRange("examples", "made-again", 0, Position(10, 2), Position(11)), {}, {}, 0)
    with pytest.raises(WrongIncarnation, match="made-again"):
        store.open_log("examples", "made-again", {0: Position(0)})
    assert store.log_incarnation("examples") == "made-once"
    assert store.log_incarnation("nothing") is None


def test_opening_again_keeps_marks_and_adds_partitions(store):
    store.push(span((10, 2), (11, 0)), {}, {}, 0)
    store.open_log("examples", "made-once", {0: Position(0), 1: Position(4)})
    assert store.marks("examples") == {0: (Position(11),), 1: (Position(4),), 3: (Position(0),)}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["table", "dense"])
def test_non_finite_gradients_are_refused_whole(store, value, where):
    tables, dense = minus_ones(), {"w": np.ones(2, np.float32)}
    (tables["t"].gradients if where == "table" else dense["w"])[-1] = value
    with pytest.raises(NonFiniteGradient, match="NaN or infinity"):
        store.push(span((10, 2), (11, 0)), tables, dense, 0)
    assert total(store) == 0
    assert store.marks("examples")[0] == (Position(10, 2),)


def test_a_sum_of_duplicates_that_overflows_is_refused(store):
    ids = np.array([1, 1], np.uint64)
    huge = np.full((2, 1), 3e38, np.float32)
    with pytest.raises(NonFiniteGradient):
        store.push(span((10, 2), (11, 0)), {"t": TablePush(ids, huge)}, {}, 0)


@pytest.mark.parametrize(
    ("tables", "dense", "error", "message"),
    [
        ({"nope": TablePush(IDS, np.zeros((100, 1), np.float32))}, {}, UnknownTable, "nope"),
        ({}, {"nope": np.zeros(2, np.float32)}, UnknownTable, "nope"),
        ({"t": TablePush(IDS, np.zeros((100, 2), np.float32))}, {}, BadShape, r"\(100, 1\).*\(100, 2\)"),
        ({"t": TablePush(IDS, np.zeros((99, 1), np.float32))}, {}, BadShape, r"\(99, 1\)"),
        ({"t": TablePush(IDS, np.zeros((100, 1)))}, {}, BadShape, "float64"),
        ({"t": TablePush(IDS.astype(np.int64), np.zeros((100, 1), np.float32))}, {}, BadShape, "int64"),
        (
            {"t": TablePush(IDS, np.zeros((100, 1), np.float32), np.ones(99, np.uint32))},
            {},
            BadShape,
            "counts",
        ),
        ({}, {"w": np.zeros((2, 1), np.float32)}, BadShape, r"\(2,\)"),
    ],
)
def test_arrays_that_do_not_fit(store, tables, dense, error, message):
    with pytest.raises(error, match=message):
        store.push(span((10, 2), (11, 0)), tables, dense, 0)
    assert store.marks("examples")[0] == (Position(10, 2),)


def test_ranges_that_end_before_they_begin(store):
    with pytest.raises(BadShape, match="ends at or after"):
        store.push(span((10, 2), (10, 1)), {}, {}, 0)


def test_lookups_that_do_not_fit(store):
    with pytest.raises(UnknownTable, match="expected one of"):
        store.lookup({"nope": IDS})
    with pytest.raises(BadShape, match="int64"):
        store.lookup({"t": IDS.astype(np.int64)})
    with pytest.raises(BadShape, match=r"\(10, 10\)"):
        store.lookup({"t": IDS.reshape(10, 10)})
    assert store.lookup({"t": IDS[:0]})["t"].shape == (0, 1)
    assert store.lookup({}) == {}


def test_arrays_with_gaps_between_their_values(store):
    gradients = np.full((200, 2), -1.0, np.float32)
    gradients[1::2] = 99
    store.push(span((10, 2), (11, 0)), {"t": TablePush(np.repeat(IDS, 2)[::2], gradients[::2, :1])}, {}, 0)
    assert total(store) == 100


def test_threads_of_different_partitions_lose_nothing(feeder):
    store = EmbeddedStore(CONFIG)
    feed = feeder(store, partitions=4)
    failures: list[BaseException] = []

    def work(partition: int) -> None:
        try:
            for _ in range(100):
                feed.push(minus_ones(), {"w": np.full(2, -1.0, np.float32)}, partition=partition)
                rows, dense, _ = store.pull({"t": IDS})
                # A push is one step: every row has as many updates as every other.
                assert rows["t"].min() == rows["t"].max() == dense["w"][0]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(partition,)) for partition in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert total(store) == 4 * 100 * 100
    assert store.dense()["w"].tolist() == [400.0, 400.0]
