"""Rows that go away: by their time-to-live and under a memory limit."""

from __future__ import annotations

import json
import os
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

from cuckooflow.embedding_store.api import SLOT_BITS, Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.config_json import check_config
from cuckooflow.embedding_store.native_core import NativeCore
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.errors import CheckpointDamaged, SpecError
from cuckooflow.logs.contract import LogRange, Position

COUNTING = Optimizer(kind="sgd", learning_rate=1.0)
DAY_US = 86_400_000_000


def table(**options) -> TableConfig:
    return TableConfig("t", **{"dim": 1, "optimizer": COUNTING, "init_stddev": 0.0, **options})


def slotted(slot: int, number: int) -> int:
    return slot << (64 - SLOT_BITS) | number


def ones(ids, dim: int = 1) -> dict[str, TablePush]:
    ids = np.asarray(ids, np.uint64)
    return {"t": TablePush(ids, np.full((len(ids), dim), -1.0, np.float32))}


def stats_of(store: EmbeddedStore) -> dict:
    return store.stats()["tables"]["t"]


@pytest.mark.parametrize("ttl_us", [7, 40_000, 30 * DAY_US, 1 << 55])
def test_never_early_and_late_by_a_fraction(ttl_us, feeder):
    start = 1_700_000_000_000_000
    for early, rows in ((True, 1), (False, 0)):
        store = EmbeddedStore(StoreConfig((table(ttl_us=ttl_us),)))
        feed = feeder(store)
        feed.push(ones([5]), event_time_us=start)
        later = ttl_us if early else ttl_us + ttl_us // 16_384 + 2
        feed.push(event_time_us=start + later)
        # With so few rows, the push has swept them all.
        assert store.evict_expired() == {"t": 0}
        assert stats_of(store)["rows"] == rows == 1 - stats_of(store)["evicted_expired"]


