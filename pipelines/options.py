"""From the job spec to the options that each part takes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from cuckooflow.embedding_store.api import StoreConfig
from cuckooflow.embedding_store.resharding import shard_folder
from cuckooflow.models import registry
from cuckooflow.models.base import Model
from cuckooflow.pipelines.job_spec import JobSpec, least_lag
from cuckooflow.pipelines.messages import message_format
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.in_band import ROW_COLUMNS
from cuckooflow.transforms.join_options import JoinOptions, Label
from cuckooflow.transforms.poll_options import PollOptions
from cuckooflow.transforms.snapshot_publisher import SnapshotOptions
from cuckooflow.transforms.training_options import TrainingOptions
from cuckooflow.transforms.training_rows import Correction, LateLabels


def model(job: JobSpec) -> Model:
    """The job's model; imports no TensorFlow yet."""
    return registry.build_model(job.model, job.features)


def store_config(job: JobSpec) -> StoreConfig:
    """Tables and dense parameters of the job's store, by one rule for every process."""
    return registry.store_config(model(job), job.training.counting, job.store.buckets)


def join_options(job: JobSpec) -> JoinOptions:
    """Options of OnlineJoin."""
    join = job.join
    return JoinOptions(
        key=tuple(join.key),
        action_type=join.action_type,
        labels=tuple(
            Label(name, label.action, label.window, label.value, label.column)
            for name, label in job.labels.items()
        ),
        action_id=join.action_id,
        late_horizon_us=join.late_horizon,
        emit=join.emit,
        num_shards=join.num_shards,
        max_lead_us=join.max_lead + join.max_skew,
        state_buckets=join.state_buckets,
        cache_bytes=join.cache_bytes,
        tick_us=join.tick,
        balance_interval_us=join.balance_interval,
    )


def training_options(job: JobSpec) -> TrainingOptions:
    """Options of TrainStep."""
    training = job.training
    return TrainingOptions(
        batch_size=training.batch_size,
        max_delay_us=training.max_delay,
        counting=training.counting,
        overlap=training.overlap,
        staleness_max=training.staleness_max,
        metrics_window_us=training.metrics_window,
        metrics_interval_us=training.metrics_interval,
        lag_us=least_lag(job.labels, job.snapshots) if training.lag is None else training.lag,
    )


def impression_schema(job: JobSpec) -> EventSchema:
    """Columns and roles of the impressions log."""
    return EventSchema(
        columns=job.columns.impressions,
        time=job.join.impression_time,
        key=tuple(job.join.key),
        message=message_format(job.messages.impressions, job.dir),
    )


def action_schema(job: JobSpec) -> EventSchema:
    """Columns and roles of the actions log."""
    join = job.join
    return EventSchema(
        columns=job.columns.actions,
        time=join.action_time,
        key=tuple(join.key),
        action_type=join.action_type,
        action_id=join.action_id,
        message=message_format(job.messages.actions, job.dir),
    )


def declared_columns(job: JobSpec) -> tuple[pa.Schema, pa.Schema]:
    """Columns of impressions and actions as rows carry them: without the event time and our own."""
    own = {field.name for field in ROW_COLUMNS}
    both = (impression_schema(job).row_schema, action_schema(job).row_schema)
    impressions, actions = (pa.schema([f for f in schema if f.name not in own]) for schema in both)
    return impressions, actions


def poll_options(job: JobSpec, stop_at_end: bool) -> PollOptions:
    """Options of ReadLogs; a bounded read, or a replay, takes no partition for idle."""
    join = job.join
    return PollOptions(
        num_shards=join.num_shards,
        max_skew_us=join.max_skew,
        max_lead_us=join.max_lead,
        max_future_skew_us=join.max_future_skew,
        live=not stop_at_end and join.replay_speed is None,
        idle_after_us=join.idle_after,
        stop_at_end=stop_at_end,
        balance_interval_us=join.balance_interval,
        replay_speed=join.replay_speed,
    )


def correction(job: JobSpec) -> Correction:
    """How scores are corrected for the negatives that sampling left out."""
    return job.negative_sampling.correction if job.negative_sampling.rate < 1 else "none"


def late_labels(job: JobSpec) -> LateLabels:
    """What late positives do in training."""
    return LateLabels(job.training.late, job.training.late_share)


def store_folder(job: JobSpec, shard: int = 0) -> Path:
    """The data folder of the job's store, or of one of its shards."""
    home = job.path(job.store.data)
    return home if job.store.shards == 1 else shard_folder(home, shard)


def store_addresses(job: JobSpec) -> list[Path]:
    """The files that tell where the job's store listens, shard after shard."""
    return [store_folder(job, shard) / "address" for shard in range(job.store.shards)]


def snapshot_options(job: JobSpec) -> SnapshotOptions:
    """Options of EmitSnapshots."""
    columns = {name: column_type(column) for name, column in job.columns.impressions.items()}
    return SnapshotOptions(
        folder=job.path(job.snapshots.dir),
        name=job.name,
        model=job.model,
        features=tuple(job.features),
        columns=columns,
        correction=correction(job),
        interval_us=job.snapshots.interval,
        dense_interval_us=job.snapshots.dense_interval,
        full_interval_us=job.snapshots.full_interval,
        gate=job.snapshots.gate,
    )


def column_type(column: Column) -> str:
    """A column's type as a manifest spells it: ``string``, ``time[ms]``, ``time[iso,Asia/Shanghai]``."""
    if column.type != "time":
        return column.type
    return f"time[{column.unit},{column.zone}]" if column.zone else f"time[{column.unit}]"
