"""Checkpoints: whole or not at all, one moment for everything in them, and back."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from cuckooflow.embedding_store.api import DenseConfig, Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.checkpoint_files import checkpoints
from cuckooflow.embedding_store.native_core import NativeCore
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.errors import (
    CheckpointDamaged,
    CheckpointNotFound,
    ConfigDiffers,
    DataFolderUnusable,
    FullDeltaNeeded,
    SpecError,
    StoreError,
    StoreLocked,
    WrongIncarnation,
)
from cuckooflow.logs.contract import LogRange, Position

ADAM = Optimizer("adam", 0.01)
CONFIG = StoreConfig(
    (
        TableConfig("adam", dim=3, optimizer=ADAM),
        TableConfig("rare", dim=1, optimizer=Optimizer("sgd", 1.0), init_stddev=0.0, admission=3),
    ),
    (DenseConfig("w", (4, 2), ADAM, init="glorot_uniform"), DenseConfig("b", (), ADAM)),
    buckets=16,
)
IDS = np.array([0, 1, 2**63, 2**64 - 1, *range(100, 4_000)], np.uint64)


def step(rng: np.random.Generator) -> tuple[dict[str, TablePush], dict[str, np.ndarray]]:
    some = rng.choice(IDS, 500)
    return (
        {
            "adam": TablePush(some, rng.normal(size=(500, 3)).astype(np.float32)),
            "rare": TablePush(some, np.full((500, 1), -1.0, np.float32)),
        },
        {"w": rng.normal(size=(4, 2)).astype(np.float32), "b": np.array(rng.normal(), np.float32)},
    )


def content(store: EmbeddedStore) -> dict[str, np.ndarray]:
    return {**store.lookup({"adam": IDS, "rare": IDS}), **store.dense()}


def assert_same(ours: EmbeddedStore, theirs: EmbeddedStore) -> None:
    expected = content(theirs)
    for name, values in content(ours).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_a_restored_store_goes_on_as_if_nothing_had_happened(tmp_path, feeder, rng):
    """Against a store that was never stopped: weights, slots, steps, filter, marks."""
    unbroken = EmbeddedStore(CONFIG)
    store = open_store(CONFIG, tmp_path)
    feeds = [feeder(unbroken), feeder(store)]
    for _ in range(4):
        for _ in range(5):
            push = step(rng)
            for feed in feeds:
                feed.push(*push)
        before = store.incarnation()
        assert store.changed_since_checkpoint()
        store.checkpoint()
        assert not store.changed_since_checkpoint()
        store.close()
        store = open_store(CONFIG, tmp_path)
        feeds[1].store = store
        assert not store.changed_since_checkpoint()
        assert store.incarnation() != before
        assert store.marks("examples") == unbroken.marks("examples")
        assert store.log_incarnation("examples") == "made-once"
        assert store.stats()["pushes_applied"] == unbroken.stats()["pushes_applied"]
        assert_same(store, unbroken)
    assert store.config == CONFIG


def test_what_came_after_the_checkpoint_is_gone_with_its_marks(tmp_path, feeder, rng):
    store = EmbeddedStore(CONFIG, tmp_path)
    feed = feeder(store)
    feed.push(*step(rng))
    store.checkpoint()
    at, then = store.marks("examples"), content(store)
    feed.push(*step(rng))
    store.close()
    again = EmbeddedStore.restore(tmp_path)
    assert again.marks("examples") == at
    for name, values in content(again).items():
        np.testing.assert_array_equal(values, then[name])


def test_without_a_checkpoint_the_opened_logs_are_still_known(tmp_path, feeder, rng):
    store = EmbeddedStore(CONFIG, tmp_path)
    store.open_log("other", "x", {2: Position(7, 3)})
    feeder(store).push(*step(rng))
    store.close()
    again = open_store(CONFIG, tmp_path)
    assert again.marks("other") == {2: (Position(7, 3),)}
    assert again.marks("examples") == {0: (Position(0),)}
    with pytest.raises(WrongIncarnation):
        again.open_log("other", "y", {2: Position(0)})


def test_a_log_opened_after_the_checkpoint_is_still_known(tmp_path):
    store = EmbeddedStore(CONFIG, tmp_path)
    store.open_log("early", "x", {0: Position(1)})
    store.checkpoint()
    store.open_log("early", "x", {1: Position(2)})
    store.open_log("late", "y", {0: Position(3)})
    store.close()
    again = EmbeddedStore.restore(tmp_path)
    assert again.marks("early") == {0: (Position(1),), 1: (Position(2),)}
    assert again.marks("late") == {0: (Position(3),)}


def test_a_restore_forgets_its_consumers(tmp_path):
    store = EmbeddedStore(CONFIG, tmp_path)
    version = store.delta("replica", full=True).version
    store.ack("replica", version)
    store.checkpoint()
    store.close()
    again = EmbeddedStore.restore(tmp_path)
    with pytest.raises(WrongIncarnation):
        again.ack("replica", version)
    with pytest.raises(FullDeltaNeeded):
        again.delta("replica")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace("pushes_applied", "pushes_applies")
        ),
        lambda folder: (folder / "table-0.rows").unlink(),
        lambda folder: (folder / "table-1.filter").write_bytes((folder / "table-1.filter").read_bytes()[:-1]),
        lambda folder: (folder / "dense-0").write_bytes((folder / "dense-0").read_bytes() + b"x"),
        lambda folder: flip(folder / "table-0.rows"),
        lambda folder: flip(folder / "dense-1"),
        lambda folder: flip(folder / "manifest.json"),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, feeder, rng, damage):
    store = EmbeddedStore(CONFIG, tmp_path)
    feed = feeder(store)
    feed.push(*step(rng))
    store.checkpoint()
    then = content(store)
    feed.push(*step(rng))
    newest = store.checkpoint()
    store.close()
    damage(tmp_path / newest)

    again = open_store(CONFIG, tmp_path)
    assert again.marks("examples") == {0: (Position(1),)}
    for name, values in content(again).items():
        np.testing.assert_array_equal(values, then[name])
    # The damaged one is out of the way: two whole ones are kept from here on.
    feed.store, feed.at = again, {0: Position(1)}
    feed.push(*step(rng))
    again.checkpoint()
    again.close()
    assert len(checkpoints(tmp_path)) == 2
    assert (tmp_path / f"damaged-{newest}").is_dir()
    assert EmbeddedStore.restore(tmp_path).marks("examples") == {0: (Position(2),)}


def test_no_whole_checkpoint_is_an_error_and_not_an_empty_store(tmp_path):
    store = EmbeddedStore(CONFIG, tmp_path)
    name = store.checkpoint()
    store.close()
    flip(tmp_path / name / "dense-0")
    for _ in range(2):
        with pytest.raises(CheckpointDamaged, match="no checkpoint"):
            open_store(CONFIG, tmp_path)


def test_damaged_start_positions_are_an_error(tmp_path):
    store = EmbeddedStore(CONFIG, tmp_path)
    store.open_log("examples", "x", {0: Position(0)})
    store.close()
    flip(tmp_path / "logs.json")
    with pytest.raises(CheckpointDamaged, match=r"logs\.json"):
        EmbeddedStore.restore(tmp_path)


def test_half_written_ones_are_ignored_and_removed(tmp_path):
    store = EmbeddedStore(CONFIG, tmp_path)
    half = tmp_path / ".checkpoint-00000009.tmp"
    half.mkdir()
    (half / "table-0.rows").write_bytes(b"half")
    assert [store.checkpoint() for _ in range(4)][-1] == "checkpoint-00000004"
    assert [number for number, _ in checkpoints(tmp_path)] == [3, 4]
    assert not half.exists()


def test_a_folder_serves_one_store(tmp_path):
    store = EmbeddedStore(CONFIG, tmp_path)
    for attempt in (lambda: open_store(CONFIG, tmp_path), lambda: EmbeddedStore.restore(tmp_path)):
        with pytest.raises(StoreLocked, match="in use"):
            attempt()
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.checkpoint()
    with pytest.raises(StoreError, match="open_store"):
        EmbeddedStore(CONFIG, tmp_path)
    with pytest.raises(CheckpointNotFound):
        EmbeddedStore.restore(tmp_path / "nothing")
    open_store(CONFIG, tmp_path).close()


@pytest.mark.parametrize("place", ["a file", "under a file", "without rights"])
def test_a_folder_that_cannot_be_used_is_named(tmp_path, place):
    (tmp_path / "file").touch()
    folder = {"a file": tmp_path / "file", "under a file": tmp_path / "file" / "data"}.get(
        place, tmp_path / "data"
    )
    if place == "without rights":  # rights do not bind the user root, a folder in the lock's place does
        (folder / "lock").mkdir(parents=True)
    for attempt in (lambda: open_store(CONFIG, folder), lambda: EmbeddedStore(CONFIG, folder)):
        with pytest.raises(DataFolderUnusable, match="may write to") as caught:
            attempt()
        assert str(folder) in str(caught.value)


def test_another_configuration_is_refused(tmp_path):
    EmbeddedStore(CONFIG, tmp_path).close()
    other = StoreConfig(
        (TableConfig("adam", dim=4, optimizer=ADAM), CONFIG.tables[1]), CONFIG.dense, buckets=16
    )
    with pytest.raises(ConfigDiffers, match=r"differ: table adam \(dim=3, received 4\)\. "):
        open_store(other, tmp_path)
    with pytest.raises(ConfigDiffers, match="buckets"):
        open_store(StoreConfig(CONFIG.tables, CONFIG.dense, buckets=17), tmp_path)
    with pytest.raises(SpecError, match="dim"):
        open_store(StoreConfig((TableConfig("t", dim=0),)), tmp_path)
    open_store(CONFIG, tmp_path).close()


def test_a_store_without_a_folder_writes_none():
    with pytest.raises(StoreError, match="folder"):
        EmbeddedStore(CONFIG).checkpoint()


def test_a_cut_holds_the_rows_as_they_were(rng):
    """Rows changed, and rows made, between the cut's beginning and its reading."""
    core = NativeCore((TableConfig("t", dim=2, optimizer=Optimizer("sgd", 1.0), init_stddev=0.0),), (), 4)
    everywhere = np.ones(4, np.uint8)

    def add(ids: np.ndarray, value: float) -> None:
        push = {"t": TablePush(ids, np.full((len(ids), 2), -value, np.float32))}
        core.prepare(push, {}).apply(core.raw, everywhere)

    ids = np.arange(1_000, dtype=np.uint64)
    add(ids, 1)
    core.raw.begin_cut()
    images = []
    for piece in range(10):
        add(rng.choice(np.arange(1_200, dtype=np.uint64), 300), piece + 2)
        images.append(core.raw.read_cut(0, 100))
    assert core.raw.cut_rows(0) == 1_000
    core.raw.end_cut()
    image = np.concatenate(images).reshape(1_000, -1)
    np.testing.assert_array_equal(image[:, :8].copy().view(np.uint64)[:, 0], ids)
    np.testing.assert_array_equal(image[:, 16:24].copy().view(np.float32), 1.0)


