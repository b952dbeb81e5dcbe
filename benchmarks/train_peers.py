"""Other learners on the rows of benchmarks/train.py: Vowpal Wabbit, River, TensorFlow Recommenders Addons.

None of the first two is the same model: Vowpal Wabbit is a linear learner, River a factorisation machine, row by row.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.store_peers import ROOT, TFRA, PeerMissing, environment
from benchmarks.train_rows import COLUMNS, Rows

RIVER = ("river==0.26.1",)


def vowpal_rate(rows: Rows, count: int) -> float:
    """Rows a second of one pass over a text file, in which every column is a namespace of one value.

    Raises:
        PeerMissing: it is not installed.
    """
    try:
        from vowpalwabbit import pyvw
    except ImportError as error:
        raise PeerMissing(f"Vowpal Wabbit: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.vw"
        with file.open("w") as out:
            for label, values in zip(rows.labels[:count].tolist(), rows.values[:count].tolist(), strict=True):
                features = " ".join(f"{c}={v}" for c, v in zip(COLUMNS, values, strict=True))
                out.write(f"{2 * label - 1} |f {features}\n")
        begun = time.perf_counter()
        pyvw.Workspace(f"--quiet -d {file} --loss_function logistic -b 22 -l 0.5").finish()
        return count / (time.perf_counter() - begun)


def river_rate(rows: Rows, count: int, install: bool) -> float:
    """Rows a second of ``facto.FMClassifier``, predicted and then learned one by one.

    Raises:
        PeerMissing: its environment is absent (and ``install`` false), cannot be made, or fails.
    """
    return _elsewhere(environment("river", RIVER, install), "train_river.py", rows, count, [])


def tfra_rate(rows: Rows, count: int, batch: int, install: bool) -> float:
    """Rows a second of the same model over its cuckoo hash table, with one TensorFlow thread.

    Raises:
        PeerMissing: its environment is absent (and ``install`` false), cannot be made, or fails.
    """
    return _elsewhere(environment("tfra", TFRA, install), "train_tfra.py", rows, count, [str(batch)])


def _elsewhere(python: Path, script: str, rows: Rows, count: int, further: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.npz"
        np.savez(file, places=rows.places[:count], labels=rows.labels[:count])
        try:
            done = subprocess.run(
                [str(python), str(ROOT / "benchmarks" / script), str(file), *further],
                capture_output=True,
                text=True,
                timeout=300,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
            )
        except subprocess.TimeoutExpired as error:
            raise PeerMissing(f"{script}: {error}") from error
    if done.returncode:
        raise PeerMissing(f"{script} failed: {done.stderr[-300:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["examples_per_s"])
