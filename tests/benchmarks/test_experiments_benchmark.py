"""The experiments' benchmark runs as its command line says, and finds on real data what is claimed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "experiments.py"


def run(shared_data: Path, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, SCRIPT, *words, "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "CUCKOOFLOW_DATA": str(shared_data)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.deep
@pytest.mark.slow
def test_older_parameters_predict_worse_on_real_data(shared_data: Path) -> None:
    found = run(shared_data, "sync-interval")
    auc = [each["labels"]["is_click"]["auc"] for each in found["results"]]
    # A quarter of the data, at batches of 128: measured .7100, .7153, .7175, .7188, .7196, .7199, .7199.
    assert found["longer_better_by"] <= 0.0003
    assert auc[-1] > auc[0] + 0.005 and auc[-1] > 0.715


@pytest.mark.deep
@pytest.mark.slow
def test_collisions_cost_on_real_data(shared_data: Path) -> None:
    found = run(shared_data, "collisions", "--batch-size", "256")
    # A quarter of the data: measured .7199, and .0126 less for a quarter of its rows.
    assert found["hashed_better_by"] <= 0.0003
    assert found["quarter_loses"] > 0.005
    assert (found["quick"], found["features_of"]) == (True, "base")
