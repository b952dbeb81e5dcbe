"""Vowpal Wabbit on the same rows and features: what a well-tuned linear learner reaches in one pass."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import kuairand
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import log_loss
from vowpalwabbit import pyvw

#: One letter for each feature that a -q may pair; the profile's columns share one.
_NAMESPACES = {
    "u": "user_id",
    "v": "video_id",
    "a": "author_id",
    "g": "tag",
    "b": "tab",
    "h": "hour",
    "t": "upload_type",
    "d": "duration",
}
_PAIRS = (("ub", "ud", "ut"), ("ub", "ug", "ud", "vb", "ua"), ("u:", "b:"))
_RATES = (0.1, 0.2, 0.3, 0.5)
_POWERS = (0.4, 0.5)


@dataclass(frozen=True)
class VowpalResult:
    """Predictions for every row (each before it was learned), and the options that the grid chose."""

    probabilities: npt.NDArray[np.float64]
    options: str


def run(feed: kuairand.Feed, label: str, folder: Path, quick: bool = False) -> VowpalResult:
    """Tune on the rows from 10 % to 50 %, then one pass over all of them.

    Args:
        folder: where the rows are written as text.
        quick: with the reference's published options instead of the grid.
    """
    lines = _lines(feed, label)
    half = len(lines) // 2
    whole, first = folder / "all.vw", folder / "half.vw"
    whole.write_text("".join(lines))
    first.write_text("".join(lines[:half]))
    labels = np.asarray(feed.batch.column(f"label_{label}"))
    tuned = slice(len(lines) // 10, half)

    def loss(options: str) -> float:
        return float(log_loss(labels[tuned], _predict(first, options, folder)[tuned]))

    options = _options(0.5, 0.5, _PAIRS[1])
    if not quick:
        grid = [_options(*point) for point in itertools.product(_RATES, _POWERS, _PAIRS)]
        options = min(grid, key=loss)
    return VowpalResult(_predict(whole, options, folder), options)


def _options(rate: float, power: float, pairs: tuple[str, ...]) -> str:
    crossed = "".join(f" -q {pair}" for pair in pairs)
    return f"--loss_function logistic -b 22 -l {rate} --power_t {power}{crossed}"


def _predict(rows: Path, options: str, folder: Path) -> npt.NDArray[np.float64]:
    out = folder / "predictions.txt"
    pyvw.Workspace(f"--quiet --link logistic -d {rows} -p {out} {options}").finish()
    return np.loadtxt(out, dtype=np.float64).clip(1e-7, 1 - 1e-7)


def _lines(feed: kuairand.Feed, label: str) -> list[str]:
    """The rows in Vowpal Wabbit's text format, with the features of ``kuairand.FEATURES``."""
    batch = feed.batch
    zone = pa.timestamp("us", "Asia/Shanghai")
    hour = pc.hour(batch.column("_time").cast(pa.timestamp("us", "UTC")).cast(zone)).to_pylist()
    seconds = np.asarray(batch.column("duration_s"), np.float64)
    duration = np.floor(2 * np.log2(1 + seconds)).astype(int).tolist()
    columns = {
        letter: {"hour": hour, "duration": duration}.get(name) or batch.column(name).to_pylist()
        for letter, name in _NAMESPACES.items()
    }
    columns["g"] = [" ".join(tags) if tags else "none" for tags in columns["g"]]
    profile = [f.name for f in kuairand.FEATURES if f.name in kuairand.USER_COLUMNS]
    values = [[f"{name}={value}" for value in batch.column(name).to_pylist()] for name in profile]
    columns["p"] = [" ".join(row).replace(":", "_") for row in zip(*values, strict=True)]
    signs = ["1" if value else "-1" for value in batch.column(f"label_{label}").to_pylist()]
    parts = [[f" |{letter} {value}" for value in column] for letter, column in columns.items()]
    return [sign + "".join(row) + "\n" for sign, *row in zip(signs, *parts, strict=True)]
