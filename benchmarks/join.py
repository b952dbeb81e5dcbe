"""The join's speed: on Flink beside Flink SQL, on Prism, in process beside a per-key DoFn, and of its core alone.

Parts (``--parts``, default all):
    core: the pure core on one core, from memory.
    flat: CPU time of an event in the core over 1 and 20 million events, and in windows of a minute and an hour.
    direct: OnlineJoin in Beam's in-process runner, from memory.
    per_key: the join with one element an event, which ``direct_vs_per_key`` is against.
    flink, json: the job as it is submitted, at parallelism 2 between Kafka topics of 8 partitions that hold all events, as
        Arrow batches of 1,024 rows and as JSON records; the rate between 20 % and 90 % of the events.
    sql: Flink SQL's interval left join of the same JSON records (apache-flink in an environment of its own).
    prism: the job on Prism between local logs of Arrow batches.
    latency: action in Kafka to eager example read, at 20 thousand events/s.
    idle: what all processes of a job without input take of a core.
    state: bytes of a checkpoint for each impression that waits, over its Arrow size.

``--quick`` is core, direct and per_key with fewer events, and needs no cluster. Prints one JSON line last; what was not
run is null in it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.join_events import Shape, events

QUICK = ("core", "direct", "per_key")
ON_FLINK = ("flink", "json", "latency", "idle", "state")
PARTS = (*QUICK, "flat", *ON_FLINK, "sql", "prism")
KEYS = (
    "flink_events_per_s",
    "flink_json_events_per_s",
    "flink_vs_flink_sql",
    "prism_events_per_s",
    "direct_events_per_s",
    "direct_vs_per_key",
    "core_events_per_s",
    "latency_p50_s",
    "latency_p99_s",
    "state_bytes_ratio",
    "idle_core_fraction",
)


def main(words: list[str] | None = None) -> None:
    """The command line."""
    args = options(words)
    found: dict[str, float | None] = dict.fromkeys(KEYS)
    if set(args.parts) & set(QUICK):
        found |= in_process(args)
    if "flat" in args.parts:
        flat(args.seed)
    if set(args.parts) & {*ON_FLINK, "sql"}:
        found |= on_flink(args)
    if "prism" in args.parts:
        found |= on_prism(args)
    print(json.dumps({name: found[name] if found[name] is None else round(found[name], 4) for name in KEYS}))


def options(words: list[str] | None = None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a check without a cluster")
    parser.add_argument("--parts", type=_parts, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--impressions", type=int, help="default 2 million, of JSON half of it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--cluster", type=Path, help="folder of a cluster to use, started if it is not; it is left up"
    )
    parser.add_argument("--library", default="kafka-python", help="by which the jobs reach Kafka")
    parser.add_argument("--beam", action="append", default=[], help="an option for Beam, of jobs on Flink")
    args = parser.parse_args(words)
    args.parts = args.parts or (QUICK if args.quick else PARTS)
    args.impressions = args.impressions or (300_000 if args.quick else 2_000_000)
    return args


def _parts(text: str) -> tuple[str, ...]:
    named = tuple(text.split(","))
    unknown = [name for name in named if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"expected parts among {','.join(PARTS)}, received {','.join(unknown)}"
        )
    return named


def in_process(args: argparse.Namespace) -> dict[str, float | None]:
    """Parts core, direct and per_key."""
    from benchmarks.join_in_process import polls, run_beam, run_core, run_per_key

    found: dict[str, float | None] = {}
    made = events(args.impressions, args.seed)
    if {"core", "direct"} & set(args.parts):
        elements = polls(made.shown, made.done)
        print(
            f"{len(made.shown):,} impressions of {made.shown.nbytes / len(made.shown):.0f} bytes, "
            f"{len(made.done):,} actions, {len(elements)} elements"
        )
    if "core" in args.parts:
        core_s, counts = timed(lambda: run_core(elements))
        found["core_events_per_s"] = made.count / core_s
        print(f"core: {made.count / core_s:,.0f} events/s; {counts}")
    if "direct" in args.parts:
        beam_s, examples = timed(lambda: run_beam(elements))
        found["direct_events_per_s"] = made.count / beam_s
        print(f"Beam in process: {made.count / beam_s:,.0f} events/s; {examples:,} examples")
        if "core" in args.parts:
            assert examples == counts["examples"], (examples, counts)
    if "per_key" in args.parts:
        few = events(1_500 if args.quick else 10_000, args.seed)
        per_key_s, plain = timed(lambda: run_per_key(few.shown, few.done))
        per_key = few.count / per_key_s
        print(f"per-key DoFn: {per_key:,.0f} events/s over {few.count:,}; {plain:,} examples")
        if "direct" in args.parts:
            found["direct_vs_per_key"] = (found["direct_events_per_s"] or 0.0) / per_key
    return found


def flat(seed: int) -> None:
    """Part flat: told, and no figure of the claim."""
    from benchmarks.join_flat import STREAMS, WINDOWS_S, flatness

    streams, windows = flatness(seed)
    for what, sizes, costs_us in (("events", STREAMS, streams), ("s of window", WINDOWS_S, windows)):
        told = ", ".join(f"{size:,} {what}: {us:.3f} us" for size, us in zip(sizes, costs_us, strict=True))
        print(f"core, CPU an event over {told}; ratio {costs_us[1] / costs_us[0]:.3f}")


def on_flink(args: argparse.Namespace) -> dict[str, float | None]:
    """The parts that need a cluster."""
    import numpy as np

    from benchmarks.join_on_flink import flink_bench

    found: dict[str, float | None] = {}
    shape = Shape()
    with flink_bench(args.cluster, args.library, tuple(args.beam)) as bench:
        if "flink" in args.parts:
            made = events(args.impressions, args.seed, shape)
            found["flink_events_per_s"] = bench.events_per_s(made, shape, "arrow")
            print(f"Flink, Arrow batches: {found['flink_events_per_s']:,.0f} events/s over {made.count:,}")
        if "sql" in args.parts:
            found["flink_vs_flink_sql"] = beside_sql(args, bench, found.get("flink_events_per_s"))
        if "json" in args.parts:
            made = events(args.impressions // 2, args.seed, shape)
            found["flink_json_events_per_s"] = bench.events_per_s(made, shape, "json")
            print(
                f"Flink, JSON records: {found['flink_json_events_per_s']:,.0f} events/s over {made.count:,}"
            )
        if "latency" in args.parts:
            latencies_s = bench.latencies_s(args.seed)
            p50, p99 = np.quantile(latencies_s, (0.5, 0.99)).tolist()
            found |= {"latency_p50_s": p50, "latency_p99_s": p99}
            print(f"latency of {len(latencies_s):,} positives: p50 {p50:.2f} s, p99 {p99:.2f} s")
        if "idle" in args.parts:
            found["idle_core_fraction"] = bench.idle_core_fraction(args.seed)
        if "state" in args.parts:
            found["state_bytes_ratio"] = bench.state_bytes_ratio(args.seed)
    return found


def beside_sql(args: argparse.Namespace, bench: Any, ours: float | None) -> float | None:
    """Part sql: how many times as fast as Flink SQL the join of Arrow batches is; None where one of them is not there."""
    from benchmarks.join_flink_sql import NotHere, flink_sql_events_per_s
    from benchmarks.join_on_flink import PARALLELISM

    shape = Shape()
    made = events(args.impressions // 4, args.seed, shape)
    job = bench.job(shape, "json")
    job.fill(made, "json")
    try:
        rates = flink_sql_events_per_s(job, made, shape, PARALLELISM)
    except NotHere as reason:
        print(f"sql: left out: {reason}")
        return None
    if ours is None:
        print("sql: beside nothing, as the part flink was not run")
        return None
    return ours / max(rates.values())


def on_prism(args: argparse.Namespace) -> dict[str, float | None]:
    """Part prism."""
    from benchmarks.join_on_prism import prism_events_per_s
    from cuckooflow.runners.prism import INSTALL, find_prism

    if find_prism() is None:
        print(f"prism: left out, there is no Prism here: {INSTALL}")
        return {}
    made = events(args.impressions, args.seed)
    rate = prism_events_per_s(made, Shape())
    print(f"Prism: {rate:,.0f} events/s over {made.count:,}")
    return {"prism_events_per_s": rate}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and answer."""
    started = time.perf_counter()
    answer = work()
    return time.perf_counter() - started, answer


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.ERROR)
    main()
