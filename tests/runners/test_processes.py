"""Processes that outlive their starter: found by their token, ended with all that they started."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cuckooflow.runners.cluster.processes import Command, Started, start

BOUND_S = 20.0

#: Starts a child that would outlive it, says so, and waits.
_WITH_CHILD = (
    "import subprocess, time; subprocess.Popen(['sleep', '600']); print('ready', flush=True); time.sleep(600)"
)
_STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {BOUND_S:g} s: {what}"
        time.sleep(0.01)


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], Started]:
    def begin(code: str) -> Started:
        log = tmp_path / "log"
        started = start(Command([sys.executable, "-c", code], tmp_path, {}), log)
        until(lambda: "ready" in log.read_text(), "the process began")
        return started

    return begin


def test_stop_ends_children_that_would_outlive_their_parent(run: Callable[[str], Started]) -> None:
    started = run(_WITH_CHILD)
    (child,) = started.children()
    assert started.lives()
    assert started.stop()
    assert not started.lives()
    assert not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_bytes()


def test_one_that_ignores_the_signal_is_killed_after_the_bound(run: Callable[[str], Started]) -> None:
    started = run(_STUBBORN)
    assert not started.stop(timeout_s=0.2)
    assert not started.lives()


def test_another_process_with_the_pid_is_not_taken_for_it() -> None:
    foreign = subprocess.Popen(["sleep", "600"])
    try:
        started = Started(foreign.pid, "0" * 32)
        assert not started.lives()
        assert started.stop()
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


def test_a_pid_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    file = tmp_path / "part.pid"
    assert Started.load(file) is None
    Started(17, "abc").save(file)
    assert file.read_text().splitlines()[0] == "17"
    assert Started.load(file) == Started(17, "abc")
    file.write_text("torn")
    assert Started.load(file) is None


def test_output_folder_and_variables_are_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAKEN_AWAY", "x")
    code = (
        "import os; print(os.getcwd(), os.environ['GIVEN'], 'TAKEN_AWAY' in os.environ, 'ready', flush=True)"
    )
    log = tmp_path / "log"
    log.write_text("from before\n")
    started = start(
        Command([sys.executable, "-c", code], tmp_path, {"GIVEN": "here", "TAKEN_AWAY": None}), log
    )
    until(lambda: "ready" in log.read_text(), "it spoke")
    assert log.read_text() == f"from before\n{tmp_path} here False ready\n"
    until(lambda: not started.lives(), "it ended")
