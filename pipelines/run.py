"""Runs one of the two pipelines on a runner, until it ends or is asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType

import apache_beam as beam
from apache_beam.runners.runner import PipelineState

from cuckooflow.errors import CuckooflowError
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.join.pipeline import build_join
from cuckooflow.pipelines.train.pipeline import build_train
from cuckooflow.runners import direct, prism
from cuckooflow.transforms.poll_loop import STOP

_PRESETS = {"direct": direct.preset, "prism": prism.preset}
_BUILDERS = {"join": build_join, "train": build_train}


def run_pipeline(name: str, job: JobSpec, runner: str, stop_at_end: bool, beam_args: Sequence[str]) -> None:
    """Run the ``join`` or ``train`` pipeline of a job.

    Args:
        stop_at_end: take the logs as bounded: process what they hold, close every window, stop.
            Otherwise the pipeline runs until SIGTERM or SIGINT, which stop it without draining.

    Raises:
        CuckooflowError: the pipeline failed; a named error from inside a worker comes out as itself.
    """
    preset = _PRESETS[runner](beam_args)

    def stop(_number: int, _frame: FrameType | None) -> None:
        STOP.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    pipeline = beam.Pipeline(runner=preset.make_runner(), options=preset.options)
    _BUILDERS[name](pipeline, job, front_end=preset.front_end, stop_at_end=stop_at_end)
    try:
        result = pipeline.run()
        state = result.wait_until_finish()
    except Exception as e:
        named = _named_cause(e)
        if named is None:
            raise
        raise named from e
    if state != PipelineState.DONE:
        raise CuckooflowError(f"the {name} pipeline ended as {state}; expected {PipelineState.DONE}")


def _named_cause(error: BaseException) -> CuckooflowError | None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CuckooflowError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
