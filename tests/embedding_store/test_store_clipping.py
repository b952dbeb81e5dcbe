"""Clipping and L2 of a table's gradients, against their formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from cuckooflow.embedding_store.api import Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.store import EmbeddedStore


@pytest.mark.parametrize("kind", ["sgd", "adagrad"])
@pytest.mark.parametrize("clip_norm, l2", [(0.0, 0.0), (1.5, 0.0), (0.0, 0.2), (1.5, 0.2)])
def test_rows_follow_the_formula(kind, clip_norm, l2, feeder, rng):
    options = Optimizer(kind, 0.1, initial_accumulator=0.3)
    config = TableConfig("t", dim=7, optimizer=options, init_stddev=0.5, clip_norm=clip_norm, l2=l2)
    store = EmbeddedStore(StoreConfig((config,)))
    feed = feeder(store)
    ids = np.arange(30, dtype=np.uint64)
    weights = store.lookup({"t": ids})["t"].astype(np.float64)
    accumulator = np.full((30, 7), 0.3)
    clipped = 0
    for _ in range(25):
        touched = rng.choice(ids, 40)
        gradients = (rng.normal(size=(40, 7)) * rng.choice([0.1, 1.0], (40, 1))).astype(np.float32)
        feed.push({"t": TablePush(touched, gradients)})
        for row in set(touched.tolist()):
            gradient = gradients[touched == row].astype(np.float64).sum(axis=0)
            norm = np.sqrt((gradient**2).sum())
            if clip_norm and norm > clip_norm:
                gradient *= clip_norm / norm
                clipped += 1
            gradient += l2 * weights[row]
            accumulator[row] += gradient**2
            weights[row] -= 0.1 * gradient / (np.sqrt(accumulator[row]) if kind == "adagrad" else 1.0)
        np.testing.assert_allclose(store.lookup({"t": ids})["t"], weights, rtol=2e-5, atol=2e-6)
    assert bool(clipped) == bool(clip_norm)


def test_the_bound_is_on_the_sum_of_duplicates(feeder):
    config = TableConfig("t", dim=2, optimizer=Optimizer("sgd", 1.0), init_stddev=0.0, clip_norm=5.0)
    store = EmbeddedStore(StoreConfig((config,)))
    ids = np.array([1, 1, 2, 2, 3], np.uint64)
    gradients = np.array([[3, 4], [3, 4], [30, 40], [-30, -40], [1e30, 0]], np.float32)
    feeder(store).push({"t": TablePush(ids, gradients)})
    found = store.lookup({"t": np.array([1, 2, 3], np.uint64)})["t"]
    np.testing.assert_allclose(found, [[-3, -4], [0, 0], [-5, 0]], rtol=1e-6)


def test_l2_halves_the_rows_of_the_push_and_no_others(feeder):
    config = TableConfig("t", dim=3, optimizer=Optimizer("sgd", 1.0), init_stddev=1.0, l2=0.5)
    store = EmbeddedStore(StoreConfig((config,)))
    feed = feeder(store)
    ids = np.arange(20, dtype=np.uint64)
    feed.push({"t": TablePush(ids, np.zeros((20, 3), np.float32))})
    before = store.lookup({"t": ids})["t"]
    feed.push({"t": TablePush(ids[:10], np.zeros((10, 3), np.float32))})
    after = store.lookup({"t": ids})["t"]
    np.testing.assert_allclose(after[:10], before[:10] / 2, rtol=1e-6)
    np.testing.assert_array_equal(after[10:], before[10:])
