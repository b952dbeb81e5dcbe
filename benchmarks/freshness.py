"""Claim: what people do changes what they are served within seconds, and serving is cheap.

    python -m benchmarks.freshness --json [--cluster DIR]     some minutes
    python -m benchmarks.freshness --quick --json             the scorer alone, 45 s

Parts (``--parts``, default both), the last line is JSON, what was not run is null in it:

- freshness: Kafka, join and training on Flink at parallelism 2, two shards, one scorer; 5 thousand events/s. From an
  action's append to its topic until the scorer's prediction for that user has changed: ``freshness_p50_s`` and ``_p99_s``.
- scorer: requests of 100 rows of 26 id features (DeepFM 256-128-64, dim 16) as JSON over HTTP, while a snapshot of what
  was trained is applied every second. ``scorer_predictions_per_s``: for each second of the scorer's CPU, asked by four
  connections at once; ``scorer_p99_ms``: from when a request was due, at half that load.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PARTS = ("freshness", "scorer")
KEYS = ("freshness_p50_s", "freshness_p99_s", "scorer_predictions_per_s", "scorer_p99_ms")


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if not set(parts) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(PARTS)}, received {text}")
    return parts


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the scorer alone, less time")
    parser.add_argument("--parts", type=_parts, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--json", action="store_true", help="what is behind the figures goes to stderr")
    parser.add_argument(
        "--cluster", type=Path, help="folder of a cluster to use, started if it is not; it is left up"
    )
    given = parser.parse_args(arguments)

    def say(line: str) -> None:
        print(line, file=sys.stderr if given.json else sys.stdout, flush=True)

    found: dict[str, float | None] = dict.fromkeys(KEYS)
    parts = given.parts or (("scorer",) if given.quick else PARTS)
    if "freshness" in parts:
        from benchmarks.freshness_live import freshness_s

        seconds = freshness_s(given.cluster, say)
        found["freshness_p50_s"], found["freshness_p99_s"] = (
            round(float(np.quantile(seconds, share)), 3) for share in (0.5, 0.99)
        )
    if "scorer" in parts:
        from benchmarks.freshness_scorer import scorer_load

        per_cpu_s, p99_ms = scorer_load(5.0 if given.quick else 20.0, say)
        found["scorer_predictions_per_s"], found["scorer_p99_ms"] = round(per_cpu_s), round(p99_ms, 2)
    print(json.dumps({**found, "quick": given.quick}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
