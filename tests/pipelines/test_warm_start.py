"""A job's store that begins with another job's tables: row for row what was kept, and said what was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.api import SLOT_BITS, StoreConfig, TablePush
from cuckooflow.embedding_store.dense_init import initial_dense
from cuckooflow.embedding_store.kinds import CounterPush
from cuckooflow.embedding_store.shards import Ownership, Shard
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.errors import ConfigDiffers, SpecError, StoreError, StoreLocked, StoreNotEmpty
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.logs.local_log import LocalLog
from cuckooflow.models.base import Model, predict_batch
from cuckooflow.models.snapshots import SnapshotInfo, write_snapshot
from cuckooflow.models.warm_plan import Kept
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.options import model, store_config, store_folder
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.pipelines.train.warm_start import warm_start

SPEC = Path(__file__).parent / "job.yaml"
FEATURES = [
    {"name": "user", "column": "user_id"},
    {"name": "item", "column": "item_id"},
    {"name": "genres", "column": "genres", "pooling": "mean", "max_length": 4},
    {"name": "hour", "kind": "hour"},
]
MODEL = {"kind": "deepfm", "labels": ["like"], "dim": 4, "hidden": [16, 8]}
VALUE_BITS = np.uint64(64 - SLOT_BITS)
VALUE_MASK = np.uint64((1 << (64 - SLOT_BITS)) - 1)
IDS = 400


class Stores:
    """The shards of a job's store in this process."""

    def __init__(self, job: JobSpec) -> None:
        self.config = store_config(job)
        shards = [Shard(n, job.store.shards) for n in range(job.store.shards)]
        self.owned = [Ownership(self.config, shard) for shard in shards]
        self.parts: list[EmbeddedStore] = [
            open_store(self.config, store_folder(job, shard.number), shard) for shard in shards
        ]

    def push(self, tables: dict[str, Any], dense: dict[str, Any], first: int, log: str = "examples") -> None:
        """One message of partition 0, dealt out; ``tables``: name -> (ids, gradients) or a CounterPush."""
        incarnation = self.parts[0].log_incarnation(log)
        assert incarnation is not None
        range_ = LogRange(log, incarnation, 0, Position(first), Position(first + 1))
        for store, owned in zip(self.parts, self.owned, strict=True):
            dealt: dict[str, Any] = {}
            for name, push in tables.items():
                if isinstance(push, CounterPush):
                    mine = owned.owned(push.ids)
                    dealt[name] = CounterPush(push.ids[mine], push.amounts[mine], push.times_us[mine])
                else:
                    mine = owned.owned(push[0])
                    dealt[name] = TablePush(push[0][mine], push[1][mine])
            store.push(range_, dealt, owned.own_dense(dense), event_time_us=first)

    def rows(self, table: str) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for store in self.parts:
            ids, weights = store.rows(table)
            found.update(zip(ids.tolist(), weights.tolist(), strict=True))
        return found

    def states(self, table: str) -> dict[int, bytes]:
        pairs = [pair for store in self.parts for pair in zip(*store.states(table), strict=True)]
        return {int(id_): state.tobytes() for id_, state in pairs}

    def dense(self) -> dict[str, Any]:
        return {name: value for store in self.parts for name, value in store.dense().items()}

    def pull(self, ids: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        answer = {}
        for name, asked in ids.items():
            dim = next(table.dim for table in self.config.tables if table.name == name)
            answer[name] = np.empty((len(asked), dim), np.float32)
            for store, owned in zip(self.parts, self.owned, strict=True):
                mine = owned.owned(asked)
                answer[name][mine] = store.lookup({name: asked[mine]})[name]
        return answer, self.dense()

    def close(self, checkpoint: bool = False) -> None:
        for store in self.parts:
            if checkpoint:
                store.checkpoint()
            store.close()


def make_job(folder: Path, name: str, **sections: Any) -> JobSpec:
    """A job over ``folder``/logs with a store of its own; sections are laid over those of the test's spec."""
    body = yaml.safe_load(SPEC.read_text())
    body["store"] = {**body["store"], "data": f"store-{name}"}
    body["snapshots"] = {**body["snapshots"], "dir": f"snapshots-{name}"}
    for section, value in sections.items():
        body[section] = {**body[section], **value} if isinstance(value, dict) else value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(body))
    return load_spec(path)


def batch(rng: np.random.Generator, rows: int = 200) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, 50, rows)],
            "item_id": [f"i{n}" for n in rng.integers(0, 80, rows)],
            "genres": pa.array([[f"g{n}" for n in rng.integers(0, 9, k)] for k in rng.integers(0, 4, rows)]),
            "_time": pa.array(rng.integers(0, 10**14, rows), pa.int64()),
        }
    )


