"""The batch stage over days as files, then the online stage: every example counts once, id by id, whatever is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuckooflow.embedding_store.client import connect
from cuckooflow.pipelines.options import store_addresses
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.pipelines.supervisor import Supervisor
from cuckooflow.runners.cluster import LocalCluster
from cuckooflow.runners.flink_rest import FlinkRest
from cuckooflow.transforms.day_files import read_day, whole_days

pytestmark = pytest.mark.slow
Cli = Callable[..., Any]
A_DAY_OF_REQUESTS = 21_600
DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")
TIMEOUT_S = 120.0


def set_up(films: Any, **replaced: str) -> None:
    """The spec with words replaced, and empty input logs."""
    text = films.spec.read_text()
    for old, new in {"buckets: 8": "buckets: 8, shards: 2", **replaced}.items():
        assert old in text
        text = text.replace(old, new)
    films.spec.write_text(text)
    films.job = load_spec(films.spec)
    films.make_logs()


def around_midnight(films: Any, day: int, requests: int = 60) -> None:
    """Events of the hour in which a day ends, of both days."""
    films.append(*films.events(requests, seed=day, first=(day + 1) * A_DAY_OF_REQUESTS - requests // 2))


def join(films: Any, cli: Cli, *words: object) -> None:
    done = cli("run", "join", films.spec, "--stop-at-end", *words)
    assert done.returncode == 0, done.stderr[-4000:]


def once(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return list({(row["request_id"], row["item_id"]): row for row in rows}.values())


def of_days(out: Path, until: str = "9999") -> list[dict[str, object]]:
    """Every example of a folder's days, by pyarrow."""
    tables = [read_day(str(out), day) for day in whole_days(str(out)) if day.isoformat() < until]
    return [row for table in tables for row in table.to_pylist()]


@contextlib.contextmanager
def store(films: Any) -> Iterator[list[Path]]:
    """The job's shards as processes."""
    with Supervisor(films.spec, films.job, roles=("store",)) as supervisor:
        supervisor.wait_ready(TIMEOUT_S)
        yield store_addresses(films.job)


def marks(addresses: list[Path], log: str) -> dict[int, tuple[tuple[int, int], ...]]:
    client = connect(addresses)
    try:
        return client.marks(log)
    finally:
        client.close()


def pushes(addresses: list[Path]) -> int:
    client = connect(addresses)
    try:
        return int(client.stats()["pushes_applied"])
    finally:
        client.close()