def test_a_checkpoint_is_one_moment_while_pushes_go_on(tmp_path, feeder):
    """Every push adds one to every row, so a row's value is the number of pushes it holds."""
    config = StoreConfig(
        (TableConfig("t", dim=16, optimizer=Optimizer("sgd", 1.0), init_stddev=0.0),),
        (DenseConfig("w", (1,), Optimizer("sgd", 1.0)),),
    )
    store = EmbeddedStore(config, tmp_path)
    feed = feeder(store)
    ids = np.arange(150_000, dtype=np.uint64)
    push = (
        {"t": TablePush(ids, np.full((len(ids), 16), -1.0, np.float32))},
        {"w": np.full(1, -1.0, np.float32)},
    )
    feed.push(*push)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            store.checkpoint()
        except BaseException as error:
            failures.append(error)

    for _ in range(3):
        writing = threading.Thread(target=write)
        writing.start()
        while writing.is_alive():
            feed.push(*push)
        writing.join()
    store.close()
    assert not failures
    again = EmbeddedStore.restore(tmp_path)
    (mark,) = again.marks("examples")[0]
    assert again.dense()["w"][0] == mark.offset
    rows = again.lookup({"t": ids})["t"]
    assert rows.min() == rows.max() == mark.offset
    # And it takes up where it stands.
    again.push(LogRange("examples", "made-once", 0, mark, Position(mark.offset + 1)), *push, 0)
    assert again.lookup({"t": ids[:1]})["t"][0, 0] == mark.offset + 1


def flip(file) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def test_the_manifest_can_be_read_by_people(tmp_path):
    store = EmbeddedStore(CONFIG, tmp_path)
    store.open_log("examples", "x", {0: Position(5, 1)})
    body = json.loads(json.loads((tmp_path / store.checkpoint() / "manifest.json").read_text())["body"])
    assert body["marks"]["examples"]["marks"]["0"] == [[5, 1]] * 16
    assert body["config"]["buckets"] == 16
