"""``preview``: what the join makes of the first rows of its logs, with nothing written to the job's folder."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from cuckooflow.logs.address import LocalAddress
from cuckooflow.logs.contract import LogReader
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.log_specs import FilesLogSpec, InputSpec, LocalLogSpec, LogSpec
from cuckooflow.pipelines.run import run_pipeline
from cuckooflow.transforms.dead_letters import UNREADABLE_FILE
from cuckooflow.transforms.files_log import FilesLog

#: Actions are taken so many times as often as impressions: an impression may have several.
ACTIONS_PER_IMPRESSION = 10


def preview(job: JobSpec, rows: int, console: Console) -> None:
    """Join the first messages of both logs in a temporary folder and show what became of them.

    Windows close as if the logs ended there.

    Args:
        job: whose logs are read.
        rows: impressions to take, over all partitions; actions :data:`ACTIONS_PER_IMPRESSION` times as many.

    Raises:
        LogNotFound: the impressions or the actions log is not there.
    """
    with tempfile.TemporaryDirectory(prefix="cuckooflow-preview-") as folder:
        copied = job.model_copy(update={"dir": Path(folder), "logs": _default_logs(job)})
        unreadable: list[dict[str, Any]] = []
        for log, messages in (
            ("impressions", rows),
            ("actions", rows * ACTIONS_PER_IMPRESSION),
        ):
            source: InputSpec = getattr(job.logs, log)
            target: LocalLogSpec = getattr(copied.logs, log)
            with contextlib.closing(_open(job, source, folder)) as reader:
                unreadable += _copy_head(reader, copied.path(target.path), messages)
        run_pipeline("join", copied, "direct", stop_at_end=True, beam_args=())
        _show(copied, unreadable, console)


def _open(job: JobSpec, log: InputSpec, folder: str) -> LogReader:
    """The log's reader; one of files has its list of them in ``folder``."""
    if not isinstance(log, FilesLogSpec):
        return job.address(log).open_reader()
    files = log.files.resolved_in(str(job.dir))
    return FilesLog(files.model_copy(update={"manifest": tempfile.mkdtemp(dir=folder)}), rows=1)


def _default_logs(job: JobSpec) -> Any:
    """The job's logs under names of their own: its paths may lead out of any folder."""
    named = {}
    for name in type(job.logs).model_fields:
        log = getattr(job.logs, name)
        partitions = (log.files if isinstance(log, FilesLogSpec) else job.address(log)).partitions
        named[name] = LocalLogSpec(path=Path("logs") / name, partitions=partitions)
    return job.logs.model_copy(update=named)


def _copy_head(log: LogReader, target: Path, messages: int) -> list[dict[str, Any]]:
    """Copy the first messages of a log, the partitions taking equal parts, with their append times.

    Returns:
        As rows of dead letters, what has no bytes to be copied.
    """
    unreadable: list[dict[str, Any]] = []
    partitions = log.partitions()
    local = LocalAddress(target, len(partitions))
    local.create("frames")
    writer = local.open_writer()
    for place, partition in enumerate(partitions):
        share = messages // len(partitions) + (place < messages % len(partitions))
        batch = log.read(partition, log.start_offset(partition), max_messages=max(1, share))
        readable = [at for at in range(min(share, len(batch))) if at not in batch.unreadable]
        values = batch.values.take(pa.array(readable, pa.int64()))
        append_us = batch.append_us[readable]
        for at, detail in batch.unreadable.items():
            offset = int(batch.offsets[at])
            letter = {"log": log.name, "offset": offset, "reason": UNREADABLE_FILE, "detail": detail}
            unreadable.append(letter)
        for part in np.split(np.arange(len(values)), np.flatnonzero(np.diff(append_us)) + 1):
            if len(part):
                writer.append(partition, values.take(pa.array(part)), int(append_us[part[0]]))
    writer.close()
    return unreadable


def _show(job: JobSpec, unreadable: list[dict[str, Any]], console: Console) -> None:
    examples = sorted(_messages(job, job.logs.examples), key=lambda row: int(row["_time"]))
    dead = [*unreadable, *_messages(job, job.logs.dead_letters)]
    late, unmatched = (sum(1 for _ in _messages(job, log)) for log in (job.logs.late, job.logs.unmatched))
    actions = job.address(job.logs.actions).open_reader()
    read = sum(actions.end_offset(partition) for partition in actions.partitions())
    labels = [f"label_{name}" for name in job.labels]
    columns = [name for name in job.columns.impressions if name != job.join.impression_time]
    table = Table(title="examples", title_justify="left", box=None, header_style="dim", pad_edge=False)
    for name in ("time", *columns, *job.labels):
        table.add_column(name)
    for row in examples:
        when = np.datetime64(row["_time"], "us").astype("datetime64[s]")
        table.add_row(str(when), *(_text(row.get(name)) for name in columns + labels))
    console.print(table)
    refused = Table(title="dead letters", title_justify="left", box=None, header_style="dim", pad_edge=False)
    for name in ("log", "offset", "reason", "detail"):
        refused.add_column(name)
    for row in dead:
        refused.add_row(*(_text(row.get(name)) for name in ("log", "offset", "reason", "detail")))
    if dead:
        console.print(refused)
    positive = {
        name: sum(row[label] != 0 for row in examples) for name, label in zip(job.labels, labels, strict=True)
    }
    shares = ", ".join(f"{name} {count}" for name, count in positive.items())
    console.print(
        f"{len(examples)} examples ({shares}) and {late} late ones, {len(dead)} dead letters; of the first {read} "
        f"actions {unmatched} found none of these impressions. Nothing was written."
    )


def _text(value: object) -> str:
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _messages(job: JobSpec, log: LogSpec) -> Iterator[dict[str, Any]]:
    """Every row of a log of Arrow or JSON messages."""
    reader = job.address(log).open_reader()
    for partition in reader.partitions():
        last = reader.end_offset(partition)
        for batch in reader.read_range(partition, reader.start_offset(partition), last):
            for value in batch.values:
                message = value.as_py()
                if message[:1] == b"{":
                    yield json.loads(message)
                else:
                    for part in pa.ipc.open_stream(message):
                        yield from part.to_pylist()
