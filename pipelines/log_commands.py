"""``cuckooflow log create | append | read``: local logs by hand."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer

from cuckooflow.errors import SpecError
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter

app = typer.Typer(no_args_is_help=True, help="Local logs: create, append, read.")

LogPath = Annotated[Path, typer.Argument(metavar="LOG", help="the log's folder")]

_APPEND_LINES = 10_000


class Encoding(StrEnum):
    LINES = "lines"
    FRAMES = "frames"


@app.command()
def create(
    path: LogPath,
    partitions: Annotated[int, typer.Option(min=1, max=1024)] = 1,
    encoding: Annotated[
        Encoding, typer.Option(help="lines: one message a line; frames: any bytes")
    ] = Encoding.LINES,
) -> None:
    """Create an empty log."""
    LocalLog.create(path, partitions, encoding.value)


@app.command()
def append(path: LogPath, partition: Annotated[int, typer.Option(min=0)] = 0) -> None:
    """Append each line of standard input as a message."""
    partitions = LocalLog.open(path).partitions()
    if partition not in partitions:
        raise SpecError(f"{path}: expected a partition from 0 to {max(partitions)}, received {partition}")
    writer = LocalLogWriter(path)
    count = 0
    try:
        while lines := list(islice(sys.stdin.buffer, _APPEND_LINES)):
            writer.append(partition, [line.rstrip(b"\r\n") for line in lines], time.time_ns() // 1_000)
            count += len(lines)
    finally:
        writer.close()
    print(f"{path}: {count} messages appended to partition {partition}")


@app.command()
def read(
    path: LogPath,
    partition: Annotated[int, typer.Option(min=0)] = 0,
    offset: Annotated[int | None, typer.Option(min=0, help="default: the first that is kept")] = None,
    limit: Annotated[int, typer.Option(min=1, help="lines at most")] = 10,
) -> None:
    """Print messages, one line each: text as it is, Arrow messages as one JSON object a row."""
    log = LocalLog.open(path)
    if partition not in log.partitions():
        raise SpecError(
            f"{path}: expected a partition from 0 to {max(log.partitions())}, received {partition}"
        )
    at = log.start_offset(partition) if offset is None else offset
    messages = log.read(partition, at, max_messages=limit).values
    for line in islice(chain.from_iterable(_lines(value.as_py()) for value in messages), limit):
        print(line)


def _lines(value: bytes | None) -> Iterator[str]:
    if value is not None and value[:4] == b"\xff\xff\xff\xff":  # an Arrow IPC stream's first bytes
        for batch in pa.ipc.open_stream(value):
            yield from (json.dumps(row, default=str) for row in batch.to_pylist())
    else:
        yield "" if value is None else value.decode("utf-8", errors="backslashreplace")