def trained(job: JobSpec, rng: np.random.Generator, pushes: int = 6) -> Stores:
    """A store that has learned random gradients for the ids of random rows; a log of the job's is opened."""
    log = LocalLog.create(job.path(job.logs.examples.path), 2, "frames")
    stores = Stores(job)
    logs = ("examples", "examples:features")
    for store in stores.parts:
        for name in logs:
            store.open_log(name, log.incarnation(), {0: Position(0), 1: Position(0)})
    made = model(job)
    for n in range(pushes):
        ids = np.unique(made.encode(batch(rng)).ids)
        ids = ids[ids != 0]
        tables: dict[str, Any] = {
            t.name: (ids, rng.normal(size=(len(ids), t.dim)).astype(np.float32))
            for t in stores.config.tables
            if t.kind == "embedding"
        }
        dense = {d.name: rng.normal(size=d.shape).astype(np.float32) for d in stores.config.dense}
        stores.push(tables, dense, n)
        keys = rng.integers(0, 1 << 63, 20).astype(np.uint64)
        counts = {
            t.name: CounterPush(keys, np.ones((20, t.dim), np.float32), np.full(20, n, np.int64))
            for t in stores.config.tables
            if t.kind == "counter"
        }
        stores.push(counts, {}, n, "examples:features")
    return stores


def slot_map(old: Model, new: Model) -> dict[int, int]:
    """Old slot -> new slot, of features of one name; a plain look at both lists."""
    before, after = ({f.name: n for n, f in enumerate(m.encoder.features)} for m in (old, new))
    return {slot: after[name] for name, slot in before.items() if name in after}


def moved(rows: dict[int, Any], slots: dict[int, int]) -> dict[int, Any]:
    """Rows under their new ids, without those of slots that are gone."""
    shift, mask = int(VALUE_BITS), int(VALUE_MASK)
    return {
        (slots[id_ >> shift] << shift) | (id_ & mask): row
        for id_, row in rows.items()
        if id_ >> shift in slots
    }


def states_of(lines: list[Kept]) -> dict[tuple[str, str], str]:
    return {(line.kind, line.name): line.state for line in lines}


@pytest.mark.parametrize("optimizer", ["adagrad", "adam", "ftrl", "rowwise_adagrad", "sgd"])
def test_the_same_model_on_other_shards_with_features_in_another_order(
    tmp_path: Path, optimizer: str
) -> None:
    seed = 3
    rng = np.random.default_rng(seed)
    of_model = {"embedding": {"kind": optimizer}, "admission": 2}
    old = make_job(tmp_path, "old", model=of_model, store={"shards": 2})
    order = [2, 0, 3, 1]
    new = make_job(
        tmp_path, "new", model=of_model, store={"shards": 3}, features=[FEATURES[n] for n in order]
    )
    before = trained(old, rng)
    expected = {t.name: before.rows(t.name) for t in before.config.tables}
    before.close(checkpoint=True)
    source, lines = warm_start(new, tmp_path / "old.yaml", False, False, False)
    assert "job films" in source
    whys = [line.why for line in lines if line.state != "kept"]
    assert all("admission" in why for why in whys), whys
    before, after = Stores(old), Stores(new)
    slots = slot_map(model(old), model(new))
    assert sorted(slots.items()) == [(0, 1), (1, 3), (2, 0), (3, 2)]
    for name, rows in expected.items():
        assert len(rows) > 50
        assert after.rows(name) == moved(rows, slots), name
        assert next(line.kept for line in lines if line.name == name) == len(rows)
    width = 4
    flat = [order.index(n) for n in range(4)]
    for name, value in before.dense().items():
        mine = after.dense()[name]
        if name == "deep/0/kernel":  # its inputs are the fields, side by side
            mine = mine.reshape(4, width, 16)[flat].reshape(16, 16)
        np.testing.assert_array_equal(mine, value, err_msg=name)
    assert all(store.marks("examples") == {0: (Position(6),), 1: (Position(0),)} for store in after.parts)

    rows = batch(np.random.default_rng(seed + 1))
    theirs = predict_batch(model(old), rows, before.pull)["like"]
    np.testing.assert_allclose(predict_batch(model(new), rows, after.pull)["like"], theirs, rtol=1e-5)
    # What the optimizers know was kept: the same gradients lead to the same weights.
    rng = np.random.default_rng(seed + 2)
    for n in (6, 7):
        for name, rows_ in expected.items():
            ids = np.array(sorted(rows_), np.uint64)
            gradients = rng.normal(size=(len(ids), len(next(iter(rows_.values()))))).astype(np.float32)
            to = np.array(list(moved(dict.fromkeys(ids.tolist(), 0), slots)), np.uint64)
            dense = {d.name: np.full(d.shape, 0.1 * n, np.float32) for d in before.config.dense}
            pushes = ((before, ids), (after, to))
            for stores, mine in pushes:
                if name == "linear":
                    stores.push({name: (mine, gradients)}, dense, n)
                else:
                    for part in stores.parts:
                        incarnation = part.log_incarnation("examples")
                        part.open_log(f"more-{name}", incarnation or "", {0: Position(6)})
                    stores.push({name: (mine, gradients)}, {}, n, f"more-{name}")
    for name in expected:
        assert after.rows(name) == moved(before.rows(name), slots), name
    for name in ("linear/bias", "deep/1/kernel", "fm/weights"):
        np.testing.assert_array_equal(after.dense()[name], before.dense()[name])
    before.close()
    after.close()


