"""What a pipeline needs to know of the runner it is built for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner


@dataclass(frozen=True)
class RunnerPreset:
    """A runner and the options that make it right for these pipelines.

    Attributes:
        name: as on the command line.
        make_runner: makes the runner; called once, when the pipeline runs.
        options: Beam's options, the user's own flags included.
        front_end: which source the poll core stands behind: ``generator`` for a runner that fuses
            the whole pipeline in one process, ``splittable`` for one that checkpoints a source,
            ``stateful`` where checkpoints grow with that one, ``native`` for one that reads Pub/Sub itself.
    """

    name: str
    make_runner: Callable[[], PipelineRunner]
    options: PipelineOptions
    front_end: Literal["generator", "splittable", "stateful", "native"]
