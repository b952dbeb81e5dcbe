"""The in-process runner, pinned.

Beam's default runner switches implementation by pipeline; only FnApiRunner keeps a pipeline live
(a later stage sees rows while the source still runs), and only with one generator as the source and
no shuffle before the end, which is how the pipelines of cuckooflow are built for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineRunner

from cuckooflow.runners.preset import RunnerPreset


class _InProcessRunner(FnApiRunner):
    """Fires what is still to come in processing time when nothing else is left, where Beam's takes it for an error.

    Such a timer is set by what a stage is given at the end of the input by the stage before it: Beam looks at the
    time that the timer holds the watermark at, finds the end of time, and waits for it.
    """

    def _schedule_ready_bundles(self, runner_execution_context: Any) -> None:
        super()._schedule_ready_bundles(runner_execution_context)
        queues = runner_execution_context.queues
        if len(queues.ready_inputs) == 0 and len(queues.watermark_pending_inputs) == 0:
            while len(queues.time_pending_inputs) > 0:
                (stage_name, _), timers = queues.time_pending_inputs.deque()
                queues.ready_inputs.enque((stage_name, timers))


def preset(beam_args: Sequence[str]) -> RunnerPreset:
    """One process, one worker, no daemon; the job's progress lives in its logs and its store."""

    def runner() -> PipelineRunner:
        return _InProcessRunner()

    args = ["--no_save_main_session", "--environment_type=beam:env:embedded_python:v1", *beam_args]
    return RunnerPreset(
        name="direct", make_runner=runner, options=PipelineOptions(args), front_end="generator"
    )