def initial(config: StoreConfig, table: str, ids: list[int]) -> Any:
    (found,) = [t for t in config.tables if t.name == table]
    return _native.initial_values(np.array(ids, np.uint64), found.dim, found.seed, found.init_stddev)


def test_a_changed_model_keeps_what_stands_for_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    old = make_job(tmp_path, "old", training={"counting": True}, store={"buckets": 8})
    features = [
        {"name": "pair", "columns": ["user_id", "item_id"]},
        FEATURES[0],
        {**FEATURES[2], "max_length": 6},
        {"name": "item", "column": "user_id"},
    ]
    changed = {
        "kind": "dcn",
        "labels": ["click", "like"],
        "dim": 6,
        "hidden": [16, 4],
        "linear": {"kind": "adam"},
    }
    new = make_job(tmp_path, "new", model=changed, features=features, store={"buckets": 16, "shards": 2})
    before = trained(old, rng)
    expected = {t.name: before.rows(t.name) for t in before.config.tables}
    dense = before.dense()
    before.close(checkpoint=True)

    _, dry = warm_start(new, tmp_path / "old.yaml", False, False, True)
    assert not store_folder(new).parent.exists()
    _, lines = warm_start(new, tmp_path / "old.yaml", False, False, False)
    assert states_of(dry).keys() == states_of(lines).keys()
    assert {name: state for (kind, name), state in states_of(lines).items() if kind == "feature"} == {
        "pair": "new", "user": "kept", "genres": "kept", "item": "new", "hour": "gone",
    }  # fmt: skip
    after = Stores(new)
    slots = {0: 1, 2: 2}
    linear, embedding = (moved(expected[name], slots) for name in ("linear", "embedding"))
    found = after.rows("linear")
    assert found.keys() == linear.keys() and len(found) > 20
    assert {id_: row[1] for id_, row in found.items()} == {id_: row[0] for id_, row in linear.items()}
    assert {row[0] for row in found.values()} == {0.0}  # clicks begin anew
    found = after.rows("embedding")
    assert {id_: row[:4] for id_, row in found.items()} == embedding
    np.testing.assert_array_equal(
        np.array([found[id_] for id_ in sorted(found)], np.float32)[:, 4:],
        initial(after.config, "embedding", sorted(found))[:, 4:],
    )
    assert after.rows("_count") == moved(expected["_count"], slots)
    kernel, was = after.dense()["deep/0/kernel"], dense["deep/0/kernel"]
    wanted = {d.name: initial_dense(d) for d in after.config.dense}
    first = wanted["deep/0/kernel"].reshape(4, 6, 16).copy()
    first[1, :4], first[2, :4] = was.reshape(4, 4, 16)[0], was.reshape(4, 4, 16)[2]
    np.testing.assert_array_equal(kernel, first.reshape(24, 16))
    np.testing.assert_array_equal(after.dense()["deep/0/bias"], dense["deep/0/bias"])
    np.testing.assert_array_equal(after.dense()["deep/1/kernel"], wanted["deep/1/kernel"])
    np.testing.assert_array_equal(after.dense()["cross/0/kernel"], wanted["cross/0/kernel"])
    np.testing.assert_array_equal(after.dense()["linear/bias"], [0.0, dense["linear/bias"][0]])
    states = states_of(lines)
    assert states["dense", "deep/0/kernel"] == states["table", "linear"] == "partly"
    assert states["dense", "deep/0/bias"] == "kept"
    assert states["dense", "deep/1/kernel"] == states["dense", "cross/0/kernel"] == "new"
    assert states["dense", "fm/weights"] == "gone"
    (line,) = [line for line in lines if line.name == "linear"]
    assert line.optimizer is False and "optimizer state anew: adam, was adagrad" in line.why
    assert line.kept == len(linear) and line.of == len(expected["linear"])
    after.close()


