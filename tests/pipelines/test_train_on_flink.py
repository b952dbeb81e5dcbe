"""The trainer on a real Flink: every example counts once, and snapshots come out."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cuckooflow.models.snapshots import list_manifests
from cuckooflow.runners.cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.deep, pytest.mark.timeout(600)]

#: For a job until its first rows: Flink, a worker process and TensorFlow's import on a busy machine.
BOUND_S = 180


@pytest.fixture
def store(films: Any, wait_for: Callable[..., None]) -> Iterator[Path]:
    """The address file of the job's store, which runs."""
    address = Path(films.job.path(films.job.store.data)) / "address"
    command = [sys.executable, "-m", "cuckooflow.pipelines.cli", "store", "serve", str(films.spec)]
    process = subprocess.Popen(command)
    try:
        wait_for(address.exists, "the store's address")
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_every_example_is_trained_once(
    films: Any,
    cli: Callable[..., Any],
    flink: LocalCluster,
    store: Path,
    wait_for: Callable[..., None],
) -> None:
    def done(*words: object) -> str:
        ran = cli(*words)
        assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
        return str(ran.stdout)

    films.make_logs()
    films.append(*films.events(300))
    done("run", "join", films.spec, "--stop-at-end")
    expected = films.expected_counts(films.rows(films.job.logs.examples.path))
    on_flink = ("--cluster", flink.folder)
    done("run", "train", films.spec, "--runner", "flink", "--detach", *on_flink)
    try:
        wait_for(lambda: films.trained_counts(store) == expected, "every example trained", BOUND_S)
    finally:
        done("job", "stop", "films-train", *on_flink)
    assert list_manifests(films.job.path(films.job.snapshots.dir))[0].kind == "full"
