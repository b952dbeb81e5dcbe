"""The join on Beam's Prism runner, between local logs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.join_events import Events, Shape
from benchmarks.join_live import LiveJob, commands, folders, spec, steady_rate


def prism_events_per_s(made: Events, shape: Shape) -> float:
    """Of a job that finds all events in its logs as Arrow batches, between two marks."""
    with tempfile.TemporaryDirectory(prefix="cuckooflow-bench-") as work:
        job = LiveJob(Path(work) / "job", spec(folders(), shape, "arrow"))
        job.fill(made, "arrow")
        commands("run", "join", job.spec, "--runner", "prism", "--stop-at-end")
        job.await_joined(made.count, bound_s=0.0)
        records = job.balances()
        job.close()
        return steady_rate(records, made.count)
