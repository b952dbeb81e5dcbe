"""Whatever a caller gives wrong is refused alike in the process, by a process and by shards, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from cuckooflow.embedding_store import (
    CounterPush,
    DenseConfig,
    LogRange,
    Optimizer,
    Position,
    RecentPush,
    Store,
    StoreConfig,
    TableConfig,
    TablePush,
)
from cuckooflow.errors import BadShape, CuckooflowError, NonFiniteGradient, UnknownTable
from tests.embedding_store.store_forms import FORMS, store_form

CONFIG = StoreConfig(
    (
        TableConfig("user", dim=4, optimizer=Optimizer("sgd", 1.0), init_stddev=0.0),
        TableConfig("clicks", dim=2, kind="counter", half_lives_us=(0,)),
        TableConfig("last", dim=3, kind="recent"),
    ),
    (DenseConfig("w", (2, 3), Optimizer("sgd", 1.0)),),
    buckets=8,
)
BIG = 1 << 63


@pytest.fixture(scope="module")
def forms() -> Iterator[dict[str, Store]]:
    """The three forms of a store, each at (1, 0) of partition 0."""
    with ExitStack() as stack:
        found = {form: stack.enter_context(store_form(form, CONFIG)) for form in FORMS}
        for store in found.values():
            store.open_log("examples", "made-once", {0: Position(0)})
            store.push(span(0, 1), {"user": TablePush(ids(1, 2, 3), grads(3))}, {"w": grads(2, 3)}, 7)
        yield found


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def grads(rows: int, dim: int = 4) -> np.ndarray:
    return np.ones((rows, dim), np.float32)


def span(first: Any, last: Any, partition: Any = 0, log: Any = "examples", incarnation: Any = "made-once"):
    first, last = (Position(of) if isinstance(of, int | float) else of for of in (first, last))
    return LogRange(log, incarnation, partition, first, last)


def state(store: Store) -> list[object]:
    """All that a push changes."""
    rows = store.lookup_at({"user": ids(1, 2, 3), "clicks": ids(1), "last": ids(1)}, 10, with_dense=True)
    counters, recents = rows.counters["clicks"], rows.recents["last"]
    stats: Any = store.stats()
    return [
        *(array.tolist() for array in (rows.weights["user"], counters.sums, recents.values, rows.dense["w"])),
        store.marks("examples"),
        [of["rows"] for of in stats["tables"].values()],
        (stats["event_time_us"], stats["pushes_applied"]),
    ]


def user(*push: Any) -> dict[str, Any]:
    return {"user": TablePush(*push)}


TIME = np.array([1])
PUSHES: dict[str, tuple[type[Exception], dict[str, Any], dict[str, Any]]] = {
    "gradients of another width": (BadShape, user(ids(1, 2), grads(2, 5)), {}),
    "gradients of fewer ids": (BadShape, user(ids(1, 2), grads(1)), {}),
    "a gradient without an axis": (BadShape, user(ids(1), grads(1)[0]), {}),
    "gradients in a list": (BadShape, user(ids(1), [[1.0] * 4]), {}),
    "no gradients": (BadShape, user(ids(1), None), {}),
    "ids in a list": (BadShape, user([1], grads(1)), {}),
    "ids of two axes": (BadShape, user(ids(1, 2).reshape(1, 2), grads(2)), {}),
    "ids of the other byte order": (BadShape, user(ids(1).astype(">u8"), grads(1)), {}),
    "gradients of the other byte order": (BadShape, user(ids(1), grads(1).astype(">f4")), {}),
    "counts as int64": (BadShape, user(ids(1), grads(1), np.array([1])), {}),
    "counts in a list": (BadShape, user(ids(1), grads(1), [1]), {}),
    "counts of more ids": (BadShape, user(ids(1), grads(1), np.array([1, 2], np.uint32)), {}),
    "NaN": (NonFiniteGradient, user(ids(1), np.nan * grads(1)), {}),
    "infinity": (NonFiniteGradient, user(ids(1, 2, 1), np.inf * grads(3)), {}),
    "an unknown table": (UnknownTable, {"users": TablePush(ids(1), grads(1))}, {}),
    "no push at all": (BadShape, {"user": 5}, {}),
    "a counter's push": (BadShape, {"user": CounterPush(ids(1), grads(1), TIME)}, {}),
    "a table's push to a counter": (BadShape, {"clicks": TablePush(ids(1), grads(1, 2))}, {}),
    "amounts of another width": (BadShape, {"clicks": CounterPush(ids(1), grads(1, 3), TIME)}, {}),
    "amounts that are NaN": (
        NonFiniteGradient,
        {"clicks": CounterPush(ids(1), np.nan * grads(1, 2), TIME)},
        {},
    ),
    "times as floats": (BadShape, {"clicks": CounterPush(ids(1), grads(1, 2), TIME * 1.0)}, {}),
    "times as int32": (BadShape, {"last": RecentPush(ids(1), ids(1), TIME.astype(np.int32))}, {}),
    "a time out of range": (BadShape, {"last": RecentPush(ids(1), ids(1), np.array([-BIG]))}, {}),
    "values as int64": (BadShape, {"last": RecentPush(ids(1), TIME, TIME)}, {}),
    "one of two tables wrong": (
        BadShape,
        {"clicks": CounterPush(ids(1), grads(1, 2), TIME), **user(ids(1), grads(1, 3))},
        {},
    ),
    "an unknown parameter": (UnknownTable, user(ids(1), grads(1)), {"v": grads(2, 3)}),
    "a parameter's other shape": (BadShape, user(ids(1), grads(1)), {"w": grads(3, 2)}),
    "a parameter's NaN": (NonFiniteGradient, user(ids(1), grads(1)), {"w": np.nan * grads(2, 3)}),
    "a parameter in a list": (BadShape, user(ids(1), grads(1)), {"w": [[1.0] * 3] * 2}),
    "a number for a parameter": (BadShape, {}, {"w": 1.0}),
}
for dtype in ("float64", "float16", "int64", "int32", "bool", "complex128", "object", "str"):
    PUSHES[f"gradients as {dtype}"] = (BadShape, user(ids(1), grads(1).astype(dtype)), {})
    PUSHES[f"a parameter as {dtype}"] = (BadShape, {}, {"w": grads(2, 3).astype(dtype)})
for dtype in ("int64", "uint32", "int32", "float64", "bool", "str"):
    PUSHES[f"ids as {dtype}"] = (BadShape, user(ids(1).astype(dtype), grads(1)), {})


def refused_alike(forms: dict[str, Store], call: Callable[[Store], object], error: type[Exception]) -> None:
    """The same error from each form, by its class and its message, and nothing changed."""
    messages = []
    for form, store in forms.items():
        before = state(store)
        with pytest.raises(CuckooflowError) as caught:
            call(store)
        assert (form, type(caught.value)) == (form, error)
        assert (form, state(store)) == (form, before)
        messages.append(str(caught.value))
    embedded, served, sharded = messages
    # An array that cannot travel is refused where it is, in other words, but by the same names.
    assert (
        served == embedded
        or "of numbers in this machine's byte order, received" in served
        or "or RecentPush" in served
    )
    assert embedded in sharded  # some say which shard it was


@pytest.mark.parametrize("fault", PUSHES)
def test_pushes_that_do_not_fit(forms, fault):
    error, tables, dense = PUSHES[fault]
    refused_alike(forms, lambda store: store.push(span(1, 2), tables, dense, 8), error)


@pytest.mark.parametrize(
    "range_",
    [
        span(1, BIG),
        span(1, Position(2, BIG)),
        span(-1, 1),
        span(1, 1.5),
        span(1.0, 2),
        span(Position(1, -1), 2),
        span(1, None),
        span(1, (2,)),
        span(2, 1),
        span(Position(1, 3), Position(1, 2)),
        span(1, 2, "0"),
        span(1, 2, -1),
        span(1, 2, BIG),
        span(1, 2, 0.0),
        span(1, 2, log=""),
        span(1, 2, log=None),
        span(1, 2, incarnation=None),
    ],
    ids=str,
)
def test_ranges_that_are_none(forms, range_):
    """Refused before anything is applied: rows that change while marks cannot would be counted twice."""
    refused_alike(forms, lambda store: store.push(range_, user(ids(1), grads(1)), {}, 8), BadShape)


@pytest.mark.parametrize("time_us", [None, 1.5, "8", BIG, -BIG, 1 << 62])
def test_event_times_that_are_none(forms, time_us):
    refused_alike(forms, lambda store: store.push(span(1, 2), user(ids(1), grads(1)), {}, time_us), BadShape)


@pytest.mark.parametrize(
    ("log", "incarnation", "starts"),
    [
        ("", "x", {0: Position(0)}),
        (None, "x", {0: Position(0)}),
        ("other", "", {0: Position(0)}),
        ("other", None, {0: Position(0)}),
        ("other", "x", {-1: Position(0)}),
        ("other", "x", {"0": Position(0)}),
        ("other", "x", {BIG: Position(0)}),
        ("other", "x", {0: Position(-1)}),
        ("other", "x", {0: Position(0, -1)}),
        ("other", "x", {0: Position(BIG)}),
        ("other", "x", {0: Position(0), 1: 5}),
    ],
    ids=str,
)
def test_starts_that_are_none(forms, log, incarnation, starts):
    refused_alike(forms, lambda store: store.open_log(log, incarnation, starts), BadShape)
    for store in forms.values():
        assert store.marks("other") == {}


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"users": ids(1)}, UnknownTable),
        ({"user": [1]}, BadShape),
        ({"user": None}, BadShape),
        ({"user": ids(1).reshape(1, 1)}, BadShape),
        ({"user": ids(1).astype(">u8")}, BadShape),
        ({"user": ids(1).astype(np.int64)}, BadShape),
        ({"user": ids(1).astype(np.uint16)}, BadShape),
        ({"user": ids(1).astype(object)}, BadShape),
        ({"clicks": ids(1)}, BadShape),
    ],
    ids=str,
)
def test_lookups_that_do_not_fit(forms, asked, error):
    refused_alike(forms, lambda store: store.lookup(asked), error)
    refused_alike(forms, lambda store: store.pull(asked), error)
    if "clicks" not in asked:
        refused_alike(forms, lambda store: store.lookup_at(asked, 5), error)


@pytest.mark.parametrize(
    ("as_of_us", "error"),
    [
        (1.5, BadShape),
        ("5", BadShape),
        (BIG, BadShape),
        ({"clicks": np.array([1, 2])}, BadShape),
        ({"clicks": np.array([1.0])}, BadShape),
        ({"clicks": np.array([1], np.int32)}, BadShape),
        ({"clicks": [1]}, BadShape),
        ({"click": np.array([1])}, UnknownTable),
    ],
    ids=str,
)
def test_asked_times_that_do_not_fit(forms, as_of_us, error):
    refused_alike(forms, lambda store: store.lookup_at({"clicks": ids(1)}, as_of_us), error)


def test_numbers_of_numpy_are_numbers(forms):
    """Offsets and times often come out of arrays."""
    for store in forms.values():
        here = store.marks("examples")[0][0].offset
        first, last = (Position(np.int64(here + i), np.uint32(0)) for i in range(2))
        store.push(LogRange("examples", "made-once", np.int32(0), first, last), {}, {}, np.int64(9))
        assert store.marks("examples") == {0: (Position(here + 1),)}
