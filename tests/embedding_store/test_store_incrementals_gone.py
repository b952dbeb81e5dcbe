"""Incremental checkpoints of tables whose rows go away, and checkpoints beside which many rows change."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from cuckooflow.embedding_store import checkpoint_files
from cuckooflow.embedding_store.api import Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.checkpoint_chain import CheckpointPolicy
from cuckooflow.embedding_store.checkpoint_files import CheckpointReader, checkpoints
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.errors import CheckpointGivenUp

INCREMENTAL = CheckpointPolicy(incrementals_max=20, chain_share_max=1e9, full_below_bytes=0)


def table(**options) -> TableConfig:
    return TableConfig("t", **{"dim": 1, "optimizer": Optimizer("sgd", 1.0), "init_stddev": 0.0, **options})


def ones(ids, dim: int = 1) -> dict[str, TablePush]:
    ids = np.asarray(ids, np.uint64)
    return {"t": TablePush(ids, np.full((len(ids), dim), -1.0, np.float32))}


def written(store: EmbeddedStore, folder: Path) -> CheckpointReader:
    return CheckpointReader(folder / store.checkpoint())


def gone_in(reader: CheckpointReader) -> list[int]:
    return sorted(id_ for piece in reader.pieces("table-0.gone") for id_ in piece.view(np.uint64).tolist())


def counts_in(folder: Path) -> dict[int, float]:
    """Of the store that is restored from there: id -> weight."""
    store = EmbeddedStore.restore(folder)
    try:
        ids, weights = store.rows("t")
        return dict(zip(ids.tolist(), weights[:, 0].tolist(), strict=True))
    finally:
        store.close()


def test_rows_that_go_and_come_again_along_a_chain(tmp_path, feeder):
    store = open_store(StoreConfig((table(ttl_us=10),)), tmp_path, policy=INCREMENTAL)
    feed = feeder(store)
    feed.push(ones([1, 2, 3, 4, 5]), event_time_us=0)
    assert "table-0.gone" not in written(store, tmp_path).body["files"]
    feed.push(ones([1, 2]), event_time_us=9)
    feed.push(ones([3]), event_time_us=15)  # 3 is over and made anew; 4 and 5 go
    store.evict_expired()
    second = written(store, tmp_path)
    assert second.body["base"]["name"] == "checkpoint-00000001"
    assert gone_in(second) == [3, 4, 5]
    feed.push(ones([4]), event_time_us=18)  # 4 comes again
    assert gone_in(written(store, tmp_path)) == []
    feed.push(ones([6]), event_time_us=22)  # 1 and 2 go, which the first two links hold
    store.evict_expired()
    assert gone_in(written(store, tmp_path)) == [1, 2]
    feed.push(ones([2]), event_time_us=24)
    assert gone_in(written(store, tmp_path)) == []
    store.close()
    assert counts_in(tmp_path) == {2: 1, 3: 1, 4: 1, 6: 1}


def test_times_of_last_touch_survive_in_older_links(tmp_path, feeder):
    store = open_store(StoreConfig((table(ttl_us=100),)), tmp_path, policy=INCREMENTAL)
    feed = feeder(store)
    feed.push(ones([1]), event_time_us=0)
    store.checkpoint()
    for n in range(1, 5):
        feed.push(ones([10 + n]), event_time_us=20 * n)
        store.checkpoint()
    store.close()
    again = EmbeddedStore.restore(tmp_path, INCREMENTAL)
    feed.store = again
    for now, left in ((100, {1, 11, 12, 13, 14}), (101, {11, 12, 13, 14}), (121, {12, 13, 14})):
        feed.push(event_time_us=now)
        again.evict_expired()
        assert set(again.rows("t")[0].tolist()) == left
    again.close()


def test_the_least_recent_that_made_room_stay_away(tmp_path, feeder, rng):
    config = StoreConfig(
        (table(dim=8, memory_limit_bytes=2 << 20, memory_policy="evict_least_recent"),), buckets=8
    )
    store = open_store(config, tmp_path, policy=INCREMENTAL)
    feed = feeder(store)
    for _ in range(6):
        feed.push(ones(rng.integers(0, 200_000, 20_000), 8))
        store.checkpoint()
    assert store.stats()["tables"]["t"]["evicted_memory"] > 20_000
    assert [CheckpointReader(path).body["base"] is None for _, path in checkpoints(tmp_path)] == [True] + [
        False
    ] * 5
    ids, weights = store.rows("t")
    store.close()
    assert counts_in(tmp_path) == dict(zip(ids.tolist(), weights[:, 0].tolist(), strict=True))


def test_a_full_one_where_more_went_than_is_remembered(tmp_path, feeder):
    config = StoreConfig((table(ttl_us=10),), delta_backlog_max=50)
    store = open_store(config, tmp_path, policy=INCREMENTAL)
    feed = feeder(store)
    full = []
    for round_, ids in enumerate((range(100), range(100, 140), range(140, 150), range(150, 160))):
        feed.push(ones(ids), event_time_us=20 * round_)
        store.evict_expired()
        full.append(written(store, tmp_path).body["base"] is None)
    store.close()
    assert full == [True, True, False, False]
    assert counts_in(tmp_path) == dict.fromkeys(range(150, 160), 1)


class SlowDisk:
    """Stands between a checkpoint's rows and the disk: from its first piece on it waits for :meth:`go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self._go = threading.Event(), threading.Event()
        write = checkpoint_files.write_pieces

        def write_pieces(path, pieces):
            def slow():
                for piece in pieces:
                    self.reached.set()
                    assert self._go.wait(60)
                    yield piece

            write(path, slow())

        monkeypatch.setattr(checkpoint_files, "write_pieces", write_pieces)

    def go(self) -> None:
        self._go.set()


