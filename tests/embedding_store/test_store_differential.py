"""The native table against plain dicts, over millions of operations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.api import Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.store import EmbeddedStore

EXTREME_IDS = np.array([0, 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1], np.uint64)
PLAIN = Optimizer(kind="sgd", learning_rate=1.0)


def ids_of(numbers: npt.NDArray[np.uint64], kind: str) -> npt.NDArray[np.uint64]:
    """The same numbers as ids of a certain shape: the index must not care."""
    if kind == "hashed":
        return _native.hash_ints(numbers, 0)
    if kind == "slotted":
        return (numbers % np.uint64(7) << np.uint64(52)) | numbers
    if kind == "strided":
        return numbers << np.uint64(32)
    return numbers


@pytest.mark.parametrize("kind", ["sequential", "hashed", "slotted", "strided"])
def test_table_equals_a_dict(kind, feeder, rng):
    config = StoreConfig((TableConfig("t", dim=1, optimizer=PLAIN, init_stddev=0.0),))
    store = EmbeddedStore(config)
    feed = feeder(store)
    expected: dict[int, float] = {}
    operations = 0
    space = 1_000
    while operations < 600_000:
        space = min(int(space * 1.5), 120_000)
        numbers = rng.integers(0, space, rng.integers(1, 12_000)).astype(np.uint64)
        ids = np.concatenate([ids_of(numbers, kind), EXTREME_IDS])
        gradients = rng.integers(-3, 4, (len(ids), 1)).astype(np.float32)
        feed.push({"t": TablePush(ids, gradients)})
        for id_, gradient in zip(ids.tolist(), gradients[:, 0].tolist(), strict=True):
            expected[id_] = expected.get(id_, 0.0) - gradient
        asked = np.concatenate(
            [ids_of(rng.integers(0, 2 * space, 4_000).astype(np.uint64), kind), EXTREME_IDS]
        )
        found = store.lookup({"t": asked})["t"][:, 0]
        np.testing.assert_array_equal(found, [expected.get(id_, 0.0) for id_ in asked.tolist()])
        operations += len(ids) + len(asked)
    everything = np.array(list(expected), np.uint64)
    np.testing.assert_array_equal(store.lookup({"t": everything})["t"][:, 0], list(expected.values()))
    stats = store.stats()["tables"]["t"]
    assert stats["rows"] == len(expected)
    assert stats["index_segments"] > 1, "the index never grew: the test is too small"


def test_rows_of_many_widths_keep_apart(feeder, rng):
    tables = tuple(
        TableConfig(f"d{dim}", dim=dim, optimizer=PLAIN, init_stddev=0.0) for dim in (1, 3, 16, 17, 1024)
    )
    store = EmbeddedStore(StoreConfig(tables))
    feed = feeder(store)
    ids = rng.permutation(np.arange(3_000, dtype=np.uint64))
    gradients = {t.name: rng.normal(size=(len(ids), t.dim)).astype(np.float32) for t in tables}
    feed.push({name: TablePush(ids, g) for name, g in gradients.items()})
    rows = store.lookup({t.name: ids for t in tables})
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(rows[name], -gradient)


def test_index_fills_to_ninety_five_percent_before_it_grows(feeder):
    store = EmbeddedStore(StoreConfig((TableConfig("t", dim=1, optimizer=PLAIN),)))
    feed = feeder(store)
    fullest = 0.0
    for start in range(0, 22_000, 100):
        ids = np.arange(start, start + 100, dtype=np.uint64)
        feed.push({"t": TablePush(ids, np.zeros((100, 1), np.float32))})
        fullest = max(fullest, store.stats()["tables"]["t"]["load_factor"])
    assert fullest > 0.94


def test_duplicates_in_a_push_are_summed_and_applied_once(feeder):
    config = TableConfig(
        "t", dim=2, optimizer=Optimizer("adagrad", 0.5, initial_accumulator=0.0), init_stddev=0
    )
    store = EmbeddedStore(StoreConfig((config,)))
    ids = np.array([5, 9, 5, 5], np.uint64)
    gradients = np.array([[1, 0], [4, 4], [2, 1], [1, 2]], np.float32)
    feeder(store).push({"t": TablePush(ids, gradients)})
    # Adagrad's first step is the learning rate against the sign, whatever the sum is.
    np.testing.assert_allclose(store.lookup({"t": np.array([5, 9], np.uint64)})["t"], -0.5, rtol=1e-6)


def test_initial_values_depend_on_seed_id_and_column_alone(feeder, rng):
    def store(seed: int) -> EmbeddedStore:
        return EmbeddedStore(StoreConfig((TableConfig("t", dim=33, init_stddev=0.5, seed=seed),)))

    ids = np.concatenate([rng.integers(0, 2**63, 20_000).astype(np.uint64), EXTREME_IDS])
    one, other = store(1), store(1)
    values = one.lookup({"t": ids})["t"]
    np.testing.assert_array_equal(values[::-1], other.lookup({"t": ids[::-1].copy()})["t"])
    assert not np.array_equal(values, store(2).lookup({"t": ids})["t"])
    # A row that is made starts from the very same values.
    feeder(one).push({"t": TablePush(ids, np.zeros((len(ids), 33), np.float32))})
    np.testing.assert_array_equal(one.lookup({"t": ids})["t"], values)
    assert abs(values.mean()) < 0.002
    assert abs(values.std() - 0.5) < 0.002
    assert abs((values**4).mean() / values.std() ** 4 - 3.0) < 0.05
    assert abs(np.corrcoef(values[:, 0], values[:, 1])[0, 1]) < 0.03
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.03
