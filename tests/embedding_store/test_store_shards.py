"""A store of several shards answers as one that was not dealt out, whatever happens to single shards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckooflow.embedding_store.api import (
    DenseConfig,
    Optimizer,
    StoreConfig,
    TableConfig,
    TablePush,
    Version,
)
from cuckooflow.embedding_store.client import StoreClient, connect
from cuckooflow.embedding_store.config_json import config_to_json
from cuckooflow.embedding_store.read_store import ReadStore
from cuckooflow.embedding_store.server import StoreServer
from cuckooflow.embedding_store.sharded_client import ShardedClient
from cuckooflow.embedding_store.shards import Ownership, Shard, bucket_owners
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.errors import (
    BadShape,
    ConfigDiffers,
    FullDeltaNeeded,
    LogNotOpened,
    MarkMismatch,
    NonFiniteGradient,
    SpecError,
    StoreUnavailable,
    UnknownTable,
    UnknownVersion,
    WrongIncarnation,
    WrongShard,
)
from cuckooflow.logs.contract import LogRange, Position

CONFIG = StoreConfig(
    (
        TableConfig("user", dim=5),
        TableConfig("item", dim=2, optimizer=Optimizer("adam", 0.01), admission=2, filter_bytes=1 << 14),
    ),
    tuple(DenseConfig(f"w{i}", (3, i + 1), init="glorot_uniform") for i in range(6)),
    buckets=16,
)
EXTREMES = [0, 1, 2**63 - 1, 2**63, 2**64 - 1]


@contextmanager
def served(stores: list[EmbeddedStore]) -> Iterator[list[StoreServer]]:
    servers = [StoreServer(store, "127.0.0.1:0") for store in stores]
    try:
        yield servers
    finally:
        for server in servers:
            server.shutdown()


@contextmanager
def client_of(stores: list[EmbeddedStore]) -> Iterator[ShardedClient]:
    with served(stores) as servers:
        client = connect([f"127.0.0.1:{server.port}" for server in servers], retry_s=1)
        assert isinstance(client, ShardedClient)
        try:
            yield client
        finally:
            client.close()


def shards(n: int, config: StoreConfig = CONFIG) -> list[EmbeddedStore]:
    return [EmbeddedStore(config, shard=Shard(i, n)) for i in range(n)]


def span(first: int, last: int, partition: int = 0) -> LogRange:
    return LogRange("examples", "made-once", partition, Position(first), Position(last))


def random_push(rng, size=300):
    ids = rng.choice(np.array([*EXTREMES, *range(1000, 1400)], np.uint64), size)
    tables = {
        "user": TablePush(ids, rng.normal(size=(size, 5)).astype(np.float32)),
        "item": TablePush(
            ids,
            rng.normal(size=(size, 2)).astype(np.float32),
            rng.integers(1, 3, size).astype(np.uint32),
        ),
    }
    dense = {d.name: rng.normal(size=d.shape).astype(np.float32) for d in CONFIG.dense[:4]}
    return tables, dense


@given(buckets=st.integers(1, 300), of=st.integers(1, 300))
def test_every_bucket_has_one_owner_and_shards_are_even(buckets, of):
    if of > buckets:
        with pytest.raises(SpecError, match="as many as there are logical buckets"):
            Ownership(StoreConfig((), buckets=buckets), Shard(0, of))
        return
    owned = [Ownership(StoreConfig((), buckets=buckets), Shard(i, of)) for i in range(of)]
    dealt = [bucket for shard in owned for bucket in range(shard.first, shard.end)]
    assert dealt == list(range(buckets))
    assert {shard.buckets for shard in owned} <= {buckets // of, -(-buckets // of)}
    for i, shard in enumerate(owned):
        assert (bucket_owners(buckets, of)[shard.first : shard.end] == i).all()


def test_a_shard_refuses_what_is_not_its_own():
    store = EmbeddedStore(CONFIG, shard=Shard(1, 3))
    store.open_log("examples", "made-once", {0: Position(0)})
    ids = np.array(EXTREMES, np.uint64)
    mine = Ownership(CONFIG, Shard(1, 3)).owned(ids)
    assert mine.any() and not mine.all()
    with pytest.raises(WrongShard, match=r"shard 1 of 3.*received \d of other shards"):
        store.lookup({"user": ids})
    with pytest.raises(WrongShard):
        store.pull({"user": ids})
    push = TablePush(ids, np.ones((5, 5), np.float32))
    with pytest.raises(WrongShard):
        store.push(span(0, 1), {"user": push}, {}, 0)
    strange = next(d for d in CONFIG.dense if d.name not in store.dense())
    with pytest.raises(WrongShard, match=strange.name):
        store.push(span(0, 1), {}, {strange.name: np.zeros(strange.shape, np.float32)}, 0)
    assert store.marks("examples") == {0: (Position(0),)}
    own = TablePush(ids[mine], np.ones((int(mine.sum()), 5), np.float32))
    answer = store.push(span(0, 1), {"user": own}, {}, 0)
    assert answer == (Ownership(CONFIG, Shard(1, 3)).buckets, 0, 0)


def test_a_folder_belongs_to_one_shard(tmp_path):
    open_store(CONFIG, tmp_path, Shard(1, 3)).close()
    for other in (Shard(0, 3), Shard(1, 4), Shard()):
        with pytest.raises(WrongShard, match="shard 1 of 3, which lies in"):
            open_store(CONFIG, tmp_path, other)
    again = EmbeddedStore.restore(tmp_path)
    assert again.shard == Shard(1, 3)
    again.close()


@pytest.mark.parametrize("n", [1, 2, 3, 16])
def test_answers_as_the_whole_store(n, rng):
    """The same history against n shards and against one store: equal to the last bit."""
    whole = EmbeddedStore(CONFIG)
    with client_of(shards(n)) if n > 1 else _alone() as client:
        everything = {name: np.array([*EXTREMES, *range(900, 1500)], np.uint64) for name in ("user", "item")}
        for store in (whole, client):
            store.open_log("examples", "made-once", {0: Position(0), 1: Position(4)})
        assert client.log_incarnation("examples") == "made-once"
        assert client.log_incarnation("nothing") is None
        for at in range(6):
            tables, dense = random_push(rng)
            for _ in range(2):
                ours = client.push(span(at, at + 1), tables, dense, at)
                assert ours == whole.push(span(at, at + 1), tables, dense, at)
        for ours, theirs in zip(client.pull(everything)[:2], whole.pull(everything)[:2], strict=True):
            assert list(ours) == list(theirs)
            for name in theirs:
                np.testing.assert_array_equal(ours[name], theirs[name])
        for name, rows in client.lookup(everything).items():
            np.testing.assert_array_equal(rows, whole.lookup(everything)[name])
        assert {name: value.shape for name, value in client.dense().items()} == {
            d.name: d.shape for d in CONFIG.dense
        }
        assert client.lookup({"user": np.empty(0, np.uint64)})["user"].shape == (0, 5)
        assert client.marks("examples") == whole.marks("examples")
        assert client.marks("nothing") == {}
        assert client.config == CONFIG
        ours, theirs = client.stats(), whole.stats()
        for name, of_table in theirs["tables"].items():
            assert ours["tables"][name]["rows"] == of_table["rows"]
            assert ours["tables"][name]["not_admitted"] == of_table["not_admitted"]
        assert (ours["pushes_applied"], ours["event_time_us"]) == (6, 5)


@contextmanager
def _alone() -> Iterator[StoreClient]:
    with served([EmbeddedStore(CONFIG)]) as (server,):
        client = connect([f"127.0.0.1:{server.port}"])
        assert isinstance(client, StoreClient)
        yield client
        client.close()


def test_what_is_refused_for_its_content_is_applied_nowhere():
    stores = shards(3)
    with client_of(stores) as client:
        client.open_log("examples", "made-once", {0: Position(0)})
        ids = np.array(EXTREMES, np.uint64)
        bad = np.ones((5, 5), np.float32)
        bad[4, 4] = np.nan
        for raised, tables, dense in [
            (NonFiniteGradient, {"user": TablePush(ids, bad)}, {}),
            (NonFiniteGradient, {"user": TablePush(ids[[0, 0]], np.full((2, 5), 3e38, np.float32))}, {}),
            (NonFiniteGradient, {}, {"w0": np.full((3, 1), np.inf, np.float32)}),
            (BadShape, {"user": TablePush(ids, bad[:, :4])}, {}),
            (BadShape, {}, {"w0": np.zeros((1, 3), np.float32)}),
            (UnknownTable, {"nope": TablePush(ids, bad)}, {}),
        ]:
            with pytest.raises(raised):
                client.push(span(0, 1), tables, dense, 0)
        with pytest.raises(UnknownTable):
            client.lookup({"nope": ids})
        with pytest.raises(BadShape):
            client.lookup({"user": ids.astype(np.int64)})
        for store in stores:
            assert store.marks("examples") == {0: (Position(0),)}


def test_shards_that_stand_elsewhere_name_their_marks_and_are_led_together(rng):
    stores = shards(3)
    whole = EmbeddedStore(CONFIG)
    pushes = [random_push(rng) for _ in range(6)]
    with client_of(stores) as client:
        for store in (client, whole):
            store.open_log("examples", "made-once", {0: Position(0)})
        # Shard 1 has taken two ranges alone, shard 2 three: as after a restart of shard 0.
        for i, ahead in ((1, 2), (2, 3)):
            own = Ownership(CONFIG, Shard(i, 3))
            for at in range(ahead):
                tables, dense = pushes[at]
                stores[i].push(
                    span(at, at + 1),
                    {name: _part(push, own.owned(push.ids)) for name, push in tables.items()},
                    own.own_dense(dense),
                    0,
                )
        assert client.marks("examples") == {0: (Position(0), Position(2), Position(3))}
        with pytest.raises(MarkMismatch, match="shard 0 of 3 at 127") as caught:
            client.push(span(4, 5), *pushes[4], 0)
        assert caught.value.marks == ((0, 0), (2, 0), (3, 0))
        # From the lowest mark on, range by range: shards that are ahead skip.
        answers = [client.push(span(at, at + 1), *pushes[at], at) for at in range(6)]
        assert [answer.skipped > 0 for answer in answers] == [True, True, True, False, False, False]
        assert client.marks("examples") == {0: (Position(6),)}
        for at, push in enumerate(pushes):
            whole.push(span(at, at + 1), *push, at)
        ids = {"user": np.arange(1000, 1400, dtype=np.uint64)}
        np.testing.assert_array_equal(client.lookup(ids)["user"], whole.lookup(ids)["user"])
        for name, value in whole.dense().items():
            np.testing.assert_array_equal(client.dense()[name], value)


def _part(push: TablePush, mine) -> TablePush:
    counts = None if push.counts is None else push.counts[mine]
    return TablePush(push.ids[mine], push.gradients[mine], counts)


def test_a_partition_is_open_where_every_shard_has_opened_it():
    stores = shards(2)
    with client_of(stores) as client:
        client.open_log("examples", "made-once", {0: Position(0)})
        stores[0].open_log("examples", "made-once", {1: Position(0)})
        assert set(client.marks("examples")) == {0}
        with pytest.raises(LogNotOpened, match="shard 1 of 2 at 127"):
            client.push(span(0, 1, partition=1), {}, {}, 0)
        client.open_log("examples", "made-once", {1: Position(0)})
        assert (
            client.push(span(0, 1, partition=1), {}, {}, 0).skipped == Ownership(CONFIG, Shard(0, 2)).buckets
        )
        stores[1].open_log("late", "b", {})
        assert client.log_incarnation("late") is None
        stores[0].open_log("late", "a", {})
        with pytest.raises(WrongIncarnation, match="one incarnation of log 'late'"):
            client.log_incarnation("late")


def test_addresses_must_be_all_shards_in_their_order():
    stores = shards(2)
    other = EmbeddedStore(StoreConfig(CONFIG.tables, (), buckets=16), shard=Shard(1, 2))
    with served([*stores, other]) as servers:
        at = [f"127.0.0.1:{server.port}" for server in servers]
        for addresses, raised, says in [
            ([at[1], at[0]], WrongShard, "expected shard 0 of 2"),
            ([at[0], at[1], at[1]], WrongShard, "expected shard 0 of 3"),
            ([at[0], at[2]], ConfigDiffers, "shard 1 of 2"),
        ]:
            client = ShardedClient(addresses, retry_s=1)
            with pytest.raises(raised, match=says):
                client.lookup({"user": np.array([1], np.uint64)})
            client.close()
    with pytest.raises(SpecError, match="received none"):
        connect([])


def test_the_shard_that_fails_is_named():
    stores = shards(3)
    with served(stores) as servers:
        client = ShardedClient([f"127.0.0.1:{server.port}" for server in servers], retry_s=0.1)
        client.open_log("examples", "made-once", {0: Position(0)})
        assert client.config == CONFIG
        servers[1].shutdown()
        with pytest.raises(StoreUnavailable, match=f"shard 1 of 3 at 127.0.0.1:{servers[1].port}: "):
            client.push(span(0, 1), {}, {}, 0)
        # The others have it; once the shard is back, the range is pushed again, and they skip it.
        assert stores[0].marks("examples") == stores[2].marks("examples") == {0: (Position(1),)}
        client.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            client.marks("examples")


def test_deltas_bring_a_replica_along(rng):
    stores = shards(3)
    with client_of(stores) as client:
        client.open_log("examples", "made-once", {0: Position(0)})
        with pytest.raises(FullDeltaNeeded):
            client.delta("replica")
        replica = ReadStore(CONFIG.tables)
        ids = {name: np.array([*EXTREMES, *range(1000, 1400)], np.uint64) for name in ("user", "item")}
        for at in range(5):
            client.push(span(at, at + 1), *random_push(rng, 60), at)
            delta = client.delta("replica", full=at == 0)
            assert (delta.base is None) == (at == 0)
            assert delta.marks == {"examples": {0: Position(at + 1)}}
            replica.apply(delta)
            assert replica.version == delta.version
            client.ack("replica", delta.version)
            client.ack("replica", delta.version)
            for name, rows in client.lookup(ids).items():
                np.testing.assert_array_equal(replica.lookup(ids)[name], rows)
            for name, value in client.dense().items():
                np.testing.assert_array_equal(replica.dense()[name], value)
        rows = client.stats()["tables"]["user"]["rows"]
        assert sum(len(delta.tables["user"].ids) for delta in [client.delta("x", full=True)]) == rows
        with pytest.raises(UnknownVersion):
            client.ack("replica", Version(delta.version.incarnation, 99))
        with pytest.raises(WrongIncarnation):
            client.ack("replica", Version("other", delta.version.n))


def test_a_restored_shard_a_new_client_or_a_rival_demands_a_full_delta():
    stores = shards(2)
    ids = np.arange(100, dtype=np.uint64)
    with served(stores) as servers:
        addresses = [f"127.0.0.1:{server.port}" for server in servers]
        first, second = ShardedClient(addresses, retry_s=1), ShardedClient(addresses, retry_s=1)
        first.open_log("examples", "made-once", {0: Position(0)})
        before = first.incarnation()
        assert before == second.incarnation()
        for client in (first, second):
            client.ack("replica", client.delta("replica", full=True).version)
        # Both took deltas under one name, and the second's ack came later: the first's base is gone.
        with pytest.raises(FullDeltaNeeded, match="another client"):
            first.delta("replica")
        given = second.delta("replica")
        assert given.base is not None
        with pytest.raises(WrongIncarnation):
            first.ack("replica", given.version)
        # An ack that reached one shard only gives too much the next time, never too little.
        first.ack("replica", first.delta("replica", full=True).version)
        first.push(span(0, 1), {"user": TablePush(ids, np.ones((100, 5), np.float32))}, {}, 0)
        half = first.delta("replica")
        servers[1].shutdown()
        first._clients[1]._retry_s = 0.05
        with pytest.raises(StoreUnavailable, match="shard 1 of 2"):
            first.ack("replica", half.version)
        servers[1] = StoreServer(stores[1], addresses[1])
        first._clients[1]._retry_s = 5
        again = first.delta("replica")
        assert again.base == half.version
        mine = Ownership(CONFIG, Shard(1, 2)).owned(ids)
        assert sorted(again.tables["user"].ids) == sorted(ids[mine])
        # Restored: another incarnation.
        servers[1].shutdown()
        servers[1] = StoreServer(EmbeddedStore(CONFIG, shard=Shard(1, 2)), addresses[1])
        assert first.incarnation() != before
        with pytest.raises(WrongIncarnation, match="shard 1 of 2"):
            first.ack("replica", again.version)
        with pytest.raises(FullDeltaNeeded, match="shard 1 of 2"):
            first.delta("replica")
        assert first.delta("replica", full=True).base is None
        for client in (first, second):
            client.close()
        servers[1].shutdown()


def test_many_threads_push_through_one_client():
    """Each thread its partition; counts are exact."""
    config = StoreConfig((TableConfig("t", 1, Optimizer("sgd", 1.0), init_stddev=0.0),), buckets=8)
    ids = np.arange(200, dtype=np.uint64)
    with client_of(shards(3, config)) as client:
        client.open_log("examples", "made-once", {p: Position(0) for p in range(4)})

        def work(partition: int) -> None:
            for at in range(15):
                push = TablePush(ids, np.full((200, 1), -1.0, np.float32))
                client.push(span(at, at + 1, partition), {"t": push}, {}, 0)

        threads = [threading.Thread(target=work, args=(p,)) for p in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (client.lookup({"t": ids})["t"] == 60).all()


# --- real processes ------------------------------------------------------------------------------

COUNTING = StoreConfig(
    (TableConfig("count", 1, Optimizer("sgd", 1.0), init_stddev=0.0),),
    (DenseConfig("pushes", (1,), Optimizer("sgd", 1.0)),),
    buckets=16,
)


def start(folder: Path, i: int, of: int) -> subprocess.Popen[bytes]:
    (folder / "store.json").write_text(config_to_json(COUNTING))
    command = [
        sys.executable,
        "-m",
        "cuckooflow.embedding_store.server",
        "--config",
        str(folder / "store.json"),
    ]
    command += ["--data", str(folder / str(i)), "--shard", str(i), "--of", str(of)]
    return subprocess.Popen(
        [*command, "--checkpoint-interval-s", "3600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.fault
def test_a_killed_shard_is_filled_from_its_marks_and_every_count_is_exact(tmp_path, rng):
    of = 3
    processes = [start(tmp_path, i, of) for i in range(of)]
    client = connect([tmp_path / str(i) / "address" for i in range(of)])
    messages = [rng.integers(0, 300, 200).astype(np.uint64) for _ in range(120)]
    messages[0][:3] = [0, 2**63, 2**64 - 1]
    one = {"pushes": np.array([-1.0], np.float32)}

    def push(at: int) -> None:
        push = TablePush(messages[at], np.full((200, 1), -1.0, np.float32))
        client.push(span(at, at + 1), {"count": push}, one, at)

    try:
        client.open_log("examples", "made-once", {0: Position(0)})
        kills = {
            int(at): int(i)
            for at, i in zip(
                rng.choice(range(25, 120), 5, replace=False), rng.integers(0, of, 5), strict=True
            )
        }
        at = fell_back = 0
        while at < len(messages):
            if at in (20, 60):
                client.checkpoint()
            if at in kills:
                i = kills.pop(at)
                killer = threading.Thread(target=os.kill, args=(processes[i].pid, signal.SIGKILL))
                killer.start()  # somewhere around the next push
                restarted = threading.Thread(target=_restart, args=(processes, i, tmp_path, of))
                restarted.start()
            else:
                restarted = None
            try:
                push(at)
                at += 1
            except MarkMismatch as mismatch:
                # Read the log again from the lowest mark; shards that are ahead skip.
                at = mismatch.marks[0][0]
                fell_back += 1
            if restarted is not None:
                restarted.join()
            if at == len(messages):
                at = client.marks("examples")[0][0].offset
        assert fell_back > 0
        expected = Counter(int(id_) for message in messages for id_ in message)
        ids = np.array(sorted(expected), np.uint64)
        assert ids[-2:].tolist() == [2**63, 2**64 - 1]
        counts = client.lookup({"count": ids})["count"][:, 0]
        assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == expected
        assert client.dense()["pushes"] == len(messages)
        for process in processes:
            process.terminate()
        assert [process.wait(30) for process in processes] == [0] * of
    finally:
        client.close()
        for process in processes:
            process.kill()
            process.wait()
    assert json.loads((tmp_path / "1" / "shard.json").read_text()) == {"number": 1, "of": of}


def _restart(processes: list[subprocess.Popen[bytes]], i: int, folder: Path, of: int) -> None:
    processes[i].wait()
    processes[i] = start(folder, i, of)
