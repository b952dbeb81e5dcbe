"""What a job would do, without running it: stages, tables and dims, options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cuckooflow.embedding_store.api import Optimizer, StoreConfig, TableConfig
from cuckooflow.embedding_store.kind_checks import state_bytes
from cuckooflow.models.duration import format_duration
from cuckooflow.models.features import FeatureSpec
from cuckooflow.pipelines.job_spec import ActionMessageSpec, JobSpec
from cuckooflow.pipelines.log_specs import FilesLogSpec, InputSpec, KafkaLogSpec, PubSubLogSpec
from cuckooflow.pipelines.options import column_type, training_options
from cuckooflow.transforms.columns import Column

if TYPE_CHECKING:
    from cuckooflow.runners.preset import RunnerPreset


def print_plan(job: JobSpec, store: StoreConfig, console: Console) -> None:
    """Print the plan of both pipelines and of the store they share."""
    console.print(f"[bold]{job.name}[/bold]  (folder {job.dir})")
    _table(console, "join: stages", ("stage", "reads", "writes", "keyed by"), _join_stages(job))
    _table(console, "join: messages", ("log", "format", "a row is", "wanted"), _messages(job))
    _table(console, "join: columns", ("log", "column", "type", "from"), _columns(job))
    _table(console, "train: stages", ("stage", "reads", "writes", "keyed by"), _train_stages(job))
    _table(console, "labels", ("label", "action", "value", "window"), _labels(job))
    _table(console, "features", ("feature", "from", "kind"), _features(job))
    _table(
        console,
        "store: tables",
        ("table", "dim", "optimizer", "admission", "expires after", "bytes a row"),
        _tables(store),
    )
    _table(console, "store: dense parameters", ("parameter", "shape", "values", "optimizer"), _dense(store))
    _table(console, "options", ("option", "value"), _options(job))


def print_runner(preset: RunnerPreset, console: Console) -> None:
    """Print what a runner is given: Beam's options that are not its defaults, and the source's front end."""
    options = preset.options.get_all_options(drop_default=True)
    rows = [("front end", preset.front_end), *((name, str(value)) for name, value in sorted(options.items()))]
    _table(console, f"runner {preset.name}", ("option", "value"), rows)


def _table(console: Console, title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()


def _join_stages(job: JobSpec) -> Iterable[tuple[str, ...]]:
    logs = job.logs
    shards = f"{job.join.num_shards} shards of hash({', '.join(job.join.key)})"
    yield (
        "ReadLogs",
        f"{_place(logs.impressions)}, {_place(logs.actions)}",
        f"elements; refused rows to {_place(logs.dead_letters)}",
        "-",
    )
    yield "OnlineJoin", "elements", f"examples; {_place(logs.late)}, {_place(logs.unmatched)}", shards
    yield "NegativeSampling", "examples, late", "examples, late", shards
    yield (
        "WriteExamples",
        "examples",
        f"{_place(logs.examples)} ({job.address(logs.examples).partitions} partitions)",
        "shard mod partitions",
    )


def _place(log: InputSpec) -> str:
    """Address of a topic, without its client's properties, or of a subscription; files, or a folder, as the spec names it."""
    if isinstance(log, PubSubLogSpec):
        return str(log.pubsub)
    if isinstance(log, FilesLogSpec):
        return str(log.files)
    return str(log.kafka) if isinstance(log, KafkaLogSpec) else str(log.path)


def _messages(job: JobSpec) -> Iterable[tuple[str, ...]]:
    for log, spec in (("impressions", job.messages.impressions), ("actions", job.messages.actions)):
        format_ = spec.format if spec.schema_file is None else f"{spec.format} by {spec.schema_file}"
        if spec.confluent_header:
            format_ += " behind a schema id" + ("" if spec.schema_id is None else f" of {spec.schema_id}")
        exploded = any((column.path or "").find("[]") >= 0 for column in getattr(job.columns, log).values())
        row = "a row of a message" if spec.format == "arrow" else "a message"
        if exploded:
            row = f"an item of {spec.explode}" if spec.explode else "an item of a message"
        wanted = spec.only if isinstance(spec, ActionMessageSpec) else None
        yield log, format_, row, "all" if wanted is None else f"{', '.join(wanted)}; others are counted"


def _columns(job: JobSpec) -> Iterable[tuple[str, ...]]:
    for log in ("impressions", "actions"):
        columns: Mapping[str, Column] = getattr(job.columns, log)
        for name, column in columns.items():
            kind = column_type(column) + ("" if column.required else ", optional")
            yield log, name, kind, column.path or name


