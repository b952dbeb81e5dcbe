"""What a store says of its memory against what the kernel says of the process's."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: A process of its own, since memory that others have freed would be taken again.
COMMON = """
import ctypes, sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from cuckooflow.embedding_store import *

def resident():
    # What deltas and checkpoints took for their time and gave back is kept by the allocators for the next.
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Rss:"):
            return 1024 * int(line.split()[1])

def told():
    return sum(table["bytes"] for table in store.stats()["tables"].values())

at = 0

def push(first, n, event_time_us=0):
    global at
    ids = np.arange(first, first + n).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    gradients = np.ones((n, dim), np.float32)
    range_ = LogRange("examples", "x", 0, Position(at), Position(at + 1))
    store.push(range_, {table.name: TablePush(ids, gradients) for table in tables}, {}, event_time_us)
    at += 1

def begin(config, *folder):
    global store, tables
    tables = config.tables
    store = EmbeddedStore(config, *folder)
    store.open_log("examples", "x", {0: Position(0)})

def report(what):
    print(what, (told() - told_before) / (resident() - before))
"""
ROWS = """
rows, dim, kind, step = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], 10_000
begin(StoreConfig((TableConfig("t", dim=dim, optimizer=Optimizer(kind)),)))
push(0, step)  # whatever the first push allocates for good
before, told_before = resident(), told()
for first in range(step, rows, step):
    push(first, step)
report("rows")
"""
#: Tables with nothing else: of hundreds at once, so that what is told of one counts and Python's own memory does not.
SMALL = """
rows, dim = int(sys.argv[1]), 16
begin(StoreConfig((TableConfig("warm", dim=dim, optimizer=Optimizer("adagrad")),)))
push(0, rows)
told_before = 0
names = [f"t{n}" for n in range(50_000 // rows * 4)]
config = StoreConfig(tuple(TableConfig(name, dim=dim, optimizer=Optimizer("adagrad")) for name in names))
before = resident()
at = 0
begin(config)
push(0, rows)
report("rows")
"""
#: What is kept beside the rows: half the reported bytes or more. Rows enough that the few hundred KB that Python's own
#: memory moves by are within the tenth.
BESIDE = """
rows, dim, step = 1_200_000, 4, 10_000
begin(StoreConfig((TableConfig("t", dim=dim, optimizer=Optimizer("sgd"), ttl_us=1_000),)), Path(sys.argv[1]))
for first in range(0, rows, step):
    push(first, step)
store.checkpoint()
version = store.delta("one", full=True).version
store.ack("one", version)
before, told_before = resident(), told()
core = store._core.raw
for n in range(1, 25):  # the same rows in many epochs: the journal lists them twice at most
    push(step * n, step, n)
    store.delta("one")
for first in range(0, rows, step):
    push(first, step, 900)
report("journal")
core.begin_cut()
before, told_before = resident(), told()
for first in range(0, rows, step):
    push(first, step, 1_000)
report("cut")
core.end_cut()
before, told_before = resident(), told()
for n in range(1, 13):  # all rows go, and others take their places, again and again
    for first in range(0, rows, step):
        push(n * rows + first, step, 3_000 * n)
    store.evict_expired()
report("tombstones")
"""
#: A table of 100 MiB: whose memory a second thread asks the kernel for while it is filled.
SAVED = """
dim = 32
begin(StoreConfig((TableConfig("t", dim=dim, optimizer=Optimizer("adagrad")),)), Path(sys.argv[1]))
for first in range(0, 400_000, 10_000):
    push(first, 10_000)
store.checkpoint()
ids = np.arange(0, 400_000).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
np.save(sys.argv[1] + ".npy", store.lookup({"t": ids})["t"])
"""
RESTORED = """
before = resident()
told_before = 0
store = EmbeddedStore.restore(Path(sys.argv[1]))
report("rows")
ids = np.arange(400_000).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
assert np.array_equal(store.lookup({"t": ids})["t"], np.load(sys.argv[1] + ".npy"))
"""


def shares(script: str, *arguments: object) -> dict[str, float]:
    """Reported growth / the process's, by what the script says."""
    command = [sys.executable, "-c", COMMON + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {what: float(share) for what, share in lines}


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "dim", "kind"), [(1_500_000, 8, "adagrad"), (800_000, 32, "adam")])
def test_reported_bytes_are_within_a_tenth_of_what_the_process_grew_by(
    rows: int, dim: int, kind: str
) -> None:
    assert 0.9 <= shares(ROWS, rows, dim, kind)["rows"] <= 1.1


@pytest.mark.parametrize("rows", [1_000, 10_000])
def test_of_small_tables_too(rows: int) -> None:
    assert 0.9 <= shares(SMALL, rows)["rows"] <= 1.1


def test_what_is_kept_for_consumers_and_checkpoints_is_reported(tmp_path) -> None:
    found = shares(BESIDE, tmp_path / "store")
    assert set(found) == {"journal", "cut", "tombstones"}
    for what, share in found.items():
        assert 0.9 <= share <= 1.1, (what, share)


def test_of_a_restored_table_too(tmp_path) -> None:
    shares(SAVED, tmp_path / "store")
    assert 0.9 <= shares(RESTORED, tmp_path / "store")["rows"] <= 1.1
