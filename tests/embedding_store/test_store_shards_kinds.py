"""Shards of a store with every kind of table, whose rows may go away, answer as the undivided store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cuckooflow.embedding_store import (
    CounterPush,
    EmbeddedStore,
    LogRange,
    Optimizer,
    Position,
    ReadStore,
    RecentPush,
    RowsAt,
    Shard,
    ShardedClient,
    StoreConfig,
    TableConfig,
    TablePush,
    reshard,
)
from cuckooflow.embedding_store.server import StoreServer
from cuckooflow.errors import BadShape, UnknownTable

CONFIG = StoreConfig(
    (
        TableConfig("user", dim=3, optimizer=Optimizer("adam", 0.01), ttl_us=1_000),
        TableConfig("clicks", dim=2, kind="counter", half_lives_us=(50, 400), ttl_us=1_000),
        TableConfig("last", dim=4, kind="recent"),
    ),
    buckets=16,
)
IDS = np.array([0, 1, 2**63 - 1, 2**63, 2**64 - 1, *range(1000, 1060)], np.uint64)


@contextmanager
def client_of(stores: list[EmbeddedStore]) -> Iterator[ShardedClient]:
    servers = [StoreServer(store, "127.0.0.1:0") for store in stores]
    client = ShardedClient([f"127.0.0.1:{server.port}" for server in servers], retry_s=1)
    try:
        yield client
    finally:
        client.close()
        for server in servers:
            server.shutdown()


def push(
    rng: np.random.Generator, stores: list[EmbeddedStore | ShardedClient], n: int, some: np.ndarray
) -> None:
    ids = rng.choice(some, 40)
    times = rng.integers(100 * n, 100 * (n + 1), len(ids))
    tables = {
        "user": TablePush(ids, rng.normal(size=(len(ids), 3)).astype(np.float32)),
        "clicks": CounterPush(ids, rng.normal(size=(len(ids), 2)).astype(np.float32), times),
        "last": RecentPush(ids, rng.integers(0, 1 << 62, len(ids)).astype(np.uint64), times),
    }
    range_ = LogRange("examples", "made-once", 0, Position(n), Position(n + 1))
    for store in stores:
        store.push(range_, tables, {}, event_time_us=int(times.max()))


def same(one: RowsAt, other: RowsAt) -> None:
    for name, weights in one.weights.items():
        np.testing.assert_array_equal(weights, other.weights[name])
    for kind in ("counters", "recents"):
        assert getattr(one, kind).keys() == getattr(other, kind).keys()
        for name, rows in getattr(one, kind).items():
            for column, expected in zip(rows, getattr(other, kind)[name], strict=True):
                np.testing.assert_array_equal(column, expected)


def asked(store: EmbeddedStore | ShardedClient, at: object) -> RowsAt:
    return store.lookup_at({table.name: IDS for table in CONFIG.tables}, at)  # type: ignore[arg-type]


def test_shards_of_every_kind_equal_the_undivided_store(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    whole = EmbeddedStore(CONFIG)
    parts = [EmbeddedStore(CONFIG, tmp_path / f"{i}", Shard(i, 3)) for i in range(3)]
    replica = ReadStore(CONFIG.tables)
    with client_of(parts) as client:
        for store in (whole, client):
            store.open_log("examples", "made-once", {0: Position(0)})
        for n in range(16):
            # The first ids come no more after a while, and expire.
            push(rng, [whole, client], n, IDS if n < 3 else IDS[20:])
            delta = client.delta("replica", full=n == 0)
            replica.apply(delta)
            client.ack("replica", delta.version)
        per_id = {table.name: rng.integers(0, 2_000, len(IDS)) for table in CONFIG.tables[1:]}
        for at in (None, 1_700, per_id):
            same(asked(client, at), asked(whole, at))
            same(replica.lookup_at({table.name: IDS for table in CONFIG.tables}, at), asked(whole, at))
        assert client.evict_expired() == whole.evict_expired()
        stats = client.stats()["tables"]
        assert isinstance(stats, dict)
        for name, expected in whole.stats()["tables"].items():  # type: ignore[attr-defined]
            for figure in ("rows", "evicted_expired", "slots"):
                assert stats[name][figure] == expected[figure], (name, figure)
        assert stats["user"]["evicted_expired"] > 0
        none = client.lookup_at({"clicks": np.empty(0, np.uint64)}, 5)
        assert none.counters["clicks"].sums.shape == (0, 2)
        with pytest.raises(UnknownTable):
            client.lookup_at({"clicks": IDS}, {"none": np.zeros(len(IDS), np.int64)})
        with pytest.raises(BadShape):
            client.lookup_at({"clicks": IDS}, {"clicks": np.zeros(3, np.int64)})
        client.checkpoint()
    for part in parts:
        part.close()

    folders = reshard([tmp_path / f"{i}" for i in (2, 0, 1)], tmp_path / "five", 5)
    dealt = [EmbeddedStore.restore(folder) for folder in folders]
    with client_of(dealt) as client:
        same(asked(client, 1_700), asked(whole, 1_700))
        # Times of last touch came along: what is left expires at the same moment.
        push(rng, [whole, client], 16, IDS[-1:])
        later = LogRange("examples", "made-once", 0, Position(17), Position(18))
        for store in (client, whole):
            store.push(later, {}, {}, event_time_us=2_400)
            store.evict_expired()
        found = client.stats()["tables"]
        assert isinstance(found, dict)
        assert found["user"]["rows"] == whole.stats()["tables"]["user"]["rows"] < len(IDS)  # type: ignore[index]
        same(asked(client, 2_400), asked(whole, 2_400))
    for store in dealt:
        store.close()