def _train_stages(job: JobSpec) -> Iterable[tuple[str, ...]]:
    logs = job.logs
    yield "ReadExamples", _place(logs.examples), "ranges of rows, from the store's marks", "-"
    yield (
        "TrainStep",
        "ranges",
        f"store; ticks; {_place(logs.train_metrics)}, {_place(logs.train_dead_letters)}",
        "partition",
    )
    yield "EmitSnapshots", "ticks", f"{job.snapshots.dir}", "one key"


def _labels(job: JobSpec) -> Iterable[tuple[str, ...]]:
    for name, label in job.labels.items():
        learned = "" if name in job.model.labels else "  (joined, not learned)"
        value = label.value if label.column is None else f"{label.value} of {label.column}"
        yield name + learned, label.action, value, format_duration(label.window)


def _features(job: JobSpec) -> Iterable[tuple[str, ...]]:
    for feature in job.features:
        yield feature.name, _read_by(feature), feature.kind


def _read_by(feature: FeatureSpec) -> str:
    columns = ", ".join(feature.inputs)
    if not feature.streaming:
        return columns
    listed = "examples" if feature.column is None else f"last {feature.max_length} of {feature.column}"
    label = "" if feature.label is None else f", {feature.label}"
    half_life = "" if feature.half_life is None else f", half-life {format_duration(feature.half_life)}"
    return f"{listed} by {columns}{label}{half_life}"


def _tables(store: StoreConfig) -> Iterable[tuple[str, ...]]:
    for table in store.tables:
        slots = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": table.dim}.get(
            table.optimizer.kind, 2 * table.dim
        )
        embedding = table.kind == "embedding"
        row_bytes = 16 + (4 * (table.dim + slots) if embedding else state_bytes(table))
        yield (
            table.name,
            str(table.dim),
            _optimizer(table.optimizer) if embedding else table.kind,
            str(table.admission),
            _ttl(table),
            str(row_bytes),
        )


def _ttl(table: TableConfig) -> str:
    of_slots = [f"{format_duration(us)} for slot {slot}" for slot, us in table.slot_ttl_us.items()]
    return ", ".join([format_duration(table.ttl_us) if table.ttl_us else "never", *of_slots])


def _dense(store: StoreConfig) -> Iterable[tuple[str, ...]]:
    for parameter in store.dense:
        count = 1
        for extent in parameter.shape:
            count *= extent
        shape = " x ".join(map(str, parameter.shape))
        yield parameter.name, shape, f"{count:,}", _optimizer(parameter.optimizer)


def _optimizer(optimizer: Optimizer) -> str:
    return f"{optimizer.kind} {optimizer.learning_rate:g}"


def _options(job: JobSpec) -> Iterable[tuple[str, ...]]:
    join, training = job.join, job.training
    yield "join.emit", join.emit
    yield "join.late_horizon", format_duration(join.late_horizon)
    yield "join.max_skew", format_duration(join.max_skew)
    yield (
        "negative_sampling",
        f"keep {job.negative_sampling.rate:g}, correction {job.negative_sampling.correction}",
    )
    yield "model", f"{job.model.kind} for {', '.join(job.model.labels)}"
    yield "training.batch_size", str(training.batch_size)
    yield "training.max_delay", format_duration(training.max_delay)
    if any(feature.streaming for feature in job.features):
        yield "training.lag", format_duration(training_options(job).lag_us)
    shards = "" if job.store.shards == 1 else f"{job.store.shards} shards, "
    yield "store", f"{shards}{job.store.listen}, data in {job.store.data}, {job.store.buckets} buckets"
    yield "store.checkpoint_interval", format_duration(job.store.checkpoint_interval)
    yield (
        "snapshots",
        f"every {format_duration(job.snapshots.interval)}, full every {format_duration(job.snapshots.full_interval)}",
    )
    snapshots_log = job.snapshots_log()
    if snapshots_log is not None:
        yield "snapshots.log", str(snapshots_log)
    if job.serving.mirror is not None:
        yield "serving.mirror", str(job.serving.mirror)
    for label, gate in job.snapshots.gate.items():
        bounds = gate.model_dump(exclude_none=True, exclude={"rows"})
        shown = ", ".join(f"{name} {bound:g}" for name, bound in bounds.items())
        yield f"snapshots.gate of {label}", f"{shown} over {gate.rows} rows"
    yield "serving", job.serving.listen
