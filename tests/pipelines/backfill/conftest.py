"""KuaiRand's feed as two logs with delays, repeats and refused events, and what the stream makes of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pytest

from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.pipelines.backfill.join import run_join_backfill
from cuckooflow.pipelines.backfill.request import BackfillRequest
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.run import BatchRuns, DirectBatch
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.transforms.day_files import KINDS, read_day, whole_days
from cuckooflow.transforms.sinks import json_lines

SPEC = Path(__file__).parent / "job.yaml"
DAYS = ("2022-04-25", "2022-04-30")
HOUR_MS = 3_600_000
SEED = 11
PLACES = ("_partition", "_offset", "_row")
JOIN_REASONS = ("late_impression", "key_reused", "unknown_action")
BAD = (b"null", b"", b'{"user_id": 1', b'{"user_id": "x", "video_id": 1, "time": 1650900000000}', b"[1]")


@dataclass
class Feed:
    """A job's folder.

    Attributes:
        messages: of ``impressions`` and ``actions``, columns partition, offset, append_us and value, as logged.
    """

    spec: Path
    job: JobSpec
    messages: dict[str, pa.Table] = field(default_factory=dict)

    def log_rows(self, name: str) -> Counter[str]:
        """Every row of an output log of the stream, as JSON."""
        reader = LocalLog.open(self.job.path(getattr(self.job.logs, name).path))
        rows: Counter[str] = Counter()
        for partition in reader.partitions():
            for batch in reader.read_range(partition, 0, reader.end_offset(partition)):
                for value in batch.values:
                    message = value.as_py()
                    if message[:1] == b"{":
                        rows[message.decode()] += 1
                    else:
                        for part in pa.ipc.open_stream(message):
                            rows.update(line.decode() for line in json_lines(part))
        return rows

    def copy_to(self, folder: Path, **replaced: str) -> Feed:
        """The same job in another folder, without its logs; words of the spec replaced."""
        text = self.spec.read_text()
        for old, new in replaced.items():
            text = text.replace(old, new)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.yaml").write_text(text)
        return Feed(folder / "job.yaml", load_spec(folder / "job.yaml"), self.messages)


def _day_rows(out: Path, kind: str, days: list[date] | None = None) -> Counter[str]:
    """Every row of a kind in the days of a folder, as JSON, without its place in the backfill's own log."""
    rows: Counter[str] = Counter()
    for day in whole_days(str(out)) if days is None else days:
        table = read_day(str(out), day, kind)
        if kind in ("examples", "late"):
            table = table.drop_columns([name for name in PLACES if name in table.schema.names])
        for batch in table.to_batches():
            rows.update(line.decode() for line in json_lines(batch))
    return rows


def _in_days(rows: Counter[str], first: str, until: str) -> Counter[str]:
    """Rows whose event time lies in the days, half open, UTC."""
    low, high = (int(np.datetime64(day, "us").astype(np.int64)) for day in (first, until))

    def time_of(line: str) -> int:
        row = json.loads(line)
        return int(row["_time"] if "_time" in row else json.loads(row["value"])["_time"])

    def timed(line: str) -> bool:
        row = json.loads(line)
        return "_time" in row or row["reason"] in JOIN_REASONS

    return Counter({line: n for line, n in rows.items() if timed(line) and low <= time_of(line) < high})


def _events(folder: Path) -> dict[str, pa.Table]:
    """Impressions and actions with the time and the partition of their arrival."""
    rng = np.random.default_rng(SEED)
    log = pa.csv.read_csv(folder / "kuairand" / "log_standard_0425_0508.csv.gz")
    until = int(np.datetime64("2022-04-30T12:00", "ms").astype(np.int64))
    log = log.filter(pc.less(log["time_ms"], until))
    n = log.num_rows
    names = ("user_id", "video_id", "time_ms", "tab", "duration_ms")
    shown = pa.table(
        [log[name] for name in names], names=["user_id", "video_id", "time", "tab", "duration_ms"]
    )
    time = np.asarray(log["time_ms"])
    behind = np.where(rng.random(n) < 0.01, rng.integers(0, 3 * HOUR_MS, n), 0)
    arrival = time + rng.integers(0, 20_000, n) + behind
    again = np.flatnonzero(rng.random(n) < 0.02)
    copies = shown.take(pa.array(again)).set_column(3, "tab", pa.array(rng.integers(20, 30, len(again))))
    user = np.asarray(log["user_id"])
    shown = pa.concat_tables([shown, copies])
    shown = shown.append_column(
        "arrival", pa.array(np.concatenate((arrival, arrival[again] + rng.integers(0, HOUR_MS, len(again)))))
    )
    shown = shown.append_column("partition", pa.array(np.concatenate((user % 3, (user[again] + 1) % 3))))

    clicked = np.flatnonzero(np.asarray(log["is_click"]))
    delay = np.minimum(rng.pareto(1.1, len(clicked)) * 30_000, 2 * HOUR_MS).astype(np.int64)
    viewed = np.flatnonzero(np.asarray(log["long_view"]))
    at = np.concatenate((clicked, viewed))
    when = time[at] + np.concatenate((delay, np.asarray(log["play_time_ms"])[viewed]))
    kind = np.array(["click"] * len(clicked) + ["long_view"] * len(viewed))
    kind[rng.random(len(kind)) < 0.002] = "share"
    behind = np.where(rng.random(len(at)) < 0.05, rng.integers(0, 8 * HOUR_MS, len(at)), 0)
    arrival = when + rng.integers(0, 30_000, len(at)) + behind
    again = np.flatnonzero(rng.random(len(at)) < 0.02)
    every = np.concatenate((np.arange(len(at)), again))
    acted = pa.table(
        {
            "user_id": pa.array(user[at][every]),
            "video_id": pa.array(np.asarray(log["video_id"])[at][every]),
            "time": pa.array(when[every]),
            "action": pa.array(kind[every]),
            "arrival": pa.array(
                np.concatenate((arrival, arrival[again] + rng.integers(0, HOUR_MS, len(again))))
            ),
            "partition": pa.array(user[at][every] % 2),
        }
    )
    return {"impressions": shown, "actions": acted}