def test_goes_on_with_every_push_without_anybody_asking(feeder):
    config = StoreConfig((table(ttl_us=1_000), TableConfig("other", dim=1)))
    store = EmbeddedStore(config)
    feed = feeder(store)
    feed.push(ones(range(10_000)), event_time_us=0)
    feed.push(event_time_us=1_001)
    for _ in range(10_000 // 64 + 1):
        feed.push(event_time_us=1_001)
    assert stats_of(store)["rows"] == 0
    assert stats_of(store)["evicted_expired"] == 10_000
    assert stats_of(store)["free_rows"] == 10_000
    assert stats_of(store)["slots"] == {}


def test_evict_expired_sweeps_everything_and_counts(feeder):
    config = StoreConfig((table(ttl_us=1_000, slot_ttl_us={1: 0}), TableConfig("other", dim=1)))
    store = EmbeddedStore(config)
    feed = feeder(store)
    lasting = [slotted(1, number) for number in range(500)]
    feed.push(ones([*range(100_000), *lasting]), event_time_us=0)
    feed.push(event_time_us=1_001)
    swept = stats_of(store)["evicted_expired"]
    assert 0 < swept < 10_000, "what one push sweeps is bounded"
    assert store.evict_expired() == {"t": 100_000 - swept, "other": 0}
    assert store.evict_expired() == {"t": 0, "other": 0}
    assert stats_of(store)["slots"] == {"1": 500}


def test_keeps_pace_with_time_in_a_large_table(feeder):
    """What a push sweeps follows how far time moved: nothing stays for more than half a time-to-live over."""
    store = EmbeddedStore(StoreConfig((table(ttl_us=1_000_000),)))
    feed = feeder(store)
    for now in range(0, 4_000_000, 10_000):
        feed.push(ones(range(now // 4, now // 4 + 2_500)), event_time_us=now)
        assert stats_of(store)["rows"] <= 1.5 * 100 * 2_500 + 2_500


def test_a_leap_of_time_expires_everything_at_once(feeder):
    store = EmbeddedStore(StoreConfig((table(ttl_us=10 * DAY_US, slot_ttl_us={7: 0}),)))
    feed = feeder(store)
    kept = slotted(7, 1)
    feed.push(ones([*range(5_000), kept]), event_time_us=0)
    for years in (1, 2, 30):
        feed.push(event_time_us=years * 365 * DAY_US)
        assert stats_of(store)["rows"] == 1
    assert store.lookup({"t": np.array([kept], np.uint64)})["t"][0, 0] == 1


def test_an_expired_id_is_a_new_one_for_admission_too(feeder):
    store = EmbeddedStore(StoreConfig((table(ttl_us=100, admission=2, init_stddev=0.0),)))
    feed = feeder(store)
    ids = np.array([9], np.uint64)
    for now, expected in ((0, 0), (1, 1), (2, 2), (200, 0), (201, 1)):
        feed.push(ones(ids), event_time_us=now)
        assert store.lookup({"t": ids})["t"][0, 0] == expected
    assert stats_of(store)["evicted_expired"] == 1


def test_optimizer_slots_of_a_reused_row_begin_anew(feeder, rng):
    adam = table(dim=3, optimizer=Optimizer("adam", 0.1), init_stddev=0.1, ttl_us=10)
    store, fresh = EmbeddedStore(StoreConfig((adam,))), EmbeddedStore(StoreConfig((adam,)))
    feed, feed_fresh = feeder(store), feeder(fresh)
    old, new = np.arange(500, dtype=np.uint64), np.arange(500, 1_000, dtype=np.uint64)
    for _ in range(3):
        feed.push({"t": TablePush(old, rng.normal(size=(500, 3)).astype(np.float32))}, event_time_us=0)
    feed.push(event_time_us=11)
    store.evict_expired()
    assert stats_of(store)["free_rows"] == 500
    gradients = rng.normal(size=(500, 3)).astype(np.float32)
    before = stats_of(store)["bytes"]
    feed.push({"t": TablePush(new, gradients)}, event_time_us=11)
    feed_fresh.push({"t": TablePush(new, gradients)}, event_time_us=11)
    assert stats_of(store)["bytes"] == before and stats_of(store)["free_rows"] == 0
    np.testing.assert_array_equal(store.lookup({"t": new})["t"], fresh.lookup({"t": new})["t"])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_of_evicted_rows_is_used_again(feeder):
    store = EmbeddedStore(StoreConfig((table(dim=32, ttl_us=10),)))
    feed = feeder(store)
    resident, reported = {}, {}
    n = 150_000
    for round_ in range(1, 21):
        feed.push(
            ones(np.arange(round_ * n, (round_ + 1) * n, dtype=np.uint64), 32), event_time_us=100 * round_
        )
        assert stats_of(store)["rows"] >= n
        store.evict_expired()
        assert stats_of(store)["rows"] == n
        resident[round_], reported[round_] = resident_bytes(), stats_of(store)["bytes"]
        rows = store.lookup({"t": np.arange(round_ * n - 100, round_ * n + 100, dtype=np.uint64)})["t"]
        assert (rows[:100] == 0).all() and (rows[100:] == 1).all()
    assert resident[20] <= 1.1 * resident[3]
    assert reported[20] <= 1.1 * reported[3]


def test_a_full_delta_and_a_checkpoint_leave_free_rows_out(tmp_path, feeder):
    config = StoreConfig((table(ttl_us=10),))
    store = EmbeddedStore(config, tmp_path)
    feed = feeder(store)
    feed.push(ones(range(100)), event_time_us=0)
    feed.push(ones(range(50, 60)), event_time_us=8)
    feed.push(event_time_us=11)
    store.evict_expired()
    assert sorted(store.delta("a", full=True).tables["t"].ids.tolist()) == list(range(50, 60))
    store.checkpoint()
    store.close()
    store = open_store(config, tmp_path)
    assert stats_of(store)["rows"] == 10 and stats_of(store)["free_rows"] == 0
    # Restored rows keep their time: over at 18, whatever the restore's own time is.
    for now, rows in ((18, 10), (19, 0)):
        span = LogRange("examples", "made-once", 0, *(Position(now - 15 + i) for i in (0, 1)))
        store.push(span, {}, {}, now)
        store.evict_expired()
        assert stats_of(store)["rows"] == rows
    store.close()


def test_a_checkpoint_of_another_format_is_refused_by_name(tmp_path):
    store = open_store(StoreConfig((table(),)), tmp_path)
    manifest = tmp_path / store.checkpoint() / "manifest.json"
    store.close()
    body = json.loads(json.loads(manifest.read_text())["body"])
    text = json.dumps({**body, "format": 1})
    manifest.write_text(json.dumps({"crc32": zlib.crc32(text.encode()), "body": text}))
    with pytest.raises(CheckpointDamaged, match="expected format 3, received 1"):
        open_store(StoreConfig((table(),)), tmp_path)


# --- memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["refuse_new_ids", "evict_least_recent"])
@pytest.mark.parametrize("dim", [1, 64])
def test_the_limit_is_kept_while_the_index_grows(policy, dim, feeder, rng):
    limit = 3 << 20
    config = table(dim=dim, memory_limit_bytes=limit, memory_policy=policy)
    store = EmbeddedStore(StoreConfig((config,)))
    feed = feeder(store)
    for _ in range(40):
        feed.push(ones(rng.integers(0, 2**63, 5_000, np.uint64), dim))
        assert stats_of(store)["bytes"] <= limit
    stats = stats_of(store)
    # Well used, and every id accounted for.
    assert stats["bytes"] > 0.8 * limit
    assert stats["rows"] + stats["refused_new_ids"] + stats["evicted_memory"] == 200_000
    refused, evicted = stats["refused_new_ids"], stats["evicted_memory"]
    assert (refused > 0 and evicted == 0) if policy == "refuse_new_ids" else (refused < 50 and evicted > 0)


def test_present_missing_present_stays_aligned_under_refusal(feeder):
    store = EmbeddedStore(StoreConfig((table(dim=2, memory_limit_bytes=1 << 20),)))
    feed = feeder(store)
    feed.push(ones(range(100_000), 2))
    refused = stats_of(store)["refused_new_ids"]
    assert refused > 0
    rows = store.lookup({"t": np.arange(100_000, dtype=np.uint64)})["t"][:, 0]
    present, missing = np.flatnonzero(rows == 1).tolist(), np.flatnonzero(rows == 0).tolist()
    ids = np.array([present[0], missing[0], present[1], missing[0], missing[1], present[2]], np.uint64)
    gradients = -np.array([[1, 10], [2, 20], [3, 30], [4, 40], [5, 50], [6, 60]], np.float32)
    feed.push({"t": TablePush(ids, gradients)})
    np.testing.assert_array_equal(
        store.lookup({"t": ids})["t"], [[2, 11], [0, 0], [4, 31], [0, 0], [0, 0], [7, 61]]
    )
    assert stats_of(store)["refused_new_ids"] == refused + 2


def test_the_least_recent_make_room(feeder):
    """A hot set that every push touches outlives a stream of ids seen once each."""
    config = table(dim=16, memory_limit_bytes=2 << 20, memory_policy="evict_least_recent")
    store = EmbeddedStore(StoreConfig((config,)))
    feed = feeder(store)
    hot = np.arange(2_000, dtype=np.uint64)
    for round_ in range(200):
        cold = np.arange(10_000 + 1_000 * round_, 11_000 + 1_000 * round_, dtype=np.uint64)
        feed.push(ones(np.concatenate([hot, cold]), 16))
    stats = stats_of(store)
    assert stats["evicted_memory"] > 150_000 and stats["bytes"] <= 2 << 20
    counts = store.lookup({"t": hot})["t"][:, 0]
    assert (counts == 200).mean() > 0.99
    assert (store.lookup({"t": cold})["t"] == 1).mean() > 0.99


def test_a_row_that_makes_room_within_its_own_push_is_made_anew(feeder, rng):
    """Ids found before an eviction took their row: every gradient still goes to its own id."""
    config = table(memory_limit_bytes=1 << 20, memory_policy="evict_least_recent")
    store = EmbeddedStore(StoreConfig((config,)))
    feed = feeder(store)
    for _ in range(60):
        ids = rng.integers(0, 60_000, 3_000).astype(np.uint64)
        unique = np.unique(ids)
        feed.push({"t": TablePush(unique, -unique.astype(np.float32)[:, None])})
        values = store.lookup({"t": unique})["t"][:, 0]
        # A row's value is a multiple of its id: nobody else's gradient is in it.
        np.testing.assert_array_equal(values % np.maximum(unique, 1).astype(np.float32), 0)
    assert stats_of(store)["evicted_memory"] > 0


# --- the rest ---------------------------------------------------------------------------------


def test_lookups_beside_evictions_see_whole_rows(feeder):
    store = EmbeddedStore(StoreConfig((table(dim=16, ttl_us=10),)))
    feed = feeder(store)
    ids = np.arange(20_000, dtype=np.uint64)
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                rows = store.lookup({"t": ids})["t"]
                assert (rows == rows[:, :1]).all() and rows.max() <= 2
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for round_ in range(60):
        some = ids[round_ % 4 :: 4]
        feed.push(ones(some, 16), event_time_us=20 * round_)
        feed.push(ones(some, 16), event_time_us=20 * round_)
        store.evict_expired()
    done.set()
    for reader in readers:
        reader.join()
    assert not failures


def test_the_count_of_a_rows_updates_saturates():
    core = NativeCore((table(optimizer=Optimizer("adam", 1.0, beta1=0.5, beta2=0.9)),), (), 1)
    push = core.prepare(ones([3]), {})
    everywhere = np.ones(1, np.uint8)
    for _ in range(65_600):
        push.apply(core.raw, everywhere)
    before = core.lookup({"t": np.array([3], np.uint64)})[0]["t"][0, 0]
    push.apply(core.raw, everywhere)
    # A gradient that never changes moves the weight by the learning rate.
    assert core.lookup({"t": np.array([3], np.uint64)})[0]["t"][0, 0] == before + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttl_us": -1}, "ttl_us"),
        ({"slot_ttl_us": {4096: 1}}, "slot_ttl_us"),
        ({"slot_ttl_us": {1: -1}}, "slot_ttl_us"),
        ({"memory_limit_bytes": 1 << 10}, "1 MiB and the filter"),
        ({"memory_limit_bytes": 4 << 20, "admission": 2}, "1 MiB and the filter"),
        ({"memory_policy": "forget"}, "memory_policy"),
        ({"optimizer": Optimizer("adam", beta2=0.99999)}, "betas to 0.9999"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(SpecError, match=message):
        check_config(StoreConfig((table(**options),)))
