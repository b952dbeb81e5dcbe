"""Distinct ids, rows pooled by field and gradients summed by id, against numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cuckooflow.embedding_store.distinct import Fields, Lookup, distinct
from cuckooflow.errors import BadShape

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40)
#: Few enough to repeat, with the ends of their range.
IDS = st.sampled_from([0, 1, 2, 5, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray | None]:
    ids = draw(hnp.arrays(np.uint64, draw(SHAPES), elements=IDS))
    weights = draw(st.none() | hnp.arrays(np.float32, ids.shape, elements=st.sampled_from([0.0, 0.5, 1.0])))
    return ids, weights


@given(batches())
def test_it_is_what_numpy_makes_of_the_used_places(batch) -> None:
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


@given(batches(), st.integers(1, 70), st.data())
def test_fields_are_pooled_and_their_gradients_summed(batch, dim: int, data: st.DataObject) -> None:
    ids, weights = batch
    weights = np.ones(ids.shape, np.float32) if weights is None else weights
    places = ids.shape[1]
    inner = sorted(data.draw(st.lists(st.integers(0, places), max_size=6)))
    fields = Fields(weights, np.array([0, *inner, places], np.int32))
    spans = list(itertools.pairwise(fields.bounds.tolist()))
    for start, stop in spans:
        if stop - start == 1:  # such a place is always used
            weights[:, start] = 1
    lookup = distinct(ids, weights)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows = rng.integers(-50, 50, (len(lookup.ids), dim)).astype(np.float32)  # sums are exact
    pooled = lookup.pool(rows, fields)
    assert pooled.shape == (len(ids), len(spans), dim) and pooled.dtype == np.float32
    gradients = rng.integers(-50, 50, pooled.shape).astype(np.float32)
    sums = np.zeros(rows.shape)
    for b, f in itertools.product(range(len(ids)), range(len(spans))):
        expected = np.zeros(dim)
        for place in range(*spans[f]):
            if weights[b, place]:
                expected += weights[b, place] * rows[lookup.inverse[b, place]].astype(np.float64)
                sums[lookup.inverse[b, place]] += weights[b, place] * gradients[b, f].astype(np.float64)
        assert np.array_equal(pooled[b, f], expected)
    assert np.array_equal(lookup.spread(gradients, fields), sums)


def test_one_place_gives_its_row_and_takes_its_gradient_exactly() -> None:
    lookup = distinct(np.array([[7, 9], [9, 9]], np.uint64))
    fields = Fields(np.ones((2, 2), np.float32), np.array([0, 1, 2], np.int32))
    rows = np.array([[0.1, 0.2, 0.3], [1e-30, 2e30, -0.0]], np.float32)
    assert np.array_equal(lookup.pool(rows, fields), rows[[[0, 1], [1, 1]]])
    gradients = np.array([[[1, 2, 3], [0.5, 0, 0]], [[0.25, 0, 0], [4, 0, 0]]], np.float32)
    assert lookup.spread(gradients, fields).tolist() == [[1, 2, 3], [4.75, 0, 0]]


def test_arrays_that_are_views_of_others_do_as_well() -> None:
    ids = np.arange(24, dtype=np.uint64).reshape(4, 6)[::2, 1::2]
    lookup = distinct(ids, np.ones((4, 6), np.float32)[::2, 1::2])
    assert lookup.ids.tolist() == [1, 3, 5, 13, 15, 17]
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)[:, ::2]
    fields = Fields(np.ones((2, 6), np.float32)[:, ::2], np.arange(8, dtype=np.int32)[::2] // 2)
    assert lookup.pool(rows, fields)[1, 2].tolist() == [20, 22]
    assert lookup.spread(np.ones((2, 3, 4), np.float32)[:, :, ::2], fields).tolist() == [[1, 1]] * 6


def test_shapes_that_do_not_go_together_are_refused() -> None:
    ids = np.zeros((2, 3), np.uint64)
    with pytest.raises(BadShape, match="one shape"):
        distinct(ids, np.ones((3, 2), np.float32))
    with pytest.raises(BadShape, match="one shape"):
        distinct(ids[0])
    lookup: Lookup = distinct(ids)
    fields = Fields(np.ones((2, 3), np.float32), np.array([0, 1, 3], np.int32))
    with pytest.raises(BadShape, match="each of 1 ids"):
        lookup.pool(np.zeros((2, 4), np.float32), fields)
    with pytest.raises(BadShape, match="2 rows' 2 fields"):
        lookup.spread(np.zeros((2, 3, 4), np.float32), fields)
    others = Fields(np.ones((3, 2), np.float32), np.array([0, 2], np.int32))
    with pytest.raises(BadShape, match="places"):
        lookup.pool(np.zeros((1, 4), np.float32), others)
    with pytest.raises(BadShape, match="places"):
        lookup.spread(np.zeros((3, 1, 4), np.float32), others)
    for bounds in ([], [0], [0, 2], [1, 3], [0, 2, 1, 3]):
        with pytest.raises(BadShape, match="bounds"):
            Fields(np.ones((2, 3), np.float32), np.array(bounds, np.int32))
