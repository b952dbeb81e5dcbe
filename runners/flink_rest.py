"""Flink's REST interface, as much of it as operating a job needs.

The paths and fields are those of the REST API v1 of Flink 1.19:
https://nightlies.apache.org/flink/flink-docs-release-1.19/docs/ops/rest_api/
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cuckooflow.errors import FlinkJobNotFound, FlinkRefused, FlinkUnavailable, SpecError
from cuckooflow.runners.cluster import ClusterAddresses

#: How long one request may take.
REQUEST_TIMEOUT_S = 30.0
#: How long a savepoint may take, or a job until it has stopped.
SAVEPOINT_TIMEOUT_S = 600.0
#: How long a job may begin, or recover, until a savepoint of it is given up.
RECOVERY_TIMEOUT_S = 60.0
_POLL_S = 0.2
#: How Flink refuses a savepoint of a job that begins or recovers.
_NOT_YET = "Not all required tasks are currently running"
#: How much of a cause a message has.
_CAUSE_CHARS = 2_000

#: A job in one of these will not run again.
ENDED = frozenset({"FINISHED", "CANCELED", "FAILED", "SUSPENDED"})


@dataclass(frozen=True)
class FlinkJob:
    """A job as Flink lists it.

    Attributes:
        start_ms: since the epoch.
        at_work: every subtask runs; a job is ``RUNNING`` as soon as it has been accepted.
    """

    id: str
    name: str
    state: str
    start_ms: int
    at_work: bool

    @property
    def ended(self) -> bool:
        """Whether it will not run again."""
        return self.state in ENDED


@dataclass(frozen=True)
class Checkpoint:
    """A completed checkpoint, or savepoint, of a job.

    Attributes:
        kind: ``checkpoint`` or ``savepoint``.
        path: what a job can go on from; None for one that is not kept outside of the job.
        completed_ms: since the epoch.
        size_bytes: of all state that it refers to.
    """

    kind: Literal["checkpoint", "savepoint"]
    path: str | None
    completed_ms: int
    size_bytes: int


@dataclass(frozen=True)
class Checkpoints:
    """What Flink says of a job's checkpoints, at one moment.

    Attributes:
        newest: the newest completed checkpoint or savepoint; None: there is none.
        failed: how many have failed so far.
    """

    newest: Checkpoint | None
    failed: int


class FlinkRest:
    """A client. Keeps no connection; thread-safe.

    Args:
        url: ``http://host:port``.

    Every method raises :class:`~cuckooflow.errors.FlinkUnavailable` where nothing answers, and
    :class:`~cuckooflow.errors.FlinkRefused` where the answer is an error.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def jobs(self) -> list[FlinkJob]:
        """All jobs that the JobManager knows, the newest first."""
        found = [
            FlinkJob(
                id=job["jid"],
                name=job["name"],
                state=job["state"],
                start_ms=job["start-time"],
                at_work=job["tasks"]["running"] == job["tasks"]["total"] > 0,
            )
            for job in self.get("/jobs/overview")["jobs"]
        ]
        return sorted(found, key=lambda job: job.start_ms, reverse=True)

    def job(self, name: str) -> FlinkJob:
        """The job with this id, or the newest that has not ended with this name, else the newest.

        Raises:
            FlinkJobNotFound: there is none.
        """
        jobs = self.jobs()
        fitting = [job for job in jobs if name in (job.id, job.name)]
        if not fitting:
            known = ", ".join(f"{job.name} ({job.id})" for job in jobs) or "none"
            raise FlinkJobNotFound(
                f"expected a job with the id or name {name!r}; the JobManager at {self.url} knows: {known}"
            )
        return next((job for job in fitting if not job.ended), fitting[0])

    def newest_checkpoint(self, job: str) -> Checkpoint | None:
        """The newest completed checkpoint or savepoint of a job, by its id."""
        return self.checkpoints(job).newest

    def checkpoints(self, job: str) -> Checkpoints:
        """A job's checkpoints, by its id; none of a job that makes none, such as a bounded one."""
        try:
            answer: dict[str, Any] = self.get(f"/jobs/{job}/checkpoints")
        except FlinkJobNotFound:
            self.get(f"/jobs/{job}")  # Flink's answer is the same where it does not know the job at all
            answer = {}
        latest = answer.get("latest", {})
        found = [latest[kind] for kind in ("completed", "savepoint") if latest.get(kind)]
        newest = max(found, key=lambda one: one["latest_ack_timestamp"], default=None)
        return Checkpoints(
            newest=None if newest is None else _checkpoint(newest),
            failed=int(answer.get("counts", {}).get("failed", 0)),
        )

    def configuration(self) -> dict[str, str]:
        """The JobManager's own."""
        return {entry["key"]: entry["value"] for entry in self.get("/jobmanager/config")}

    def failure(self, job: str) -> str:
        """The innermost cause of a job's last failure, in Flink's words and, of a worker's, Python's."""
        text = self.get(f"/jobs/{job}/exceptions")["root-exception"] or "no cause is known"
        return _innermost(text)

    def failures(self, job: str) -> int:
        """How often a job has failed so far; counted up to the 16 that Flink remembers."""
        return len(self.get(f"/jobs/{job}/exceptions")["exceptionHistory"]["entries"])

    def savepoint(self, job: str, folder: str | None = None) -> str:
        """Take a savepoint of a job that goes on.

        Args:
            folder: where to, as a URI; default the cluster's ``state.savepoints.dir``.

        Returns:
            The savepoint's path.
        """
        return self._triggered(job, "savepoints", {"cancel-job": False, "target-directory": folder})

    def stop(self, job: str, folder: str | None = None) -> str:
        """Stop a job with a savepoint, without draining: no window closes, nothing is emitted beyond it.

        Returns:
            The savepoint's path.
        """
        path = self._triggered(job, "stop", {"drain": False, "targetDirectory": folder})
        self._await_end(job)
        return path

    def cancel(self, job: str) -> None:
        """End a job at once; its retained checkpoints stay."""
        self._request("PATCH", f"/jobs/{job}?mode=cancel", None)
        self._await_end(job)

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return self._request("GET", path, None)

    # --- how

    def _triggered(self, job: str, what: str, body: Mapping[str, object]) -> str:
        """Where the savepoint lies; one that is refused while tasks begin or recover is asked for again."""
        given = {name: value for name, value in body.items() if value is not None}
        recovered_until = time.monotonic() + RECOVERY_TIMEOUT_S
        while True:
            operation = self._operation(job, what, given)
            if "failure-cause" not in operation:
                return str(operation["location"])
            failure = operation["failure-cause"]
            recovers = _NOT_YET in str(failure) and not self._ended(job)
            if not recovers or time.monotonic() > recovered_until:
                cause = _innermost(str(failure.get("stack-trace", failure)))
                raise FlinkRefused(f"expected a savepoint of job {job}, Flink answered: {cause}")
            time.sleep(_POLL_S)

    def _operation(self, job: str, what: str, given: Mapping[str, object]) -> dict[str, Any]:
        """What came of asking for a savepoint once."""
        trigger = self._request("POST", f"/jobs/{job}/{what}", given)["request-id"]
        answer: dict[str, Any] = {}

        def done() -> bool:
            answer.update(self.get(f"/jobs/{job}/savepoints/{trigger}"))
            return bool(answer["status"]["id"] == "COMPLETED")

        self._await(done, f"a savepoint of job {job}")
        return dict(answer["operation"])

    def _ended(self, job: str) -> bool:
        return self.get(f"/jobs/{job}")["state"] in ENDED

    def _await_end(self, job: str) -> None:
        self._await(lambda: self._ended(job), f"the end of job {job}")

    @staticmethod
    def _await(condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SAVEPOINT_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise FlinkUnavailable(f"expected {what} within {SAVEPOINT_TIMEOUT_S:g} s, it has not come")
            time.sleep(_POLL_S)

    def _request(self, method: str, path: str, body: Mapping[str, object] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                said = _errors(error.read())
            if error.code == 404 and path.startswith("/jobs/"):
                raise FlinkJobNotFound(
                    f"{method} {self.url}{path}: expected a job, Flink answered: {said}"
                ) from None
            raise FlinkRefused(f"{method} {self.url}{path}: Flink answered {error.code}: {said}") from None
        except (OSError, ValueError) as error:
            raise FlinkUnavailable(
                f"expected Flink's REST at {self.url}, received: {error}; is the JobManager up?"
            ) from error
        return json.loads(text) if text.strip() else None


def find_flink(cluster: Path, addresses: ClusterAddresses, rest: str | None) -> FlinkRest:
    """The REST client of a given address, else of the local cluster in the folder ``cluster``.

    Raises:
        SpecError: there is neither.
    """
    url = rest or addresses.flink_rest
    if url is None:
        raise SpecError(
            f"expected --flink-rest or a local cluster in {cluster}, found neither; start one with: cuckooflow cluster up"
        )
    return FlinkRest(url)


def _checkpoint(told: Mapping[str, Any]) -> Checkpoint:
    path = told["external_path"]
    return Checkpoint(
        kind="savepoint" if told["is_savepoint"] else "checkpoint",
        path=path if "/" in path else None,
        completed_ms=told["latest_ack_timestamp"],
        size_bytes=told["state_size"],
    )


def _innermost(stack: str) -> str:
    """The last cause of a Java stack trace, without the frames."""
    cause = stack.rpartition("Caused by: ")[2]
    lines = [line for line in cause.splitlines() if not line.startswith(("\tat ", "\t..."))]
    return "\n".join(lines).strip()[-_CAUSE_CHARS:]


def _errors(body: bytes) -> str:
    """The messages of an error's JSON, without stack traces."""
    try:
        messages = [str(message) for message in json.loads(body)["errors"]]
    except (ValueError, KeyError, TypeError):
        messages = [body.decode(errors="replace")]
    return "; ".join(_innermost(message) for message in messages)[:_CAUSE_CHARS]
