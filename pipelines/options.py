"""From the job spec to the options that each part takes."""

from __future__ import annotations

from cuckooflow.embedding_store.api import StoreConfig
from cuckooflow.models import registry
from cuckooflow.models.base import Model
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.transforms.join_options import JoinOptions, Label
from cuckooflow.transforms.training_options import TrainingOptions


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
        labels=tuple(Label(name, label.action, label.window) for name, label in job.labels.items()),
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
        metrics_window_us=training.metrics_window,
    )
