"""What ``run --runner flink`` and ``job`` refuse, and in which words; none of it needs a cluster."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cuckooflow.errors import (
    FlinkJobNotFound,
    FlinkRefused,
    FlinkUnavailable,
    MarkMismatch,
    SpecError,
    WorkerRefused,
    named_in,
)
from cuckooflow.pipelines.flink_batch import FlinkBatch
from cuckooflow.pipelines.job_status import read_status
from cuckooflow.runners import flink_rest
from cuckooflow.runners.cluster import ClusterAddresses
from cuckooflow.runners.cluster.ports import free_port
from cuckooflow.runners.flink_rest import Checkpoint, Checkpoints, FlinkRest

Cli = Callable[..., Any]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--runner", "flink", "--stop-at-end"], "leave out --stop-at-end"),
        (["--runner", "flink"], "start one with: cuckooflow cluster up"),
        (["--runner", "direct", "--detach"], "--detach and --resume are for --runner flink"),
        (["--runner", "prism", "--resume", "file:/x"], "received --runner prism"),
        (
            ["--runner", "flink", "--flink-rest", "http://127.0.0.1:1", "--parallelism=none"],
            "expected --parallelism of 1 or more, received none",
        ),
        (
            ["--runner", "flink", "--flink-rest", "http://127.0.0.1:1"],
            "received job server None, worker pool None",
        ),
    ],
)
def test_a_run_that_cannot_be_is_a_usage_error(
    films: Any, cli: Cli, tmp_path: Path, words: list[str], said: str
) -> None:
    done = cli("run", "join", films.spec, "--cluster", tmp_path / "no-cluster", *words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def test_a_job_without_a_jobmanager(cli: Cli, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = cli("job", "list", "--flink-rest", url)
    assert done.returncode == 1
    assert f"expected Flink's REST at {url}" in done.stderr
    done = cli("job", "stop", "films-join", "--cluster", tmp_path / "no-cluster")
    assert done.returncode == 2
    assert "expected --flink-rest or a local cluster" in done.stderr


@pytest.mark.parametrize(
    ("runner", "front_end", "option"),
    [
        ("direct", "generator", "environment_type"),
        ("flink", "stateful", "retain_externalized_checkpoints_on_cancellation"),
    ],
)
def test_a_plan_shows_what_its_runner_is_given(
    films: Any, cli: Cli, tmp_path: Path, runner: str, front_end: str, option: str
) -> None:
    done = cli("plan", films.spec, "--runner", runner, "--cluster", tmp_path / "no-cluster")
    assert done.returncode == 0, done.stderr
    _, _, shown = done.stdout.partition(f"runner {runner}")
    assert front_end in shown
    assert option in shown
    assert f"runner {runner}" not in cli("plan", films.spec).stdout


def test_nothing_to_resume(films: Any, cli: Cli, tmp_path: Path) -> None:
    done = cli("job", "resume", "join", films.spec, "--cluster", tmp_path / "no-cluster")
    assert done.returncode == 1
    assert "NothingToResume" in done.stderr


# --- answers that a real Flink gives only in trouble ------------------------------------------------


class Answers(dict[str, tuple[int, Any]]):
    """Path -> (status, JSON); ``asked``: the paths that were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []


@pytest.fixture
def answers() -> Iterator[tuple[FlinkRest, Answers]]:
    """A client, and what the server on its other end answers: path -> (status, JSON); and the paths it was asked."""
    given = Answers()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            given.asked.append(self.path)
            code, body = given[self.path]
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = answer

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield FlinkRest(f"http://127.0.0.1:{server.server_port}"), given
        server.shutdown()
        thread.join()


def listed(*jobs: tuple[str, str, str, int]) -> dict[str, Any]:
    tasks = {"running": 0, "total": 2}
    return {
        "jobs": [{"jid": i, "name": n, "state": s, "start-time": t, "tasks": tasks} for i, n, s, t in jobs]
    }


def test_a_name_means_the_job_that_runs_and_else_the_newest(answers: Any) -> None:
    rest, given = answers
    given["/jobs/overview"] = (
        200,
        listed(("a", "films", "RUNNING", 1), ("b", "films", "FAILED", 3), ("c", "songs", "CANCELED", 2)),
    )
    assert rest.job("films").id == "a"
    assert rest.job("b").state == "FAILED"
    assert not rest.job("a").at_work
    given["/jobs/overview"] = (200, listed(("a", "films", "CANCELED", 1), ("b", "films", "FAILED", 3)))
    assert rest.job("films").id == "b"
    with pytest.raises(FlinkJobNotFound, match=r"'none'.*films \(b\), films \(a\)"):
        rest.job("none")


def test_a_savepoint_that_fails_says_why_without_java_frames(answers: Any) -> None:
    rest, given = answers
    trace = "java.X: outer\n\tat a.b(C.java:1)\nCaused by: java.io.IOException: disk full\n\tat d.e(F.java:2)\n\t... 3 more"
    given["/jobs/a/savepoints"] = (202, {"request-id": "r"})
    given["/jobs/a/savepoints/r"] = (
        200,
        {"status": {"id": "COMPLETED"}, "operation": {"failure-cause": {"stack-trace": trace}}},
    )
    with pytest.raises(
        FlinkRefused, match=r"savepoint of job a, Flink answered: java.io.IOException: disk full$"
    ):
        rest.savepoint("a")


