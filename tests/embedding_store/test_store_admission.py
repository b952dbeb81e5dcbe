"""An id gets a row once it has occurred often enough."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cuckooflow.embedding_store.api import SLOT_BITS, Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.store import EmbeddedStore

COUNTING = Optimizer(kind="sgd", learning_rate=1.0)


def counting_table(**options) -> StoreConfig:
    return StoreConfig((TableConfig("t", dim=1, optimizer=COUNTING, init_stddev=0.0, **options),))


def test_rows_come_with_the_nth_occurrence(feeder):
    store = EmbeddedStore(counting_table(admission=3))
    feed = feeder(store)
    ids = np.array([0, 2**64 - 1], np.uint64)
    one = np.full((2, 1), -1.0, np.float32)
    for expected in (0, 0, 1, 2):
        feed.push({"t": TablePush(ids, one)})
        np.testing.assert_array_equal(store.lookup({"t": ids})["t"], [[expected]] * 2)
    assert store.stats()["tables"]["t"]["not_admitted"] == 4


def test_occurrences_within_a_push_count(feeder):
    store = EmbeddedStore(counting_table(admission=5))
    ids = np.array([7, 7, 8], np.uint64)
    push = TablePush(ids, np.full((3, 1), -1.0, np.float32), np.array([2, 3, 4], np.uint32))
    feeder(store).push({"t": push})
    np.testing.assert_array_equal(store.lookup({"t": np.array([7, 8], np.uint64)})["t"], [[2], [0]])


def test_slots_have_their_own_admission(feeder):
    store = EmbeddedStore(counting_table(admission=1, slot_admission={4095: 2}))
    feed = feeder(store)
    ids = np.array([9, (4095 << (64 - SLOT_BITS)) | 9], np.uint64)
    for _ in range(2):
        feed.push({"t": TablePush(ids, np.full((2, 1), -1.0, np.float32))})
    np.testing.assert_array_equal(store.lookup({"t": ids})["t"], [[2], [1]])


def test_equals_exact_counting_while_the_filter_remembers(feeder, rng):
    store = EmbeddedStore(counting_table(admission=3))
    feed = feeder(store)
    seen: Counter[int] = Counter()
    rows: Counter[int] = Counter()
    for _ in range(40):
        ids = rng.zipf(1.3, 500).astype(np.uint64) % np.uint64(20_000)
        feed.push({"t": TablePush(ids, np.full((500, 1), -1.0, np.float32))})
        for id_, times in Counter(ids.tolist()).items():
            seen[id_] += times
            if seen[id_] >= 3:
                rows[id_] += times
    asked = np.array(sorted(seen), np.uint64)
    found = store.lookup({"t": asked})["t"][:, 0]
    np.testing.assert_array_equal(found, [rows[id_] for id_ in asked.tolist()])


def test_a_small_filter_forgets_rather_than_fills(feeder, rng):
    store = EmbeddedStore(counting_table(admission=2, filter_bytes=64 << 10))
    feed = feeder(store)
    # Half a million ids, each seen once: with a filter that only fills, nearly all would be let in.
    for start in range(0, 500_000, 10_000):
        ids = np.arange(start, start + 10_000, dtype=np.uint64)
        feed.push({"t": TablePush(ids, np.zeros((len(ids), 1), np.float32))})
    assert store.stats()["tables"]["t"]["rows"] < 25_000
    frequent = rng.integers(2**40, 2**41, 200).astype(np.uint64)
    for _ in range(2):
        feed.push({"t": TablePush(frequent, np.full((200, 1), -1.0, np.float32))})
    assert (store.lookup({"t": frequent})["t"] >= 1).all()


@pytest.mark.parametrize("admission", [1, 2])
def test_a_repeated_range_is_not_counted_again(admission, feeder):
    store = EmbeddedStore(counting_table(admission=admission))
    feed = feeder(store)
    ids = np.array([1], np.uint64)
    push = {"t": TablePush(ids, np.full((1, 1), -1.0, np.float32))}
    range_ = feed.range()
    for _ in range(3):
        store.push(range_, push, {}, 0)
    assert store.lookup({"t": ids})["t"][0, 0] == (1 if admission == 1 else 0)
