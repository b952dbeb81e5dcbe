"""The store benchmark runs as its command line says, at a size that tells nothing about speed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
KEYS = {
    "lookup_vs_libcuckoo",
    "lookup_vs_gather",
    "threads2_scaling",
    "push_vs_peer",
    "index_bytes_per_row",
    "growth_worst_vs_median",
    "flight_vs_echo",
    "flight_vs_redis",
    "checkpoint_vs_disk",
    "delta_size_ratio",
    "rows",
}


@pytest.mark.slow
def test_a_tiny_run_prints_every_figure_as_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.store", "--quick", "--rows=60000", "--seconds=0.1", "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert set(found) == KEYS
    assert found["rows"] == 60_000
    missing = {key for key, value in found.items() if value is None}
    assert bool(missing) <= ("skipped: " in done.stderr), "a figure is absent without a reason"
    assert all(math.isfinite(found[key]) and found[key] > 0 for key in KEYS - missing)
    # The index's size does not depend on the machine: 64 bytes for five rows, at 45 to 95 % of them.
    assert 12.8 / 0.95 <= found["index_bytes_per_row"] <= 28
