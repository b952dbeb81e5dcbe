"""Rows of fewer bits in read role: bounds of their error, what is not finite, bytes, and whole versions."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cuckooflow.embedding_store.api import Delta, TableConfig, TableDelta, Version
from cuckooflow.embedding_store.read_store import ReadStore
from cuckooflow.errors import SpecError

NONE = np.empty(0, np.uint64)
HALF_MAX = np.float32(65504)


def delta_of(n: int, base: int | None, ids: np.ndarray, **weights: np.ndarray) -> Delta:
    return Delta(
        Version("one", n),
        None if base is None else Version("one", base),
        {name: TableDelta(ids, values, NONE) for name, values in weights.items()},
        {"w": np.full(1, n, np.float32)},
        {},
    )


def kept(rows, weights: np.ndarray) -> np.ndarray:
    """What a store of such rows answers for these weights."""
    store = ReadStore([TableConfig("t", dim=weights.shape[1])], rows)
    ids = np.arange(len(weights), dtype=np.uint64) * np.uint64(2**57 + 1)
    store.apply(delta_of(1, None, ids, t=weights))
    return store.lookup({"t": ids})["t"]


def matrices(**bounds):
    shapes = st.tuples(st.integers(1, 9), st.integers(1, 37))
    return hnp.arrays(np.float32, shapes, elements=st.floats(width=32, **bounds))


@settings(max_examples=200, deadline=None)
@given(matrices(allow_nan=True, allow_infinity=True))
def test_float16_is_numpys_float16(weights):
    bounded = np.where(np.isfinite(weights), np.clip(weights, -HALF_MAX, HALF_MAX), weights)
    np.testing.assert_array_equal(kept("float16", weights), bounded.astype(np.float16).astype(np.float32))


@settings(max_examples=200, deadline=None)
@given(matrices(allow_nan=False, min_value=-60_000, max_value=60_000))
def test_float16_error(weights):
    error = np.abs(kept("float16", weights) - weights)
    normal = np.abs(weights) >= 2.0**-14
    assert (error[normal] <= 1e-3 * np.abs(weights[normal])).all()
    assert (error[~normal] <= 2.0**-25).all()


@pytest.mark.parametrize("dim", [64, 4])
def test_every_float16_is_kept_as_it_is(dim):
    """Eight at a time, where the processor converts them, and less than eight."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32).reshape(-1, dim)
    np.testing.assert_array_equal(kept("float16", halves), halves)
    signs = np.signbit(kept("float16", np.array([[0.0, -0.0]], np.float32)))
    assert signs.tolist() == [[False, True]]


@settings(max_examples=300, deadline=None)
@given(matrices(allow_nan=False, allow_infinity=False))
def test_int8_error(weights):
    """Also for subnormal and for the largest floats."""
    found = kept("int8", weights).astype(np.float64)
    largest = np.abs(weights.astype(np.float64)).max(axis=1, keepdims=True)
    assert (np.abs(found - weights) <= largest / 254 * (1 + 1e-5) + 2.0**-149).all()


def test_int8_of_rows_that_are_zero_or_not_finite():
    weights = np.ones((5, 7), np.float32)
    weights[1] = 0
    weights[2, 6] = np.nan
    weights[3, 0] = -np.inf
    weights[4] = [-2, -1, 0, 1, 2, 0.5, -0.5]
    found = kept("int8", weights)
    assert (found[0] == 1).all() and (found[1] == 0).all()
    assert np.isnan(found[2]).all() and np.isnan(found[3]).all()
    assert found[4, [0, 2, 4]].tolist() == [-2, 0, 2]


@pytest.mark.parametrize("rows", ["float16", "int8"])
def test_ids_without_a_row_answer_their_initial_values(rows):
    tables = [TableConfig("t", dim=5, init_stddev=0.5, seed=4)]
    ids = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    small, full = ReadStore(tables, rows), ReadStore(tables)
    np.testing.assert_array_equal(small.lookup({"t": ids})["t"], full.lookup({"t": ids})["t"])


def test_bytes_a_row():
    ids, weights = np.arange(100_000, dtype=np.uint64), np.ones((100_000, 32), np.float32)
    stats = {}
    for rows in ("float32", "float16", "int8"):
        store = ReadStore([TableConfig("t", dim=32)], rows)
        store.apply(delta_of(1, None, ids, t=weights))
        stats[rows] = store.stats()["t"]
        assert stats[rows]["rows"] == 100_000
    assert [stats[rows]["row_bytes"] for rows in stats] == [144, 80, 48]
    assert stats["float32"]["bytes"] - stats["int8"]["bytes"] >= 96 * 100_000


def test_other_rows_are_refused():
    with pytest.raises(SpecError, match="float32, float16 or int8"):
        ReadStore([TableConfig("t", dim=2)], "bfloat16")  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", ["float16", "int8"])
def test_lookups_beside_deltas_see_one_version(rows):
    """All weights of version n are n, which both formats hold exactly: a mixture would show."""
    tables = [TableConfig("a", dim=19), TableConfig("b", dim=1)]
    store = ReadStore(tables, rows)
    ids = np.arange(20_000, dtype=np.uint64)

    def apply(n: int, base: int | None) -> None:
        full = {t.name: np.full((len(ids), t.dim), n, np.float32) for t in tables}
        store.apply(delta_of(n, base, ids, **full))

    apply(2, None)
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                found, dense, version = store.pull({"a": ids, "b": ids})
                assert version is not None
                for values in (*found.values(), *dense.values()):
                    assert values.min() == values.max() == version.n
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for n in range(3, 60):
        apply(n, None if n % 10 == 0 else n - 1)
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
