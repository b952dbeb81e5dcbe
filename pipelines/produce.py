"""``cuckooflow log produce``: rows of files into a job's logs, in the order of their event times.

A file of impressions may have its labels as columns, as published data sets do: a rule such as
``long_view=long_view+play_time_ms`` makes an action of each row that has one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from cuckooflow.embedding_store.hashing import hash_rows
from cuckooflow.errors import SpecError
from cuckooflow.logs.contract import LogWriter
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.options import action_schema, impression_schema
from cuckooflow.transforms.batch_bytes import encode_batch
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.in_band import ACTIONS, IMPRESSIONS, LOG_NAMES
from cuckooflow.transforms.sinks import json_lines

#: Events of both logs that are appended together; a broker acknowledges them before the next.
CHUNK_EVENTS = 2_000
_UNITS_US = {"s": 1_000_000.0, "ms": 1_000.0, "us": 1.0, "ns": 0.001}
_RULE = re.compile(r"(?P<action>[^=]+)=(?P<column>\w+)(?:\+(?P<delay>\w+))?")


@dataclass(frozen=True)
class ActionRule:
    """Which rows of an impressions file are an action too.

    Attributes:
        action: its type.
        column: a row has it where this column is neither 0 nor null.
        delay: how long after the impression, in the unit of its time: a number, or a column; default 0.
    """

    action: str
    column: str
    delay: str = "0"

    @classmethod
    def parse(cls, text: str) -> ActionRule:
        """From ``ACTION=COLUMN`` or ``ACTION=COLUMN+DELAY``.

        >>> ActionRule.parse("long_view=long_view+play_time_ms").delay
        'play_time_ms'

        Raises:
            SpecError: it is neither.
        """
        found = _RULE.fullmatch(text)
        if found is None:
            raise SpecError(f"expected ACTION=COLUMN or ACTION=COLUMN+DELAY, received {text!r}")
        return cls(found["action"], found["column"], found["delay"] or "0")


@dataclass(frozen=True)
class ProduceRequest:
    """What is to be produced.

    Attributes:
        impressions, actions: files with a column for each field of a message: ``.parquet``, ``.csv``, ``.jsonl``,
            compressed where the name says so. Read into memory.
        rules: actions that are made of the impressions.
        skip, rows: of the impressions' file, leave out so many and take so many; None: all that follow.
        speed: event time per wall second; None: as fast as it goes.
        rate: events a second at most; None: no bound.
    """

    impressions: Path | None = None
    actions: Path | None = None
    rules: tuple[ActionRule, ...] = ()
    skip: int = 0
    rows: int | None = None
    speed: float | None = None
    rate: float | None = None


@dataclass(frozen=True)
class _Events:
    """Of one log, by event time; ``times_us`` and ``partition`` are (n,)."""

    log: int
    table: pa.Table
    times_us: npt.NDArray[np.int64]
    partition: npt.NDArray[np.int64]


def produce(job: JobSpec, request: ProduceRequest, tell: Callable[[str], None]) -> dict[str, int]:
    """Append the events to the job's logs, which are created where they are not there.

    A partition is chosen by the join key, so that the same files give the same partitions.

    Returns:
        Log name -> messages appended.

    Raises:
        SpecError: a file does not have what the job's columns ask for, or messages are of a format that this
            cannot write.
        LogError: a log cannot be written.
    """
    schemas = {IMPRESSIONS: impression_schema(job), ACTIONS: action_schema(job)}
    for log, schema in schemas.items():
        _check_format(LOG_NAMES[log], schema)
    tables: dict[int, list[pa.Table]] = {IMPRESSIONS: [], ACTIONS: []}
    if request.impressions is not None:
        table = read_rows(request.impressions).slice(request.skip, request.rows)
        tables[IMPRESSIONS].append(table)
        tables[ACTIONS] += [actions_of(table, rule, schemas) for rule in request.rules]
    elif request.rules:
        raise SpecError("expected --impressions for actions that are made of them, received none")
    if request.actions is not None:
        tables[ACTIONS].append(read_rows(request.actions))
    logs = {IMPRESSIONS: job.logs.impressions, ACTIONS: job.logs.actions}
    parts = []
    for log, found in tables.items():
        address = job.address(logs[log])
        reader = address.create_missing("lines")
        if found:
            table = pa.concat_tables(found, promote_options="permissive")
            parts.append(_ordered(log, table, schemas[log], len(reader.partitions())))
        reader.close()
    writers = {events.log: job.address(logs[events.log]).open_writer() for events in parts}
    try:
        return _append(parts, schemas, writers, request, tell)
    finally:
        for writer in writers.values():
            writer.close()


def read_rows(path: Path) -> pa.Table:
    """A file's rows.

    Raises:
        SpecError: it cannot be read, or its name does not say what it is.
    """
    kinds = [suffix for suffix in path.suffixes if suffix not in (".gz", ".bz2", ".zst")]
    kind = kinds[-1] if kinds else ""
    try:
        if kind == ".parquet":
            return pq.read_table(path)
        if kind == ".csv":
            return pyarrow.csv.read_csv(path)
        if kind in (".jsonl", ".json"):
            with pa.input_stream(str(path)) as stream:  # unpacks by the name
                return pyarrow.json.read_json(pa.BufferReader(stream.read()))
    except (OSError, pa.ArrowException) as error:
        raise SpecError(f"expected rows in {path}, received: {error}") from None
    raise SpecError(f"expected a .parquet, .csv or .jsonl file, received {path}")


def actions_of(table: pa.Table, rule: ActionRule, schemas: dict[int, EventSchema]) -> pa.Table:
    """The actions that a rule makes of impressions: their key, type and time.

    Raises:
        SpecError: a column is not there.
    """
    shown, acted = schemas[IMPRESSIONS], schemas[ACTIONS]
    assert acted.action_type is not None
    marks = _column(table, rule.column)
    having = pc.fill_null(pc.not_equal(marks.cast(pa.float64()), 0.0), False)
    table = table.filter(having)
    unit_us = {name: _unit_us(schema) for name, schema in (("shown", shown), ("acted", acted))}
    after: float | npt.NDArray[np.float64]
    if rule.delay.isdecimal():
        after = int(rule.delay) * unit_us["shown"]
    else:
        after = np.asarray(_column(table, rule.delay).cast(pa.float64())) * unit_us["shown"]
    times_us = _times_us(table, shown)
    times = np.round((times_us + after) / unit_us["acted"]).astype(np.int64)
    columns = {_field(acted, name): _column(table, _field(shown, name)) for name in shown.key}
    columns[_field(acted, acted.time)] = pa.chunked_array([times])
    columns[_field(acted, acted.action_type)] = pa.chunked_array(
        [pa.array([rule.action] * len(times), pa.string())]
    )
    return pa.table(columns)


# --- how ------------------------------------------------------------------------------------


def _check_format(log: str, schema: EventSchema) -> None:
    if schema.message.kind not in ("json", "arrow") or schema.message.explode is not None:
        raise SpecError(
            f"messages.{log}: expected the format json or arrow, and no explode, received {schema.message.kind}; "
            "write other messages with your own producer"
        )


def _field(schema: EventSchema, name: str) -> str:
    """The field of a message that a column lies in.

    Raises:
        SpecError: it is nested.
    """
    path = schema.columns[name].path or name
    if re.fullmatch(r"\w+", path) is None:
        raise SpecError(f"column {name}: expected a field of the message itself, received the path {path}")
    return path


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise SpecError(f"expected a column {name!r}, the file has {table.column_names}")
    return table.column(name)


def _unit_us(schema: EventSchema) -> float:
    column: Column = schema.columns[schema.time]
    if column.unit not in _UNITS_US:
        raise SpecError(f"column {schema.time}: expected a time in s, ms, us or ns, received {column.unit}")
    return _UNITS_US[column.unit]


def _times_us(table: pa.Table, schema: EventSchema) -> npt.NDArray[np.float64]:
    values = _column(table, _field(schema, schema.time)).cast(pa.float64())
    if values.null_count:
        raise SpecError(f"expected a time in every row, {values.null_count} have none; leave them out")
    return np.asarray(values) * _unit_us(schema)


def _ordered(log: int, table: pa.Table, schema: EventSchema, partitions: int) -> _Events:
    times_us = _times_us(table, schema).astype(np.int64)
    order = np.argsort(times_us, kind="stable")
    table = table.take(pa.array(order)).combine_chunks()
    keys = [_column(table, _field(schema, name)) for name in schema.key]
    typed = [
        key.cast(schema.columns[name].arrow_type).combine_chunks()
        for name, key in zip(schema.key, keys, strict=True)
    ]
    hashes = hash_rows([key.chunk(0) if isinstance(key, pa.ChunkedArray) else key for key in typed])
    return _Events(log, table, times_us[order], (hashes % np.uint64(partitions)).astype(np.int64))


def _append(
    parts: Sequence[_Events],
    schemas: dict[int, EventSchema],
    writers: dict[int, LogWriter],
    request: ProduceRequest,
    tell: Callable[[str], None],
) -> dict[str, int]:
    times = np.sort(np.concatenate([events.times_us for events in parts])) if parts else np.empty(0, np.int64)
    counts = dict.fromkeys((LOG_NAMES[events.log] for events in parts), 0)
    begin_s, done = time.monotonic(), 0
    at = [0] * len(parts)
    for until_us in _chunks(times, request):
        stops = [int(np.searchsorted(events.times_us, until_us, side="right")) for events in parts]
        _wait(times, until_us, sum(stops), begin_s, request)
        for number, (events, stop) in enumerate(zip(parts, stops, strict=True)):
            for partition, messages in _messages(events, at[number], stop, schemas[events.log]):
                writers[events.log].append(partition, messages, time.time_ns() // 1_000)
                counts[LOG_NAMES[events.log]] += len(messages)
        at, before, done = stops, done, sum(stops)
        if done // 50_000 != before // 50_000:
            tell(f"{done:,} of {len(times):,} events")
    return counts


def _chunks(times: npt.NDArray[np.int64], request: ProduceRequest) -> Iterator[int]:
    """The latest event time of each chunk; what has one time stays together."""
    most = CHUNK_EVENTS
    if request.rate is not None:  # a few a second, so that it is a flow
        most = max(1, min(most, int(request.rate / 4)))
    last = None
    for end in range(most - 1, len(times) + most - 1, most):
        until_us = int(times[min(end, len(times) - 1)])
        if until_us != last:
            yield until_us
        last = until_us


def _wait(
    times: npt.NDArray[np.int64], until_us: int, events: int, begin_s: float, request: ProduceRequest
) -> None:
    due_s = 0.0
    if request.speed is not None:
        due_s = (until_us - int(times[0])) / 1e6 / request.speed
    if request.rate is not None:
        due_s = max(due_s, events / request.rate)
    time.sleep(max(0.0, begin_s + due_s - time.monotonic()))


def _messages(
    events: _Events, begin: int, end: int, schema: EventSchema
) -> Iterator[tuple[int, list[bytes]]]:
    """The messages of a piece of one log, by partition."""
    piece, partition = events.table.slice(begin, end - begin), events.partition[begin:end]
    for number in np.unique(partition).tolist():
        (mine,) = piece.filter(pa.array(partition == number)).combine_chunks().to_batches()
        yield number, [encode_batch(mine)] if schema.message.kind == "arrow" else json_lines(mine)
