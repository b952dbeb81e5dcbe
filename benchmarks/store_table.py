"""The embedded table beside its peers: lookups, pushes, growth, bytes."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.store_peers import ACCUMULATOR, DIM, LEARNING_RATE, Floats, Ids, NativePeers
from cuckooflow.embedding_store.api import Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.logs.contract import LogRange, Position

TABLE = "rows"
LOAD_ROWS = 1 << 16
#: Picks that a round goes through before it meets the same rows again; far more bytes than a cache holds.
POOL_ROWS = 1 << 20
GROWTH_BATCH = 4_096
#: Bytes of an index segment: what its growth comes in.
SEGMENT_BYTES = 4_096 * 64

T = TypeVar("T")


def ids_of(numbers: npt.NDArray[np.uint64]) -> Ids:
    """Distinct ids over all 64 bits, one for each number (SplitMix64's finalizer)."""
    x = numbers + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Pusher:
    """A store under steady pushes of one log."""

    def __init__(self, store: EmbeddedStore) -> None:
        self.store = store
        self._at = 0
        store.open_log("bench", "once", {0: Position(0)})

    def push(self, ids: Ids, gradients: Floats) -> None:
        """One push through the public verb, position and all."""
        first, self._at = Position(self._at), self._at + 1
        range_ = LogRange("bench", "once", 0, first, Position(self._at))
        self.store.push(range_, {TABLE: TablePush(ids, gradients)}, {}, event_time_us=self._at)

    def fill(self, first: int, last: int) -> None:
        """Rows of the numbers from first to last."""
        zeros = np.zeros((LOAD_ROWS, DIM), np.float32)
        for start in range(first, last, LOAD_ROWS):
            ids = ids_of(np.arange(start, min(last, start + LOAD_ROWS), dtype=np.uint64))
            self.push(ids, zeros[: len(ids)])


def store_config() -> StoreConfig:
    """One Adagrad table like the peers'."""
    optimizer = Optimizer("adagrad", learning_rate=LEARNING_RATE, initial_accumulator=ACCUMULATOR)
    return StoreConfig((TableConfig(TABLE, dim=DIM, optimizer=optimizer, init_stddev=0.0),))


def new_store(rows: int, data: Any = None) -> Pusher:
    """A store of so many rows."""
    pusher = Pusher(EmbeddedStore(store_config(), data))
    pusher.fill(0, rows)
    return pusher


@dataclass(frozen=True)
class Workload:
    """What is asked of every contender: picks of rows, uniformly random, in batches."""

    rows: int
    batch: int
    seconds: float  # for each contender, figure and number of threads
    rounds: int = 5

    def picks(self, seed: int) -> list[npt.NDArray[np.uint32]]:
        """Batches of row numbers."""
        rng = np.random.default_rng(seed)
        count = max(2, POOL_ROWS // self.batch)
        return list(rng.integers(0, self.rows, (count, self.batch), np.uint32))


def best_rates(
    contenders: dict[str, Callable[[T], object]], pool: dict[str, list[list[T]]], work: Workload, threads: int
) -> dict[str, float]:
    """Rows/s of each, on so many threads; they take turns and each one's best round counts."""
    best = dict.fromkeys(contenders, 0.0)
    for _ in range(work.rounds):
        for name, call in contenders.items():
            rate = _rate(call, pool[name][:threads], work.batch, work.seconds / work.rounds)
            best[name] = max(best[name], rate)
    return best


def _rate(call: Callable[[T], object], streams: list[list[T]], batch: int, seconds: float) -> float:
    calls = [0] * len(streams)
    start = threading.Barrier(len(streams) + 1)
    ends = [0.0] * len(streams)

    def run(number: int) -> None:
        start.wait()
        until = time.perf_counter() + seconds
        for item in itertools.cycle(streams[number]):
            call(item)
            calls[number] += 1
            ends[number] = time.perf_counter()
            if ends[number] >= until:
                return

    workers = [threading.Thread(target=run, args=(n,)) for n in range(len(streams))]
    for worker in workers:
        worker.start()
    start.wait()
    begun = time.perf_counter()
    for worker in workers:
        worker.join()
    return sum(calls) * batch / (max(ends) - begun)


def lookups_and_pushes(
    pusher: Pusher, peers: NativePeers | None, work: Workload
) -> dict[str, dict[str, float]]:
    """``lookup 1``, ``lookup 2`` (threads) and ``push``: contender -> rows/s.

    A peer is filled, measured beside the store and freed before the next: memory for one at a time.
    """
    found: dict[str, dict[str, float]] = {"lookup 1": {}, "lookup 2": {}, "push": {}}
    numbers = [work.picks(seed) for seed in (1, 2)]
    ids = [[ids_of(batch.astype(np.uint64)) for batch in stream] for stream in numbers]
    gradients = np.random.default_rng(3).standard_normal((work.batch, DIM)).astype(np.float32)
    ours: dict[str, Callable[[Any], object]] = {
        "cuckooflow": lambda batch: pusher.store.lookup({TABLE: batch}),
    }
    ours_push: dict[str, Callable[[Any], object]] = {
        "cuckooflow": lambda batch: pusher.push(batch, gradients),
    }
    outs = threading.local()

    def out() -> Floats:
        if not hasattr(outs, "rows"):
            outs.rows = np.empty((work.batch, DIM), np.float32)
        return outs.rows

    def note(figure: str, rates: dict[str, float]) -> None:
        for name, rate in rates.items():
            found[figure][name] = max(found[figure].get(name, 0.0), rate)

    def measure(name: str, lookup: Callable[[Any], object], items: list[list[Any]]) -> None:
        for threads in (1, 2):
            pool: dict[str, list[list[Any]]] = {"cuckooflow": ids, name: items}
            note(f"lookup {threads}", best_rates({**ours, name: lookup}, pool, work, threads))

    if peers is None:
        for threads in (1, 2):
            note(f"lookup {threads}", best_rates(ours, {"cuckooflow": ids}, work, threads))
        note("push", best_rates(ours_push, {"cuckooflow": ids}, work, 1))
        return found
    dense = peers.dense(work.rows)
    measure("dense gather", lambda rows: dense.gather(rows, out()), numbers)
    dense.free()
    for kind, name in (("cuckoo", "libcuckoo"), ("flat", "flat map")):
        table = peers.table(kind)
        zeros = np.zeros((LOAD_ROWS, DIM), np.float32)
        for start in range(0, work.rows, LOAD_ROWS):
            table.push(
                ids_of(np.arange(start, min(work.rows, start + LOAD_ROWS), dtype=np.uint64)),
                zeros,
            )
        measure(name, lambda batch, table=table: table.lookup(batch, out()), ids)
        pushes = {**ours_push, name: lambda batch, table=table: table.push(batch, gradients)}
        note("push", best_rates(pushes, {"cuckooflow": ids, name: ids}, work, 1))
        table.free()
    return found


def same_values(peers: NativePeers) -> None:
    """The contenders compute the same: a few pushes with repeated rows, then all weights.

    Raises:
        RuntimeError: they differ.
    """
    pusher = new_store(0)
    tables = {"libcuckoo": peers.table("cuckoo"), "flat map": peers.table("flat")}
    rng = np.random.default_rng(4)
    for _ in range(3):
        ids = ids_of(rng.choice(1_000, 300, replace=False).astype(np.uint64))
        gradients = rng.standard_normal((300, DIM)).astype(np.float32)
        pusher.push(ids, gradients)
        for table in tables.values():
            table.push(ids, gradients)
    ids = ids_of(np.arange(1_000, dtype=np.uint64))
    expected = pusher.store.lookup({TABLE: ids})[TABLE]
    for name, table in tables.items():
        out = np.empty_like(expected)
        table.lookup(ids, out)
        table.free()
        if not np.allclose(expected, out, rtol=1e-5, atol=1e-7):
            raise RuntimeError(f"{name} and cuckooflow hold different weights after the same pushes")


@dataclass(frozen=True)
class Growth:
    """Calls that add rows, and the index's bytes a row while they do.

    Attributes:
        worst_us, median_us: of one push of :data:`GROWTH_BATCH` new rows.
        index_bytes_full: a row, when the index was fullest.
        index_bytes_grown: a row, when it had just grown.
        header_bytes: a row, beside weights and slots.
    """

    worst_us: float
    median_us: float
    index_bytes_full: float
    index_bytes_grown: float
    header_bytes: int


def growth(first: int, last: int, repeats: int) -> Growth:
    """Grow a table from ``first`` to ``last`` rows, call by call.

    A call's time is its least over the repeats: what the table itself does at that size comes every
    time, what the machine does meanwhile does not.
    """
    seconds: list[npt.NDArray[np.float64]] = []
    zeros = np.zeros((GROWTH_BATCH, DIM), np.float32)
    full, grown, header = np.inf, 0.0, 0
    for _ in range(repeats):
        pusher = new_store(first)
        header = pusher.store._core.raw.row_bytes(0) - 8 * DIM
        times = []
        for start in range(first, last - GROWTH_BATCH + 1, GROWTH_BATCH):
            ids = ids_of(np.arange(start, start + GROWTH_BATCH, dtype=np.uint64))
            begun = time.perf_counter()
            pusher.push(ids, zeros)
            times.append(time.perf_counter() - begun)
            stats = pusher.store._core.stats()[TABLE]
            per_row = stats["index_segments"] * SEGMENT_BYTES / stats["rows"]
            full, grown = min(full, per_row), max(grown, per_row)
        seconds.append(np.array(times))
        pusher.store.close()
        del pusher
    least = np.min(seconds, axis=0)
    return Growth(float(least.max()) * 1e6, float(np.median(least)) * 1e6, float(full), grown, header)
