"""What a job on Flink can go on from: found by where its checkpoints lie, also when Flink forgot the job.

Each submission is written down in ``<dir>/flink-jobs.jsonl``. A JobManager that was killed knows nothing of
the jobs that it ran, but their checkpoints are still in their folder, under the job's id.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from apache_beam.io.filesystems import FileSystems

from cuckooflow.errors import NothingToResume
from cuckooflow.pipelines.job_spec import JobSpec

_FILE = "flink-jobs.jsonl"
#: How Flink names a savepoint: by so many characters of the job's id.
_SAVEPOINT_ID_CHARS = 6


@dataclass(frozen=True)
class Submission:
    """One submission of a pipeline.

    Attributes:
        pipeline: join or train.
        job_id: Flink's.
        job_name: Flink's.
        rest: where Flink's REST was.
        checkpoints: the folder with a folder of checkpoints for each job's id; a URI.
        savepoints: the folder of savepoints; a URI, or empty where the cluster has none of its own.
        resumed_from: what it went on from; None if it began anew.
    """

    pipeline: str
    job_id: str
    job_name: str
    rest: str
    checkpoints: str
    savepoints: str
    resumed_from: str | None


def note(job: JobSpec, submission: Submission) -> None:
    """Write a submission down."""
    job.dir.mkdir(parents=True, exist_ok=True)
    with (job.dir / _FILE).open("a") as file:
        file.write(json.dumps(asdict(submission)) + "\n")


def submissions(job: JobSpec, pipeline: str) -> list[Submission]:
    """Of one pipeline, the newest first."""
    file = job.dir / _FILE
    lines = file.read_text().splitlines() if file.exists() else []
    found = [Submission(**json.loads(line)) for line in lines]
    return [one for one in reversed(found) if one.pipeline == pipeline]


def newest_state(job: JobSpec, pipeline: str) -> str:
    """The newest savepoint or retained checkpoint of the last submission; else what that one went on from.

    Raises:
        NothingToResume: it was never submitted, or began anew and has not completed a checkpoint.
    """
    found = submissions(job, pipeline)
    if not found:
        raise NothingToResume(
            f"expected an earlier submission of {pipeline} in {job.dir / _FILE}, found none; begin anew with run, or "
            f"name a savepoint"
        )
    last = found[0]
    state = _newest_of(last) or last.resumed_from
    if state is None:
        raise NothingToResume(
            f"job {last.job_id} began anew and has no completed checkpoint in {last.checkpoints}: nothing of it would "
            f"be lost by beginning anew with run"
        )
    return state


def _newest_of(submission: Submission) -> str | None:
    patterns = [f"{_path(submission.checkpoints)}/{submission.job_id}/chk-*/_metadata"]
    if submission.savepoints:
        short = submission.job_id[:_SAVEPOINT_ID_CHARS]
        patterns.append(f"{_path(submission.savepoints)}/savepoint-{short}-*/_metadata")
    files = [file for result in FileSystems.match(patterns) for file in result.metadata_list]
    if not files:
        return None
    newest = max(files, key=lambda file: file.last_updated_in_seconds)
    return str(newest.path).removesuffix("/_metadata")


def _path(uri: str) -> str:
    """Flink writes local paths as ``file:/...``, which Beam's file systems do not know."""
    return uri.removeprefix("file://").removeprefix("file:").rstrip("/")
