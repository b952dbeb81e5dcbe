"""``cuckooflow backfill plan``: what a backfill would take, from running its own tasks over a sample."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cuckooflow.errors import InputFileWrong
from cuckooflow.models.duration import format_duration
from cuckooflow.pipelines.backfill.estimate import InputSample, choose_layout, sample_inputs
from cuckooflow.pipelines.backfill.inputs import JobInputs
from cuckooflow.pipelines.backfill.join import backfill_options, before_blocks
from cuckooflow.pipelines.backfill.request import BackfillRequest
from cuckooflow.pipelines.backfill.run_state import RunState
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.transforms.backfill_tasks import BackfillOptions, ScanTask, SettleTask, SliceTask
from cuckooflow.transforms.day_files import DAY_US, day_start_us
from cuckooflow.transforms.in_band import ACTIONS, IMPRESSIONS, LOG_NAMES
from cuckooflow.transforms.parse import Parsed
from cuckooflow.transforms.pieces import ACTION_ROWS, IMPRESSION_ROWS, KEYS, Catalogue

#: Past every event time: a sample's rows are one slice, wherever they were taken.
_ALWAYS_US = 1 << 61


@dataclass(frozen=True)
class Costs:
    """What the tasks took over a sample, on one core of this machine.

    Attributes:
        scan_s: of a row read and laid out.
        keys_s: of an impression whose key is settled.
        join_s: of a row joined, its outputs written.
        row_disk, key_disk: bytes of a row and of a key laid out.
        out_disk: bytes of one example; late and unmatched actions of a sample say nothing of those of all.
    """

    scan_s: float
    keys_s: float
    join_s: float
    row_disk: float
    key_disk: float
    out_disk: float


@dataclass(frozen=True)
class Estimate:
    """What a backfill will take.

    Attributes:
        read: log -> rows to read, all that there are.
        joined: log -> rows of the days and of what is near them.
        ranges, slices, shards, key_buckets: tasks of each kind.
        slice_us: of a slice.
        slice_bytes: rows of a slice and shard in memory, of an average one.
        seconds: of one core.
        work_disk, out_disk: bytes, while it runs and of its examples.
    """

    read: dict[int, int]
    joined: dict[int, int]
    ranges: int
    slices: int
    shards: int
    key_buckets: int
    slice_us: int
    slice_bytes: int
    seconds: float
    work_disk: int
    out_disk: int


def estimate(job: JobSpec, request: BackfillRequest) -> Estimate:
    """Sample the inputs and run a backfill's tasks over the sample.

    Raises:
        InputFileWrong: the sample holds no row.
    """
    inputs = JobInputs.of(job, request.range_messages)
    ranges = inputs.ranges(inputs.listing())
    started = time.perf_counter()
    sampled = sample_inputs(ranges, job)
    reading_s = time.perf_counter() - started
    samples = [sample for sample, _ in sampled]
    if not samples:
        raise InputFileWrong(
            "expected events in the inputs, a sample of them holds none; look at the dead letters"
        )
    layout = choose_layout(samples, job, request.slice_bytes)
    slice_us = layout.slice_us
    state = RunState("plan", "", {}, layout)
    options = backfill_options(job, request, state)
    costs = _measure(sampled, options, reading_s)
    window_us = options.schema.options.window_us
    first_us, until_us = day_start_us(request.first), day_start_us(request.until)
    read = {sample.log: sample.rows for sample in samples}
    joined = {s.log: s.rows_between(first_us - window_us, until_us + window_us) for s in samples}
    shown = joined.get(IMPRESSIONS, 0)
    rows = sum(joined.values())
    near = (slice_us + 2 * window_us) / slice_us  # a slice reads its neighbours' rows too
    seconds = (
        costs.scan_s * sum(read.values())
        + costs.keys_s * read.get(IMPRESSIONS, 0)
        + costs.join_s * rows * near
    )
    slice_bytes = sum(s.bytes_in(slice_us + 2 * window_us) for s in samples) / options.scan.num_shards
    return Estimate(
        read=read,
        joined=joined,
        ranges=len(ranges),
        slices=(until_us - first_us) // slice_us,
        shards=options.scan.num_shards,
        key_buckets=layout.key_buckets,
        slice_us=slice_us,
        slice_bytes=int(slice_bytes),
        seconds=seconds,
        work_disk=int(costs.row_disk * rows + costs.key_disk * read.get(IMPRESSIONS, 0)),
        out_disk=int(costs.out_disk * shown),
    )


@dataclass(frozen=True)
class _Held:
    """Rows in memory as an input range."""

    log: int
    held: tuple[Parsed, ...]
    partition: int = 0
    first: int = 0
    ordered: bool = True
    size: int = 0

    def parsed(self, max_future_skew_us: int) -> Iterator[Parsed]:
        del max_future_skew_us
        yield from self.held

    def sample(self, max_future_skew_us: int) -> tuple[Parsed, float]:
        return next(self.parsed(max_future_skew_us)), 1.0


def _measure(
    sampled: Sequence[tuple[InputSample, tuple[Parsed, ...]]], options: BackfillOptions, reading_s: float
) -> Costs:
    """Run every phase's task over the sample, in a folder of its own."""
    everything = (0, _ALWAYS_US)
    scan = replace(
        options.scan,
        slice_us=_ALWAYS_US,
        impressions_us=everything,
        actions_us=everything,
        keys_until_us=_ALWAYS_US,
        key_buckets=1,
    )
    options = replace(options, scan=scan, partitions=1)
    rows = max(1, sum(p.rows.num_rows for _, held in sampled for p in held))
    shown = max(1, sum(p.rows.num_rows for s, held in sampled if s.log == IMPRESSIONS for p in held))
    with tempfile.TemporaryDirectory(prefix="cuckooflow-plan-") as folder:
        # Each range is a partition of its own: what was left out between them says nothing of their order.
        ranges = [_Held(s.log, (part,), n) for s, held in sampled for n, part in enumerate(held)]
        tasks = [ScanTask(f"{folder}/scan-{n}", range_) for n, range_ in enumerate(ranges)]
        scan_s = reading_s + _timed(tasks, options)
        scanned = Catalogue.load([task.path for task in tasks])
        latest_us = before_blocks(scanned)
        kind = scanned.pieces["kind"]
        settle = SettleTask(f"{folder}/keys", scanned.where(kind == KEYS, latest_us))
        keys_s = _timed([settle], options)
        rows_of = (kind == IMPRESSION_ROWS) | (kind == ACTION_ROWS)
        verdicts = Catalogue.load([settle.path])
        slices = []
        for shard in range(scan.num_shards):
            both = scanned.where(rows_of & (scanned.pieces["shard"] == shard), latest_us)
            refused = verdicts.where(verdicts.pieces["shard"] == shard)
            slices.append(SliceTask(f"{folder}/day", "plan", 0, shard, both.with_more(refused)))
        join_s = _timed(slices, options)
        out = sum(path.stat().st_size for path in (Path(folder) / "day").glob("examples-*.parquet"))
        length = scanned.pieces["length"]
        key_disk = float(length[kind == KEYS].sum())
        return Costs(
            scan_s=scan_s / rows,
            keys_s=keys_s / shown,
            join_s=join_s / rows,
            row_disk=float(length[rows_of].sum()) / rows,
            key_disk=key_disk / shown,
            out_disk=out / shown,
        )


