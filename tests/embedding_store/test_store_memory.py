"""What a store says of its memory against what the kernel says of the process's."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: A process of its own, since memory that others have freed would be taken again.
MEASURE = """
import sys
import numpy as np
from cuckooflow.embedding_store import *

def resident():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Rss:"):
            return 1024 * int(line.split()[1])

rows, dim, kind, step = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], 10_000
store = EmbeddedStore(StoreConfig((TableConfig("t", dim=dim, optimizer=Optimizer(kind)),)))
store.open_log("examples", "x", {0: Position(0)})
gradients = np.ones((step, dim), np.float32)

def push(first):
    ids = np.arange(first, first + step).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    range_ = LogRange("examples", "x", 0, Position(first), Position(first + step))
    store.push(range_, {"t": TablePush(ids, gradients)}, {}, 0)

def told():
    return store.stats()["tables"]["t"]["bytes"]

push(0)  # whatever the first push allocates for good
before, told_before = resident(), told()
for first in range(step, rows, step):
    push(first)
print((told() - told_before) / (resident() - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "dim", "kind"), [(1_500_000, 8, "adagrad"), (800_000, 32, "adam")])
def test_reported_bytes_are_within_a_tenth_of_what_the_process_grew_by(
    rows: int, dim: int, kind: str
) -> None:
    command = [sys.executable, "-c", MEASURE, str(rows), str(dim), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert 0.9 <= float(done.stdout) <= 1.1
