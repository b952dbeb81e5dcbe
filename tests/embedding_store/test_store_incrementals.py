"""Checkpoints of what changed: the chain is the store, whatever link is damaged or never got written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from cuckooflow.embedding_store.api import DenseConfig, Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.checkpoint_chain import CheckpointPolicy, Link, read_chain
from cuckooflow.embedding_store.checkpoint_files import CheckpointReader, CheckpointWriter, checkpoints
from cuckooflow.embedding_store.kinds import CounterPush
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.errors import CheckpointDamaged
from cuckooflow.logs.contract import LogRange, Position

CONFIG = StoreConfig(
    (
        TableConfig("t", dim=3, optimizer=Optimizer("sgd", 1.0), init_stddev=0.0),
        TableConfig("adam", dim=2, optimizer=Optimizer("adam", 0.01)),
        TableConfig("rare", dim=1, admission=3, filter_bytes=1 << 12),
        TableConfig("sums", dim=1, kind="counter", half_lives_us=(100,)),
        TableConfig("fading", dim=2, optimizer=Optimizer("sgd", 1.0), init_stddev=0.0, ttl_us=2),
    ),
    (DenseConfig("w", (2,), Optimizer("sgd", 1.0)),),
    buckets=8,
)
#: Incremental whatever the size, but for every fourth.
SMALL = CheckpointPolicy(incrementals_max=3, chain_share_max=100.0, full_below_bytes=0)
IDS = np.array([0, 1, 2**63, 2**64 - 1, *range(100, 3_000)], np.uint64)


def push_of(n: int) -> tuple[dict[str, TablePush | CounterPush], dict[str, np.ndarray]]:
    """The n-th push: a few of the ids, some of them new."""
    rng = np.random.default_rng(n)
    ids = rng.choice(IDS[: 400 + 120 * n], 60)
    tables: dict[str, TablePush | CounterPush] = {
        name: TablePush(ids, rng.integers(-4, 5, (60, dim)).astype(np.float32))
        for name, dim in (("t", 3), ("adam", 2), ("rare", 1), ("fading", 2))
    }
    tables["sums"] = CounterPush(ids, np.ones((60, 1), np.float32), np.full(60, 10 * n))
    return tables, {"w": np.full(2, -1.0, np.float32)}


def push_to(store: EmbeddedStore, n: int) -> None:
    range_ = LogRange("examples", "made-once", 0, Position(n), Position(n + 1))
    store.push(range_, *push_of(n), event_time_us=n)


def opened(store: EmbeddedStore) -> EmbeddedStore:
    store.open_log("examples", "made-once", {0: Position(0)})
    return store


def new_store(folder: Path, policy: CheckpointPolicy = SMALL) -> EmbeddedStore:
    return opened(open_store(CONFIG, folder, policy=policy))


def content(store: EmbeddedStore) -> list[np.ndarray]:
    store.evict_expired()  # until it is swept, a row whose time is over may still answer
    rows = store.lookup_at({table.name: IDS for table in CONFIG.tables}, with_dense=True)
    return [*rows.weights.values(), *rows.counters["sums"], *rows.dense.values()]


def mark_of(store: EmbeddedStore) -> int:
    (mark,) = store.marks("examples")[0]
    return mark.offset


def assert_is_what_its_mark_says(store: EmbeddedStore) -> None:
    """Against a store in memory that took the same pushes."""
    plain = opened(EmbeddedStore(CONFIG))
    for n in range(mark_of(store)):
        push_to(plain, n)
    for ours, theirs in zip(content(store), content(plain), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # The filter too: what is admitted next is the same.
    after = mark_of(store)
    for n in range(after, after + 6):
        push_to(store, n)
        push_to(plain, n)
    for ours, theirs in zip(content(store), content(plain), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def copy_of(folder: Path, to: Path) -> EmbeddedStore:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    return EmbeddedStore.restore(to, SMALL)


def bases(folder: Path) -> dict[int, int | None]:
    """Number -> number of its base."""
    found = {}
    for number, path in checkpoints(folder):
        base = CheckpointReader(path).body["base"]
        found[number] = None if base is None else int(base["name"].removeprefix("checkpoint-"))
    return found


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    file.write_bytes(raw)


def test_every_chain_restores_and_two_are_kept(tmp_path):
    store = new_store(tmp_path / "a")
    for n in range(11):
        push_to(store, n)
        store.checkpoint()
        again = copy_of(tmp_path / "a", tmp_path / "b")
        assert mark_of(again) == n + 1
        assert_is_what_its_mark_says(again)
        again.close()
        if n % 3 == 2:
            # A restored store goes on with the chain it was restored from.
            store.close()
            store = EmbeddedStore.restore(tmp_path / "a", SMALL)
    assert bases(tmp_path / "a") == {5: None, 6: 5, 7: 6, 8: 7, 9: None, 10: 9, 11: 10}
    store.close()


def test_an_incremental_one_is_as_large_as_what_changed(tmp_path):
    store = opened(open_store(CONFIG, tmp_path, policy=SMALL))
    for n in range(20):
        push_to(store, n)
    held = store.stats()["tables"]["t"]["rows"]
    sizes = [CheckpointReader(tmp_path / store.checkpoint()).size("table-0.rows") for _ in range(2)]
    push_to(store, 20)
    sizes.append(CheckpointReader(tmp_path / store.checkpoint()).size("table-0.rows"))
    touched = len(np.unique(push_of(20)[0]["t"].ids))
    assert sizes == [32 * held, 0, 32 * touched]
    store.close()


@pytest.mark.parametrize(
    ("policy", "newest", "due"),
    [
        (CheckpointPolicy(), None, True),
        (CheckpointPolicy(), Link("c", 0, 0, (64 << 20) - 1), True),
        (CheckpointPolicy(), Link("c", 0, 0, 64 << 20), False),
        (CheckpointPolicy(), Link("c", 0, 0, 1 << 30, 1, 7), False),
        (CheckpointPolicy(), Link("c", 0, 0, 1 << 30, 1, 8), True),
        (CheckpointPolicy(), Link("c", 0, 0, 1 << 30, (1 << 29) + 1, 2), True),
        (CheckpointPolicy(incrementals_max=0), Link("c", 0, 0, 1 << 30), True),
        (CheckpointPolicy(chain_share_max=0.0), Link("c", 0, 0, 1 << 30, 1, 1), True),
    ],
)
def test_when_a_full_one_is_due(policy, newest, due):
    assert policy.is_full_due(newest) is due


@pytest.mark.parametrize(
    ("link", "file", "used"),
    [(7, "table-0.rows", 6), (6, "table-1.rows", 5), (5, "table-0.rows", 4), (5, "manifest.json", 4),
     (6, "manifest.json", 5), (7, "table-2.filter", 6), (7, "dense-0", 6),
     (7, "table-4.gone", 6), (6, "table-4.gone", 5)],
)  # fmt: skip
def test_a_damaged_link_gives_way_to_the_newest_whole_chain(tmp_path, caplog, link, file, used):
    """Checkpoints 1 to 4 are one chain, 5 to 7 another; n holds n pushes."""
    store = new_store(tmp_path)
    for n in range(7):
        push_to(store, n)
        store.checkpoint()
    store.close()
    flip(tmp_path / f"checkpoint-{link:08d}" / file)
    again = EmbeddedStore.restore(tmp_path, SMALL)
    assert f"checkpoint-{link:08d}" in caplog.text
    assert mark_of(again) == used
    aside = {path.name for path in tmp_path.glob("damaged-*")}
    assert aside == {f"damaged-checkpoint-{number:08d}" for number in range(used + 1, 8)}
    push_to(again, used)
    again.checkpoint()
    again.close()
    last = EmbeddedStore.restore(tmp_path)
    assert mark_of(last) == used + 1
    assert_is_what_its_mark_says(last)
    last.close()


@pytest.mark.parametrize("how", ["absent", "another"])
def test_a_base_must_be_the_one_that_was_stood_on(tmp_path, how):
    store = new_store(tmp_path)
    for n in range(3):
        push_to(store, n)
        store.checkpoint()
    store.close()
    base = tmp_path / "checkpoint-00000002"
    shutil.rmtree(base)
    if how == "another":
        shutil.copytree(tmp_path / "checkpoint-00000001", base)
    with pytest.raises(CheckpointDamaged, match=r"stands on checkpoint-00000002"):
        read_chain(tmp_path / "checkpoint-00000003")
    again = EmbeddedStore.restore(tmp_path)
    assert mark_of(again) == 1
    again.close()


def test_a_chain_with_other_rows_than_its_manifest_says_is_not_whole(tmp_path):
    store = new_store(tmp_path)
    for n in range(4):
        push_to(store, n)
        store.checkpoint()
    store.close()
    rewrite(tmp_path / "checkpoint-00000004", rows_less=1)
    fallen = EmbeddedStore.restore(tmp_path)
    assert mark_of(fallen) == 3
    fallen.close()


def rewrite(folder: Path, rows_less: int) -> None:
    """The same checkpoint, but its manifest knows of fewer rows of the first table."""
    reader = CheckpointReader(folder)
    body = {key: value for key, value in reader.body.items() if key not in ("files", "format")}
    body["rows"][0] -= rows_less
    files = {name: list(reader.pieces(name)) for name in reader.body["files"]}
    shutil.rmtree(folder)
    writer = CheckpointWriter(folder.parent, int(folder.name.removeprefix("checkpoint-")))
    for name, pieces in files.items():
        writer.write(name, pieces)
    writer.commit(json.loads(json.dumps(body)))


def test_one_moment_while_pushes_go_on(tmp_path):
    """Every push adds one to a seventh of the rows and makes new ones, so that a mark tells every row."""
    config = StoreConfig((TableConfig("t", dim=8, optimizer=Optimizer("sgd", 1.0), init_stddev=0.0),))
    policy = CheckpointPolicy(incrementals_max=20, chain_share_max=100.0, full_below_bytes=0)
    store = opened(open_store(config, tmp_path, policy=policy))
    start, made = 70_000, 50

    def ids_of(n: int) -> np.ndarray:
        old = np.arange(n % 7, start, 7)
        return np.concatenate([old, np.arange(start + made * n, start + made * (n + 1))]).astype(np.uint64)

    def push(to: EmbeddedStore, n: int) -> None:
        ids = ids_of(n)
        range_ = LogRange("examples", "made-once", 0, Position(n), Position(n + 1))
        to.push(range_, {"t": TablePush(ids, np.full((len(ids), 8), -1.0, np.float32))}, {}, n)

    failures: list[BaseException] = []

    def write() -> None:
        try:
            store.checkpoint()
        except BaseException as error:
            failures.append(error)

    push(store, 0)
    n = 1
    for _ in range(6):
        writing = threading.Thread(target=write)
        writing.start()
        while writing.is_alive() or n < 7:
            push(store, n)
            n += 1
        writing.join()
    store.close()
    assert not failures
    assert [number for number, base in bases(tmp_path).items() if base is None] == [1]
    again = EmbeddedStore.restore(tmp_path)
    mark = mark_of(again)
    expected = np.zeros(start + made * n, np.float32)
    for m in range(mark):
        expected[ids_of(m).astype(np.int64)] += 1
    rows = again.lookup({"t": np.arange(len(expected), dtype=np.uint64)})["t"]
    np.testing.assert_array_equal(rows, np.repeat(expected[:, None], 8, axis=1))
    again.close()


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill this process before its ``step``-th change of the disk."""
    left = step

    def counted(call):
        def wrapped(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    for owner, name in (
        (os, "fsync"),
        (os, "rmdir"),
        (os, "unlink"),
        (os, "rename"),
        (os, "mkdir"),
        (Path, "rename"),
        (Path, "mkdir"),
        (Path, "open"),
    ):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


@pytest.mark.fault
@pytest.mark.deep
def test_killed_at_every_step(tmp_path, monkeypatch):
    """A link of a chain and the full one after it, which prunes; dead before each step in turn."""
    # A killed process leaves to the system what it wrote; only a machine that stops needs fsync.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    store = new_store(tmp_path / "start")
    for n in range(7):
        push_to(store, n)
        store.checkpoint()
    store.close()
    before = bases(tmp_path / "start")
    assert before == {1: None, 2: 1, 3: 2, 4: 3, 5: None, 6: 5, 7: 6}
    seen = set()
    for step in range(1_000):
        folder = tmp_path / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "start", folder)
        child = os.fork()
        if child == 0:
            try:
                killed_at(step, monkeypatch)
                again = EmbeddedStore.restore(folder, SMALL)
                for n in range(7, 9):
                    push_to(again, n)
                    again.checkpoint()
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        after = EmbeddedStore.restore(folder, SMALL)
        # Nothing was damaged, and no checkpoint that was there is lost but to pruning.
        assert not list(folder.glob("damaged-*"))
        seen.add(mark_of(after))
        push_to(after, mark_of(after))
        after.checkpoint()
        after.close()
        last = EmbeddedStore.restore(folder, SMALL)
        assert_is_what_its_mark_says(last)
        last.close()
        assert not list(folder.glob(".checkpoint-*"))
        if not os.WIFSIGNALED(status):
            break
    assert step > 40
    assert seen == {7, 8, 9}
    assert bases(folder) == {5: None, 6: 5, 7: 6, 8: 7, 9: None, 10: 9}