def test_figures_of_examples_are_kept_only_where_training_goes_on(tmp_path: Path) -> None:
    streaming = [
        {"name": "clicks", "kind": "count", "by": ["user_id"], "label": "click"},
        {"name": "shown", "kind": "count", "by": ["item_id"]},
    ]
    other = [{**streaming[0], "label": "like"}, streaming[1]]
    old = make_job(tmp_path, "old", features=FEATURES + streaming, training={"counting": True})
    before = trained(old, np.random.default_rng(2))
    shown = before.states("counter/item_id")
    before.close(checkpoint=True)
    new = make_job(tmp_path, "new", features=FEATURES + other, training={"counting": True})
    _, lines = warm_start(new, tmp_path / "old.yaml", False, False, False)
    after = Stores(new)
    assert after.states("counter/item_id") == shown and len(shown) == 120
    assert after.states("counter/user_id") == {}
    assert after.rows("_count")
    assert after.parts[0].marks("examples:features")[0] == (Position(6),)
    after.close()
    assert states_of(lines)["table", "counter/user_id"] == "new"
    again = make_job(tmp_path, "again", features=FEATURES + streaming, training={"counting": True})
    _, lines = warm_start(again, tmp_path / "old.yaml", True, False, False)
    after = Stores(again)
    assert after.states("counter/item_id") == after.states("counter/user_id") == after.rows("_count") == {}
    assert after.rows("linear") and after.parts[0].marks("examples") == {}
    after.close()
    assert {s for (kind, _), s in states_of(lines).items() if kind == "log"} == {"new"}


def test_a_folder_of_snapshots_gives_weights_and_marks(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    old = make_job(tmp_path, "old", model={"ttl": "1h"})
    stores = trained(old, rng, pushes=3)
    (store,) = stores.parts
    folder = old.path(old.snapshots.dir)
    info = SnapshotInfo(
        name="films",
        created_us=1,
        model=old.model.model_dump(mode="json"),
        features=[feature.model_dump(mode="json") for feature in old.features],
    )
    first = store.delta("s", full=True)
    write_snapshot(folder, first, info)
    store.ack("s", first.version)
    early = set(stores.rows("linear"))
    ids = np.array(sorted(early)[:5], np.uint64)
    range_ = LogRange("examples", store.log_incarnation("examples") or "", 0, Position(3), Position(4))
    store.push(
        range_, {"linear": TablePush(ids, np.ones((5, 1), np.float32))}, {}, event_time_us=7_200_000_000
    )
    store.evict_expired()
    write_snapshot(folder, store.delta("s"), info)
    expected = {name: stores.rows(name) for name in ("linear", "embedding")}
    assert set(expected["linear"]) == set(ids.tolist()) < early
    dense = stores.dense()
    new = make_job(tmp_path, "new", model={"ttl": "2h"}, store={"shards": 2})
    _, lines = warm_start(new, folder, False, False, False)  # the old one is open all the while
    after = Stores(new)
    assert {name: after.rows(name) for name in expected} == expected
    for name, value in dense.items():
        np.testing.assert_array_equal(after.dense()[name], value)
    assert all(part.marks("examples")[0] == (Position(4),) for part in after.parts)
    assert {line.why for line in lines if line.name == "deep/0/bias"} == {"a snapshot has no optimizer state"}
    after.close()
    stores.close()


def test_what_cannot_be_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    old = make_job(tmp_path, "old", store={"shards": 2})
    new = make_job(tmp_path, "new", model={"dim": 8})
    stores = trained(old, np.random.default_rng(1), pushes=2)
    with pytest.raises(StoreError, match="no checkpoint yet"):
        warm_start(new, tmp_path / "old.yaml", False, False, False)
    part = stores.parts[0]
    ahead = LogRange("examples", part.log_incarnation("examples") or "", 0, Position(2), Position(3))
    part.push(ahead, {}, {}, event_time_us=3)
    stores.close(checkpoint=True)
    with pytest.raises(StoreError, match=r"partitions \[0\] at several"):
        warm_start(new, tmp_path / "old.yaml", False, False, False)
    with pytest.raises(SpecError, match="name the job spec"):
        warm_start(new, store_folder(old), False, False, False)
    make_job(tmp_path, "edited", store={"shards": 2, "data": "store-old"}, model={"dim": 5})
    with pytest.raises(ConfigDiffers, match="keep the old spec"):
        warm_start(new, tmp_path / "edited.yaml", False, False, False)
    assert not new.path(new.store.data).exists()
    warm_start(new, tmp_path / "old.yaml", True, False, False)
    with pytest.raises(StoreNotEmpty, match="--replace"):
        warm_start(new, tmp_path / "old.yaml", True, False, False)
    held = Stores(new)
    with pytest.raises(StoreLocked):
        warm_start(new, tmp_path / "old.yaml", True, True, False)
    held.close()
    warm_start(new, tmp_path / "old.yaml", True, True, False)
    assert (tmp_path / "store-new.replaced-1" / "store.json").exists()
    assert store_folder(new).joinpath("store.json").exists()
