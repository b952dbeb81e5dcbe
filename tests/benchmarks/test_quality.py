"""The quality benchmark runs as its command line says and learns from real data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "quality.py"


@pytest.mark.deep
@pytest.mark.slow
def test_the_quick_run_prints_its_figures_as_json(shared_data: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--dataset", "kuairand", "--label", "is_click", "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "CUCKOOFLOW_DATA": str(shared_data)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["dataset"], found["label"], found["features"]) == ("kuairand", "is_click", "base")
    assert (found["quick"], found["rows"], found["batch_size"]) == (True, 60_000, 256)
    # A quarter of the data: measured .7197 and .6022.
    assert found["auc"] > 0.715
    assert found["logloss"] < 0.607
    assert found["vw_auc"] > 0.70
    assert found["examples_per_s"] > 0


@pytest.mark.slow
@pytest.mark.deep
def test_streaming_features_learn_more(shared_data: Path) -> None:
    words = ["--label", "is_click", "--features", "streaming", "--quick", "--json"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *words],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "CUCKOOFLOW_DATA": str(shared_data)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["features"], found["lag_s"], found["model"]) == ("streaming", 60.0, "dcn")
    # A quarter of the data: measured .7260 and .5981, of long_view .7275 and .5386.
    assert found["auc"] > 0.722
    assert found["logloss"] < 0.602
    auc, logloss = found["other_labels"]["long_view"]
    assert auc > 0.722 and logloss < 0.543


def test_without_the_data_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CUCKOOFLOW_DATA": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "CUCKOOFLOW_DATA" in done.stderr