def in_thread(call) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


DIM, ROWS = 64, 100_000  # four pieces of a checkpoint


def large(folder: Path, feeder, **policy) -> tuple[EmbeddedStore, object]:
    options = CheckpointPolicy(incrementals_max=0, **policy)
    store = open_store(StoreConfig((table(dim=DIM),)), folder, policy=options)
    feed = feeder(store)
    feed.push(ones(range(ROWS), DIM))
    return store, feed


def test_a_stuck_checkpoint_is_given_up_and_pushes_go_on(tmp_path, feeder, monkeypatch):
    store, feed = large(tmp_path, feeder, cut_bytes_max=1 << 20, cut_wait_s=0.01)
    store.checkpoint()
    disk = SlowDisk(monkeypatch)
    writing, raised = in_thread(store.checkpoint)
    assert disk.reached.wait(60)
    most = 0
    for _ in range(3):
        for first in range(0, ROWS, 5_000):
            feed.push(ones(range(first, first + 5_000), DIM))
            most = max(most, store.stats()["tables"]["t"]["cut_bytes"])
    # One push more than the bound at most.
    assert 1 << 20 < most < (1 << 20) + 5_000 * (4 * DIM + 64)
    assert store.stats()["tables"]["t"]["cut_bytes"] == 0
    disk.go()
    writing.join()
    assert [type(error) for error in raised] == [CheckpointGivenUp]
    assert [number for number, _ in checkpoints(tmp_path)] == [1]
    store.checkpoint()
    store.close()
    assert counts_in(tmp_path) == dict.fromkeys(range(ROWS), 4)


def test_a_push_waits_for_a_slow_checkpoint(tmp_path, feeder, monkeypatch):
    store, feed = large(tmp_path, feeder, cut_bytes_max=1 << 20, cut_wait_s=60)
    disk = SlowDisk(monkeypatch)
    writing, not_written = in_thread(store.checkpoint)
    assert disk.reached.wait(60)
    feed.push(ones(range(ROWS), DIM))  # over the bound: the next one waits
    held = store.stats()["tables"]["t"]["cut_bytes"]
    assert held > 1 << 20
    pushing, not_pushed = in_thread(lambda: feed.push(ones(range(ROWS), DIM)))
    # What is asked of the store in the meantime is answered.
    assert (store.lookup({"t": np.arange(ROWS, dtype=np.uint64)})["t"] == 2).all()
    assert pushing.is_alive() and store.stats()["pushes_applied"] == 2
    disk.go()
    pushing.join()
    writing.join()
    assert not not_written and not not_pushed
    assert store.stats()["tables"]["t"]["cut_bytes"] == 0
    store.close()
    assert counts_in(tmp_path) == dict.fromkeys(range(ROWS), 1)
