"""``run --runner flink``: submits a pipeline to Flink, and follows the job through Flink's own REST.

The job's life is Flink's: neither this process nor the job server is needed once it runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from apache_beam.runners.runner import PipelineResult

from cuckooflow.errors import (
    CuckooflowError,
    FlinkJobNotFound,
    FlinkRefused,
    FlinkUnavailable,
    SpecError,
    WorkerRefused,
)
from cuckooflow.pipelines.flink_state import Submission, note
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.log_specs import LocalLogSpec
from cuckooflow.pipelines.run import on_signal, stages, submit
from cuckooflow.runners.cluster import ClusterAddresses
from cuckooflow.runners.flink import FlinkOptions, UserFlags, preset
from cuckooflow.runners.flink_rest import FlinkJob, FlinkRest
from cuckooflow.runners.preset import RunnerPreset
from cuckooflow.transforms.hand_over import HandOver

#: How long Flink may take to run a job that the job server took.
SUBMIT_TIMEOUT_S = 120.0
#: How long the JobManager may be away before the job counts as lost.
AWAY_TIMEOUT_S = 60.0
_POLL_S = 0.5
_CHECKPOINTS, _SAVEPOINTS = "state.checkpoints.dir", "state.savepoints.dir"


def run_on_flink(
    name: str,
    job: JobSpec,
    addresses: ClusterAddresses,
    rest: FlinkRest,
    beam_args: Sequence[str],
    spec_file: Path,
    resume: str | None = None,
    detach: bool = False,
    hand_over: HandOver | None = None,
) -> None:
    """Submit the ``join`` or ``train`` pipeline of a job and, unless ``detach``, stay with it until it ends.

    SIGTERM and SIGINT stop the job with a savepoint, without draining.

    Args:
        addresses: of job server and worker pool, where the Beam options do not name others.
        rest: of the Flink that the job server submits to.
        spec_file: where the job comes from, for what the user is told.
        resume: savepoint or retained checkpoint to go on from.

        hand_over: of the join: where a backfill ended and it goes on.

    Raises:
        SpecError: no cluster is known.
        FlinkRefused: a job of this name runs already.
        CuckooflowError: the job failed.
    """
    flags = UserFlags.parse(beam_args)
    options = _options(name, job, addresses, flags, resume)
    known = rest.jobs()
    running = next((one for one in known if one.name == options.job_name and not one.ended), None)
    if running is not None:
        raise FlinkRefused(
            f"job {running.name} is {running.state} as {running.id}: a second one would write everything twice; stop it "
            f"first, or give another --job_name"
        )
    stop = threading.Event()
    on_signal(stop.set)

    def follow(result: PipelineResult) -> None:
        started = _await_work(rest, options.job_name, {one.id for one in known}, result)
        folders = rest.configuration()
        note(
            job,
            Submission(
                pipeline=name,
                job_id=started.id,
                job_name=started.name,
                rest=rest.url,
                checkpoints=folders.get(_CHECKPOINTS, ""),
                savepoints=folders.get(_SAVEPOINTS, ""),
                resumed_from=resume,
            ),
        )
        print(f"{name}: job {started.id} runs as {started.name} on {rest.url}", flush=True)
        if not detach:
            _stay(rest, started, stop, f"cuckooflow job resume {name} {spec_file}")

    submit(stages(name, job, stop_at_end=False, hand_over=hand_over), preset(options, beam_args), follow)


def planned(name: str, job: JobSpec, addresses: ClusterAddresses) -> RunnerPreset:
    """What a submission would give Flink; where nothing runs, with the words of what would have to."""
    known = ClusterAddresses(
        job_endpoint=addresses.job_endpoint or "(job server of the cluster)",
        worker_pool=addresses.worker_pool or "(worker pool of the cluster)",
    )
    return preset(_options(name, job, known, UserFlags.parse([]), None))


def _options(
    name: str, job: JobSpec, addresses: ClusterAddresses, flags: UserFlags, resume: str | None
) -> FlinkOptions:
    job_endpoint = flags.job_endpoint or addresses.job_endpoint
    worker_pool = flags.worker_pool or addresses.worker_pool
    if job_endpoint is None or worker_pool is None:
        raise SpecError(
            f"expected a job server and a worker pool in the local cluster, or --job_endpoint and --environment_config, "
            f"received job server {job_endpoint}, worker pool {worker_pool}; start them with: cuckooflow cluster up"
        )
    return FlinkOptions(
        job_endpoint=job_endpoint,
        worker_pool=worker_pool,
        job_name=flags.job_name or f"{job.name}-{name}",
        parallelism=flags.parallelism,
        worker_processes=flags.parallelism if _all_topics(name, job) else 1,
        savepoint_path=resume,
    )


def _all_topics(name: str, job: JobSpec) -> bool:
    """Whether a pipeline writes no local log, which only one process can write."""
    logs = job.logs
    written = {
        "join": (logs.examples, logs.late, logs.unmatched, logs.dead_letters, logs.join_balances),
        "train": (logs.train_metrics, logs.train_dead_letters),
    }[name]
    return not any(isinstance(log, LocalLogSpec) for log in written)


def _await_work(rest: FlinkRest, name: str, known: set[str], result: PipelineResult) -> FlinkJob:
    """The job that the submission became, once every subtask runs."""
    deadline = time.monotonic() + SUBMIT_TIMEOUT_S
    cause = "no cause is known"
    while time.monotonic() < deadline:
        found = next((one for one in rest.jobs() if one.name == name and one.id not in known), None)
        if found is None and result.state in ("FAILED", "CANCELLED"):
            raise FlinkRefused(
                f"expected the job server to submit {name}, it answered {result.state}; read its log"
            )
        if found is not None and found.at_work:
            return found
        if found is not None and found.state not in ("CREATED", "INITIALIZING", "RUNNING"):
            cause = rest.failure(found.id)
            if WorkerRefused.__name__ in cause:  # it would be so for ever
                rest.cancel(found.id)
            if found.ended or WorkerRefused.__name__ in cause:
                raise FlinkRefused(f"job {found.id} did not start: {cause}")
        time.sleep(_POLL_S)
    raise FlinkUnavailable(
        f"expected {name} to be at work on {rest.url} within {SUBMIT_TIMEOUT_S:g} s, it is not: {cause}"
    )


def _stay(rest: FlinkRest, job: FlinkJob, stop: threading.Event, resume: str) -> None:
    state, seen_at = job.state, time.monotonic()
    while not stop.wait(_POLL_S):
        try:
            now = rest.job(job.id)
        except FlinkJobNotFound:
            raise FlinkUnavailable(
                f"the JobManager at {rest.url} no longer knows job {job.id}: it was started anew; go on with: {resume}"
            ) from None
        except FlinkUnavailable as error:
            if time.monotonic() - seen_at > AWAY_TIMEOUT_S:
                raise FlinkUnavailable(f"{error}; once it is back go on with: {resume}") from error
            continue
        seen_at = time.monotonic()
        if now.state != state:
            why = f": {rest.failure(job.id)}" if now.state in ("RESTARTING", "FAILING") else ""
            print(f"job {job.id} is {now.state}{why}", flush=True)
            state = now.state
        if now.ended:
            if now.state != "FINISHED":
                raise CuckooflowError(f"job {job.id} ended as {now.state}: {rest.failure(job.id)}")
            return
    print(f"job {job.id} stopped; go on from {rest.stop(job.id)} with: {resume}", flush=True)
