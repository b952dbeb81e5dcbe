"""The demo's replay into local logs, and what it reads back of a running job."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cuckooflow.errors import DemoFailed, LogLocked
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.pipelines.demo.demo import MARKER, run_demo
from cuckooflow.pipelines.demo.feedback import DemoEvents, make_events
from cuckooflow.pipelines.demo.job import write_job
from cuckooflow.pipelines.demo.progress import JsonTail
from cuckooflow.pipelines.demo.replay import Replay, ReplayOptions
from cuckooflow.pipelines.demo.simulator import SimulatorOptions, simulate
from cuckooflow.pipelines.spec_file import load_spec

ALWAYS = 1 << 61


@pytest.fixture(scope="module")
def events() -> DemoEvents:
    return make_events(simulate(SimulatorOptions(requests=600, users=20, items=50, days=4)))


@pytest.fixture
def logs(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "impressions", tmp_path / "actions"
    for path in paths:
        LocalLog.create(path)
    return paths


def until(condition: Callable[[], bool], bound_s: float = 20.0) -> None:
    deadline = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true within its bound"
        time.sleep(0.005)


def lines_of(path: Path) -> list[str]:
    reader = LocalLog.open(path)
    return [
        value.decode()
        for batch in reader.read_range(0, 0, reader.end_offset(0))
        for value in batch.values.to_pylist()
    ]


def test_every_line_is_appended_once_in_order(events: DemoEvents, logs: tuple[Path, Path]) -> None:
    with Replay(events, *logs, lambda: ALWAYS, lambda: 5, ReplayOptions(chunk=100)) as replay:
        until(lambda: replay.finished)
    assert replay.fraction == 1.0
    assert lines_of(logs[0]) == events.impressions.lines.to_pylist()
    assert lines_of(logs[1]) == events.actions.lines.to_pylist()


def test_the_replay_holds_back_for_what_is_not_served(events: DemoEvents, logs: tuple[Path, Path]) -> None:
    served = [-1]
    options = ReplayOptions(chunk=50, max_lead=400)
    with Replay(events, *logs, lambda: served[0], lambda: 5, options) as replay:
        until(lambda: replay.done >= 400)
        held = replay.done
        assert held <= 400 + 2 * options.chunk
        served[0] = replay.event_time_at(0.5)
        until(lambda: replay.done > replay.total // 2)
        assert not replay.finished
        served[0] = ALWAYS
        until(lambda: replay.finished)
    assert len(lines_of(logs[0])) == len(events.impressions)


def test_a_replay_tells_when_an_event_was_appended(events: DemoEvents, logs: tuple[Path, Path]) -> None:
    ticks = iter(range(1_000, 10**9))
    with Replay(events, *logs, lambda: ALWAYS, lambda: next(ticks), ReplayOptions(chunk=100)) as replay:
        until(lambda: replay.finished)
    middle = int(events.impressions.arrival_us[1_500])
    append_us = np.concatenate(
        [b.append_us for b in LocalLog.open(logs[0]).read_range(0, 0, len(events.impressions))]
    )
    assert replay.appended_us(middle) == append_us[1_500]
    assert replay.appended_us(ALWAYS) is None
    assert replay.fraction_at(replay.event_time_at(0.25)) == pytest.approx(0.25, abs=0.01)


def test_a_replay_that_is_left_early_stops(events: DemoEvents, logs: tuple[Path, Path]) -> None:
    with Replay(events, *logs, lambda: -1, lambda: 5, ReplayOptions(chunk=50, max_lead=100)) as replay:
        until(lambda: replay.done >= 100)
    assert not replay.finished
    LocalLogWriter(logs[0]).close()  # the locks are free again


def test_a_locked_log_is_the_replays_error(events: DemoEvents, logs: tuple[Path, Path]) -> None:
    with (
        LocalLogWriter(logs[1]),
        pytest.raises(LogLocked),
        Replay(events, *logs, lambda: ALWAYS, lambda: 5) as replay,
    ):
        until(lambda: replay.finished)


def test_tail_reads_what_is_new_in_every_partition(tmp_path: Path) -> None:
    tail = JsonTail(tmp_path / "log")
    assert tail.take() == []
    LocalLog.create(tmp_path / "log", partitions=2)
    with LocalLogWriter(tmp_path / "log") as writer:
        writer.append(0, [json.dumps({"n": 1}).encode()], 5)
        writer.append(1, [json.dumps({"n": 2}).encode()], 5)
        assert [record["n"] for record in tail.take()] == [1, 2]
        assert tail.take() == []
        writer.append(1, [json.dumps({"n": 3}).encode()], 5)
        assert tail.take() == [{"n": 3}]


def test_the_demos_job_spec_is_valid(tmp_path: Path) -> None:
    job = load_spec(write_job(tmp_path))
    assert job.dir == tmp_path.resolve()
    assert job.training.counting
    assert set(job.labels) == {"click", "like"}


def test_the_demo_does_not_empty_a_folder_of_others(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DemoFailed, match="name another one with --dir"):
        run_demo("simulator", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    assert not (tmp_path / MARKER).exists()
