"""An id gets a row once it has occurred often enough, or by a draw at each occurrence."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.api import SLOT_BITS, Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.native_core import NativeCore
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


def test_equals_exact_counting_while_the_filter_has_room(feeder, rng):
    needed = {0: 3, 1: 1, 2: 255, 3: 40}
    store = EmbeddedStore(counting_table(admission=3, slot_admission={s: needed[s] for s in (1, 2, 3)}))
    feed = feeder(store)
    seen: Counter[int] = Counter()
    rows: Counter[int] = Counter()
    for _ in range(60):
        ids = rng.zipf(1.3, 500).astype(np.uint64) % np.uint64(20_000)
        ids |= rng.integers(0, 4, 500).astype(np.uint64) << np.uint64(64 - SLOT_BITS)
        counts = rng.choice([0, 1, 1, 1, 2, 7], 500).astype(np.uint32)
        feed.push({"t": TablePush(ids, np.full((500, 1), -1.0, np.float32), counts)})
        times: Counter[int] = Counter()
        for id_, count in zip(ids.tolist(), counts.tolist(), strict=True):
            times[id_] += count
        for id_, entries in Counter(ids.tolist()).items():
            seen[id_] += times[id_]
            if seen[id_] >= needed[id_ >> (64 - SLOT_BITS)] or needed[id_ >> (64 - SLOT_BITS)] == 1:
                rows[id_] += entries
    asked = np.array(sorted(seen), np.uint64)
    found = store.lookup({"t": asked})["t"][:, 0]
    np.testing.assert_array_equal(found, [rows[id_] for id_ in asked.tolist()])
    stats = store.stats()["tables"]["t"]
    assert stats["filter_forgotten"] == 0
    assert stats["filter_entries"] == sum(rows[id_] == 0 and seen[id_] > 0 for id_ in seen)


def test_two_thirds_of_the_memory_count_exactly(feeder):
    store = EmbeddedStore(counting_table(admission=2, filter_bytes=1 << 20))
    feed = feeder(store)
    ids = np.arange((1 << 20) * 7 // 64 * 6 // 10, dtype=np.uint64)
    feed.push({"t": TablePush(ids, np.zeros((len(ids), 1), np.float32))})
    stats = store.stats()["tables"]["t"]
    assert (stats["filter_forgotten"], stats["filter_entries"]) == (0, len(ids))
    # Those that get their rows leave it.
    feed.push({"t": TablePush(ids[::2].copy(), np.zeros((len(ids[::2]), 1), np.float32))})
    stats = store.stats()["tables"]["t"]
    assert (stats["rows"], stats["filter_entries"]) == (len(ids[::2]), len(ids[1::2]))


def test_a_full_filter_forgets_who_did_not_come_for_the_longest(feeder, rng):
    store = EmbeddedStore(counting_table(admission=3, filter_bytes=64 << 10))
    feed = feeder(store)
    frequent = rng.integers(2**40, 2**41, 200).astype(np.uint64)
    # Half a million ids seen once each, and a few that come back while not all of the memory is overwritten.
    for start in range(0, 500_000, 2_000):
        ids = np.arange(start, start + 2_000, dtype=np.uint64)
        if start in (100_000, 102_000, 104_000):
            ids = np.concatenate([ids, frequent])
        feed.push({"t": TablePush(ids, np.full((len(ids), 1), -1.0, np.float32))})
    stats = store.stats()["tables"]["t"]
    # Nobody gets in early.
    singles = store.lookup({"t": np.arange(500_000, dtype=np.uint64)})["t"]
    assert not singles.any()
    admitted = (store.lookup({"t": frequent})["t"] == 1).sum()
    assert admitted > 180
    assert stats["rows"] == admitted
    assert stats["filter_entries"] <= (64 << 10) * 7 // 64
    assert stats["filter_entries"] > 0.95 * (64 << 10) * 7 // 64


def test_entries_and_what_was_forgotten_add_up(feeder):
    store = EmbeddedStore(counting_table(admission=2, filter_bytes=16 << 10))
    feed = feeder(store)
    for start in range(0, 50_000, 5_000):
        ids = np.arange(start, start + 5_000, dtype=np.uint64)
        feed.push({"t": TablePush(ids, np.zeros((5_000, 1), np.float32))})
    stats = store.stats()["tables"]["t"]
    assert stats["filter_entries"] + stats["filter_forgotten"] == 50_000
    assert stats["rows"] == 0


@pytest.mark.parametrize("mode", ["exact", "probabilistic"])
def test_the_filter_is_part_of_the_checkpoint(mode, tmp_path, feeder, rng):
    config = counting_table(admission=6, admission_mode=mode, filter_bytes=32 << 10)

    def pushes() -> list[TablePush]:
        drawn = [rng.zipf(1.2, 400).astype(np.uint64) % np.uint64(9_000) for _ in range(30)]
        return [TablePush(ids, np.full((400, 1), -1.0, np.float32)) for ids in drawn]

    before, after = pushes(), pushes()
    store = EmbeddedStore(config, tmp_path)
    feed = feeder(store)
    for push in before:
        feed.push({"t": push})
    store.checkpoint()
    range_at_checkpoint = dict(feed.at)
    everything = np.arange(9_000, dtype=np.uint64)

    def end() -> tuple[np.ndarray, float, float]:
        for push in after:
            feed.push({"t": push})
        stats = feed.store.stats()["tables"]["t"]
        rows = feed.store.lookup({"t": everything})["t"]
        return rows, stats["filter_entries"], stats["filter_forgotten"]

    expected = end()
    store.close()
    feed.store, feed.at = EmbeddedStore.restore(tmp_path), range_at_checkpoint
    found = end()
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1:] == expected[1:]


@pytest.mark.parametrize("mode", ["exact", "probabilistic"])
def test_its_image_is_one_region_a_bucket(mode):
    buckets = 16
    config = counting_table(admission=3, admission_mode=mode, filter_bytes=64 << 10)
    core = NativeCore(config.tables, (), buckets)
    ids = np.arange(4_000, dtype=np.uint64)
    owner = _native.buckets_of(ids, buckets)

    def image(of: NativeCore) -> np.ndarray:
        of.raw.begin_cut()
        regions = of.raw.cut_filter(0).reshape(buckets, -1)
        of.raw.end_cut()
        return regions

    empty = image(core)
    some = ids[(owner == 3) | (owner == 11)]
    push = core.prepare({"t": TablePush(some, np.zeros((len(some), 1), np.float32))}, {})
    push.apply(core.raw, np.ones(buckets, np.uint8))
    changed = (image(core) != empty).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [3, 11]

    # Dealt out, each region counts on where it is now.
    other = NativeCore(config.tables, (), buckets)
    assert other.raw.load_filter_buckets(0, image(core).ravel(), 10, 16)
    assert np.flatnonzero((image(other) != empty).any(axis=1)).tolist() == [11]
    assert other.raw.load_filter_buckets(0, image(core).ravel(), 0, 10)
    np.testing.assert_array_equal(image(other), image(core))
    assert other.stats()["t"]["filter_entries"] == core.stats()["t"]["filter_entries"]
    assert not other.raw.load_filter_buckets(0, image(core).ravel(), 10, 17)
    assert not other.raw.load_filter(0, image(core).ravel()[:-1].copy())
    if mode == "exact":
        wrong = image(core)
        wrong[0, -1] = 2  # neither line's turn
        assert not other.raw.load_filter(0, wrong.ravel())


def first_rows(store: EmbeddedStore, feed, ids: np.ndarray, occurrences: int) -> np.ndarray:
    """(n,) with which occurrence each id got its row; 0 where with none."""
    for _ in range(occurrences):
        feed.push({"t": TablePush(ids, np.full((len(ids), 1), -1.0, np.float32))})
    trained = store.lookup({"t": ids})["t"][:, 0].astype(int)
    return np.where(trained > 0, occurrences - trained + 1, 0)


@pytest.mark.parametrize("filter_bytes", [1 << 20, 1 << 10], ids=["a counter an id", "shared counters"])
@pytest.mark.parametrize("n", [2, 5])
def test_each_occurrence_admits_with_the_same_probability(n, filter_bytes, feeder):
    config = counting_table(admission=n, admission_mode="probabilistic", filter_bytes=filter_bytes, seed=n)
    store = EmbeddedStore(config)
    ids = np.arange(20_000, dtype=np.uint64)
    drawn = first_rows(store, feeder(store), ids, occurrences=12)
    # Geometric: with the k-th occurrence by p (1 - p)^(k - 1), the rest with none of the twelve.
    chances = np.array([(1 - 1 / n) ** 12] + [(1 - 1 / n) ** (k - 1) / n for k in range(1, 13)])
    expected = 20_000 * chances
    enough = expected > 5
    found = np.bincount(drawn, minlength=13)
    chi_square = ((found - expected)[enough] ** 2 / expected[enough]).sum()
    # Twelve degrees of freedom at most: above 35 with a chance of 0.0005, and the seed is fixed.
    assert chi_square < 35


def test_slots_have_their_own_probability(feeder):
    config = counting_table(
        admission=4, slot_admission={1: 1, 2: 20}, admission_mode="probabilistic", filter_bytes=1 << 20
    )
    store = EmbeddedStore(config)
    numbers = np.arange(10_000, dtype=np.uint64)
    ids = np.concatenate([numbers | np.uint64(slot << (64 - SLOT_BITS)) for slot in (0, 1, 2)])
    drawn = first_rows(store, feeder(store), ids, occurrences=1).reshape(3, -1)
    assert abs(drawn[0].mean() - 1 / 4) < 0.02
    assert drawn[1].mean() == 1
    assert abs(drawn[2].mean() - 1 / 20) < 0.01


def test_draws_are_the_same_however_occurrences_are_pushed(feeder, rng):
    ids = rng.integers(0, 2**63, 400).astype(np.uint64)
    zeros = np.zeros((400, 1), np.float32)

    def rows(pushes: list[TablePush], seed: int = 0) -> list[int]:
        config = counting_table(admission=9, admission_mode="probabilistic", filter_bytes=64 << 20, seed=seed)
        store = EmbeddedStore(config)
        feed = feeder(store)
        for push in pushes:
            feed.push({"t": push})
        last = TablePush(ids, np.full((400, 1), -1.0, np.float32), np.zeros(400, np.uint32))
        feed.push({"t": last})  # shows who has a row, and counts nothing
        return store.lookup({"t": ids})["t"][:, 0].astype(int).tolist()

    one_by_one = rows([TablePush(ids, zeros)] * 6)
    assert 100 < sum(one_by_one) < 300
    assert rows([TablePush(ids, zeros, np.full(400, 6, np.uint32))]) == one_by_one
    shuffled = rng.permutation(np.repeat(ids, 6))
    assert rows([TablePush(part, np.zeros((100, 1), np.float32)) for part in shuffled.reshape(24, 100)]) == (
        one_by_one
    )
    assert rows([TablePush(ids, zeros)] * 6, seed=1) != one_by_one


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
