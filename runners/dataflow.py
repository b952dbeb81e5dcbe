"""Google's Dataflow: the options that make it right for these pipelines.

Workers run an image that holds the built wheel (``runners/deploy/dataflow.Dockerfile``), never a source build. Pub/Sub
is read by Dataflow's own reader; a topic by the splittable source. A job is the service's once it is submitted.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from apache_beam.runners.runner import PipelineRunner

from cuckooflow.errors import SpecError
from cuckooflow.runners.preset import RunnerPreset

#: What only the user knows.
REQUIRED = ("project", "region", "temp_location", "sdk_container_image")


@dataclass(frozen=True)
class DataflowOptions:
    """How a job runs on Dataflow; what is not here goes to Beam as it is (``--max_num_workers`` and others).

    Attributes:
        project, region: whose job it is, and where it runs.
        temp_location: ``gs://`` folder for what the service and Beam lay down.
        sdk_container_image: the workers', with the wheel of this build.
        job_name: what Dataflow calls it: lower case letters, digits and hyphens.
        state_cache_mb: of state that a worker keeps from one bundle to the next, default 256; without it each
            read of state is a round trip.
    """

    project: str
    region: str
    temp_location: str
    sdk_container_image: str
    job_name: str
    state_cache_mb: int = 256

    def args(self) -> list[str]:
        """As Beam's options."""
        named = {
            "project": self.project,
            "region": self.region,
            "temp_location": self.temp_location,
            "sdk_container_image": self.sdk_container_image,
            "job_name": self.job_name,
            "max_cache_memory_usage_mb": self.state_cache_mb,
            # The image holds Beam: nothing is staged.
            "sdk_location": "container",
        }
        flags = ["--streaming", "--no_save_main_session", "--enable_streaming_engine"]
        return [*flags, *(f"--{name}={value}" for name, value in named.items())]


def options_of(name: str, beam_args: Sequence[str]) -> DataflowOptions:
    """From the user's own flags.

    Args:
        name: of the job and the pipeline.

    Raises:
        SpecError: naming every flag that is missing.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in (*REQUIRED, "job_name"):
        parser.add_argument(f"--{flag}")
    given, _ = parser.parse_known_args(list(beam_args))
    missing = [f"--{flag}" for flag in REQUIRED if not getattr(given, flag)]
    if missing:
        raise SpecError(
            f"expected {', '.join(f'--{flag}' for flag in REQUIRED)} for Dataflow, received no {', '.join(missing)}"
        )
    required: dict[str, Any] = {flag: getattr(given, flag) for flag in REQUIRED}
    return DataflowOptions(**required, job_name=given.job_name or job_name(name))


def job_name(name: str) -> str:
    """A name as Dataflow takes it.

    >>> job_name("Films_2-join")
    'films-2-join'
    """
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")


def preset(options: DataflowOptions, beam_args: Sequence[str] = ()) -> RunnerPreset:
    """Dataflow.

    Args:
        beam_args: the user's own flags, which win.
    """

    def runner() -> PipelineRunner:
        return DataflowRunner()

    return RunnerPreset(
        name="dataflow",
        make_runner=runner,
        options=PipelineOptions([*options.args(), *beam_args]),
        front_end="native",
    )
