"""The join pipeline: read both logs, join, sample negatives, write examples; nothing is dropped unseen."""

from __future__ import annotations

from typing import Literal

import apache_beam as beam

from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.log_specs import LogSpec
from cuckooflow.pipelines.options import (
    action_schema,
    declared_columns,
    impression_schema,
    join_options,
    poll_options,
)
from cuckooflow.transforms.balances import JOIN, SAMPLING
from cuckooflow.transforms.front_ends import FrontEnd
from cuckooflow.transforms.hand_over import HandOver
from cuckooflow.transforms.negative_sampling import NegativeSampling
from cuckooflow.transforms.online_join import OnlineJoin
from cuckooflow.transforms.read_logs import LogInput, ReadLogs
from cuckooflow.transforms.replay_bound import ReplayBound
from cuckooflow.transforms.show_balances import ShowBalances
from cuckooflow.transforms.sinks import WriteExamples, WriteJsonLines


def build_join(
    pipeline: beam.Pipeline,
    job: JobSpec,
    front_end: FrontEnd,
    stop_at_end: bool,
    hand_over: HandOver | None = None,
) -> None:
    """Add the join's stages to a pipeline; the logs that it writes are created where they are not there.

    Args:
        hand_over: where a backfill ended and the join goes on; None: it begins with its logs.

    Raises:
        LogNotFound: the impressions or the actions log is not there.
    """
    logs = job.logs
    impressions, actions = impression_schema(job), action_schema(job)
    create_missing(job, logs.examples, "frames")
    examples = job.address(logs.examples)
    # What a backfill has written lies in files, and what the log holds was written before it: neither is replayed.
    replay = ReplayBound(examples, job.training.dedupe_rows) if hand_over is None else None
    elements = pipeline | "ReadLogs" >> ReadLogs(
        LogInput(job.input(logs.impressions), impressions),
        LogInput(job.input(logs.actions), actions),
        poll_options(job, stop_at_end),
        front_end,
        hand_over=hand_over,
        replay=replay,
    )
    for log in (logs.late, logs.unmatched, logs.dead_letters, logs.join_balances):
        create_missing(job, log, "lines")
    joined = elements.main | "OnlineJoin" >> OnlineJoin(
        join_options(job), job.name, *declared_columns(job), hand_over=hand_over
    )
    sampling = job.negative_sampling
    sampled = {"examples": joined.examples, "late": joined.late} | "NegativeSampling" >> NegativeSampling(
        sampling.rate, sampling.seed, job.join.balance_interval
    )
    sampled["examples"] | "WriteExamples" >> WriteExamples(examples)
    if job.training.late == "ignore":
        sampled["late"] | "WriteLate" >> WriteJsonLines(job.address(logs.late))
    else:
        sampled["late"] | "WriteLateExamples" >> WriteExamples(examples)
    for name, records, log in (
        ("WriteUnmatched", joined.unmatched, logs.unmatched),
        ("WriteRefusedEvents", elements.dead, logs.dead_letters),
        ("WriteRefusedRows", joined.dead, logs.dead_letters),
        ("WriteSourceBalances", elements.balances, logs.join_balances),
        ("WriteJoinBalances", joined.balances, logs.join_balances),
        ("WriteSamplingBalances", sampled["balances"], logs.join_balances),
    ):
        records | name >> WriteJsonLines(job.address(log))
    joined.balances | "ShowJoinBalances" >> ShowBalances(JOIN)
    sampled["balances"] | "ShowSamplingBalances" >> ShowBalances(SAMPLING)


def create_missing(job: JobSpec, log: LogSpec, encoding: Literal["lines", "frames"]) -> None:
    """Create a log that the job writes, unless it is there."""
    job.address(log).create_missing(encoding).close()
