"""The backfill on a real Flink in batch mode: the rows of the direct runner, also after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from cuckooflow.errors import FilesNotShared
from cuckooflow.pipelines.backfill.estimate import Layout
from cuckooflow.pipelines.backfill.join import backfill_options
from cuckooflow.pipelines.backfill.request import BackfillRequest
from cuckooflow.pipelines.backfill.run_state import RunState
from cuckooflow.pipelines.flink_batch import FlinkBatch
from cuckooflow.runners.cluster import LocalCluster
from cuckooflow.runners.flink_rest import FlinkRest
from cuckooflow.transforms.backfill_join import RunMark, RunTasks
from cuckooflow.transforms.backfill_tasks import ScanTask
from cuckooflow.transforms.day_files import KINDS, read_day, read_manifest, whole_days
from cuckooflow.transforms.sinks import json_lines

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.deep, pytest.mark.timeout(600)]
TWO = [date(2022, 4, 25), date(2022, 4, 26)]


@pytest.fixture
def rest(flink: LocalCluster) -> FlinkRest:
    url = flink.addresses().flink_rest
    assert url is not None
    return FlinkRest(url)


def words(spec: Path, out: Path, until: str, cluster: LocalCluster) -> list[str]:
    asked = ["backfill", "join", str(spec), "--from", "2022-04-25", "--to", until, "--out", str(out)]
    return [*asked, "--runner", "flink", "--cluster", str(cluster.folder), "--parallelism=2"]


def rows(out: Path, day: date) -> dict[str, Counter[str]]:
    """Every row of a day with its place in the backfill's own log."""
    found: dict[str, Counter[str]] = {}
    for kind in KINDS:
        batches = read_day(str(out), day, kind).to_batches()
        found[kind] = Counter(line.decode() for batch in batches for line in json_lines(batch))
    return found


def test_the_rows_of_the_direct_runner(
    feed, backfill, run, flink: LocalCluster, rest, tmp_path: Path
) -> None:
    direct, on_flink = tmp_path / "direct", tmp_path / "flink"
    backfill(feed.spec, direct, until="2022-04-26")
    known = {job.id for job in rest.jobs()}
    done = run(*words(feed.spec, on_flink, "2022-04-26", flink))
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert whole_days(str(on_flink)) == whole_days(str(direct)) == TWO[:1]
    assert rows(on_flink, TWO[0]) == rows(direct, TWO[0])
    ours, theirs = (read_manifest(str(out), TWO[0]) for out in (on_flink, direct))
    assert ours is not None
    assert theirs is not None
    assert (ours.counts, ours.inputs) == (theirs.counts, theirs.inputs)
    assert ours.rows("examples") > 1_000
    jobs = [job for job in rest.jobs() if job.id not in known]
    listed = run("job", "list", "--cluster", flink.folder)
    assert listed.returncode == 0, listed.stderr
    assert all(job.id in listed.stdout for job in jobs)
    assert all(job.name.startswith("feed-backfill-") for job in jobs)
    phases = [job.name.split("-", 3)[3] for job in reversed(jobs)]
    assert phases == ["scan", "keys", "2022-04-25"]
    kinds = {rest.get(f"/jobs/{job.id}/plan")["plan"]["type"] for job in jobs}
    assert kinds == {"BATCH"}


@pytest.mark.fault
def test_killed_on_the_second_of_three_days_and_run_again(
    feed, run, day_rows: Callable[..., Counter[str]], expected, flink: LocalCluster, rest, tmp_path: Path
) -> None:
    out = tmp_path / "days"
    asked = words(feed.spec, out, "2022-04-28", flink)
    command = [sys.executable, "-m", "cuckooflow.pipelines.cli", *asked]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while not (out / "_work" / "2022-04-26").exists():
        assert process.poll() is None, "the backfill ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert whole_days(str(out)) == TWO[:1]
    first = read_manifest(str(out), TWO[0])
    done = run(*asked)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "resumed" in done.stdout
    assert "day=2022-04-25" not in done.stdout
    assert read_manifest(str(out), TWO[0]) == first
    assert whole_days(str(out)) == [*TWO, date(2022, 4, 27)]
    for kind in ("examples", "late", "unmatched"):
        assert day_rows(out, kind) == expected(kind, "2022-04-25", "2022-04-28"), kind
    assert not [job for job in rest.jobs() if job.name.startswith("feed-backfill-") and not job.ended]


def test_workers_without_the_submitters_files_are_refused_by_name(
    feed, flink: LocalCluster, rest, tmp_path: Path
) -> None:
    request = BackfillRequest(TWO[0], TWO[1], str(tmp_path / "days"))
    layout = Layout(slice_us=3_600_000_000, key_buckets=1, block_offsets=1)
    options = backfill_options(feed.job, request, RunState("here", "", {}, layout))
    batch = FlinkBatch("elsewhere", request.out, flink.addresses(), rest, [])
    mark = RunMark(str(tmp_path / "only-the-submitter-has-it" / "run.json"), "here")
    task = ScanTask(str(tmp_path / "scan"), None)  # type: ignore[arg-type]
    with pytest.raises(FilesNotShared, match="on this worker, as the submitter wrote it, found no such file"):
        batch.run("scan", lambda pipeline: pipeline | RunTasks([task], options, mark))
    assert all(job.ended for job in rest.jobs() if job.name.startswith("elsewhere-"))