def _messages(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Messages in the order of arrival, refused ones among them."""
    table = table.sort_by([("arrival", "ascending")])
    fields = [name for name in table.schema.names if name not in ("arrival", "partition")]
    values = [json.dumps(row).encode() for row in table.select(fields).to_pylist()]
    bad = np.flatnonzero(rng.random(len(values)) < 0.003)
    where = np.concatenate((np.arange(len(values)), bad))
    partition, arrival = (np.asarray(table[name]) for name in ("partition", "arrival"))
    values += [BAD[i % len(BAD)] for i in range(len(bad))]
    order = np.argsort(where, kind="stable")
    return pa.table(
        {
            "partition": pa.array(partition[where][order], pa.int64()),
            "append_us": pa.array(arrival[where][order] * 1_000),
            "value": pa.array([values[i] for i in order.tolist()], pa.binary()),
        }
    )


def _append(path: Path, messages: pa.Table, partitions: int, encoding: str) -> pa.Table:
    """Write messages to a log; them by partition, with offsets and the append times that the log has."""
    LocalLog.create(path, partitions, encoding)
    parts = []
    with LocalLogWriter(path, fsync=False) as writer:
        for partition in range(partitions):
            mine = messages.filter(pc.equal(messages["partition"], partition)).combine_chunks()
            append_us = np.asarray(mine["append_us"]).copy()
            for at in range(0, len(mine), 200):
                piece = mine.slice(at, 200)
                append_us[at : at + 200] = piece["append_us"][-1].as_py()
                writer.append(partition, piece["value"].to_pylist(), int(append_us[at]))
            mine = mine.set_column(1, "append_us", pa.array(append_us))
            parts.append(mine.append_column("offset", pa.array(np.arange(len(mine)))))
    return pa.concat_tables(parts)


@pytest.fixture(scope="session")
def feed(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Feed:
    """The job with both input logs, and the outputs of ``run join --stop-at-end`` over them."""
    folder = tmp_path_factory.mktemp("feed")
    shutil.copy(SPEC, folder / "job.yaml")
    made = Feed(folder / "job.yaml", load_spec(folder / "job.yaml"))
    rng = np.random.default_rng(SEED + 1)
    for name, table in _events(shared_data).items():
        log = getattr(made.job.logs, name)
        made.messages[name] = _append(made.job.path(log.path), _messages(table, rng), log.partitions, "lines")
    done = _run("run", "join", made.spec, "--stop-at-end")
    assert done.returncode == 0, done.stderr[-4000:]
    return made


def _run(*words: object, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cuckooflow.pipelines.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "COLUMNS": "200"},
    )


@pytest.fixture(scope="session")
def streamed(feed: Feed) -> dict[str, Counter[str]]:
    """What the stream gave out, over all time."""
    return {kind: feed.log_rows(kind) for kind in KINDS}


@pytest.fixture(scope="session")
def expected(streamed: dict[str, Counter[str]]) -> Callable[..., Counter[str]]:
    """What the stream gave out for some days; of dead letters, those with an event time."""

    def rows(kind: str, first: str = DAYS[0], until: str = DAYS[1]) -> Counter[str]:
        return _in_days(streamed[kind], first, until)

    return rows


@pytest.fixture(scope="session")
def day_rows() -> Callable[..., Counter[str]]:
    return _day_rows


@pytest.fixture(scope="session")
def backfill() -> Callable[..., str]:
    """Runs the backfill of some days to its end, in this process; what it told."""

    def join(
        spec: Path,
        out: Path,
        first: str = DAYS[0],
        until: str = DAYS[1],
        batch: BatchRuns | None = None,
        **more: object,
    ) -> str:
        told: list[str] = []
        days = (date.fromisoformat(first), date.fromisoformat(until))
        request = BackfillRequest(*days, str(out), **more)
        run_join_backfill(load_spec(spec), request, batch or DirectBatch(), told.append)
        return "\n".join(told)

    return join


@pytest.fixture(scope="session")
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    return _run