def kill_in_the_middle(
    films: Any, addresses: list[Path], wait_for: Callable[..., None], out: Path, *further: object
) -> None:
    """Start the batch stage and kill -9 it once it has pushed something."""
    command = [
        sys.executable,
        "-m",
        "cuckooflow.pipelines.cli",
        "backfill",
        "train",
        str(films.spec),
        str(out),
        *map(str, further),
    ]
    before = pushes(addresses)
    with films.spec.with_name("killed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    wait_for(lambda: pushes(addresses) > before + 1, "a push", TIMEOUT_S)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL


@pytest.mark.deep
def test_an_archive_then_the_log_is_the_whole_log(films: Any, cli: Cli, wait_for, tmp_path: Path) -> None:
    set_up(films, **{"batch_size: 64": "batch_size: 2"})
    for day in range(3):
        around_midnight(films, day, requests=120)
    join(films, cli)
    out = tmp_path / "days"
    done = cli("backfill", "archive", films.spec, "--out", out, "--to", "2026-01-03")
    assert done.returncode == 0, done.stderr[-4000:]
    assert [day.isoformat() for day in whole_days(str(out))] == list(DAYS[:2])
    everything = once(films.rows(films.job.logs.examples.path))
    assert len(everything) == len(films.expected)

    with store(films) as addresses:
        done = cli("backfill", "train", films.spec, out, "--until", "2026-01-02")
        assert done.returncode == 0, done.stderr[-4000:]
        assert films.trained_counts(addresses) == films.expected_counts(of_days(out, until="2026-01-02"))
        kill_in_the_middle(films, addresses, wait_for, out)
        first_day, both_days = len(of_days(out, until="2026-01-02")), len(of_days(out))
        assert first_day < sum(films.trained_counts(addresses)[0]) < both_days
        done = cli("backfill", "train", films.spec, out)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "run train goes on from here" in done.stdout
        assert films.trained_counts(addresses) == films.expected_counts(of_days(out))
        stands = marks(addresses, "examples")
        assert all(len(of_partition) == 1 for of_partition in stands.values())

        around_midnight(films, 3)  # a join that begins again repeats what the log holds: the reader drops it
        join(films, cli)
        done = cli("run", "train", films.spec, "--stop-at-end")
        assert done.returncode == 0, done.stderr[-4000:]
        everything = once(films.rows(films.job.logs.examples.path))
        assert len(everything) == len(films.expected)
        assert films.trained_counts(addresses) == films.expected_counts(everything)
        done = cli("backfill", "train", films.spec, out)
        assert "nothing to train" in done.stdout and done.returncode == 0, done.stderr[-4000:]
        assert films.trained_counts(addresses) == films.expected_counts(everything)


def shown_by_user(addresses: list[Path]) -> list[int]:
    """Ascending sums of the counter table, as an Arrow-free reader sees its rows: two times, then the sum."""
    client = connect(addresses)
    try:
        _, states = client.states("counter/user_id")  # type: ignore[attr-defined]
    finally:
        client.close()
    return sorted(np.ascontiguousarray(states[:, 16:24]).view(np.float64)[:, 0].astype(int).tolist())


@pytest.mark.deep
def test_a_backfill_that_handed_over_then_the_live_log(films: Any, cli: Cli, tmp_path: Path) -> None:
    hour = "- {name: hour, kind: hour}"
    set_up(films, **{hour: f"{hour}\n  - {{name: shown, kind: count, by: [user_id]}}"})
    for day in range(3):
        around_midnight(films, day)
    films.close_windows(1_767_225_600_000 + 4 * 86_400_000)
    out = tmp_path / "days"
    at = "2026-01-03T00:05:00"  # amid the events around the second midnight
    words = ("--from", DAYS[0], "--to", "2026-01-04", "--out", out)
    done = cli("backfill", "join", films.spec, *words, "--hand-over-at", at)
    assert done.returncode == 0, done.stderr[-4000:]
    batch = of_days(out)
    with store(films) as addresses:
        done = cli("backfill", "train", films.spec, out)
        assert done.returncode == 0, done.stderr[-4000:]
        assert films.trained_counts(addresses) == films.expected_counts(batch)
        assert shown_by_user(addresses) == sorted(Counter(row["user_id"] for row in batch).values())
        join(films, cli, "--hand-over", out / "hand_over.json")
        live = once(films.rows(films.job.logs.examples.path))
        both = {(row["request_id"], row["item_id"]) for row in batch + live}
        assert both >= set(films.expected) and len(both) == len(batch) + len(live)
        assert batch and live
        done = cli("run", "train", films.spec, "--stop-at-end")
        assert done.returncode == 0, done.stderr[-4000:]
        assert films.trained_counts(addresses) == films.expected_counts(batch + live)
        done = cli("backfill", "train", films.spec, out)
        assert done.returncode == 0, done.stderr[-4000:]
        assert films.trained_counts(addresses) == films.expected_counts(batch + live)


@pytest.mark.deep
@pytest.mark.fault
def test_days_are_followed_as_they_appear(films: Any, cli: Cli, wait_for, tmp_path: Path) -> None:
    set_up(films)
    for day in range(3):
        around_midnight(films, day)
    films.close_windows(1_767_225_600_000 + 5 * 86_400_000)
    out = tmp_path / "days"

    def make(first: str, until: str) -> None:
        done = cli("backfill", "join", films.spec, "--from", first, "--to", until, "--out", out)
        assert done.returncode == 0, done.stderr[-4000:]

    words = ["backfill", "train", films.spec, "--follow", out, "--until", "2026-01-04"]
    with store(films) as addresses:
        command = [sys.executable, "-m", "cuckooflow.pipelines.cli", *map(str, words)]
        with films.spec.with_name("follow.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        said = films.spec.with_name("follow.log")
        wait_for(lambda: b"waiting for a first day" in said.read_bytes(), "it waits", TIMEOUT_S)
        make(DAYS[0], DAYS[1])
        first = films.expected_counts(of_days(out))
        wait_for(lambda: films.trained_counts(addresses) == first, "the first day", TIMEOUT_S)
        make(DAYS[2], "2026-01-04")  # a hole: the third day waits for the second
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        done = cli("backfill", "train", films.spec, out)
        assert done.returncode == 1 and "FilesGap" in done.stderr and "2026-01-02 is missing" in done.stderr
        with said.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: b"goes on at" in said.read_bytes(), "it goes on", TIMEOUT_S)
        assert films.trained_counts(addresses) == first
        make(DAYS[1], DAYS[2])
        assert process.wait(TIMEOUT_S) == 0, said.read_text()
        assert films.trained_counts(addresses) == films.expected_counts(of_days(out))
        assert {(r["request_id"], r["item_id"]) for r in of_days(out)} <= set(films.expected)


@pytest.mark.deep
@pytest.mark.fault
def test_what_would_count_twice_or_not_at_all_is_refused(
    films: Any, cli: Cli, wait_for, tmp_path: Path
) -> None:
    set_up(films, **{"batch_size: 64": "batch_size: 2"})
    for day in range(2):
        around_midnight(films, day, requests=120)
    films.close_windows(1_767_225_600_000 + 4 * 86_400_000)
    out = tmp_path / "days"
    words = ("backfill", "join", films.spec, "--from", DAYS[0], "--to", "2026-01-04", "--out", out)
    assert cli(*words).returncode == 0
    with store(films) as addresses:
        assert cli("backfill", "train", films.spec).returncode == 2
        done = cli("backfill", "train", films.spec, tmp_path / "none")
        assert done.returncode == 1 and "expected days of examples" in done.stderr
        join(films, cli)
        done = cli("backfill", "train", films.spec, out)
        assert done.returncode == 1 and "TrainedTwice" in done.stderr, done.stderr
        assert "backfill archive" in done.stderr
        assert marks(addresses, "films/backfill") == {}
        shutil.rmtree(films.job.path(films.job.logs.examples.path))
        kill_in_the_middle(films, addresses, wait_for, out)
        assert cli(*words).returncode == 0  # the same days, by another run
        done = cli("backfill", "train", films.spec, out)
        assert done.returncode == 1 and "DayMadeAnew" in done.stderr, done.stderr


@pytest.mark.cluster
@pytest.mark.deep
@pytest.mark.fault
@pytest.mark.timeout(600)
def test_on_flink_it_ends_with_the_days_and_goes_on_where_a_killed_command_stood(
    films: Any, run: Callable[..., Any], flink: LocalCluster, wait_for: Callable[..., None], tmp_path: Path
) -> None:
    set_up(films, **{"batch_size: 64": "batch_size: 2"})
    for day in range(2):
        around_midnight(films, day, requests=300)
    films.close_windows(1_767_225_600_000 + 4 * 86_400_000)
    out = tmp_path / "days"
    days = ("--from", "2026-01-01", "--to", "2026-01-04", "--out", out)
    done = run("backfill", "join", films.spec, *days)
    assert done.returncode == 0, done.stderr[-4000:]
    url = flink.addresses().flink_rest
    assert url is not None
    rest = FlinkRest(url)
    on_flink = ("--runner", "flink", "--cluster", flink.folder)
    words = ("backfill", "train", films.spec, out, *on_flink)

    def running() -> list[str]:
        return [job.id for job in rest.jobs() if job.name == "films-backfill-train" and not job.ended]

    with store(films) as addresses:
        done = run(*words, "--until", "2026-01-02")
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        assert "run train goes on from here" in done.stdout and not running()
        first = of_days(out, until="2026-01-02")
        assert films.trained_counts(addresses) == films.expected_counts(first)
        # What the last rows gave is told before the job is stopped.
        told = [r["rows"] for r in films.rows(films.job.logs.train_metrics.path) if r["label"] == "like"]
        assert sum(told) == len(first)

        kill_in_the_middle(films, addresses, wait_for, out, *on_flink)
        (left,) = running()
        done = run(*words)
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        assert rest.job(left).state == "CANCELED" and not running()
        assert films.trained_counts(addresses) == films.expected_counts(of_days(out))
