"""SGD, Adagrad, row-wise Adagrad and Adam against their formulas in numpy, for table rows and dense parameters."""

from __future__ import annotations

import numpy as np
import pytest

from cuckooflow.embedding_store.api import DenseConfig, Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.store import EmbeddedStore


class Reference:
    """One array under one optimizer, in float64."""

    def __init__(self, options: Optimizer, start: np.ndarray) -> None:
        self.o, self.w, self.step = options, start.astype(np.float64), 0
        self.acc = np.full(start.shape, options.initial_accumulator)
        self.m, self.v = np.zeros(start.shape), np.zeros(start.shape)

    def apply(self, g: np.ndarray) -> None:
        o, g = self.o, g.astype(np.float64)
        self.step += 1
        if o.kind == "sgd":
            self.w -= o.learning_rate * g
        elif o.kind == "adagrad":
            self.acc += g * g
            self.w -= o.learning_rate * g / np.sqrt(self.acc)
        elif o.kind == "rowwise_adagrad":
            self.acc += (g * g).mean()
            self.w -= o.learning_rate * g / np.sqrt(self.acc)
        else:
            self.m = o.beta1 * self.m + (1 - o.beta1) * g
            self.v = o.beta2 * self.v + (1 - o.beta2) * g * g
            rate = o.learning_rate * np.sqrt(1 - o.beta2**self.step) / (1 - o.beta1**self.step)
            self.w -= rate * self.m / (np.sqrt(self.v) + o.epsilon)


OPTIMIZERS = [
    Optimizer("sgd", 0.3),
    Optimizer("adagrad", 0.05, initial_accumulator=0.1),
    Optimizer("rowwise_adagrad", 0.05, initial_accumulator=0.02),
    Optimizer("adam", 0.01, beta1=0.8, beta2=0.95, epsilon=1e-6),
]


@pytest.mark.parametrize("options", OPTIMIZERS, ids=lambda o: o.kind)
def test_rows_and_dense_follow_the_formulas(options, feeder, rng):
    dim, ids = 5, np.arange(40, dtype=np.uint64)
    # Dense parameters have no rows.
    of_dense = Optimizer("adagrad", 0.05) if options.kind == "rowwise_adagrad" else options
    store = EmbeddedStore(
        StoreConfig(
            (TableConfig("t", dim=dim, optimizer=options, init_stddev=0.1),),
            (DenseConfig("w", (3, 4), of_dense, init="glorot_uniform"), DenseConfig("bias", (), of_dense)),
        )
    )
    feed = feeder(store)
    rows = {int(i): Reference(options, w) for i, w in zip(ids, store.lookup({"t": ids})["t"], strict=True)}
    dense = {name: Reference(of_dense, value) for name, value in store.dense().items()}
    for _ in range(30):
        touched = rng.choice(ids, 25)
        gradients = rng.normal(size=(25, dim)).astype(np.float32)
        dense_gradients = {"w": rng.normal(size=(3, 4)).astype(np.float32)}
        if rng.random() < 0.5:
            dense_gradients["bias"] = np.array(rng.normal(), np.float32)
        feed.push({"t": TablePush(touched, gradients)}, dense_gradients)
        for id_ in set(touched.tolist()):
            rows[id_].apply(gradients[touched == id_].sum(axis=0))
        for name, gradient in dense_gradients.items():
            dense[name].apply(gradient)
    expected = np.stack([rows[int(i)].w for i in ids])
    np.testing.assert_allclose(store.lookup({"t": ids})["t"], expected, rtol=2e-5, atol=2e-6)
    for name, value in store.dense().items():
        np.testing.assert_allclose(value, dense[name].w, rtol=2e-5, atol=2e-6)


def test_adagrad_without_accumulator_survives_a_zero_gradient(feeder):
    options = Optimizer("adagrad", 0.1, initial_accumulator=0.0)
    store = EmbeddedStore(StoreConfig((TableConfig("t", dim=2, optimizer=options, init_stddev=0.0),)))
    ids = np.array([3], np.uint64)
    feeder(store).push({"t": TablePush(ids, np.array([[0.0, 2.0]], np.float32))})
    np.testing.assert_allclose(store.lookup({"t": ids})["t"], [[0.0, -0.1]])


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adam", "ftrl", "rowwise_adagrad"])
def test_a_gradient_whose_square_overflows_or_vanishes_leaves_numbers(kind, feeder):
    options = Optimizer(kind, 0.1, initial_accumulator=0.0)
    store = EmbeddedStore(StoreConfig((TableConfig("t", dim=2, optimizer=options),)))
    feed = feeder(store)
    ids = np.array([3, 4], np.uint64)
    before = store.lookup({"t": ids})["t"]
    for gradient in ([0.0, 0.0], [1e-30, 1e-24], [-1e-23, 1e-38]):
        feed.push({"t": TablePush(ids, np.array([gradient, gradient], np.float32))})
    np.testing.assert_allclose(store.lookup({"t": ids})["t"], before, atol=1e-4)
    for gradient in ([1e25, 1.0], [1.0, -1e25]):
        feed.push({"t": TablePush(ids, np.array([gradient, gradient], np.float32))})
    assert np.isfinite(store.lookup({"t": ids})["t"]).all()


def test_rowwise_adagrad_keeps_one_accumulator_a_row(feeder):
    def bytes_of(kind: str) -> float:
        config = TableConfig("t", dim=64, optimizer=Optimizer(kind))  # type: ignore[arg-type]
        store = EmbeddedStore(StoreConfig((config,)))
        ids = np.arange(10_000, dtype=np.uint64)
        feeder(store).push({"t": TablePush(ids, np.ones((len(ids), 64), np.float32))})
        return store.stats()["tables"]["t"]["bytes"]

    # One more float than SGD, rounded up to 16 bytes.
    assert (bytes_of("rowwise_adagrad") - bytes_of("sgd")) / 10_000 == 16


def test_dense_starting_values():
    def dense(*parameters: DenseConfig) -> dict[str, np.ndarray]:
        return EmbeddedStore(StoreConfig((), parameters)).dense()

    found = dense(
        DenseConfig("zero", (7,)),
        DenseConfig("one", (2, 2), init="ones"),
        DenseConfig("g", (300, 100), init="glorot_uniform"),
    )
    assert not found["zero"].any()
    assert (found["one"] == 1).all()
    limit = np.sqrt(6 / 400)
    assert abs(found["g"]).max() <= limit
    assert abs(found["g"].std() - limit / np.sqrt(3)) < 0.002
    again = dense(DenseConfig("g", (300, 100), init="glorot_uniform"))
    np.testing.assert_array_equal(again["g"], found["g"])
    other = dense(DenseConfig("g", (300, 100), init="glorot_uniform", seed=1))
    assert not np.array_equal(other["g"], found["g"])
