"""The batch stage on a real Flink: its job ends with the days, and nothing of it stays, also of one whose command died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cuckooflow.embedding_store.client import connect
from cuckooflow.pipelines.options import store_addresses
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.pipelines.supervisor import Supervisor
from cuckooflow.runners.cluster import LocalCluster
from cuckooflow.runners.flink_rest import FlinkRest
from cuckooflow.transforms.day_files import read_day, whole_days

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.deep,
    pytest.mark.fault,
    pytest.mark.timeout(600),
]
A_DAY_OF_REQUESTS = 21_600
TIMEOUT_S = 180.0


def of_days(out: Path, until: str = "9999") -> list[dict[str, object]]:
    days = [day for day in whole_days(str(out)) if day.isoformat() < until]
    return [row for day in days for row in read_day(str(out), day).to_pylist()]


def test_it_ends_with_the_days_and_goes_on_where_a_killed_command_stood(
    films: Any, run: Callable[..., Any], flink: LocalCluster, wait_for: Callable[..., None], tmp_path: Path
) -> None:
    text = films.spec.read_text()
    for old, new in {"buckets: 8": "buckets: 8, shards: 2", "batch_size: 64": "batch_size: 2"}.items():
        assert old in text
        text = text.replace(old, new)
    films.spec.write_text(text)
    films.job = load_spec(films.spec)
    films.make_logs()
    for day in range(2):
        films.append(*films.events(300, seed=day, first=(day + 1) * A_DAY_OF_REQUESTS - 150))
    films.close_windows(1_767_225_600_000 + 4 * 86_400_000)
    out = tmp_path / "days"
    days = ("--from", "2026-01-01", "--to", "2026-01-04", "--out", out)
    done = run("backfill", "join", films.spec, *days)
    assert done.returncode == 0, done.stderr[-4000:]
    url = flink.addresses().flink_rest
    assert url is not None
    rest = FlinkRest(url)
    words = ["backfill", "train", films.spec, out, "--runner", "flink", "--cluster", flink.folder]

    def running() -> list[str]:
        return [job.id for job in rest.jobs() if job.name == "films-backfill-train" and not job.ended]

    def pushes() -> int:
        store = connect(addresses)
        try:
            return int(store.stats()["pushes_applied"])
        finally:
            store.close()

    with Supervisor(films.spec, films.job, roles=("store",)) as supervisor:
        supervisor.wait_ready(TIMEOUT_S)
        addresses = store_addresses(films.job)
        done = run(*words, "--until", "2026-01-02")
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        assert "run train goes on from here" in done.stdout and not running()
        first = of_days(out, until="2026-01-02")
        assert films.trained_counts(addresses) == films.expected_counts(first)
        # What the last rows gave is told before the job is stopped.
        told = [r["rows"] for r in films.rows(films.job.logs.train_metrics.path) if r["label"] == "like"]
        assert sum(told) == len(first)

        before = pushes()
        with (tmp_path / "killed.log").open("wb") as log:
            command = [sys.executable, "-m", "cuckooflow.pipelines.cli", *map(str, words)]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: pushes() > before + 1, "a push", TIMEOUT_S)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        (left,) = running()
        done = run(*words)
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        assert rest.job(left).state == "CANCELED" and not running()
        assert films.trained_counts(addresses) == films.expected_counts(of_days(out))
