"""Runs a pipeline on a runner, until it ends or is asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.runners.runner import PipelineResult, PipelineState

from cuckooflow.errors import CuckooflowError, ReadOnceLog, named_cause
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.runners import direct, prism
from cuckooflow.runners.preset import RunnerPreset
from cuckooflow.transforms.front_ends import FrontEnd, stop_sources
from cuckooflow.transforms.hand_over import HandOver

#: The runners that need no cluster, by name.
PRESETS = {"direct": direct.preset, "prism": prism.preset}

#: Adds the stages to a pipeline, with this front end before its sources.
Build = Callable[[beam.Pipeline, FrontEnd], Any]


def run_pipeline(
    name: str,
    job: JobSpec,
    runner: str,
    stop_at_end: bool,
    beam_args: Sequence[str],
    hand_over: HandOver | None = None,
) -> None:
    """Run the ``join`` or ``train`` pipeline of a job in process or on Prism.

    Args:
        stop_at_end: take the logs as bounded: process what they hold, close every window, stop.
            Otherwise the pipeline runs until SIGTERM or SIGINT, which stop it without draining.
        hand_over: of the join: where a backfill ended and it goes on.

    Raises:
        CuckooflowError: the pipeline failed; a named error from inside a worker comes out as itself.
    """
    if name == "join" and job.subscriptions():
        raise ReadOnceLog(
            f"expected a runner that keeps state for {', '.join(job.subscriptions())}, received {runner}: what it has "
            "acknowledged would be lost with its process; use --runner flink or dataflow"
        )
    preset = PRESETS[runner](beam_args)
    on_signal(stop_sources)
    submit(stages(name, job, stop_at_end, hand_over), preset, partial(await_end, name))


class BatchRuns(Protocol):
    """Runs the phases of bounded work, each a pipeline, one after the other."""

    def begin(self) -> None:
        """End what a predecessor that was killed has left running of the same work."""
        ...

    def run(self, phase: str, build: Callable[[beam.Pipeline], Any]) -> None:
        """Run a pipeline to its end.

        Args:
            build: adds the stages to the pipeline.

        Raises:
            CuckooflowError: the pipeline failed; a named error from inside a worker comes out as itself.
        """
        ...


class DirectBatch:
    """Phases in this process. See :class:`BatchRuns`."""

    def __init__(self, beam_args: Sequence[str] = ()) -> None:
        self._beam_args = beam_args

    def begin(self) -> None:
        """Nothing of it outlives its process."""

    def run(self, phase: str, build: Callable[[beam.Pipeline], Any]) -> None:
        """See :class:`BatchRuns`."""
        preset = direct.preset(self._beam_args)
        submit(lambda pipeline, _: build(pipeline), preset, partial(await_end, phase))


def stages(name: str, job: JobSpec, stop_at_end: bool, hand_over: HandOver | None) -> Build:
    """Those of the ``join`` or ``train`` pipeline of a job."""

    def build(pipeline: beam.Pipeline, front_end: FrontEnd) -> None:
        # Imported here: the join needs neither the store's client nor, through the models, TensorFlow.
        if name == "join":
            from cuckooflow.pipelines.join.pipeline import build_join

            build_join(pipeline, job, front_end, stop_at_end, hand_over)
        else:
            from cuckooflow.pipelines.train.pipeline import build_train

            build_train(pipeline, job, front_end, stop_at_end)

    return build


def on_signal(stop: Callable[[], None]) -> None:
    """Call ``stop`` at SIGTERM and SIGINT."""

    def handler(_number: int, _frame: FrameType | None) -> None:
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def submit(build: Build, preset: RunnerPreset, follow: Callable[[PipelineResult], None]) -> None:
    """Build a pipeline, hand it to its runner, and follow it.

    Args:
        follow: handed what the runner answers; returns when the caller is done with the pipeline.

    Raises:
        CuckooflowError: the pipeline failed; a named error from inside a worker comes out as itself.
    """
    pipeline = beam.Pipeline(runner=preset.make_runner(), options=preset.options)
    build(pipeline, preset.front_end)
    try:
        follow(pipeline.run())
    except Exception as e:
        named = named_cause(e)
        if named is None:
            raise
        raise named from e


def await_end(name: str, result: PipelineResult) -> None:
    """Wait until a pipeline is done.

    Raises:
        CuckooflowError: it ended otherwise.
    """
    state = result.wait_until_finish()
    if state != PipelineState.DONE:
        raise CuckooflowError(f"the {name} pipeline ended as {state}; expected {PipelineState.DONE}")
