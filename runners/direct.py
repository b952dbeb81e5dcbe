"""The in-process runner, pinned.

Beam's default runner switches implementation by pipeline; only FnApiRunner keeps a pipeline live
(a later stage sees rows while the source still runs), and only with one generator as the source and
no shuffle before the end, which is how the pipelines of cuckooflow are built for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineRunner

from cuckooflow.runners.preset import RunnerPreset


def preset(beam_args: Sequence[str]) -> RunnerPreset:
    """One process, one worker, no daemon; the job's progress lives in its logs and its store."""

    def runner() -> PipelineRunner:
        return FnApiRunner()

    args = ["--no_save_main_session", "--environment_type=beam:env:embedded_python:v1", *beam_args]
    return RunnerPreset(
        name="direct", make_runner=runner, options=PipelineOptions(args), front_end="generator"
    )
