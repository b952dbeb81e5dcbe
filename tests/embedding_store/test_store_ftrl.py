"""FTRL-Proximal against two references: its algorithm, and the minimum that defines it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cuckooflow.embedding_store.api import DenseConfig, Floats, Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.store import EmbeddedStore


class Algorithm:
    """McMahan et al. (2013), algorithm 1, in float64."""

    def __init__(self, options: Optimizer, start: Floats) -> None:
        self.o, self.w = options, start.astype(np.float64)
        self.n = np.full(start.shape, options.initial_accumulator)
        self.z = -self.w * self.curvature() - options.l1 * np.sign(self.w)

    def curvature(self) -> np.ndarray:
        return (self.o.beta + np.sqrt(self.n)) / self.o.learning_rate + self.o.l2

    def apply(self, g: np.ndarray) -> None:
        sigma = (np.sqrt(self.n + g * g) - np.sqrt(self.n)) / self.o.learning_rate
        self.z += g - sigma * self.w
        self.n += g * g
        shrunk = np.where(np.abs(self.z) > self.o.l1, self.z - np.sign(self.z) * self.o.l1, 0.0)
        self.w = -shrunk / self.curvature()


class Minimum:
    """The weight that minimises what FTRL is defined by, found by bisection of its slope.

    Over all steps s: sum of g_s w + sigma_s / 2 (w - w_s)^2, plus l1 |w| + l2 / 2 w^2 and the first
    quadratic term (beta + sqrt(n_0)) / (2 alpha) w^2, with a linear term that puts the minimum before any
    step at the initial weight. Keeps every gradient and weight, neither z nor n.
    """

    def __init__(self, options: Optimizer, start: Floats) -> None:
        self.o, self.w = options, start.astype(np.float64)
        self.gradients: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.flat = (options.beta + np.sqrt(options.initial_accumulator)) / options.learning_rate + options.l2
        self.linear = -(self.flat * self.w + options.l1 * np.sign(self.w))

    def slope(self, w: np.ndarray) -> np.ndarray:
        """Of all terms but l1 |w|."""
        squares = np.cumsum(
            [np.full(w.shape, self.o.initial_accumulator), *np.square(self.gradients)], axis=0
        )
        sigmas = np.diff(np.sqrt(squares), axis=0) / self.o.learning_rate
        steps = np.sum(self.gradients + sigmas * (w - np.array(self.weights)), axis=0)
        return self.linear + self.flat * w + steps

    def apply(self, g: np.ndarray) -> None:
        self.gradients.append(g)
        self.weights.append(self.w)
        low, high = np.full(g.shape, -100.0), np.full(g.shape, 100.0)
        for _ in range(60):
            middle = (low + high) / 2
            falling = self.slope(middle) + self.o.l1 * np.sign(middle) < 0
            low, high = np.where(falling, middle, low), np.where(falling, high, middle)
        # The kink at 0 is the minimum where it stops the slope from either side.
        self.w = np.where(np.abs(self.slope(np.zeros(g.shape))) <= self.o.l1, 0.0, (low + high) / 2)


OPTIONS = [
    Optimizer("ftrl", 0.3, initial_accumulator=0.0),
    Optimizer("ftrl", 0.1, initial_accumulator=0.1, beta=0.5, l1=0.7, l2=0.2),
    Optimizer("ftrl", 0.5, initial_accumulator=0.0, beta=1.0, l1=3.0),
    Optimizer("ftrl", 0.05, initial_accumulator=1.0, beta=0.0, l2=5.0),
]


@pytest.mark.parametrize("reference", [Algorithm, Minimum])
@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize("init_stddev", [0.0, 0.2])
def test_rows_and_dense_follow_the_definition(
    options: Optimizer, reference: Callable[..., Algorithm], init_stddev, feeder, rng
):
    dim, ids = 6, np.arange(12, dtype=np.uint64)
    store = EmbeddedStore(
        StoreConfig(
            (TableConfig("t", dim=dim, optimizer=options, init_stddev=init_stddev),),
            (DenseConfig("w", (3, 4), options, init="glorot_uniform"),),
        )
    )
    feed = feeder(store)
    rows = {int(i): reference(options, w) for i, w in zip(ids, store.lookup({"t": ids})["t"], strict=True)}
    dense = reference(options, store.dense()["w"])
    # Drifting to one side and back, so that weights leave zero, change sign and return.
    for step in range(40):
        drift = np.where(step < 20, 1.0, -1.0) * np.linspace(-1, 1, dim)
        touched = rng.choice(ids, 20)
        gradients = (rng.normal(size=(20, dim)) + drift).astype(np.float32)
        dense_gradient = rng.normal(size=(3, 4)).astype(np.float32)
        feed.push({"t": TablePush(touched, gradients)}, {"w": dense_gradient})
        for id_ in set(touched.tolist()):
            rows[id_].apply(gradients[touched == id_].astype(np.float64).sum(axis=0))
        dense.apply(dense_gradient.astype(np.float64))
        expected = np.stack([rows[int(i)].w for i in ids])
        np.testing.assert_allclose(store.lookup({"t": ids})["t"], expected, rtol=5e-5, atol=1e-5)
    np.testing.assert_allclose(store.dense()["w"], dense.w, rtol=5e-5, atol=1e-5)


def test_the_sign_of_a_step_is_against_the_gradient(feeder):
    options = Optimizer("ftrl", 0.5, initial_accumulator=0.0, l1=1.0)
    store = EmbeddedStore(StoreConfig((TableConfig("t", dim=3, optimizer=options, init_stddev=0.0),)))
    ids = np.array([1], np.uint64)
    feeder(store).push({"t": TablePush(ids, np.array([[3.0, -3.0, 0.5]], np.float32))})
    # z = 3, n = 9: -(3 - 1) / ((1 + 3) / 0.5); and |z| below l1 stays at nothing.
    np.testing.assert_array_equal(store.lookup({"t": ids})["t"], [[-0.25, 0.25, 0.0]])


def test_l1_gives_exact_zeros_that_come_back(feeder, rng):
    options = Optimizer("ftrl", 0.3, l1=4.0)
    store = EmbeddedStore(StoreConfig((TableConfig("t", dim=4, optimizer=options, init_stddev=0.3),)))
    feed = feeder(store)
    ids = rng.integers(0, 2**63, 200).astype(np.uint64)
    reference = Algorithm(options, store.lookup({"t": ids})["t"])
    ever_zero = np.zeros((200, 4), bool)
    came_back = np.zeros((200, 4), bool)
    for _ in range(60):
        gradients = rng.normal(size=(200, 4)).astype(np.float32)
        feed.push({"t": TablePush(ids, gradients)})
        reference.apply(gradients.astype(np.float64))
        found = store.lookup({"t": ids})["t"]
        decided = np.abs(np.abs(reference.z) - options.l1) > 1e-3
        np.testing.assert_array_equal(found[decided] == 0, reference.w[decided] == 0)
        ever_zero |= found == 0
        came_back |= ever_zero & (found != 0)
    assert ever_zero.mean() > 0.5
    assert came_back.mean() > 0.3


def test_initial_weights_survive_a_gradient_of_zero(feeder):
    options = Optimizer("ftrl", 0.1, l1=0.5, l2=0.1)
    store = EmbeddedStore(StoreConfig((TableConfig("t", dim=8, optimizer=options, init_stddev=0.5),)))
    ids = np.arange(50, dtype=np.uint64)
    before = store.lookup({"t": ids})["t"]
    feeder(store).push({"t": TablePush(ids, np.zeros((50, 8), np.float32))})
    np.testing.assert_allclose(store.lookup({"t": ids})["t"], before, rtol=1e-5, atol=1e-7)
