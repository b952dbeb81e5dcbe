"""Distinct ids, rows at places and sums by id, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cuckooflow.embedding_store.distinct import Lookup, distinct
from cuckooflow.errors import BadShape

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40)
#: Few enough to repeat, with the ends of their range.
IDS = st.sampled_from([0, 1, 2, 5, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray | None]:
    ids = draw(hnp.arrays(np.uint64, draw(SHAPES), elements=IDS))
    weights = draw(st.none() | hnp.arrays(np.float32, ids.shape, elements=st.sampled_from([0.0, 0.5, 1.0])))
    return ids, weights


@given(batches(), st.integers(1, 70), st.integers(0, 2**32))
def test_it_is_what_numpy_makes_of_the_used_places(batch, dim: int, seed: int) -> None:
    ids, weights = batch
    used = np.ones(ids.shape, bool) if weights is None else weights != 0
    lookup = distinct(ids, weights)
    expected, firsts, counts = np.unique(ids[used], return_index=True, return_counts=True)
    order = np.argsort(firsts)
    assert np.array_equal(lookup.ids, expected[order])
    assert np.array_equal(lookup.counts, counts[order])
    assert lookup.inverse.shape == ids.shape
    assert not lookup.inverse[~used].any()
    assert np.array_equal(lookup.ids[lookup.inverse[used]], ids[used])

    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((len(lookup.ids), dim)).astype(np.float32)
    taken = lookup.take(rows)
    assert taken.shape == (*ids.shape, dim) and taken.dtype == np.float32
    assert np.array_equal(taken[used], rows[lookup.inverse[used]])
    if not len(rows):
        assert not taken.any()

    gradients = rng.standard_normal(taken.shape).astype(np.float32)
    gradients[~used] = 0
    sums = np.zeros_like(rows)
    np.add.at(sums, lookup.inverse[used], gradients[used])  # in the order of places, as here
    assert np.array_equal(lookup.sum(gradients), sums)


def test_arrays_that_are_views_of_others_do_as_well() -> None:
    ids = np.arange(24, dtype=np.uint64).reshape(4, 6)[::2, 1::2]
    lookup = distinct(ids, np.ones((4, 6), np.float32)[::2, 1::2])
    assert lookup.ids.tolist() == [1, 3, 5, 13, 15, 17]
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)[:, ::2]
    assert lookup.take(rows)[1, 2].tolist() == [20, 22]
    assert lookup.sum(np.ones((2, 3, 4), np.float32)[:, :, ::2]).tolist() == [[1, 1]] * 6


def test_shapes_that_do_not_go_together_are_refused() -> None:
    ids = np.zeros((2, 3), np.uint64)
    with pytest.raises(BadShape, match="one shape"):
        distinct(ids, np.ones((3, 2), np.float32))
    with pytest.raises(BadShape, match="one shape"):
        distinct(ids[0])
    lookup: Lookup = distinct(ids)
    with pytest.raises(BadShape, match="each of 1 ids"):
        lookup.take(np.zeros((2, 4), np.float32))
    with pytest.raises(BadShape, match="places"):
        lookup.sum(np.zeros((3, 2, 4), np.float32))
