"""Many threads on one store: never a torn row, and every push counted once."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cuckooflow.embedding_store.api import Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.logs.contract import LogRange, Position

DIM, IDS, PUSHES, WRITERS = 33, 5_000, 60, 4
CONFIG = StoreConfig(
    (
        TableConfig("count", dim=DIM, optimizer=Optimizer("sgd", 1.0), init_stddev=0.0),
        TableConfig("adagrad", dim=DIM, optimizer=Optimizer("adagrad"), init_stddev=0.0),
        TableConfig("adam", dim=DIM, optimizer=Optimizer("adam"), init_stddev=0.0),
    )
)


class Threads:
    """Runs functions beside each other; the first exception is the test's."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._errors.append(error)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]


def same_in_all_columns(rows: np.ndarray) -> bool:
    return bool((rows == rows[:, :1]).all())


def test_no_reader_ever_sees_a_torn_row(tmp_path: Path, rng):
    """All weights and slots of a row stay equal, for the writers push equal gradients."""
    store = EmbeddedStore(CONFIG, tmp_path)
    store.open_log("examples", "made-once", {writer: Position(0) for writer in range(WRITERS)})
    ids = rng.integers(0, 2**63, IDS).astype(np.uint64)
    writing = threading.Semaphore(0)
    done = threading.Event()

    def write(writer: int) -> None:
        random = np.random.default_rng(writer)
        try:
            for n in range(PUSHES):
                some = random.choice(ids, 1_000)
                gradients = np.full((1_000, DIM), -1.0, np.float32)
                range_ = LogRange("examples", "made-once", writer, Position(n), Position(n + 1))
                store.push(range_, {t.name: TablePush(some, gradients) for t in CONFIG.tables}, {}, n)
        finally:
            writing.release()

    def until_written(once: Callable[[], None]) -> Callable[[], None]:
        def loop() -> None:
            while True:
                last = done.is_set()
                once()
                if last:
                    return

        return loop

    def read() -> None:
        rows = store.lookup({t.name: ids[:2_000] for t in CONFIG.tables})
        assert all(same_in_all_columns(of) for of in rows.values())
        # All tables are of one moment.
        np.testing.assert_array_equal(rows["count"][:, 0] > 0, rows["adagrad"][:, 0] > 0)

    replica: dict[int, float] = {}

    def take_delta(full: bool = False) -> None:
        delta = store.delta("replica", full)
        for rows in delta.tables.values():
            assert same_in_all_columns(rows.weights)
        count = delta.tables["count"]
        replica.update(zip(count.ids.tolist(), count.weights[:, 0].tolist(), strict=True))
        store.ack("replica", delta.version)

    take_delta(full=True)
    threads = Threads()
    for writer in range(WRITERS):
        threads.start(lambda writer=writer: write(writer))
    for work in (read, read, take_delta, store.checkpoint):
        threads.start(until_written(work))
    for _ in range(WRITERS):
        writing.acquire()
    done.set()
    threads.join()

    counts = store.lookup({"count": np.unique(ids)})["count"][:, 0]
    assert counts.sum() == WRITERS * PUSHES * 1_000
    assert [replica.get(i, 0.0) for i in np.unique(ids).tolist()] == counts.tolist()
    store.checkpoint()
    store.close()
    restored = EmbeddedStore.restore(tmp_path)
    np.testing.assert_array_equal(restored.lookup({"count": np.unique(ids)})["count"][:, 0], counts)


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_slots_are_of_their_row_s_version_in_every_checkpoint(optimizer, tmp_path: Path):
    """A checkpoint taken amid pushes goes on like a store that stopped there."""
    table = TableConfig("t", dim=4, optimizer=Optimizer(optimizer), init_stddev=0.0)
    config = StoreConfig((table,))
    store = EmbeddedStore(config, tmp_path)
    store.open_log("examples", "made-once", {0: Position(0)})
    ids = np.arange(3_000, dtype=np.uint64)

    def push(to: EmbeddedStore, n: int) -> None:
        gradients = np.full((3_000, 4), np.sin(n), np.float32)
        range_ = LogRange("examples", "made-once", 0, Position(n), Position(n + 1))
        to.push(range_, {"t": TablePush(ids, gradients)}, {}, n)

    half_way = threading.Event()

    def write() -> None:
        for n in range(200):
            push(store, n)
            if n == 50:
                half_way.set()

    def checkpoint() -> None:
        half_way.wait()
        store.checkpoint()

    threads = Threads()
    threads.start(write)
    threads.start(checkpoint)
    threads.join()
    final = store.lookup({"t": ids})["t"]
    store.close()

    restored = EmbeddedStore.restore(tmp_path)
    (mark,) = restored.marks("examples")[0]
    for n in range(mark.offset, 200):
        push(restored, n)
    np.testing.assert_array_equal(restored.lookup({"t": ids})["t"], final)


@pytest.mark.parametrize("verb", ["lookup", "push", "delta"])
def test_other_threads_run_while_the_core_works(verb: str):
    """Without the core letting go of the interpreter, no other thread could run a step within a call."""
    table = TableConfig("t", dim=32, optimizer=Optimizer("sgd", 1.0))
    store = EmbeddedStore(StoreConfig((table,)))
    store.open_log("examples", "made-once", {0: Position(0)})
    ids = np.arange(200_000, dtype=np.uint64)
    pushed = {"t": TablePush(ids, np.ones((len(ids), 32), np.float32))}

    def push(n: int) -> None:
        store.push(LogRange("examples", "made-once", 0, Position(n), Position(n + 1)), pushed, {}, n)

    calls = {
        "lookup": lambda _: store.lookup({"t": ids}),
        "push": push,
        "delta": lambda _: store.delta("replica", full=True),
    }
    push(0)
    steps, within, ended = [0], [0], threading.Event()

    def work() -> None:
        for n in range(1, 200):  # others may have the processors for a while
            before = steps[0]
            calls[verb](n)
            within[0] = max(within[0], steps[0] - before)
            if within[0] > 20:
                break
        ended.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1_000)  # nobody is interrupted: threads change only where one lets go
    try:
        thread = threading.Thread(target=work)
        thread.start()
        while not ended.is_set():
            steps[0] += 1
            time.sleep(0)
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    store.close()
    # A step or two are made where a call takes one of Python's own locks; the core's work is thousands.
    assert within[0] > 20
