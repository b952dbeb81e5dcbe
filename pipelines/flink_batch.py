"""Phases of bounded work on Flink: each a job in batch mode, submitted and then followed through Flink's REST.

The submitter decides what is done next, and a job does not: where the submitter dies, its last job goes on for a
while. The next submitter of the same work finds it by its name and ends it, so that one alone writes.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.runners.runner import PipelineResult, PipelineState

from cuckooflow.errors import (
    CuckooflowError,
    FlinkJobNotFound,
    FlinkRefused,
    FlinkUnavailable,
    SpecError,
    named_in,
)
from cuckooflow.pipelines.run import submit
from cuckooflow.runners.cluster import ClusterAddresses
from cuckooflow.runners.flink import FlinkBatchOptions, UserFlags, preset
from cuckooflow.runners.flink_rest import FlinkJob, FlinkRest

#: How long the job server may take until Flink lists a job that it took.
LISTED_TIMEOUT_S = 120.0
#: How long the JobManager may be away before a phase counts as lost.
AWAY_TIMEOUT_S = 60.0
#: Failures of one phase that Flink may heal by starting its tasks anew, such as a killed worker; an error of
#: ours, which would come again, ends it at once.
FAILURES_MAX = 3
_POLL_S = 0.25


class FlinkBatch:
    """Phases on Flink. See :class:`~cuckooflow.pipelines.run.BatchRuns`.

    Args:
        name: of the work; its jobs' names begin with it.
        out: what is written to; two works of one name that write elsewhere leave each other alone.
        addresses: of job server and worker pool, where the Beam options do not name others.
        rest: of the Flink that the job server submits to.
        beam_args: the user's own flags, which win.

    Raises:
        SpecError: no cluster is known, or the flags ask for streaming.
    """

    def __init__(
        self, name: str, out: str, addresses: ClusterAddresses, rest: FlinkRest, beam_args: Sequence[str]
    ) -> None:
        flags = UserFlags.parse(beam_args)
        job_endpoint = flags.job_endpoint or addresses.job_endpoint
        worker_pool = flags.worker_pool or addresses.worker_pool
        if job_endpoint is None or worker_pool is None:
            raise SpecError(
                f"expected a job server and a worker pool in the local cluster, or --job_endpoint and "
                f"--environment_config, received job server {job_endpoint}, worker pool {worker_pool}; start them "
                f"with: cuckooflow cluster up"
            )
        if "--streaming" in beam_args:
            raise SpecError("expected a pipeline that ends, received --streaming; leave it out")
        self._job_endpoint = job_endpoint
        self._worker_pool = worker_pool
        self._parallelism = flags.parallelism
        self._rest = rest
        place = hashlib.sha256(out.encode()).hexdigest()[:8]
        self._name = f"{flags.job_name or name}-{place}"
        self._beam_args = _without_job_name(beam_args)

    def begin(self) -> None:
        """Cancel the jobs of a submitter that was killed."""
        for job in self._rest.jobs():
            if job.name.startswith(f"{self._name}-") and not job.ended:
                self._rest.cancel(job.id)

    def run(self, phase: str, build: Callable[[beam.Pipeline], Any]) -> None:
        """Run a phase to its end; an exception here, such as an interrupt, ends its job too."""
        options = FlinkBatchOptions(
            job_endpoint=self._job_endpoint,
            worker_pool=self._worker_pool,
            job_name=f"{self._name}-{phase}",
            parallelism=self._parallelism,
        )
        known = {job.id for job in self._rest.jobs()}

        def follow(result: PipelineResult) -> None:
            job = self._await_listed(options.job_name, known, result)
            try:
                self._await_end(job)
            except BaseException:
                self.begin()
                raise
            result.wait_until_finish()  # it is over: this closes what led to the job server

        submit(lambda pipeline, _: build(pipeline), preset(options, self._beam_args), follow)

    def _await_listed(self, name: str, known: set[str], result: PipelineResult) -> FlinkJob:
        deadline = time.monotonic() + LISTED_TIMEOUT_S
        while time.monotonic() < deadline:
            found = next((one for one in self._rest.jobs() if one.name == name and one.id not in known), None)
            if found is not None:
                return found
            if result.state in (PipelineState.FAILED, PipelineState.CANCELLED):
                raise FlinkRefused(
                    f"expected the job server to submit {name}, it answered {result.state}; read its log"
                )
            time.sleep(_POLL_S)
        raise FlinkUnavailable(
            f"expected {name} on {self._rest.url} within {LISTED_TIMEOUT_S:g} s, it is not listed; read the job "
            f"server's log"
        )

    def _await_end(self, job: FlinkJob) -> None:
        seen_at = time.monotonic()
        while True:
            try:
                state, failures = self._rest.job(job.id).state, self._rest.failures(job.id)
            except FlinkJobNotFound:
                raise FlinkUnavailable(
                    f"the JobManager at {self._rest.url} no longer knows job {job.id}: it was started anew; run the "
                    f"same command again"
                ) from None
            except FlinkUnavailable as error:
                if time.monotonic() - seen_at > AWAY_TIMEOUT_S:
                    raise FlinkUnavailable(f"{error}; once it is back run the same command again") from error
                time.sleep(_POLL_S)
                continue
            seen_at = time.monotonic()
            if state == "FINISHED":
                return
            if failures:
                self._judge(job, state, failures)
            elif state in ("CANCELED", "SUSPENDED"):
                raise CuckooflowError(
                    f"expected job {job.id} ({job.name}) to finish, it is {state}; run the same command again"
                )
            time.sleep(_POLL_S)

    def _judge(self, job: FlinkJob, state: str, failures: int) -> None:
        """Raise what a job failed of, unless Flink may yet heal it."""
        cause = self._rest.failure(job.id)
        named = named_in(cause)
        if named is not None:
            raise named
        if failures > FAILURES_MAX or state in ("FAILED", "CANCELED", "SUSPENDED"):
            raise CuckooflowError(
                f"job {job.id} ({job.name}) failed {failures} times and is {state}: {cause}"
            )


def _without_job_name(beam_args: Sequence[str]) -> list[str]:
    """Each phase has a name of its own."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--job_name")
    return parser.parse_known_args(list(beam_args))[1]
