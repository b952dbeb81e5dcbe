"""The job spec: one YAML file that says what is joined, learned, stored and served.

:class:`JobSpec` is the whole; each section is a class of its own, and parts that have options of
their own (columns, features, model) bring them. :mod:`cuckooflow.pipelines.spec_file` reads the file
and reports every fault at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cuckooflow.logs.address import LocalAddress, LogAddress
from cuckooflow.logs.pubsub_address import PubSubAddress
from cuckooflow.models.duration import DurationUs
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.publish_gate import GateSpec
from cuckooflow.models.snapshot_log import PARTITIONS
from cuckooflow.models.spec import ModelSpec
from cuckooflow.pipelines.log_specs import (
    FilesLogSpec,
    InputSpec,
    KafkaLogSpec,
    LocalLogSpec,
    LogSpec,
    PubSubLogSpec,
    Section,
)
from cuckooflow.transforms.columns import Column
from cuckooflow.transforms.files_address import FilesAddress
from cuckooflow.transforms.join_options import LabelValue
from cuckooflow.transforms.message_format import Kind
from cuckooflow.transforms.training_options import ONE_BEHIND
from cuckooflow.transforms.training_rows import LateMode

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]


class LogsSpec(Section):
    """The logs of a job; those with a default are made by the job itself.

    Attributes:
        impressions: what was shown, with features; ``messages`` says in which format.
        actions: what people did.
        examples: joined training rows; the trainer reads it, and it is the store's write-ahead log.
        late: actions that came after their impression's window had closed, as flagged examples.
        unmatched: actions that found no impression, with the reason.
        dead_letters: rows that the join refused, with reason, bytes and position.
        join_balances, train_metrics, train_dead_letters: what the two pipelines report.
    """

    impressions: InputSpec
    actions: InputSpec
    examples: LogSpec = LocalLogSpec(path=Path("logs/examples"))
    late: LogSpec = LocalLogSpec(path=Path("logs/late"))
    unmatched: LogSpec = LocalLogSpec(path=Path("logs/unmatched"))
    dead_letters: LogSpec = LocalLogSpec(path=Path("logs/dead_letters"))
    join_balances: LogSpec = LocalLogSpec(path=Path("logs/join_balances"))
    train_metrics: LogSpec = LocalLogSpec(path=Path("logs/train_metrics"))
    train_dead_letters: LogSpec = LocalLogSpec(path=Path("logs/train_dead_letters"))


class MessageSpec(Section):
    """How a log's messages are read, see :class:`~cuckooflow.transforms.message_format.MessageFormat`.

    Attributes:
        format: ``json`` (default; Arrow messages may be among them), ``tf_example``, ``arrow`` or ``avro``.
        schema_file: of ``avro``, and only there: the writer's schema, relative to the job's ``dir``.
        confluent_header: of ``avro``: messages begin with a zero byte and a schema id, default false.
        schema_id: of ``avro``: the only schema id that such a header may have, default any.
        explode: path of the list whose items become rows; columns of the item have paths through ``[]``.
    """

    format: Kind = "json"
    schema_file: Path | None = None
    confluent_header: bool = False
    schema_id: int | None = Field(default=None, ge=0, lt=1 << 32)
    explode: str | None = None


class ActionMessageSpec(MessageSpec):
    """The same for the actions log.

    Attributes:
        only: action types that are wanted; rows of others are counted and left out. Default all.
    """

    only: list[str] | None = Field(default=None, min_length=1, max_length=1024)


class MessagesSpec(Section):
    """The messages of the two input logs."""

    impressions: MessageSpec = MessageSpec()
    actions: ActionMessageSpec = ActionMessageSpec()


class ColumnsSpec(Section):
    """The columns of the two input logs: name -> type, path in the message, and for times unit and zone."""

    impressions: dict[Name, Column] = Field(min_length=1)
    actions: dict[Name, Column] = Field(min_length=1)


class JoinSpec(Section):
    """How actions find their impressions.

    Attributes:
        key: columns, in both logs, that name one impression (request and item).
        impression_time, action_time, action_type: which columns hold these.
        action_id: the column that tells two actions of one type on one impression apart; without
            it the action's time does.
        emit: ``complete`` gives one example an impression when its window closes; ``eager`` gives a
            positive as soon as both have arrived.
        late_horizon: how long after the window an action still yields a late example, default 1 day.
            Costs state: impressions are kept that long.
        max_skew: how far out of order a partition's event times may be, default 1 minute. Costs
            freshness: windows close that much later.
        max_future_skew: an event time further past its append time is a dead letter, default 1 hour.
        max_lead: a partition this far ahead of the slowest is paused, default 1 day.
        idle_after: a partition with nothing new for so long no longer holds the clock, default 10 s.
        num_shards: the keyed parallelism, fixed for the life of a job; 4 x the largest planned.
        cache_bytes: memory for closed impressions, a shard, default 64 MiB; past it they are read
            back from state.
        state_buckets: ring of state cells by event time, default 16.
        tick: how often late actions are looked up together, default 1 s. Costs their freshness.
        balance_interval: how often the balances are reported, default 1 s.
        replay_speed: event time per wall second for logs of the past, such as 60; default none: as fast as
            they are read. Costs parsing each message twice. ``run join --replay-speed`` says otherwise.
    """

    key: list[Name] = Field(min_length=1, max_length=8)
    impression_time: Name
    action_time: Name
    action_type: Name
    action_id: Name | None = None
    emit: Literal["complete", "eager"] = "complete"
    late_horizon: DurationUs = 86_400_000_000
    max_skew: DurationUs = 60_000_000
    max_future_skew: DurationUs = 3_600_000_000
    max_lead: DurationUs = 86_400_000_000
    idle_after: DurationUs = 10_000_000
    num_shards: int = Field(default=8, ge=1, le=1024)
    cache_bytes: int = Field(default=64 << 20, ge=1 << 16)
    state_buckets: int = Field(default=16, ge=4, le=32)
    tick: DurationUs = 1_000_000
    balance_interval: DurationUs = 1_000_000
    replay_speed: float | None = Field(default=None, gt=0.0, le=1e9)


class LabelSpec(Section):
    """A label: which action type sets it, and how long after the impression that counts.

    Attributes:
        action: the type; several labels may name the same.
        window: from the impression on.
        value: ``flag`` (default): 1 where there was such an action; ``count``: how many; ``sum`` or ``max`` of a
            column of the actions, watch time for one. A model learns whether the value is above 0.
        column: for ``sum`` and ``max``, a number of 0 or more.
    """

    action: str = Field(min_length=1, max_length=128)
    window: DurationUs
    value: LabelValue = "flag"
    column: Name | None = None


class NegativeSamplingSpec(Section):
    """Keep only a part of the examples that are negative in every label.

    Attributes:
        rate: the share that is kept, (0, 1], default 1.
        seed: of the hash that decides.
        correction: ``log_odds`` shifts the scores (one label), ``weight`` trains kept negatives with
            weight 1/rate (any number of labels).
    """

    rate: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int = 0
    correction: Literal["log_odds", "weight"] = "log_odds"


class TrainingSpec(Section):
    """How the trainer steps.

    Attributes:
        batch_size: rows a gradient step, default 256.
        max_delay: a partial batch is trained after so long, with its step scaled, default 2 s.
        dedupe_rows: how far back, in rows, a repeated example is recognised; default 1 million
            (16 bytes each). A restarted join repeats what it had written.
        metrics_window: event time that one progressive metrics record covers, default 1 hour.
        metrics_interval: how often the records are written, default 2 s. What a killed trainer had not written
            is missing from the figures, never from the model.
        overlap: while a batch computes, push the one before it and fetch the next one's rows; default false. Hides the
            store's time, where it is remote or batches are large; the rows are then one batch older.
        staleness_max: pushes of other batches that a shard of the store may have applied since a batch's rows were read
            from it; default: as many as there are. A batch that missed more is computed anew from fresh rows. Costs these
            steps, the more the more trainers there are; 1 or more with ``overlap``.
        counting: also count every feature id in the table ``_count``, for checks by equality.
        late: what becomes of a positive that comes after its impression was given out as a negative, within the
            join's ``late_horizon``. ``ignore`` (default): it goes to the log ``late`` and is not trained.
            ``take_back``: it goes to the examples log; it is trained, and the negative's step is taken back where
            sampling had kept it. ``weights``: it goes to the examples log, and importance weights on
            every row make up for negatives that were none (Ktena et al., RecSys 2019); for positives that are mostly
            late.
        late_share: ``weights`` only: label -> of its positives the share that comes late; default 1, all of them.
        lag: what streaming features know of the past ends so long before a row, as a scorer would have known it; at
            least, and by default, the longest window of a label and ``snapshots.interval``. Costs memory: examples
            within it wait in the trainer.
    """

    batch_size: int = Field(default=256, ge=1, le=65_536)
    max_delay: DurationUs = 2_000_000
    dedupe_rows: int = Field(default=1_000_000, ge=0, le=100_000_000)
    metrics_window: DurationUs = Field(default=3_600_000_000, ge=1_000_000)
    metrics_interval: DurationUs = Field(default=2_000_000, ge=0)
    overlap: bool = False
    staleness_max: int | None = Field(default=None, ge=0)
    counting: bool = False
    late: LateMode = "ignore"
    late_share: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    lag: DurationUs | None = None

    @model_validator(mode="after")
    def _share_of_weights(self) -> TrainingSpec:
        if self.overlap and self.staleness_max == 0:
            raise ValueError(ONE_BEHIND)
        if self.late_share and self.late != "weights":
            raise ValueError(f"late_share only with late: weights, received late: {self.late}")
        return self


class StoreSpec(Section):
    """The embedding store's process, or its shards'.

    Attributes:
        listen: address, loopback only; port 0 takes a free one, which ``address`` in its data folder tells.
        data: folder of its checkpoints, relative to ``dir``.
            Of several shards, each has a folder of its own in it, ``shard-0``, ``shard-1``...
        shards: processes that the store is dealt out to, default 1; each takes a port of its own. To change
            it later: ``cuckooflow store reshard``.
        buckets: logical buckets of ids, fixed at creation, default 64; at least as many as shards.
        checkpoint_interval: default 30 s. Costs writing; what was lost since is trained again from
            the examples log.
        checkpoint_history: so far back a full checkpoint is kept for every quarter of it, for ``train rewind``; default
            1 hour, 0 keeps the newest two full ones alone. Costs up to 6 x the store's size on disk. An older one needs the
            examples log from its marks on.
    """

    listen: str = Field(default="127.0.0.1:0", pattern=r"^.+:\d{1,5}$")
    data: Path = Path("store")
    shards: int = Field(default=1, ge=1, le=64)
    buckets: int = Field(default=64, ge=1, le=4096)
    checkpoint_interval: DurationUs = 30_000_000
    checkpoint_history: DurationUs = 3_600_000_000


class SnapshotsSpec(Section):
    """Parameters on their way to serving.

    Attributes:
        dir: where snapshots are published, relative to the job's ``dir``.
        interval: between deltas, default 2 s.
        dense_interval: between deltas that hold the dense parameters, default: all do. With large towers and a short
            interval, deltas get smaller; a scorer then has newer rows beside older dense parameters.
        full_interval: between full snapshots, default 1 day.
        gate: label -> bounds of its progressive figures, see :class:`~cuckooflow.models.publish_gate.GateSpec`; nothing
            is published while one is broken. Default none.
        log: a topic or a folder's log into which what is published goes too, for scorers that share no folder with
            the trainer, see ``serving.mirror``; made with two partitions. Default none. Costs its bytes once more; a topic's
            retention must be longer than ``full_interval``, or full snapshots are sent again.
    """

    dir: Path = Path("snapshots")
    log: LogSpec | None = None
    interval: DurationUs = 2_000_000
    dense_interval: DurationUs = 0
    full_interval: DurationUs = 86_400_000_000
    gate: dict[str, GateSpec] = {}


def least_lag(labels: Mapping[str, LabelSpec], snapshots: SnapshotsSpec) -> int:
    """Microseconds after an impression until a scorer can know its labels."""
    return max(label.window for label in labels.values()) + snapshots.interval


class ServingSpec(Section):
    """The scorer.

    Attributes:
        listen: address of its HTTP server, default 127.0.0.1:8501; port 0 takes a free one.
        rows: how weights are kept: ``float32`` (default), ``float16`` (half the bytes, within 0.05 %) or
            ``int8`` (a quarter, within 1/254 of a row's largest weight).
        mirror: a folder of this scorer's own, into which it copies what comes in ``snapshots.log`` and which it follows,
            relative to the job's ``dir``; default none: it follows ``snapshots.dir``.
    """

    mirror: Path | None = None
    listen: str = Field(default="127.0.0.1:8501", pattern=r"^.+:\d{1,5}$")
    rows: Literal["float32", "float16", "int8"] = "float32"


class FilesSpec(Section):
    """Files of one log's events, for a backfill.

    Attributes:
        files: a path relative to the job's ``dir``, or an address such as ``gs://bucket/...``; ``*`` stands for
            any name, ``**`` for any path.
        format: ``parquet``, ``json`` for one object a line, or ``tfrecord`` for TFRecords of messages in the log's
            format (``tf_example`` for most); the last two compressed where the name ends in .gz, .bz2 or .zst.
        layout: ``rows`` (default): a column a field. ``messages``: each row is a message as it was in the log.
        partition, offset, row: columns that say where a row lay in its log, so that it may lie anywhere in any
            file; default none: a file is a partition in its own order.
        append: the column that says when it was appended, integer microseconds or a timestamp; default none.
        append_until: where no column says it: when all of it had been appended (ISO 8601), UTC if it says none.
        value: of ``messages``, the column of the bytes, default ``value``; in JSON also ``<value>_base64``.
    """

    files: str = Field(min_length=1)
    format: Literal["parquet", "json", "tfrecord"]
    layout: Literal["rows", "messages"] = "rows"
    partition: str | None = None
    offset: str | None = None
    row: str | None = None
    append: str | None = None
    append_until: datetime | None = None
    value: str = "value"

    @model_validator(mode="after")
    def _places(self) -> FilesSpec:
        if (self.append is None) == (self.append_until is None):
            raise ValueError("one of append and append_until, which says when events had arrived")
        if (self.partition is None) != (self.offset is None):
            raise ValueError("both of partition and offset, or neither")
        if self.format == "tfrecord" and (
            self.layout != "messages" or self.append is not None or self.offset is not None
        ):
            raise ValueError("of a tfrecord layout: messages and append_until, as a record has no columns")
        if self.row is not None and (self.offset is None or self.layout == "messages"):
            raise ValueError("row only beside offset, and in the layout rows")
        return self


class BackfillSpec(Section):
    """Where the backfill of the join reads.

    Attributes:
        impressions, actions: files; default none: the job's log.
    """

    impressions: FilesSpec | None = None
    actions: FilesSpec | None = None


class JobSpec(Section):
    """A job. ``dir``: its folder, relative to the YAML file; every other path is relative to it."""

    name: Name
    dir: Path = Path()
    logs: LogsSpec
    columns: ColumnsSpec
    messages: MessagesSpec = MessagesSpec()
    join: JoinSpec
    labels: dict[Name, LabelSpec] = Field(min_length=1, max_length=32)
    negative_sampling: NegativeSamplingSpec = NegativeSamplingSpec()
    features: list[FeatureSpec] = Field(min_length=1, max_length=1024)
    model: ModelSpec
    training: TrainingSpec = TrainingSpec()
    store: StoreSpec = StoreSpec()
    snapshots: SnapshotsSpec = SnapshotsSpec()
    serving: ServingSpec = ServingSpec()
    backfill: BackfillSpec = BackfillSpec()

    def address(self, log: InputSpec) -> LogAddress:
        """Where one of the job's logs lies.

        Raises:
            ReadOnceLog: it is a Pub/Sub subscription, which only the join reads.
            ReadOnlyInput: it is files, which only the join and the preview read.
        """
        if isinstance(log, PubSubLogSpec):
            raise log.pubsub.read_once("everything but the live join")
        if isinstance(log, FilesLogSpec):
            raise log.files.read_only("everything but the live join and the preview")
        if isinstance(log, KafkaLogSpec):
            return log.kafka
        return LocalAddress(self.path(log.path), log.partitions)

    def snapshots_log(self) -> LogAddress | None:
        """Where snapshots go besides their folder."""
        if self.snapshots.log is None:
            return None
        address = self.address(self.snapshots.log)
        if isinstance(address, LocalAddress):
            return LocalAddress(address.path, PARTITIONS)
        return address.model_copy(update={"partitions": PARTITIONS})

    def input(self, log: InputSpec) -> LogAddress | PubSubAddress | FilesAddress:
        """Where an input of the join lies."""
        if isinstance(log, FilesLogSpec):
            return log.files.resolved_in(str(self.dir))
        return log.pubsub if isinstance(log, PubSubLogSpec) else self.address(log)

    def written_inputs(self) -> list[LogAddress]:
        """The inputs that messages can be appended to: topics and folders."""
        inputs = (self.logs.impressions, self.logs.actions)
        return [self.address(log) for log in inputs if isinstance(log, LocalLogSpec | KafkaLogSpec)]

    def subscriptions(self) -> list[str]:
        """Those of the inputs that are Pub/Sub subscriptions."""
        inputs = (self.logs.impressions, self.logs.actions)
        return [str(log.pubsub) for log in inputs if isinstance(log, PubSubLogSpec)]

    def path(self, relative: Path) -> Path:
        """A path of the spec, resolved against the job's folder."""
        return self.dir / relative
