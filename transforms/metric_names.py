"""Every metric of the pipelines: its name, what it counts, and in which unit.

All are Beam counters or gauges in the namespace :data:`NAMESPACE`; there is no distribution, as Flink's Prometheus
reporter shows 0 for those of Beam. A *counter* says what the present run of a task has done: it begins at 0 with
each restart, and what is replayed counts again. It is for rates. A *gauge* is the last value told. Those
whose names begin with ``balance_`` come from state: rows since the job began, exact over restarts, of all shards.

Beam gives Flink a metric by name, stage and subtask alone. What is of a partition, a log or a reason has it in its
name, between fixed words, so that a scrape can make labels of them (``runners/deploy/prometheus.yaml``). Nothing is by
shard: a shard's figures travel with its balance to the one task that sums them
(:mod:`~cuckooflow.transforms.show_balances`): a gauge that several shards of one process set would hold the last one's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

NAMESPACE = "cuckooflow"
#: What stands in the name of a family's member.
_WORDS = {
    "log": "impressions|actions",
    "partition": "[0-9]+",
    "reason": "[a-z_]+",
    "stage": "source|join|sampling",
    "count": "[a-z_]+",
}


@dataclass(frozen=True)
class Metric:
    """One metric, or a family of them.

    Attributes:
        name: in the namespace; with ``{log}``, ``{partition}``, ``{reason}``, ``{stage}`` or ``{count}`` it is a family.
        kind: see the module.
        unit: of the value.
        help: what it is.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    help: str


