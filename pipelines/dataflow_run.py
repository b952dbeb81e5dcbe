"""``run --runner dataflow``: submits a pipeline to Google's Dataflow, whose job it is from then on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.runners.runner import PipelineResult

from cuckooflow.errors import SpecError
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.log_specs import FilesLogSpec, InputSpec, LocalLogSpec
from cuckooflow.pipelines.run import stages, submit
from cuckooflow.runners.dataflow import REQUIRED, DataflowOptions, job_name, options_of, preset
from cuckooflow.runners.preset import RunnerPreset
from cuckooflow.transforms.hand_over import HandOver

_LOGS = ("impressions", "actions", "examples", "late", "unmatched", "dead_letters", "join_balances")


def run_on_dataflow(
    name: str, job: JobSpec, beam_args: Sequence[str], hand_over: HandOver | None = None
) -> None:
    """Submit the join of a job and return; with ``--template_location``, write a template instead.

    Raises:
        SpecError: a flag is missing, a log is a folder, or it is another pipeline.
        CuckooflowError: the pipeline cannot be built.
    """
    if name != "join":
        raise SpecError(
            f"expected join for --runner dataflow, received {name}: the trainer runs beside its store, on Flink or here"
        )
    folders = [log for log in _LOGS if _is_here(job, getattr(job.logs, log))]
    if folders:
        raise SpecError(
            f"expected topics, or for inputs subscriptions or files in a bucket with their manifest in one, for --runner "
            f"dataflow, received folders of this machine for {', '.join(folders)}"
        )
    chosen = preset(options_of(f"{job.name}-{name}", beam_args), beam_args)
    submit(stages(name, job, False, hand_over), chosen, lambda result: _tell(name, chosen, result))


def _is_here(job: JobSpec, log: InputSpec) -> bool:
    """Whether a log lies on this machine."""
    if isinstance(log, FilesLogSpec):
        files = log.files.resolved_in(str(job.dir))
        return not all("://" in (place or "") for place in (files.path, files.manifest))
    return isinstance(log, LocalLogSpec)


def planned(name: str, job: JobSpec) -> RunnerPreset:
    """What a submission would give Dataflow, with words where the user's flags would be."""
    words: dict[str, Any] = {flag: f"(--{flag})" for flag in REQUIRED}
    return preset(DataflowOptions(**words, job_name=job_name(f"{job.name}-{name}")))


def _tell(name: str, chosen: RunnerPreset, result: PipelineResult) -> None:
    google = chosen.options.view_as(GoogleCloudOptions)
    if google.template_location is not None:
        print(f"{name}: template {google.template_location} written", flush=True)
        return
    job_id = result.job_id()
    place = f"--project={google.project} --region={google.region}"
    print(f"{name}: job {job_id} runs as {google.job_name}; it goes on without this process", flush=True)
    print(f"stop it, without draining, with: gcloud dataflow jobs cancel {job_id} {place}", flush=True)
