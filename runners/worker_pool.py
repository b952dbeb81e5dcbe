"""``cuckooflow-worker-pool``: starts a Python worker whenever a runner asks for one.

It keeps the contract of Beam's external environments (``--environment_type=EXTERNAL``), as Beam's own pool
does, and three things that one does not:

* A worker knows the job's options. Without them it has no state cache (``--max_cache_memory_usage_mb``), no log
  level, and no settings of file systems.
* A job of another build of cuckooflow is refused when it asks, with the two builds named. Its code could not
  be unpickled, which the runner would notice minutes later.
* Two jobs may share a pool. A runner numbers its workers from 1 for each job, so a number may name several;
  then the one whose job is over ends by itself, as its connection does.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import grpc
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)
from google.protobuf import json_format, text_format

from cuckooflow.build import build
from cuckooflow.errors import WorkerRefused

_LOGGER = logging.getLogger(__name__)

#: The job's option that says which build submitted it.
BUILD_OPTION = "cuckooflow_build"
#: Live workers of one pool; each is a process of some 300 MB.
WORKERS_MAX = 64
#: How long the runner may take to say what a worker is for.
PROVISION_TIMEOUT_S = 60.0
#: How long a worker may take to end after SIGTERM before it is killed.
STOP_TIMEOUT_S = 10.0
_THREADS = 8
#: How long a signal may go unnoticed.
_SIGNAL_S = 0.5


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """The service. Thread-safe."""

    def __init__(self) -> None:
        self._workers: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._lock = threading.Lock()

    def StartWorker(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """Start a process for a worker's id."""
        try:
            self._start(request)
        except (WorkerRefused, grpc.RpcError, OSError) as error:
            _LOGGER.error("worker=%s refused=%s", request.worker_id, error)
            return beam_fn_api_pb2.StartWorkerResponse(error=f"{type(error).__name__}: {error}")
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """End the worker of an id, if that names only one."""
        with self._lock:
            named = [process for id_, process in self._living() if id_ == request.worker_id]
        if len(named) == 1:
            _end(named[0])
        return beam_fn_api_pb2.StopWorkerResponse()

    def pids(self, worker: str) -> list[int]:
        """The processes of a worker's id that live."""
        with self._lock:
            return [process.pid for id_, process in self._living() if id_ == worker]

    def stop(self) -> None:
        """End every worker."""
        with self._lock:
            living = self._living()
        for _, process in living:
            process.terminate()
        for _, process in living:
            _end(process)

    def _start(self, request: Any) -> None:
        options = _job_options(request.provision_endpoint.url, request.worker_id)
        theirs = options.get(f"beam:option:{BUILD_OPTION}:v1", "unknown")
        if theirs != build():
            raise WorkerRefused(
                f"expected a job of cuckooflow {build()}, which these workers run, received one of {theirs}; submit it "
                f"with that build, or start the workers with the job's"
            )
        environment = {
            **os.environ,
            "WORKER_ID": request.worker_id,
            "PIPELINE_OPTIONS": json.dumps(options),
            "LOGGING_API_SERVICE_DESCRIPTOR": _descriptor(request.logging_endpoint.url),
            "CONTROL_API_SERVICE_DESCRIPTOR": _descriptor(request.control_endpoint.url),
        }
        with self._lock:
            if len(self._living()) >= WORKERS_MAX:
                raise WorkerRefused(
                    f"expected at most {WORKERS_MAX} workers, another was asked for; start more pools"
                )
            process = subprocess.Popen(
                [sys.executable, "-m", "apache_beam.runners.worker.sdk_worker_main"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
            )
            self._workers.append((request.worker_id, process))
        _LOGGER.info("worker=%s pid=%d started", request.worker_id, process.pid)

    def _living(self) -> list[tuple[str, subprocess.Popen[bytes]]]:
        for id_, process in self._workers:
            if process.poll() is not None:
                _LOGGER.info("worker=%s pid=%d ended code=%s", id_, process.pid, process.returncode)
        self._workers = [worker for worker in self._workers if worker[1].returncode is None]
        return list(self._workers)


def serve(listen: str) -> None:
    """Run a pool until SIGTERM or SIGINT; its workers end with it."""
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    pool = WorkerPool()
    server = grpc.server(ThreadPoolExecutor(_THREADS))
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.add_insecure_port(listen)
    server.start()
    _LOGGER.info("pool=%s build=%s", listen, build())
    while not stopping.wait(_SIGNAL_S):  # a signal that another thread takes does not wake this one
        pass
    server.stop(grace=None)
    pool.stop()


def main() -> None:
    """Entry point of ``cuckooflow-worker-pool``."""
    parser = argparse.ArgumentParser(prog="cuckooflow-worker-pool", description=__doc__.splitlines()[0])
    parser.add_argument("--listen", default="127.0.0.1:50000", help="host:port; default %(default)s")
    given = parser.parse_args()
    logging.basicConfig(
        level=os.environ.get("CUCKOOFLOW_LOG_LEVEL", "INFO"),
        format="time=%(asctime)s level=%(levelname)s logger=%(name)s %(message)s",
    )
    serve(given.listen)


def _job_options(endpoint: str, worker: str) -> dict[str, Any]:
    with grpc.insecure_channel(endpoint) as channel:
        answer = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel).GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            timeout=PROVISION_TIMEOUT_S,
            wait_for_ready=True,
            metadata=[("worker_id", worker)],
        )
    return dict(json_format.MessageToDict(answer.info.pipeline_options))


def _descriptor(url: str) -> str:
    return text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
