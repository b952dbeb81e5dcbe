"""Flink, through Beam's portable runner: the options that make it right for these pipelines.

The source's front end is the stateful poller: with the Flink runner that Maven has (2.70) the checkpoints of a
splittable source grow with every poll (apache/beam#27648). A job does not end by itself: where the input of a
stage ends while a processing-time timer is pending, that runner waits for a timer that Flink no longer fires.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import PipelineRunner

from cuckooflow.build import build
from cuckooflow.errors import SpecError
from cuckooflow.runners.preset import RunnerPreset
from cuckooflow.runners.worker_pool import BUILD_OPTION


class JobServerOptions(PipelineOptions):
    """Options that the job server knows and Beam's Python does not; declared, they travel without a warning."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        for name in ("checkpointing_interval", "checkpoint_timeout_millis", "max_bundle_time_mills"):
            parser.add_argument(f"--{name}", type=int)
        names = ("savepoint_path", "state_backend", "state_backend_storage_path", "operator_chaining")
        for name in (*names, BUILD_OPTION):
            parser.add_argument(f"--{name}")
        for name in (
            "externalized_checkpoints_enabled",
            "retain_externalized_checkpoints_on_cancellation",
            "finish_bundle_before_checkpointing",
            "allow_non_restored_state",
        ):
            parser.add_argument(f"--{name}", action="store_true", default=None)


@dataclass(frozen=True)
class FlinkOptions:
    """How a job runs on Flink.

    Attributes:
        job_endpoint: of Beam's job server, ``host:port``.
        worker_pool: of the Python worker pool, ``host:port``.
        job_name: what Flink calls the job.
        checkpointing_interval_ms: between the beginnings of two checkpoints, default 10 seconds. After a failure
            so much is read again; a shorter one costs throughput.
        checkpoint_timeout_ms: after which a checkpoint counts as failed and the job restarts, default 5 minutes.
        parallelism: subtasks of each stage, default 1.
        worker_processes: Python processes for each TaskManager, default 1; more of them use more cores. Only one
            may be where a sink is a local log, which has one writer.
        max_parallelism: over how many groups keyed state is dealt out, default 128. Fixed for the life of the
            job's state: it cannot be rescaled beyond.
        bundle_time_ms: after which a bundle ends, default 40. Costs freshness; a shorter one costs CPU, also of an idle job.
        state_cache_mb: of state that a Python worker keeps from one bundle to the next, default 256; without it
            each read of state is a round trip to Flink.
        savepoint_path: savepoint, or retained checkpoint, to go on from; default none, the job begins anew.
    """

    job_endpoint: str
    worker_pool: str
    job_name: str
    checkpointing_interval_ms: int = 10_000
    checkpoint_timeout_ms: int = 300_000
    parallelism: int = 1
    worker_processes: int = 1
    max_parallelism: int = 128
    bundle_time_ms: int = 40
    state_cache_mb: int = 256
    savepoint_path: str | None = None

    def args(self) -> list[str]:
        """As Beam's options."""
        named = {
            "job_endpoint": self.job_endpoint,
            "environment_type": "EXTERNAL",
            "environment_config": self.worker_pool,
            "job_name": self.job_name,
            "checkpointing_interval": self.checkpointing_interval_ms,
            "checkpoint_timeout_millis": self.checkpoint_timeout_ms,
            "parallelism": self.parallelism,
            "sdk_worker_parallelism": self.worker_processes,
            "max_parallelism": self.max_parallelism,
            "max_bundle_time_mills": self.bundle_time_ms,
            "max_cache_memory_usage_mb": self.state_cache_mb,
            # What is chained depends on the parallelism, and the names of operators without one of their own
            # on what is chained: with chains the state of one parallelism would not be found by another.
            "operator_chaining": "false",
            BUILD_OPTION: build(),
        }
        if self.savepoint_path is not None:
            named["savepoint_path"] = self.savepoint_path
        return [
            "--streaming",
            "--no_save_main_session",
            # What a cancelled or lost job can go on from stays where it is.
            "--externalized_checkpoints_enabled",
            "--retain_externalized_checkpoints_on_cancellation",
            "--finish_bundle_before_checkpointing",
            *(f"--{name}={value}" for name, value in named.items()),
        ]


@dataclass(frozen=True)
class FlinkBatchOptions:
    """How a pipeline over bounded inputs runs on Flink.

    Without ``--streaming``, and with no unbounded input, Beam's job server translates a pipeline for Flink's batch
    execution: nothing is checkpointed, a task that fails is done again from its inputs, and the job ends.

    Attributes:
        job_endpoint, worker_pool, job_name: see :class:`FlinkOptions`.
        parallelism: subtasks of each stage, default 1; each has a Python process of its own, and with it the memory
            that one task takes.
    """

    job_endpoint: str
    worker_pool: str
    job_name: str
    parallelism: int = 1

    def args(self) -> list[str]:
        """As Beam's options."""
        named = {
            "job_endpoint": self.job_endpoint,
            "environment_type": "EXTERNAL",
            "environment_config": self.worker_pool,
            "job_name": self.job_name,
            "parallelism": self.parallelism,
            "sdk_worker_parallelism": self.parallelism,
            BUILD_OPTION: build(),
        }
        return ["--no_save_main_session", *(f"--{name}={value}" for name, value in named.items())]


@dataclass(frozen=True)
class UserFlags:
    """What the user's own Beam flags say of what else would be found out."""

    job_endpoint: str | None
    worker_pool: str | None
    job_name: str | None
    parallelism: int

    @classmethod
    def parse(cls, beam_args: Sequence[str]) -> UserFlags:
        """From the command line.

        Raises:
            SpecError: a parallelism that is no positive number.
        """
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for name in ("job_endpoint", "environment_config", "job_name"):
            parser.add_argument(f"--{name}")
        parser.add_argument("--parallelism", default="1")
        given, _ = parser.parse_known_args(list(beam_args))
        if not given.parallelism.isdecimal() or int(given.parallelism) < 1:
            raise SpecError(f"expected --parallelism of 1 or more, received {given.parallelism}")
        return cls(given.job_endpoint, given.environment_config, given.job_name, int(given.parallelism))


def preset(options: FlinkOptions | FlinkBatchOptions, beam_args: Sequence[str] = ()) -> RunnerPreset:
    """A Flink cluster behind Beam's job server, with workers from a pool.

    Args:
        beam_args: the user's own flags, which win.
    """

    def runner() -> PipelineRunner:
        return PortableRunner()

    return RunnerPreset(
        name="flink",
        make_runner=runner,
        options=PipelineOptions([*options.args(), *beam_args]),
        front_end="stateful",
    )
