"""A backfill is killed, run again, run twice: whole days only, and always the same rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from cuckooflow.errors import DayNotWhole
from cuckooflow.transforms.balances import SOURCE
from cuckooflow.transforms.day_files import read_day, read_manifest, whole_days

FIVE = [date(2022, 4, day) for day in range(25, 30)]
KINDS = ("examples", "late", "unmatched")


def begin(spec: Path, out: Path) -> subprocess.Popen[bytes]:
    words = ["backfill", "join", str(spec), "--from", "2022-04-25", "--to", "2022-04-30", "--out", str(out)]
    command = [sys.executable, "-m", "cuckooflow.pipelines.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def kill_when(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """Kill -9 as soon as it holds; fails if the process ends before."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the backfill ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)


@pytest.mark.slow
@pytest.mark.fault
def test_killed_on_the_third_of_five_days_and_resumed(feed, backfill, day_rows, expected, tmp_path) -> None:
    out = tmp_path / "days"
    process = begin(feed.spec, out)
    kill_when(process, lambda: (out / "_work" / "2022-04-27").exists())
    assert whole_days(str(out)) == FIVE[:2]
    first_two = {day: read_manifest(str(out), day) for day in FIVE[:2]}
    written = {path: path.stat().st_mtime_ns for day in FIVE[:2] for path in (out / f"dt={day}").iterdir()}
    told = backfill(feed.spec, out)
    assert "resumed" in told
    assert "day=2022-04-26" not in told
    assert "phase=scan tasks=5 done_before=5" in told
    assert {day: read_manifest(str(out), day) for day in FIVE[:2]} == first_two
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert whole_days(str(out)) == FIVE
    for kind in KINDS:
        assert day_rows(out, kind) == expected(kind), kind
    assert {path.name for path in out.iterdir()} == {".lock", *(f"dt={day}" for day in FIVE)}


@pytest.mark.slow
@pytest.mark.fault
def test_killed_in_the_first_pass_and_resumed(feed, backfill, day_rows, expected, tmp_path) -> None:
    out = tmp_path / "days"
    process = begin(feed.spec, out)
    kill_when(process, lambda: any((out / "_work").glob("scan-*.index")))
    assert whole_days(str(out)) == []
    assert "resumed" in backfill(feed.spec, out)
    assert day_rows(out, "examples") == expected("examples")


@pytest.mark.slow
def test_a_rerun_replaces_each_day_at_once(feed, backfill, day_rows, expected, tmp_path) -> None:
    out = tmp_path / "days"
    backfill(feed.spec, out)
    before = {day: read_manifest(str(out), day).run for day in FIVE}
    rows = {day: len(read_day(str(out), day)) for day in FIVE}
    seen: set[tuple[date, str, int]] = set()
    over = threading.Event()

    def read_all_the_time() -> None:
        while not over.wait(0.02):
            for day in FIVE:
                run = read_manifest(str(out), day).run
                try:
                    seen.add((day, run, len(read_day(str(out), day))))
                except DayNotWhole:  # replaced between the look at the manifest and at its files
                    continue

    reader = threading.Thread(target=read_all_the_time)
    reader.start()
    try:
        backfill(feed.spec, out)
    finally:
        over.set()
        reader.join(30)
    after = {day: read_manifest(str(out), day).run for day in FIVE}
    assert not set(before.values()) & set(after.values())
    assert {(day, count) for day, _, count in seen} == set(rows.items())
    for kind in KINDS:
        assert day_rows(out, kind) == expected(kind), kind
    for day in FIVE:
        names = {path.name for path in (out / f"dt={day}").iterdir()}
        assert names == {"_SUCCESS", *(file.name for file in read_manifest(str(out), day).files)}


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.fault
def test_another_request_does_not_go_on_where_one_was_killed(feed, run, tmp_path) -> None:
    out = tmp_path / "days"
    process = begin(feed.spec, out)
    kill_when(process, lambda: (out / "_work" / "run.json").exists())
    other = ("backfill", "join", feed.spec, "--from", "2022-04-25", "--to", "2022-04-26", "--out", out)
    done = run(*other)
    assert done.returncode == 1
    assert "BackfillBusy" in done.stderr
    assert run(*other, "--restart").returncode == 0
    assert whole_days(str(out)) == FIVE[:1]


@pytest.mark.slow
def test_two_at_once_in_one_folder_are_refused(feed, run, tmp_path) -> None:
    out = tmp_path / "days"
    process = begin(feed.spec, out)
    try:
        deadline = time.monotonic() + 60
        while not (out / "_work" / "run.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGSTOP)
        done = run("backfill", "join", feed.spec, "--from", "2022-04-25", "--to", "2022-04-30", "--out", out)
        assert done.returncode == 1
        assert "another process does" in done.stderr
    finally:
        os.kill(process.pid, signal.SIGCONT)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.mark.slow
def test_days_add_up(feed, backfill, streamed, tmp_path) -> None:
    """The counts of all days are those of the stream, where the days are all there are."""
    out = tmp_path / "days"
    backfill(feed.spec, out, first="2022-04-24", until="2022-05-02")
    sums: dict[str, int] = {}
    for day in whole_days(str(out)):
        manifest = read_manifest(str(out), day)
        assert manifest.rows("examples") == manifest.counts.get("kept", 0)
        for name, count in manifest.counts.items():
            sums[name] = sums.get(name, 0) + count
    of_stream: dict[str, int] = {}
    for line in streamed_balances(feed):
        if line["final"] and line["stage"] != SOURCE:  # messages read, of which none belongs to a day
            for name, count in line["counts"].items():
                of_stream[name] = of_stream.get(name, 0) + count * (
                    line["stage"] == "join" or name != "examples"
                )
    assert {name: sums[name] for name in of_stream} == of_stream
    assert sum(streamed["dead_letters"].values()) == (
        sums["events_refused"] + sums["impressions_dead"] + sums["actions_dead"]
    )


def streamed_balances(feed) -> list[dict]:
    return [json.loads(line) for line in feed.log_rows("join_balances")]