_OF_SOURCE = (
    Metric("source_pollers_opened", "counter", "pollers", "pollers opened: one, and one for each recovery"),
    Metric(
        "source_polls", "counter", "polls", "looks at the logs; none for a while: the source stands still"
    ),
    Metric("source_{log}_messages", "counter", "messages", "read from the log"),
    Metric("source_{log}_rows", "counter", "rows", "given to the join"),
    Metric(
        "source_{log}_lag_messages", "gauge", "messages", "end of the log less what was read, all partitions"
    ),
    Metric("source_{log}_lag_files", "gauge", "files", "of an input of files: those not read to their ends"),
    Metric(
        "source_{log}_watermark_lag_ms",
        "gauge",
        "ms",
        "wall clock less the log's watermark, its oldest partition's",
    ),
    Metric(
        "source_{log}_oldest_partition", "gauge", "partition", "the partition whose watermark is the log's"
    ),
    Metric(
        "source_{log}_idle_partitions",
        "gauge",
        "partitions",
        "read to their ends and silent for `join.idle_after`",
    ),
    Metric(
        "source_{log}_paused_partitions",
        "gauge",
        "partitions",
        "too far ahead of the slowest: `join.max_lead`",
    ),
    Metric(
        "source_{log}_timeless_partitions",
        "gauge",
        "partitions",
        "without an event so far: there is no clock before one",
    ),
    Metric(
        "source_{log}_unavailable_s",
        "gauge",
        "s",
        "for how long the log's broker has not answered; 0: it answers",
    ),
    Metric(
        "source_{log}_partition_{partition}_lag_messages",
        "gauge",
        "messages",
        "end of the partition less what was read",
    ),
    Metric(
        "source_{log}_partition_{partition}_watermark_lag_ms",
        "gauge",
        "ms",
        "wall clock less the partition's watermark",
    ),
)
_OF_JOIN = (
    Metric("join_elements", "counter", "elements", "taken by shards; at most one a shard and poll"),
    Metric("join_busy_us", "counter", "us", "spent on them, all shards"),
    Metric("join_ticks", "counter", "ticks", "in which a shard looked up its late actions (`join.tick`)"),
    Metric(
        "join_tick_us",
        "counter",
        "us",
        "spent on the elements and timers of these ticks; over join_ticks: a tick's duration",
    ),
    Metric("join_examples_rows", "counter", "rows", "examples given out, before sampling"),
    Metric("join_late_rows", "counter", "rows", "late examples given out"),
    Metric("join_unmatched_rows", "counter", "rows", "actions that met no impression"),
    Metric("join_dead_rows", "counter", "rows", "rows that the join refused"),
    Metric("join_memory_hits", "counter", "calls", "a shard's memory was what its state says"),
    Metric(
        "join_memory_rebuilt",
        "counter",
        "calls",
        "a shard's memory was made from its state: once a shard and restart",
    ),
    Metric(
        "join_hot_hits",
        "counter",
        "reads",
        "a bucket of closed impressions was in memory when it was asked for",
    ),
    Metric("join_cold_reads", "counter", "reads", "such a bucket was read back from state"),
    Metric(
        "join_cold_reads_beyond_one_a_tick",
        "counter",
        "reads",
        "cold reads of a shard past the first between two of its ticks: at the end, before a cell is cleared, of keys shown again",
    ),
)
_OF_SINKS = (
    Metric(
        "examples_rows_written",
        "counter",
        "rows",
        "handed to the examples log, acknowledged when their bundle ends",
    ),
    Metric("examples_messages_written", "counter", "messages", "the same in messages"),
    Metric(
        "examples_repeats_dropped",
        "counter",
        "rows",
        "repeats that the trainer's reader recognised in the examples log",
    ),
    Metric(
        "examples_skipped",
        "counter",
        "rows",
        "rows of the examples log that the trainer left out, as `train rewind --skip` says",
    ),
    Metric("dead_letters_{reason}", "counter", "rows", "dead letters written, by reason"),
)
#: Names that a trainer counts by.
STEPS, STALENESS, STEPS_STALE = "training_steps", "training_staleness_pushes", "training_steps_stale"
#: Those of training.
TRAINING_METRICS: tuple[Metric, ...] = (
    Metric(
        "rows_trained", "counter", "rows", "trained, each once however often a restored store learns it again"
    ),
    Metric(
        "training_dead_letters", "counter", "rows", "that could not be encoded, or made no finite gradient"
    ),
    Metric(STEPS, "counter", "steps", "that the store took"),
    Metric(
        STALENESS,
        "counter",
        "pushes",
        "of others that these steps' rows missed, the most of any shard; over training_steps: the mean staleness",
    ),
    Metric(
        STEPS_STALE,
        "counter",
        "steps",
        "refused because their rows missed more than `training.staleness_max`, and computed anew",
    ),
)
_OF_BALANCES = (
    Metric(
        "balance_{stage}_records",
        "counter",
        "records",
        "balances reported; none for a while: the stage stands still",
    ),
    Metric("balance_{stage}_shards", "gauge", "shards", "whose balance is in the sums"),
    Metric("balance_{stage}_imbalances", "gauge", "equations", "of the stage that do not add up: always 0"),
    Metric("balance_source_{count}", "gauge", "rows", "what the source read, and what became of it"),
    Metric("balance_join_{count}", "gauge", "rows", "what the join took, what became of it, and what waits"),
    Metric("balance_sampling_{count}", "gauge", "rows", "examples, and which of them stayed"),
    Metric(
        "join_clock_lag_ms",
        "gauge",
        "ms",
        "wall clock less the oldest shard's in-band clock: what closes windows",
    ),
    Metric("join_elements_held", "gauge", "elements", "that wait for one before them"),
    Metric("join_late_queued", "gauge", "rows", "late actions that wait for a later tick"),
    Metric(
        "join_hot_bytes",
        "gauge",
        "bytes",
        "closed impressions in memory, all shards; `join.cache_bytes` a shard",
    ),
)

#: All of them.
METRICS: tuple[Metric, ...] = (*_OF_SOURCE, *_OF_JOIN, *_OF_SINKS, *TRAINING_METRICS, *_OF_BALANCES)


def known(name: str, metrics: Iterable[Metric] = METRICS) -> Metric | None:
    """The metric, or the family, that a name belongs to.

    >>> known("source_actions_partition_11_lag_messages").unit
    'messages'
    >>> known("source_clicks_messages") is None
    True
    """
    return next((metric for metric in metrics if pattern(metric).fullmatch(name)), None)


def pattern(metric: Metric) -> re.Pattern[str]:
    """Matches the name of a metric, or those of a family's members, with a group for each word."""
    return re.compile(re.sub(r"\{(\w+)\}", lambda word: f"(?P<{word[1]}>{_WORDS[word[1]]})", metric.name))
