"""Claim: served parameters may not grow old, and a collisionless table is worth its memory, on real data.

What `cuckooflow experiment sync-interval` and `collisions` do, on KuaiRand-Pure with the features and models of
benchmarks/quality.py; rows that repeat an earlier event are left out. The last line is JSON: the command's value, and how far
its table is from the claim.

    python benchmarks/experiments.py sync-interval --json
    python benchmarks/experiments.py collisions --features streaming --json
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from typing import Any

import kuairand
import pyarrow as pa
import quality
from rich.console import Console

from cuckooflow.models.duration import parse_duration
from cuckooflow.models.spec import ModelSpec
from cuckooflow.pipelines.experiments.collisions import COLLISIONLESS, Size, collisions
from cuckooflow.pipelines.experiments.learner import Learner
from cuckooflow.pipelines.experiments.outcome import Outcome
from cuckooflow.pipelines.experiments.sync_interval import EVERY_STEP, Interval, sync_interval
from cuckooflow.pipelines.experiments.timeline import Timeline
from cuckooflow.transforms.training_options import TrainingOptions

INTERVALS = ("24h", "6h", "1h", "10m", "1m")
SHARES = (1, 2, 4, 16)
LABEL = "is_click"
#: As the command's default.
PHASES = 4
#: What comes before the scored rows.
WARM_UP = 0.5


def run(experiment: str, timeline: Timeline, learner: Learner) -> Outcome:
    """One of the two, as its command does by default."""
    if experiment == "collisions":
        return collisions(timeline, learner, [Size(f"1/{n}", share=1 / n) for n in SHARES], WARM_UP)
    intervals = [Interval(text, parse_duration(text)) for text in INTERVALS]
    return sync_interval(timeline, learner, intervals, WARM_UP, phases=PHASES)


def claim(outcome: Outcome) -> dict[str, float]:
    """How far a table is from what is claimed of it, in AUC; more than .0003 is too far.

    Of intervals: the most that a longer one is better than the next shorter one. Of tables: the most that a hashed one is better
    than the collisionless one, and what one of a quarter of its size loses.
    """
    auc = {variant.name: variant.figures(LABEL).auc for variant in outcome.variants}
    if outcome.experiment == "sync-interval":
        served = [value for name, value in auc.items() if name != EVERY_STEP]
        return {"longer_better_by": max(older - newer for older, newer in itertools.pairwise(served))}
    hashed = [value for name, value in auc.items() if name != COLLISIONLESS]
    return {
        "hashed_better_by": max(hashed) - auc[COLLISIONLESS],
        "quarter_loses": auc[COLLISIONLESS] - auc["1/4"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 measured, 1 no data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=["sync-interval", "collisions"])
    parser.add_argument("--features", choices=["base", "streaming"], default="base")
    parser.add_argument("--batch-size", type=int, default=64, help="default 64: a step is some minutes")
    parser.add_argument("--quick", action="store_true", help=f"the first {quality.QUICK_ROWS} rows")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    given = parser.parse_args(arguments)
    if not kuairand.data_folder().is_dir():
        print(f"no data at {kuairand.data_folder()}: set CUCKOOFLOW_DATA", file=sys.stderr)
        return 1
    learner = Learner(
        ModelSpec(kind="deepfm", labels=(LABEL,), fm=False),
        kuairand.FEATURES,
        TrainingOptions(batch_size=given.batch_size),
    )
    if given.features == "streaming":
        learner = quality.job_learner(True, None, given.batch_size)
    feed = kuairand.load(kuairand.data_folder(), quality.QUICK_ROWS if given.quick else None)
    rows = pa.Table.from_batches([feed.batch]).filter(pa.array(~feed.repeated))
    outcome = run(given.experiment, Timeline(rows), learner)
    if not given.json:
        outcome.print(Console(soft_wrap=True, highlight=False))
    found: dict[str, Any] = outcome.to_json("kuairand")
    print(json.dumps({**found, **claim(outcome), "features_of": given.features, "quick": given.quick}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
