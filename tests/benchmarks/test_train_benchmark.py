"""The training benchmark runs as its command line says, for so short that it tells nothing about speed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.train_rows import ALL_VALUES, VALUES, generate
from benchmarks.train_steps import TrainerTurn

ROOT = Path(__file__).resolve().parent.parent.parent
RATIOS = {
    "step_vs_tensorflow_only",
    "step_vs_keras_fit",
    "vs_vw",
    "vs_river",
    "vs_tfra",
    "two_trainers_cpu_ratio",
    "features_cost",
}


@pytest.mark.slow
@pytest.mark.deep
def test_a_short_run_prints_every_figure_as_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train", "--quick", "--seconds=0.1", "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert set(found) == RATIOS | {"examples_per_s", "by_batch", "batch", "quick"}
    missing = {key for key in RATIOS if found[key] is None}
    assert bool(missing) <= ("skipped: " in done.stderr), "a figure is absent without a reason"
    assert all(math.isfinite(found[key]) and found[key] > 0 for key in RATIOS - missing)


def test_rows_have_the_values_that_are_said_and_a_turn_trains_them() -> None:
    rows = generate(20_000)
    assert (rows.values.min(axis=0) >= 0).all() and (rows.values.max(axis=0) < np.array(VALUES)).all()
    assert rows.places.max() < ALL_VALUES and 0.1 < rows.labels.mean() < 0.9
    turn = TrainerTurn(rows, 256)
    assert turn(0.0) == 8_192
    assert turn.store.marks("examples")[0][0].offset == 8_192