def _timed(tasks: Sequence[ScanTask | SettleTask | SliceTask], options: BackfillOptions) -> float:
    started = time.perf_counter()
    for task in tasks:
        task.run(options)
    return time.perf_counter() - started


def print_estimate(found: Estimate, request: BackfillRequest, console: Console) -> None:
    """Print an estimate for people."""
    table = Table(title=f"backfill of {request.first} to {request.until}", title_justify="left", box=None)
    table.add_column("what", header_style="dim")
    table.add_column("estimate", header_style="dim")
    for log in (IMPRESSIONS, ACTIONS):
        read, joined = found.read.get(log, 0), found.joined.get(log, 0)
        table.add_row(LOG_NAMES[log], f"{read:,} rows to read, {joined:,} to join")
    days = (request.until - request.first).days
    each = f"{found.slices // max(1, days)} slices of {format_duration(found.slice_us)} a day"
    table.add_row(
        "tasks", f"{found.ranges} ranges, {found.key_buckets} parts of keys, {each}, {found.shards} shards"
    )
    table.add_row("rows of a slice in memory", _size(found.slice_bytes))
    table.add_row("time of one core", _time(found.seconds))
    table.add_row("disk while it runs", _size(found.work_disk))
    table.add_row("disk of the examples", _size(found.out_disk))
    console.print(table)
    assert DAY_US % found.slice_us == 0


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
