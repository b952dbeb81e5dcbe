"""``cuckooflow log create | produce | append | read``: logs by hand, local ones and topics."""

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
from cuckooflow.logs.address import LocalAddress, LogAddress, to_address
from cuckooflow.logs.contract import LogReader

app = typer.Typer(no_args_is_help=True, help="Logs by hand: create, produce, append, read.")

LogPlace = Annotated[
    str, typer.Argument(metavar="LOG", help="a folder, or kafka://host:port/topic?client.NAME=VALUE")
]

_APPEND_LINES = 10_000


class Encoding(StrEnum):
    LINES = "lines"
    FRAMES = "frames"


@app.command()
def create(
    place: LogPlace,
    partitions: Annotated[int, typer.Option(min=1, max=1024)] = 1,
    encoding: Annotated[
        Encoding, typer.Option(help="of a folder; lines: one message a line; frames: any bytes")
    ] = Encoding.LINES,
) -> None:
    """Create an empty log."""
    address = to_address(place)
    if isinstance(address, LocalAddress):
        address = LocalAddress(address.path, partitions)
    elif address.partitions == 1:
        address = address.model_copy(update={"partitions": partitions})
    address.create(encoding.value).close()


@app.command()
def produce(
    spec_file: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="the job spec")],
    impressions: Annotated[
        Path | None, typer.Option(help="file of impressions: .parquet, .csv or .jsonl, compressed or not")
    ] = None,
    actions: Annotated[Path | None, typer.Option(help="file of actions")] = None,
    action: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ACTION=COLUMN[+DELAY]",
            help="make an action of each impression whose column is not 0, so long after it: a number or a column",
        ),
    ] = None,
    skip: Annotated[int, typer.Option(min=0, help="impressions to leave out at the beginning")] = 0,
    rows: Annotated[int | None, typer.Option(min=1, help="impressions to take; default: all")] = None,
    speed: Annotated[
        float | None, typer.Option(min=1e-6, help="event time per wall second, such as 60; default: at once")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=1, help="events a second at most")] = None,
) -> None:
    """Append rows of files to both logs of a job, by event time, as its messages; logs are created."""
    from cuckooflow.pipelines.produce import ActionRule, ProduceRequest
    from cuckooflow.pipelines.produce import produce as produce_events
    from cuckooflow.pipelines.spec_file import load_spec

    rules = tuple(ActionRule.parse(text) for text in action or ())
    request = ProduceRequest(impressions, actions, rules, skip, rows, speed, rate)
    for log, count in produce_events(load_spec(spec_file), request, print).items():
        print(f"{log}: {count:,} messages appended")


@app.command()
def append(place: LogPlace, partition: Annotated[int, typer.Option(min=0)] = 0) -> None:
    """Append each line of standard input as a message."""
    address = to_address(place)
    reader = address.open_reader()
    _check_partition(address, reader, partition)
    reader.close()
    writer = address.open_writer()
    count = 0
    try:
        while lines := list(islice(sys.stdin.buffer, _APPEND_LINES)):
            writer.append(partition, [line.rstrip(b"\r\n") for line in lines], time.time_ns() // 1_000)
            count += len(lines)
    finally:
        writer.close()
    print(f"{address}: {count} messages appended to partition {partition}")


@app.command()
def read(
    place: LogPlace,
    partition: Annotated[int, typer.Option(min=0)] = 0,
    offset: Annotated[int | None, typer.Option(min=0, help="default: the first that is kept")] = None,
    limit: Annotated[int, typer.Option(min=1, help="lines at most")] = 10,
) -> None:
    """Print messages, one line each: text as it is, Arrow messages as one JSON object a row."""
    address = to_address(place)
    log = address.open_reader()
    _check_partition(address, log, partition)
    at = log.start_offset(partition) if offset is None else offset
    messages = log.read(partition, at, max_messages=limit).values
    for line in islice(chain.from_iterable(_lines(value.as_py()) for value in messages), limit):
        print(line)
    log.close()


def _check_partition(address: LogAddress, log: LogReader, partition: int) -> None:
    if partition not in log.partitions():
        raise SpecError(
            f"{address}: expected a partition from 0 to {max(log.partitions())}, received {partition}"
        )


def _lines(value: bytes | None) -> Iterator[str]:
    if value is not None and value[:4] == b"\xff\xff\xff\xff":  # an Arrow IPC stream's first bytes
        for batch in pa.ipc.open_stream(value):
            yield from (json.dumps(row, default=str) for row in batch.to_pylist())
    else:
        yield "" if value is None else value.decode("utf-8", errors="backslashreplace")
