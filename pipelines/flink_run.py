"""``run --runner flink``: submits a pipeline to Flink, and follows the job through Flink's own REST.

The job's life is Flink's: neither this process nor the job server is needed once it runs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from apache_beam.runners.runner import PipelineResult

from cuckooflow.errors import (
    CuckooflowError,
    FlinkError,
    FlinkJobNotFound,
    FlinkRefused,
    FlinkUnavailable,
    SpecError,
    WorkerRefused,
    named_in,
)
from cuckooflow.pipelines.flink_state import Submission, note
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.log_specs import LocalLogSpec
from cuckooflow.pipelines.run import Build, on_signal, stages, submit
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
#: What the job that trains days is called after its job spec's name.
BACKFILL_TRAIN = "backfill-train"
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
        go_on = f"cuckooflow job resume {name} {spec_file}"
        if not detach and _stay(rest, started, stop.wait, go_on):
            print(f"job {started.id} stopped; go on from {rest.stop(started.id)} with: {go_on}", flush=True)

    submit(stages(name, job, stop_at_end=False, hand_over=hand_over), preset(options, beam_args), follow)


def train_days_on_flink(
    job: JobSpec,
    addresses: ClusterAddresses,
    rest: FlinkRest,
    beam_args: Sequence[str],
    build: Build,
    done: Callable[[], bool],
) -> None:
    """Run a training on days until it is done, or SIGTERM or SIGINT stop it; its job ends with the command.

    A source on Flink does not end by itself, so the job is stopped once ``done`` says so. It is stopped as ``run`` is,
    with a savepoint: what the trainers gave out has gone into its logs when that is complete. Nothing goes on
    from it, as the store knows where training stands.

    Args:
        addresses: of job server and worker pool, where the Beam options do not name others.
        rest: of the Flink that the job server submits to.
        build: adds the stages.
        done: asked twice a second.

    Raises:
        SpecError: no cluster is known.
        CuckooflowError: the job failed; a named error from inside a worker comes out as itself.
    """
    options = _options(BACKFILL_TRAIN, job, addresses, UserFlags.parse(beam_args), None)

    def end_all() -> None:
        for one in rest.jobs():
            if one.name == options.job_name and not one.ended:
                rest.cancel(one.id)

    end_all()  # left behind by a command that was killed
    known = {one.id for one in rest.jobs()}
    asked = threading.Event()
    on_signal(asked.set)

    def follow(result: PipelineResult) -> None:
        started = _await_work(rest, options.job_name, known, result)
        print(f"job {started.id} runs as {started.name} on {rest.url}", flush=True)

        def stop(seconds: float) -> bool:
            named = None
            with contextlib.suppress(FlinkUnavailable, FlinkJobNotFound):  # as it is followed that is seen
                named = named_in(rest.failure(started.id)) if rest.failures(started.id) else None
            if named is not None:  # it would come again
                raise named
            return asked.wait(seconds) or done()

        if _stay(rest, started, stop, "the same command"):
            rest.stop(started.id)

    try:
        submit(build, preset(options, beam_args), follow)
    except BaseException:
        with contextlib.suppress(FlinkError):
            end_all()
        raise


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
        BACKFILL_TRAIN: (logs.train_metrics, logs.train_dead_letters),
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


def _stay(rest: FlinkRest, job: FlinkJob, stop: Callable[[float], bool], resume: str) -> bool:
    """Follow a job until it is to be stopped, then True, or until it has ended.

    Args:
        stop: waits for so many seconds, or until the job is to be stopped, and says whether it is.
        resume: how the user goes on where the JobManager is lost.
    """
    state, seen_at = job.state, time.monotonic()
    while not stop(_POLL_S):
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
            return False
    return True
