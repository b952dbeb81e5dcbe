"""Deltas of tables whose rows go away: replicas lose the same rows, and no consumer misses any."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.embedding_store.api import Delta, Optimizer, StoreConfig, TableConfig, TableDelta, TablePush
from cuckooflow.embedding_store.client import StoreClient
from cuckooflow.embedding_store.config_json import check_config
from cuckooflow.embedding_store.read_store import ReadStore
from cuckooflow.embedding_store.server import StoreServer
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.errors import FullDeltaNeeded, SpecError
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.models.snapshots import SnapshotInfo, read_snapshot, write_snapshot

TTL = 10
TABLE = TableConfig("t", dim=2, optimizer=Optimizer("sgd", 1.0), init_stddev=0.5, ttl_us=TTL)


@pytest.fixture
def store():
    return EmbeddedStore(StoreConfig((TABLE,)))


@pytest.fixture
def push(store, feeder):
    feed = feeder(store)

    def push(ids, now: int) -> None:
        ids = np.array(list(ids), np.uint64)
        feed.push({"t": TablePush(ids, np.ones((len(ids), 2), np.float32))}, event_time_us=now)
        store.evict_expired()

    return push


def parts(delta: Delta) -> tuple[list[int], list[int]]:
    """Ids with rows, and tombstones, ascending; each comes once."""
    table = delta.tables["t"]
    assert table.tombstones.dtype == np.uint64
    for ids in (table.ids.tolist(), table.tombstones.tolist()):
        assert len(ids) == len(set(ids))
    assert not set(table.ids.tolist()) & set(table.tombstones.tolist())
    return sorted(table.ids.tolist()), sorted(table.tombstones.tolist())


def begin(store: EmbeddedStore, consumer: str) -> Delta:
    full = store.delta(consumer, full=True)
    store.ack(consumer, full.version)
    return full


def test_evicted_ids_are_tombstones_until_acknowledged(store, push):
    push([1, 2, 3], 0)
    assert parts(begin(store, "a")) == ([1, 2, 3], [])
    push([3], TTL)
    push([], TTL + 1)
    lost = store.delta("a")
    assert parts(lost) == ([3], [1, 2])
    again = store.delta("a")
    assert parts(again) == ([3], [1, 2])
    assert store.stats()["tables"]["t"]["tombstones"] == 2
    store.ack("a", again.version)
    assert parts(store.delta("a")) == ([], [])
    assert store.stats()["tables"]["t"]["tombstones"] == 0
    # A full one has no tombstones: it replaces everything.
    assert parts(store.delta("a", full=True)) == ([3], [])


def test_evicted_and_made_again_is_a_row(store, push):
    push([1, 2], 0)
    begin(store, "a")
    push([], 11)
    push([1, 5], 11)
    assert parts(store.delta("a")) == ([1, 5], [2])
    push([], 22)
    assert parts(store.delta("a")) == ([], [1, 2, 5])


def test_a_row_number_used_again_within_a_version_is_listed_once(store, push):
    """Its entry in the journal is there already: with a second one the new id would come twice."""
    begin(store, "a")
    for round_ in range(3):
        push([10 * round_ + i for i in range(5)], 20 * round_)
    assert parts(store.delta("a")) == ([20, 21, 22, 23, 24], [*range(5), *range(10, 15)])


def test_a_row_number_used_again_survives_the_journals_sweep(feeder):
    """The journal forgets what is outdated while a row number that it lists is free."""
    longer = 1 << 30
    table = TableConfig(
        "t", dim=1, optimizer=Optimizer("sgd"), ttl_us=longer, slot_ttl_us={1: 10}, init_stddev=0
    )
    store = EmbeddedStore(StoreConfig((table,)))
    feed = feeder(store)

    def touch(ids, now) -> None:
        ids = np.array(ids, np.uint64)
        feed.push({"t": TablePush(ids, np.ones((len(ids), 1), np.float32))}, event_time_us=now)

    many, short = list(range(2_000)), [1 << 52 | i for i in range(1_000)]
    touch(many, 0)
    begin(store, "away")
    for _ in range(4):
        touch(many, 0)
        begin(store, "busy")
    touch(short, 0)
    # Their rows go, still listed for this version; the touches that follow make the journal sweep.
    feed.push(event_time_us=10 * longer // 1_000)
    store.evict_expired()
    assert store.stats()["tables"]["t"]["free_rows"] == 1_000
    before = store.stats()["tables"]["t"]["journal_entries"]
    touch(many, longer // 100)
    assert store.stats()["tables"]["t"]["journal_entries"] < before + 2_000, "the journal was never swept"
    new = list(range(5_000, 6_000))
    touch(new, longer // 100)
    ids, gone = parts(store.delta("away"))
    assert ids == sorted(many + new) and gone == sorted(short)


def test_each_consumer_has_its_own_base(store, push):
    push([1, 2, 3], 0)
    begin(store, "slow")
    begin(store, "quick")
    push([2], 5)
    push([2], 11)
    assert parts(store.delta("quick")) == ([2], [1, 3])
    store.ack("quick", store.delta("quick").version)
    push([1], 12)
    assert parts(store.delta("quick")) == ([1], [])
    assert parts(store.delta("slow")) == ([1, 2], [3])


ids_pushed = st.lists(st.integers(0, 12), max_size=6)
deliveries = st.sampled_from(["none", "none", "lost", "applied", "applied unacknowledged"])


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(
        st.tuples(ids_pushed, st.integers(0, 14), st.booleans(), deliveries, deliveries), max_size=40
    )
)
def test_replicas_follow_whatever_is_lost(steps):
    """Two consumers with their own losses; after every delta applied, a replica answers as the store."""
    store = EmbeddedStore(StoreConfig((TABLE,), buckets=2))
    store.open_log("examples", "once", {0: Position(0)})
    asked = np.arange(13, dtype=np.uint64)
    replicas = {"a": ReadStore((TABLE,)), "b": ReadStore((TABLE,))}
    acknowledged: set[str] = set()
    now = 0
    for n, (ids, ahead, evict, *outcomes) in enumerate(steps):
        now += ahead
        push = TablePush(np.array(ids, np.uint64), np.ones((len(ids), 2), np.float32))
        store.push(LogRange("examples", "once", 0, Position(n), Position(n + 1)), {"t": push}, {}, now)
        if evict:
            store.evict_expired()
        for consumer, outcome in zip(replicas, outcomes, strict=True):
            if outcome == "none":
                continue
            delta = store.delta(consumer, full=consumer not in acknowledged)
            parts(delta)
            if outcome == "lost":
                continue
            replica = replicas[consumer]
            if delta.base is not None and delta.base != replica.version:
                # Applied before, never acknowledged: absolute values may be applied to what is between.
                delta = Delta(delta.version, replica.version, delta.tables, delta.dense, delta.marks)
            replica.apply(delta)
            np.testing.assert_array_equal(replica.lookup({"t": asked})["t"], store.lookup({"t": asked})["t"])
            assert replica.rows("t") == store.stats()["tables"]["t"]["rows"]
            if outcome == "applied":
                store.ack(consumer, delta.version)
                acknowledged.add(consumer)


def test_nothing_is_dropped_over_two_million(feeder):
    n = 2_200_000
    table = TableConfig("t", dim=1, optimizer=Optimizer("sgd", 1.0), init_stddev=0.0, ttl_us=TTL)
    store = EmbeddedStore(StoreConfig((table,)))
    feed = feeder(store)
    ids = np.arange(n, dtype=np.uint64) * np.uint64(7_919)
    push = {"t": TablePush(ids, np.ones((n, 1), np.float32))}
    begin(store, "a")
    feed.push(push, event_time_us=0)
    store.delta("a")  # never arrives
    feed.push({"t": TablePush(ids[:5], np.ones((5, 1), np.float32))}, event_time_us=0)
    delta = store.delta("a")
    np.testing.assert_array_equal(np.sort(delta.tables["t"].ids), ids)
    assert delta.tables["t"].weights.sum() == -n - 5
    store.ack("a", delta.version)
    assert len(store.delta("a").tables["t"].ids) == 0
    feed.push(event_time_us=TTL + 1)
    store.evict_expired()
    store.delta("a")  # never arrives
    delta = store.delta("a")
    np.testing.assert_array_equal(delta.tables["t"].tombstones, ids)
    store.ack("a", delta.version)
    stats = store.stats()["tables"]["t"]
    assert stats["tombstones"] == stats["journal_entries"] == stats["rows"] == 0


def test_who_falls_behind_the_bound_takes_a_full_one_and_others_go_on(feeder):
    bound = 1_000
    store = EmbeddedStore(StoreConfig((TABLE,), delta_backlog_max=bound))
    feed = feeder(store)
    replica = ReadStore((TABLE,))
    for consumer in ("behind", "quick"):
        full = begin(store, consumer)
    replica.apply(full)
    for round_ in range(30):
        ids = np.arange(100 * round_, 100 * round_ + 100, dtype=np.uint64)
        feed.push({"t": TablePush(ids, np.ones((100, 2), np.float32))}, event_time_us=20 * round_)
        store.evict_expired()
        delta = store.delta("quick")
        replica.apply(delta)
        store.ack("quick", delta.version)
        stats = store.stats()["tables"]["t"]
        assert stats["tombstones"] + stats["journal_entries"] <= bound
        assert replica.rows("t") == stats["rows"] == 100
    with pytest.raises(FullDeltaNeeded, match=r"'behind'.*delta_backlog_max"):
        store.delta("behind")
    # It holds nothing back any more.
    assert stats["tombstones"] + stats["journal_entries"] < bound / 2
    assert len(begin(store, "behind").tables["t"].ids) == 100
    assert parts(store.delta("behind")) == ([], [])


def test_more_touched_at_once_than_the_bound_is_no_silent_loss(feeder):
    store = EmbeddedStore(StoreConfig((TABLE,), delta_backlog_max=50))
    feed = feeder(store)
    begin(store, "a")
    ids = np.arange(100, dtype=np.uint64)
    feed.push({"t": TablePush(ids, np.ones((100, 2), np.float32))}, event_time_us=0)
    with pytest.raises(FullDeltaNeeded):
        store.delta("a")
    assert parts(begin(store, "a"))[0] == ids.tolist()
    feed.push({"t": TablePush(ids[:50], np.ones((50, 2), np.float32))}, event_time_us=0)
    assert parts(store.delta("a"))[0] == ids[:50].tolist()


def test_through_the_process_and_a_snapshot_to_a_replica(store, push, tmp_path):
    server = StoreServer(store, "127.0.0.1:0")
    client = StoreClient(f"127.0.0.1:{server.port}")
    try:
        replica = ReadStore((TABLE,))
        asked = np.arange(4, dtype=np.uint64)
        push([1, 2, 3], 0)
        for full in (True, False):
            delta = client.delta("publisher", full=full)
            manifest = write_snapshot(tmp_path, delta, SnapshotInfo(name="m", created_us=0))
            replica.apply(read_snapshot(tmp_path, manifest))
            client.ack("publisher", delta.version)
            np.testing.assert_array_equal(replica.lookup({"t": asked})["t"], store.lookup({"t": asked})["t"])
            assert replica.rows("t") == store.stats()["tables"]["t"]["rows"]
            push([3], 11)
        assert manifest.tables["t"].tombstones == 2 and manifest.tables["t"].rows == 1
        assert client.evict_expired() == {"t": 0}
        assert client.stats() == store.stats()
    finally:
        client.close()
        server.shutdown()


def test_a_replica_answers_initial_values_for_tombstones(push, store):
    replica = ReadStore((TABLE,))
    ids = np.array([1, 2**64 - 1], np.uint64)
    initial = replica.lookup({"t": ids})["t"]
    push(ids.tolist(), 0)
    full = begin(store, "replica")
    replica.apply(full)
    assert (replica.lookup({"t": ids})["t"] != initial).all()
    # Ids that it never had among them.
    gone = TableDelta(ids[:0], np.empty((0, 2), np.float32), np.append(ids, np.uint64(77)))
    replica.apply(Delta(full.version._replace(n=full.version.n + 1), full.version, {"t": gone}, {}, {}))
    np.testing.assert_array_equal(replica.lookup({"t": ids})["t"], initial)
    assert replica.rows("t") == 0


def test_a_bound_out_of_range():
    with pytest.raises(SpecError, match="delta_backlog_max"):
        check_config(StoreConfig((TABLE,), delta_backlog_max=0))
