"""Whether a join that runs for long stays as it is: memory, checkpoints and state over minutes at a steady rate.

The job as it is submitted, at parallelism 2 on Flink with RocksDB state, between Kafka topics of 8 partitions. Events are
fed when they are due, with event times of now. A window of 5 s and a late horizon of 20 s let all state turn over some
fifteen times in ten minutes. At fixed times it takes the resident memory of the TaskManager and of the Python workers,
the size of the newest checkpoint, with and without RocksDB's own log of changes (its MANIFEST), and, by the balances,
what waits in the shards and what they have in memory.

Of each the slope of the least squares line through the last two thirds is told, in % of the mean a minute: the first third
is for what fills once (heap, caches, RocksDB's levels). At the end all that was fed must have been joined, and the
balances must hold. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.join_events import ACTED_SHARE, Shape, events
from benchmarks.join_live import LiveJob
from benchmarks.join_on_flink import BOUND_S, Feeder, FlinkBench, flink_bench
from cuckooflow.transforms.balances import JOIN, imbalances, totals

EVERY_S = 5.0
CHECKPOINT_MS = 5_000
WINDOW_US, SKEW_US = 5_000_000, 1_000_000
#: What a slope may be, of the memory and of the checkpoints, in % a minute.
FLAT_PERCENT = 1.0


@dataclass(frozen=True)
class Sample:
    """What was there at one time.

    Attributes:
        s: since the first sample.
        taskmanager_bytes, workers_bytes: resident memory.
        checkpoint_bytes: all that the newest checkpoint refers to.
        manifest_bytes: of it, RocksDB's own log of changes.
        waiting: impressions and actions that wait in the shards.
        hot_bytes: of closed impressions in the workers' memory.
    """

    s: float
    taskmanager_bytes: int
    workers_bytes: int
    checkpoint_bytes: int
    manifest_bytes: int
    waiting: int
    hot_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Of TaskManager and workers."""
        return self.taskmanager_bytes + self.workers_bytes


def slope_percent_a_minute(times_s: Sequence[float], values: Sequence[float]) -> float:
    """Of the least squares line through the last two thirds of the time, in % of their mean.

    >>> slope_percent_a_minute([0, 30, 60, 90, 120], [5, 100, 101, 102, 103])
    1.97
    """
    times, found = np.asarray(times_s, float), np.asarray(values, float)
    kept = times >= times[0] + (times[-1] - times[0]) / 3
    times, found = times[kept] / 60, found[kept]
    mean = found.mean()
    if len(times) < 2 or mean == 0:
        return 0.0
    return round(float(np.polyfit(times, found, 1)[0] / mean * 100), 3)


def soak(bench: FlinkBench, minutes: float, events_per_s: float, seed: int) -> tuple[list[Sample], float]:
    """The samples, and the rate that was fed.

    Raises:
        RuntimeError: what was fed was not joined, or the balances do not hold.
    """
    step_us = max(1, round(1e6 * (1 + ACTED_SHARE) / events_per_s))
    shape = Shape(step_us=step_us, window_us=WINDOW_US, skew_us=SKEW_US)
    made = events(int((minutes * 60 + 30) * 1e6 / step_us), seed, shape)
    job = bench.job(shape, "arrow")
    samples: list[Sample] = []
    with bench.running(job, f"--checkpointing_interval={CHECKPOINT_MS}"):
        feeder = Feeder(job, made)
        feeder.start()
        begin = time.monotonic()
        while time.monotonic() - begin < minutes * 60:
            samples.append(_sample(bench, job, time.monotonic() - begin))
            one = samples[-1]
            print(
                f"at={one.s:.0f}s taskmanager={one.taskmanager_bytes >> 20}MiB workers={one.workers_bytes >> 20}MiB "
                f"checkpoint={one.checkpoint_bytes >> 10}KiB manifest={one.manifest_bytes >> 10}KiB "
                f"waiting={one.waiting} hot={one.hot_bytes >> 10}KiB",
                flush=True,
            )
            if not feeder.is_alive():
                raise RuntimeError("expected events to be fed all the time, the feeder has ended")
            time.sleep(max(0.0, len(samples) * EVERY_S - (time.monotonic() - begin)))
        feeder.stop()
        job.await_joined(feeder.fed, BOUND_S)
        faults = imbalances(totals(record for _, record in job.balances()))
        if faults:
            raise RuntimeError(f"expected balances that hold, found {faults}")
    return samples, feeder.fed_per_s


def _sample(bench: FlinkBench, job: LiveJob, s: float) -> Sample:
    records = [record for _, record in job.balances()]
    newest = {record["shard"]: record for record in records if record["stage"] == JOIN}
    pids = bench.pids()
    checkpoint, manifest = bench.checkpoint(job)
    return Sample(
        s=s,
        taskmanager_bytes=_resident(pids["taskmanager"]),
        workers_bytes=_resident(pids["workers"]),
        checkpoint_bytes=checkpoint,
        manifest_bytes=manifest,
        waiting=sum(
            record["counts"]["impressions_waiting"] + record["counts"]["actions_waiting"]
            for record in newest.values()
        ),
        hot_bytes=sum(record["figures"]["join_hot_bytes"] for record in newest.values()),
    )


def _resident(pids: Sequence[int]) -> int:
    """Bytes of memory of these processes."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE")


def report(samples: Sequence[Sample], fed_per_s: float) -> dict[str, float]:
    """The figures."""
    times = [one.s for one in samples]
    of: dict[str, Callable[[Sample], float]] = {
        "memory": lambda one: one.memory_bytes,
        "taskmanager_memory": lambda one: one.taskmanager_bytes,
        "workers_memory": lambda one: one.workers_bytes,
        "checkpoint": lambda one: one.checkpoint_bytes,
        "checkpoint_data": lambda one: one.checkpoint_bytes - one.manifest_bytes,
        "waiting": lambda one: one.waiting,
        "hot": lambda one: one.hot_bytes,
    }
    found = {
        f"{name}_percent_a_minute": slope_percent_a_minute(times, [value(one) for one in samples])
        for name, value in of.items()
    }
    last = asdict(samples[-1])
    return {
        **found,
        **{f"last_{name}": value for name, value in last.items() if name != "s"},
        "minutes": round(times[-1] / 60, 2),
        "events_per_s": round(fed_per_s),
        "samples": len(samples),
    }


def main(words: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="default 10")
    parser.add_argument("--rate", type=float, default=3_000.0, help="events/s of both logs, default 3,000")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cluster", type=Path, help="folder of a cluster to use; it is left up")
    parser.add_argument(
        "--flat", action="store_true", help=f"fail where a slope is above {FLAT_PERCENT:g} %% a minute"
    )
    args = parser.parse_args(words)
    with flink_bench(args.cluster) as bench:
        found = report(*soak(bench, args.minutes, args.rate, args.seed))
    print(json.dumps(found))
    grown = [name for name in ("memory", "checkpoint") if found[f"{name}_percent_a_minute"] > FLAT_PERCENT]
    if args.flat and grown:
        sys.exit(f"soak: {' and '.join(grown)} grew by more than {FLAT_PERCENT:g} % a minute")


if __name__ == "__main__":
    main()
