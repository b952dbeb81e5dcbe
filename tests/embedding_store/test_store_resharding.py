"""A store taken on 3 shards goes on, on 2 and on 7, as if it had never been dealt out otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cuckooflow.embedding_store.api import (
    DenseConfig,
    Optimizer,
    StoreConfig,
    TableConfig,
    TablePush,
)
from cuckooflow.embedding_store.resharding import reshard, shard_folder
from cuckooflow.embedding_store.shards import Ownership, Shard
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.errors import (
    CheckpointDamaged,
    CheckpointNotFound,
    ConfigDiffers,
    SpecError,
    StoreLocked,
    WrongIncarnation,
    WrongShard,
)
from cuckooflow.logs.contract import LogRange, Position

CONFIG = StoreConfig(
    (
        TableConfig("adagrad", dim=3),
        TableConfig("adam", dim=2, optimizer=Optimizer("adam", 0.01), admission=3, filter_bytes=1 << 14),
        TableConfig("sgd", dim=1, optimizer=Optimizer("sgd", 1.0), init_stddev=0.0),
    ),
    tuple(DenseConfig(f"w{i}", (2, i + 1), init="glorot_uniform") for i in range(8)),
    buckets=20,
)
EDGES = [0, 2**63, 2**64 - 1]


def span(at: int, partition: int = 0) -> LogRange:
    return LogRange("examples", "made-once", partition, Position(at), Position(at + 1))


def random_pushes(rng, n):
    pool = np.array([*EDGES, *rng.integers(0, 2**64, 500, np.uint64)], np.uint64)
    for at in range(n):
        ids = rng.choice(pool, 250)
        ids[at % 5 : at % 5 + 3] = EDGES
        tables = {
            table.name: TablePush(ids, rng.normal(size=(250, table.dim)).astype(np.float32))
            for table in CONFIG.tables
        }
        yield tables, {d.name: rng.normal(size=d.shape).astype(np.float32) for d in CONFIG.dense}


def push_part(store: EmbeddedStore, at: int, tables, dense) -> None:
    """A shard's part of a push, split here by its ownership."""
    owned = Ownership(CONFIG, store.shard)
    own = {}
    for name, push in tables.items():
        mine = owned.owned(push.ids)
        own[name] = TablePush(push.ids[mine], push.gradients[mine])
    store.push(span(at), own, owned.own_dense(dense), at)


def content(stores: list[EmbeddedStore]):
    """Table -> id -> weights, and the dense parameters, over all shards; no id twice."""
    tables: dict[str, dict[int, list[float]]] = {table.name: {} for table in CONFIG.tables}
    dense: dict[str, list[list[float]]] = {}
    for store in stores:
        delta = store.delta("test", full=True)
        for name, rows in delta.tables.items():
            assert not set(rows.ids.tolist()) & set(tables[name])
            tables[name].update(zip(rows.ids.tolist(), rows.weights.tolist(), strict=True))
        assert not set(delta.dense) & set(dense)
        dense.update({name: value.tolist() for name, value in delta.dense.items()})
    return tables, dense


def marks_by_bucket(folders: list[Path]) -> list[list[int]]:
    """From the manifests: the mark of each logical bucket of partition 0, bucket after bucket."""
    found = []
    for folder in folders:
        newest = max(folder.glob("checkpoint-*"))
        body = json.loads(json.loads((newest / "manifest.json").read_text())["body"])
        found += body["marks"]["examples"]["marks"]["0"]
    return found


@pytest.fixture
def trained(tmp_path, rng):
    """Three shards that stand at marks 6, 4 and 5; the pushes; and a whole store that has none of them yet."""
    pushes = list(random_pushes(rng, 12))
    folders = [tmp_path / "old" / str(i) for i in range(3)]
    for i, (folder, reached) in enumerate(zip(folders, (6, 4, 5), strict=True)):
        store = open_store(CONFIG, folder, Shard(i, 3))
        store.open_log("examples", "made-once", {0: Position(0), 1: Position(7, 2)})
        for at in range(reached):
            push_part(store, at, *pushes[at])
        store.checkpoint()
        store.close()
    return folders, pushes


@pytest.mark.parametrize("of", [1, 2, 3, 7, 20])
def test_goes_on_as_the_whole_store(trained, tmp_path, of):
    folders, pushes = trained
    before = [EmbeddedStore.restore(folder) for folder in folders]
    expected = content(before)
    assert all(set(EDGES) <= set(rows) for rows in expected[0].values())
    for store in before:
        store.close()

    made = reshard(folders[::-1], tmp_path / "new", of)
    assert made == [shard_folder(tmp_path / "new", i) for i in range(of)]
    assert marks_by_bucket(made) == marks_by_bucket(folders)
    stores = [EmbeddedStore.restore(folder) for folder in made]
    assert [store.shard for store in stores] == [Shard(i, of) for i in range(of)]
    assert content(stores) == expected
    assert {store.log_incarnation("examples") for store in stores} == {"made-once"}
    assert {mark for store in stores for mark in store.marks("examples")[0]} == {
        Position(6),
        Position(4),
        Position(5),
    }
    assert all(store.marks("examples")[1] == (Position(7, 2),) for store in stores)

    # Led together and trained on: slots, step counts and the filter's counts show in what comes of it.
    whole = EmbeddedStore(CONFIG)
    whole.open_log("examples", "made-once", {0: Position(0)})
    for at, push in enumerate(pushes):
        whole.push(span(at), *push, at)
        for store in stores:
            if at >= 4:
                push_part(store, at, *push)
    assert content(stores) == content([whole])
    for store in stores:
        store.close()