@pytest.mark.parametrize("recovers", [True, False])
def test_a_savepoint_waits_for_a_job_that_recovers(
    answers: Any, monkeypatch: pytest.MonkeyPatch, recovers: bool
) -> None:
    rest, given = answers
    cause = "CheckpointException: Failure reason: Not all required tasks are currently running."
    refused = {"status": {"id": "COMPLETED"}, "operation": {"failure-cause": {"stack-trace": cause}}}
    taken = {"status": {"id": "COMPLETED"}, "operation": {"location": "file:/s"}}
    given["/jobs/a/savepoints"] = (202, {"request-id": "r"})
    given["/jobs/a/savepoints/r"] = (200, refused)
    given["/jobs/a"] = (200, {"state": "RESTARTING"})

    def later(_: float) -> None:
        if recovers:
            given["/jobs/a/savepoints/r"] = (200, taken)
        else:
            given["/jobs/a"] = (200, {"state": "FAILED"})

    monkeypatch.setattr(flink_rest.time, "sleep", later)
    if recovers:
        assert rest.savepoint("a") == "file:/s"
    else:
        with pytest.raises(FlinkRefused, match="Not all required tasks are currently running"):
            rest.savepoint("a")
    assert given.asked.count("/jobs/a/savepoints") == 2


def test_errors_are_told_apart(answers: Any) -> None:
    rest, given = answers
    unknown = (404, {"errors": ["Job a not found\n\tat x.y(Z.java:3)"]})
    given["/jobs/a/checkpoints"] = given["/jobs/a"] = unknown
    with pytest.raises(FlinkJobNotFound, match=r"Job a not found$"):
        rest.newest_checkpoint("a")
    given["/jobmanager/config"] = (500, {"errors": ["Caused by: boom"]})
    with pytest.raises(FlinkRefused, match=r"Flink answered 500: boom$"):
        rest.configuration()
    with pytest.raises(FlinkUnavailable, match="is the JobManager up"):
        FlinkRest(f"http://127.0.0.1:{free_port()}").jobs()


def test_a_job_that_makes_no_checkpoints_has_none(answers: Any) -> None:
    """A bounded one, as a backfill's: Flink then says the same as of a job that it does not know."""
    rest, given = answers
    given["/jobs/a/checkpoints"] = (404, {"errors": ["Checkpointing has not been enabled."]})
    given["/jobs/a"] = (200, {"jid": "a", "state": "FINISHED"})
    assert rest.newest_checkpoint("a") is None
    assert rest.checkpoints("a") == Checkpoints(newest=None, failed=0)


def test_the_newest_of_checkpoint_and_savepoint_and_how_many_failed_by_one_question(answers: Any) -> None:
    rest, given = answers

    def made(path: str, at_ms: int, savepoint: bool) -> dict[str, Any]:
        return {
            "external_path": path,
            "latest_ack_timestamp": at_ms,
            "is_savepoint": savepoint,
            "state_size": 77,
        }

    given["/jobs/overview"] = (200, listed(("a", "films", "FINISHED", 1)))
    given["/jobs/a"] = (200, {"vertices": [{"parallelism": 2}], "state": "FINISHED"})
    given["/jobs/a/metrics?get=numRestarts"] = (200, [{"id": "numRestarts", "value": "3"}])
    completed, savepoint = made("<checkpoint-not-externally-addressable>", 5, False), made("file:/s", 9, True)
    latest = {"completed": completed, "savepoint": savepoint, "failed": None}
    given["/jobs/a/checkpoints"] = (200, {"latest": latest, "counts": {"failed": 4}})
    status = read_status(rest, "films")
    assert (status.failed_checkpoints, status.checkpoint_bytes, status.restarts) == (4, 77, 3)
    assert given.asked.count("/jobs/a/checkpoints") == 1
    assert rest.checkpoints("a") == Checkpoints(Checkpoint("savepoint", "file:/s", 9, 77), 4)
    savepoint["latest_ack_timestamp"] = 4
    assert rest.newest_checkpoint("a") == Checkpoint("checkpoint", None, 5, 77)


def test_a_workers_error_is_known_again_in_what_flink_tells_of_it():
    told = (
        "java.util.concurrent.ExecutionException: java.lang.RuntimeException: Error received from SDK harness for "
        "instruction 4: Traceback (most recent call last):\n"
        '  File "worker.py", line 1, in process\n'
        "ValueError: 3\n\nDuring handling of the above exception, another exception occurred:\n\n"
        "cuckooflow.errors.MarkMismatch: expected (1, 0), received (2, 0) [while running 'scan/Run']\n"
    )
    found = named_in(told)
    assert type(found) is MarkMismatch
    assert str(found) == "expected (1, 0), received (2, 0)"
    refused = named_in("java.lang.Exception: WorkerRefused: expected a job of this build\n\tat x.Y(Z)")
    assert (type(refused), str(refused)) == (WorkerRefused, "expected a job of this build")
    assert named_in("java.lang.Exception: TaskManager lost\nNotAnError: no") is None


def test_a_backfill_on_flink_needs_a_cluster_and_an_end(tmp_path):
    rest = FlinkRest("http://localhost:1")
    with pytest.raises(SpecError, match="job server None, worker pool None"):
        FlinkBatch("b", str(tmp_path), ClusterAddresses(), rest, [])
    known = ClusterAddresses(job_endpoint="localhost:1", worker_pool="localhost:2")
    with pytest.raises(SpecError, match="expected a pipeline that ends"):
        FlinkBatch("b", str(tmp_path), known, rest, ["--streaming"])
