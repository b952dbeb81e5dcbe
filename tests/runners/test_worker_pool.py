"""The worker pool, asked as a runner asks it: who gets a worker, with which options, and which worker is ended.

The runner's side is a provision service that says which build the job is of; the workers are real processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)
from google.protobuf import json_format

from cuckooflow.build import build
from cuckooflow.runners import worker_pool
from cuckooflow.runners.worker_pool import WorkerPool

#: Nothing listens there: a worker that is never told anything waits.
NOWHERE = "127.0.0.1:9"


class Runner(beam_provision_api_pb2_grpc.ProvisionServiceServicer):
    """Says what each worker is for: by the worker's id, which names its job's build."""

    def GetProvisionInfo(self, request: Any, context: Any) -> Any:
        del request
        worker = dict(context.invocation_metadata())["worker_id"]
        answer = beam_provision_api_pb2.GetProvisionInfoResponse()
        options = {"beam:option:max_cache_memory_usage_mb:v1": "7"}
        if worker != "plain-beam":
            options["beam:option:cuckooflow_build:v1"] = "other" if worker == "other" else build()
        json_format.ParseDict(options, answer.info.pipeline_options)
        return answer


@pytest.fixture
def runner() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(Runner(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    made = WorkerPool()
    yield made
    made.stop()


def ask(pool: WorkerPool, runner: str, worker: str) -> str:
    """The pool's error; empty where it started a worker."""
    request = beam_fn_api_pb2.StartWorkerRequest(
        worker_id=worker,
        **{
            f"{name}_endpoint": endpoints_pb2.ApiServiceDescriptor(url=url)
            for name, url in (("provision", runner), ("control", NOWHERE), ("logging", NOWHERE))
        },
    )
    return str(pool.StartWorker(request, None).error)


def environment(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def end(pool: WorkerPool, worker: str) -> None:
    pool.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id=worker), None)


def test_a_worker_gets_the_options_of_its_job(
    pool: WorkerPool, runner: str, wait_for: Callable[..., None]
) -> None:
    assert ask(pool, runner, "1-1") == ""
    (pid,) = pool.pids("1-1")
    # In the middle of its exec a process shows no environment.
    wait_for(lambda: environment(pid), "the worker's environment", 10)
    told = environment(pid)
    assert told["WORKER_ID"] == "1-1"
    assert '"beam:option:max_cache_memory_usage_mb:v1": "7"' in told["PIPELINE_OPTIONS"]
    assert NOWHERE in told["CONTROL_API_SERVICE_DESCRIPTOR"]
    end(pool, "1-1")
    assert pool.pids("1-1") == []
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(("worker", "theirs"), [("other", "other"), ("plain-beam", "unknown")])
def test_a_job_of_another_build_gets_none(pool: WorkerPool, runner: str, worker: str, theirs: str) -> None:
    error = ask(pool, runner, worker)
    assert error.startswith(f"WorkerRefused: expected a job of cuckooflow {build()}")
    assert f"received one of {theirs};" in error
    assert pool.pids(worker) == []


def test_of_two_jobs_workers_of_one_number_none_is_ended_for_the_other(pool: WorkerPool, runner: str) -> None:
    assert [ask(pool, runner, "1-1") for _ in range(2)] == ["", ""]
    both = pool.pids("1-1")
    assert len(both) == 2
    end(pool, "1-1")  # one of the jobs is over, and the pool cannot know which
    assert pool.pids("1-1") == both
    pool.stop()
    assert pool.pids("1-1") == []


def test_the_number_of_workers_is_bounded(
    pool: WorkerPool, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "WORKERS_MAX", 1)
    assert ask(pool, runner, "1-1") == ""
    assert "expected at most 1 workers" in ask(pool, runner, "1-2")
    end(pool, "1-1")
    assert ask(pool, runner, "1-2") == ""


def test_a_runner_that_does_not_answer_is_an_error(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "PROVISION_TIMEOUT_S", 0.2)
    assert "DEADLINE_EXCEEDED" in ask(pool, NOWHERE, "1-1")