def test_there_and_back_again(trained, tmp_path):
    folders, _ = trained
    seven = reshard(folders, tmp_path / "seven", 7)
    three = reshard(seven, tmp_path / "three", 3)
    assert marks_by_bucket(three) == marks_by_bucket(folders)
    stores = [[EmbeddedStore.restore(folder) for folder in of] for of in (folders, three)]
    assert content(stores[0]) == content(stores[1])
    for store in (*stores[0], *stores[1]):
        store.close()


def test_counts_below_admission_go_along(tmp_path):
    """Ids that occurred twice of three times before are admitted at the third time after."""
    table = TableConfig("t", 1, Optimizer("sgd", 1.0), init_stddev=0.0, admission=3, filter_bytes=1 << 16)
    config = StoreConfig((table,), buckets=16)
    ids = np.array([*EDGES, *range(1, 200)], np.uint64)
    folders = []
    for i in range(3):
        store = open_store(config, tmp_path / str(i), Shard(i, 3))
        store.open_log("examples", "made-once", {0: Position(0)})
        mine = ids[Ownership(config, Shard(i, 3)).owned(ids)]
        for at in range(2):
            store.push(span(at), {"t": TablePush(mine, -np.ones((len(mine), 1), np.float32))}, {}, 0)
        assert store.stats()["tables"]["t"]["rows"] == 0
        store.checkpoint()
        store.close()
        folders.append(tmp_path / str(i))
    rows = 0
    for i, folder in enumerate(reshard(folders, tmp_path / "new", 2)):
        store = EmbeddedStore.restore(folder)
        strangers = np.arange(1000, 1100, dtype=np.uint64)
        both = np.concatenate([ids, strangers])
        mine = both[Ownership(config, Shard(i, 2)).owned(both)]
        store.push(span(2), {"t": TablePush(mine, -np.ones((len(mine), 1), np.float32))}, {}, 0)
        known = np.isin(mine, ids)
        assert (store.lookup({"t": mine})["t"][:, 0] == known).all()
        rows += store.stats()["tables"]["t"]["rows"]
        store.close()
    assert rows == len(ids)


def test_a_shard_without_a_checkpoint_and_a_partition_that_one_has_not_opened(tmp_path):
    config = StoreConfig((TableConfig("t", 1),), buckets=8)
    for i in range(2):
        store = open_store(config, tmp_path / str(i), Shard(i, 2))
        store.open_log("examples", "made-once", {0: Position(3)})
        if i == 1:
            store.open_log("examples", "made-once", {1: Position(5)})
        store.close()
    (folder,) = reshard([tmp_path / "0", tmp_path / "1"], tmp_path / "one", 1)
    store = EmbeddedStore.restore(folder)
    assert store.marks("examples") == {0: (Position(3),), 1: (Position(5),)}
    store.close()


def test_what_does_not_fit_together_is_refused(trained, tmp_path):
    folders, _ = trained
    new = tmp_path / "new"
    with pytest.raises(WrongShard, match="each of the 3 shards once"):
        reshard(folders[:2], new, 2)
    with pytest.raises(CheckpointNotFound):
        reshard([*folders, tmp_path / "none"], new, 2)
    with pytest.raises(SpecError, match="received none"):
        reshard([], new, 2)
    with pytest.raises(SpecError, match="21"):
        reshard(folders, new, 21)
    with pytest.raises(SpecError, match="holds something"):
        reshard(folders, tmp_path / "old", 2)
    open_store(StoreConfig(CONFIG.tables, (), 20), tmp_path / "other", Shard(2, 3)).close()
    with pytest.raises(ConfigDiffers, match="other"):
        reshard([*folders[:2], tmp_path / "other"], new, 2)
    served = EmbeddedStore.restore(folders[1])
    with pytest.raises(StoreLocked):
        reshard(folders, new, 2)
    served.close()
    recreated = open_store(CONFIG, tmp_path / "recreated", Shard(2, 3))
    recreated.open_log("examples", "made-again", {0: Position(0)})
    recreated.close()
    with pytest.raises(WrongIncarnation):
        reshard([*folders[:2], tmp_path / "recreated"], new, 2)
    assert not new.exists()
    assert not list(tmp_path.glob(".new*"))


def test_a_damaged_checkpoint_is_passed_over_and_without_a_whole_one_it_says_so(trained, tmp_path):
    folders, pushes = trained
    store = EmbeddedStore.restore(folders[1])
    push_part(store, 4, *pushes[4])
    newest = folders[1] / store.checkpoint()
    store.close()
    (newest / "table-0.rows").write_bytes(b"")
    made = reshard(folders, tmp_path / "new", 2)
    assert sorted({offset for offset, _ in marks_by_bucket(made)}) == [4, 5, 6]
    for folder in folders[1].glob("checkpoint-*"):
        (folder / "table-0.rows").write_bytes(b"")
    with pytest.raises(CheckpointDamaged, match="is whole"):
        reshard(folders, tmp_path / "again", 2)
    assert not (tmp_path / "again").exists()
