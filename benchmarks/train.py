"""Claim: a training step over the store costs little more than its arithmetic, and half of what Keras alone takes.

    python -m benchmarks.train --json          some minutes
    python -m benchmarks.train --quick --json  45 s, batches of 2,048 alone, the same keys

DeepFM (26 id features, dim 16, 256-128-64) through the trainer of a job (``training.overlap``), with the store in its process and one
TensorFlow thread, in batches of 256, 512, 2,048 and 4,096, beside what TensorFlow does with the same network. A peer
that cannot be had is named with a reason, and its figure is null. The last line is JSON; ratios are of batches of 2,048:

- examples_per_s: trained, by wall clock;
- step_vs_tensorflow_only: as a share of TensorFlow's step alone on rows that were gathered before;
- step_vs_keras_fit: as a multiple of ``fit`` of the same model with ``Embedding`` layers and Adagrad, the faster of without
  and (but for --quick) with XLA;
- vs_vw, vs_river, vs_tfra: as a multiple of Vowpal Wabbit (a linear model), River (a factorisation machine), and the
  same model over TensorFlow Recommenders Addons' table;
- two_trainers_cpu_ratio: CPU time of an example with two trainers on two shards over that with one of each;
- features_cost: time of an example with ten rates and two histories besides, over that without;
- by_batch: the first three for each size of batch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.store_peers import PeerMissing
from benchmarks.train_peers import river_rate, tfra_rate, vowpal_rate
from benchmarks.train_rows import FEATURES, STREAMING, Rows, generate
from benchmarks.train_shards import TURNS_MAX, cpu_us_per_example
from benchmarks.train_steps import (
    ELEMENT_ROWS,
    TrainerTurn,
    Turn,
    keras_fit,
    one_thread,
    rates,
    tensorflow_only,
)

BATCHES = (256, 512, 2_048, 4_096)
BATCH = 2_048
WITH_STREAMING = "cuckooflow with ten rates and two histories"
#: More than any machine trains in the time of one turn.
ROWS_PER_S_MAX = 250_000

Say = Callable[[str], None]


def measure(quick: bool, seconds: float, say: Say) -> dict[str, Any]:
    """Every figure of the claim."""
    one_thread()
    rows = generate(min(2_000_000, int(ROWS_PER_S_MAX * seconds) + 100_000))
    say(f"{len(rows)} rows")
    by_batch = {
        batch: _beside_tensorflow(rows, batch, seconds, quick, say)
        for batch in ((BATCH,) if quick else BATCHES)
    }
    found: dict[str, Any] = dict(by_batch[BATCH])
    del by_batch[BATCH]["features_cost"]
    found |= _beside_peers(rows, quick, found["examples_per_s"], say)
    found["two_trainers_cpu_ratio"] = _two_trainers(quick, say)
    return {**found, "by_batch": by_batch, "batch": BATCH, "quick": quick}


def _beside_tensorflow(rows: Rows, batch: int, seconds: float, quick: bool, say: Say) -> dict[str, float]:
    """Figures of a size of batch; of :data:`BATCH`, also what streaming features cost."""
    contenders: dict[str, Turn] = {
        "cuckooflow": TrainerTurn(rows, batch),
        "TensorFlow only": tensorflow_only(rows, batch),
        "Keras fit": keras_fit(rows, batch, compiled=False),
    }
    if not quick:
        contenders["Keras fit, XLA"] = keras_fit(rows, batch, compiled=True)
    if batch == BATCH:
        contenders[WITH_STREAMING] = TrainerTurn(rows, batch, (*FEATURES, *STREAMING))
    rate = rates(contenders, seconds)
    say(f"batch {batch}, examples/s: " + ", ".join(f"{name} {r:,.0f}" for name, r in rate.items()))
    ours = rate["cuckooflow"]
    figures = {
        "examples_per_s": round(ours),
        "step_vs_tensorflow_only": round(ours / rate["TensorFlow only"], 3),
        "step_vs_keras_fit": round(ours / max(rate["Keras fit"], rate.get("Keras fit, XLA", 0.0)), 3),
    }
    if batch == BATCH:
        figures["features_cost"] = round(ours / rate[WITH_STREAMING], 3)
    return figures


def _beside_peers(rows: Rows, quick: bool, ours: float, say: Say) -> dict[str, float | None]:
    count = 30_000 if quick else 200_000
    peers: dict[str, Callable[[], float]] = {
        "vw": lambda: vowpal_rate(rows, count),
        "river": lambda: river_rate(rows, 500 if quick else 5_000, not quick),
        "tfra": lambda: tfra_rate(rows, count, BATCH, True),
    }
    if quick:
        del peers["tfra"]
        say("skipped: TFRA: its TensorFlow takes too long to start for --quick")
    found: dict[str, float | None] = {"vs_tfra": None}
    for name, rate_of in peers.items():
        try:
            rate = rate_of()
        except PeerMissing as missing:
            say(f"skipped: {missing}")
            found[f"vs_{name}"] = None
        else:
            say(f"{name}, examples/s: {rate:,.0f}")
            found[f"vs_{name}"] = round(ours / rate, 3)
    return found


def _two_trainers(quick: bool, say: Say) -> float:
    rows, repeats = (4 * ELEMENT_ROWS, 1) if quick else (24 * ELEMENT_ROWS, TURNS_MAX)
    one, two = cpu_us_per_example(rows, BATCH, repeats)
    say(f"CPU of an example, trainers and stores: one of each {one:.1f} us, two of each {two:.1f} us")
    return round(two / one, 3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"batches of {BATCH} alone, less time for each figure"
    )
    parser.add_argument("--json", action="store_true", help="the figures behind the ratios go to stderr")
    parser.add_argument(
        "--seconds", type=float, help="for each figure of each contender; default 6, quick .6"
    )
    given = parser.parse_args(arguments)

    def say(line: str) -> None:
        print(line, file=sys.stderr if given.json else sys.stdout, flush=True)

    print(json.dumps(measure(given.quick, given.seconds or (0.6 if given.quick else 6.0), say)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
