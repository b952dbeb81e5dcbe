"""Rows of files with the places that their columns name, to parsed rows."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.errors import InputFileWrong
from cuckooflow.logs.contract import MessageBatch
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.dead_letters import EMPTY, Refused, dead_letters
from cuckooflow.transforms.json_messages import decode_json
from cuckooflow.transforms.json_one import decode_one
from cuckooflow.transforms.parse import Parsed, parse_messages, parse_table
from cuckooflow.transforms.row_checks import check_rows

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Places:
    """Where rows lay, (n,) each: partition, offset of the message, row in it, and when it was appended."""

    partitions: npt.NDArray[np.int32]
    offsets: I64
    rows: I64
    append_us: I64


@dataclass(frozen=True)
class PlaceColumns:
    """Which columns say where a row lay in its log.

    Attributes:
        partition, offset: integers; None: the file's own order. A row without them is refused.
        row: integer, the row in its message, for rows of messages of several; None: 0.
        append: when it was appended, integer microseconds or a timestamp; None: not told.
        value: of the layout ``messages``, the message's bytes; in JSON text, or base64 under ``<value>_base64``.
    """

    partition: str | None = None
    offset: str | None = None
    row: str | None = None
    append: str | None = None
    value: str = "value"

    def names(self) -> list[str]:
        """Those that there are, ``value`` not among them."""
        every = (self.partition, self.offset, self.row, self.append)
        return [name for name in every if name is not None]


class PlacedInput(Protocol):
    """What is asked of an input of files, see :class:`~cuckooflow.transforms.input_files.FileInput`."""

    @property
    def layout(self) -> str: ...

    @property
    def columns(self) -> PlaceColumns: ...

    @property
    def schema(self) -> EventSchema: ...

    @property
    def name(self) -> str: ...

    @property
    def append_until_us(self) -> int | None: ...


def parse_places(
    table: pa.Table, offsets: I64, number: int, source: PlacedInput, log: int, max_future_skew_us: int
) -> Parsed:
    """Parse rows of a Parquet file.

    Args:
        table: (n,) rows as the file has them.
        offsets: (n,) places in the file, where the columns do not say others.
        number: of the file.

    Raises:
        InputFileWrong: a column of places is not there, not of integers, or not told for some row.
    """
    columns = source.columns
    missing = [name for name in columns.names() if name not in table.schema.names]
    if missing:
        raise InputFileWrong(
            f"expected the columns {', '.join(missing)}, found {', '.join(table.schema.names)}; name the columns "
            "of places as the files do"
        )
    places = _places(table, offsets, number, source)
    if source.layout == "rows":
        own = [name for name in table.schema.names if name not in columns.names()]
        parsed = parse_table(
            table.select(own), places.append_us, log, source.name, source.schema, max_future_skew_us
        )
        return _placed(parsed, places, source)
    if columns.value not in table.schema.names:
        raise InputFileWrong(f"expected the column {columns.value}, found {', '.join(table.schema.names)}")
    values = table.column(columns.value).combine_chunks().cast(pa.binary())
    return _messages(values, places, log, source, max_future_skew_us)


def parse_lines(
    lines: Sequence[bytes], offsets: I64, number: int, source: PlacedInput, log: int, max_future_skew_us: int
) -> Parsed:
    """Parse lines of JSON; one whose place cannot be read is refused with partition ``-1 - number``."""
    columns = source.columns
    lost: list[Refused] = []
    table, at = _decode_places(lines, source, lost)
    places = _places(table, offsets[at], number, source)
    if source.layout == "rows":
        values = pa.array([lines[i] for i in at.tolist()], pa.binary())
    else:
        values = _values(table, columns.value)
    parsed = _messages(values, places, log, source, max_future_skew_us)
    if not lost:
        return parsed
    append_us = np.full(len(lines), source.append_until_us or 0, np.int64)
    letters = dead_letters(source.name, -1 - number, offsets, append_us, lost)
    dead = pa.concat_batches([parsed.dead, letters])
    return Parsed(parsed.rows, dead, parsed.left_out, parsed.read + letters.num_rows)


def parse_records(
    records: Sequence[bytes],
    offsets: I64,
    number: int,
    source: PlacedInput,
    log: int,
    max_future_skew_us: int,
) -> Parsed:
    """Parse messages that lie in a file of their own, with their first bytes for offsets."""
    places = _places(pa.table({"_": pa.nulls(len(records))}), offsets, number, source)
    return _messages(pa.array(records, pa.binary()), places, log, source, max_future_skew_us)


def _decode_places(lines: Sequence[bytes], source: PlacedInput, lost: list[Refused]) -> tuple[pa.Table, I64]:
    """The columns of places (and of values) of the lines that have them, and which lines these are."""
    columns = source.columns
    wanted = {name: Column(type="int64") for name in columns.names()}
    if source.layout == "messages":
        for name in (columns.value, f"{columns.value}_base64"):
            wanted[name] = Column(type="string", required=False)
    everything = np.arange(len(lines))
    if not wanted:
        return pa.table({"_": pa.nulls(len(lines))}), everything
    shape = EventSchema.model_construct(columns=wanted, time="", unknown_columns="ignore", action_type=None)
    objects = [i for i, line in enumerate(lines) if line[:1] == b"{"]
    for i in sorted(set(range(len(lines))) - set(objects)):
        fault = decode_one(lines[i], shape).fault if lines[i].strip() else None
        lost.append(Refused(i, -1, *(fault or (EMPTY, "expected an object")), lines[i]))
    decoded = decode_json([lines[i] for i in objects], np.array(objects, np.int64), shape)
    lost += [entry._replace(row=-1) for entry in decoded.refused]
    tables, whence = [pa.schema([(n, c.arrow_type) for n, c in wanted.items()]).empty_table()], []
    for part in decoded.parts:
        checked = check_rows(part.table, shape, np.zeros(part.table.num_rows, np.int64), 0)
        for row, (reason, detail) in checked.faults.items():
            i = int(part.message[row])
            lost.append(Refused(i, -1, reason, detail, lines[i]))
        told = np.ones(part.table.num_rows, np.bool_)
        told[list(checked.faults)] = False
        tables.append(pa.table(checked.columns).filter(pa.array(told)))
        whence.append(part.message[told])
    at = np.concatenate(whence) if whence else np.empty(0, np.int64)
    order = np.argsort(at, kind="stable")
    return pa.concat_tables(tables).take(pa.array(order)), at[order]


def _values(table: pa.Table, name: str) -> pa.BinaryArray:
    """The messages' bytes: text, or base64 where there is no text."""
    texts = table.column(name).combine_chunks().cast(pa.binary())
    coded = table.column(f"{name}_base64").combine_chunks()
    rows = np.flatnonzero(coded.is_valid().to_numpy(zero_copy_only=False)).tolist()
    if not rows:
        return texts
    values: list[Any] = texts.to_pylist()
    for row in rows:
        values[row] = base64.b64decode(coded[row].as_py())
    return pa.array(values, pa.binary())


def _places(table: pa.Table, offsets: I64, number: int, source: PlacedInput) -> Places:
    columns = source.columns
    count = table.num_rows

    def integers(name: str | None, otherwise: npt.NDArray[Any], kind: Any) -> npt.NDArray[Any]:
        if name is None:
            return otherwise.astype(kind)
        values = table.column(name).combine_chunks()
        if pa.types.is_timestamp(values.type):
            values = values.cast(pa.timestamp("us")).cast(pa.int64())
        if not pa.types.is_integer(values.type) or values.null_count:
            raise InputFileWrong(f"expected integers without nulls in {name}, found {values.type}")
        return values.cast(pa.int64()).to_numpy().astype(kind)

    none = np.zeros(count, np.int64)
    append_us = np.full(count, source.append_until_us or 0, np.int64)
    return Places(
        integers(columns.partition, np.full(count, number), np.int32),
        integers(columns.offset, offsets, np.int64),
        integers(columns.row, none, np.int64),
        integers(columns.append, append_us, np.int64),
    )


def _messages(
    values: pa.BinaryArray, places: Places, log: int, source: PlacedInput, max_future_skew_us: int
) -> Parsed:
    """Messages of any partitions: parsed under their number, which is then exchanged for their place."""
    count = len(values)
    batch = MessageBatch(0, np.arange(count), places.append_us, values, count)
    parsed = parse_messages(batch, log, source.name, source.schema, max_future_skew_us)
    return _placed(parsed, places, source)


def _placed(parsed: Parsed, places: Places, source: PlacedInput) -> Parsed:
    """Rows and letters with their places, whose offset is their number among those."""
    several = source.layout == "rows" and source.columns.row is not None
    both: list[pa.RecordBatch] = []
    for rows, prefix in ((parsed.rows, "_"), (parsed.dead, "")):
        at = rows.column(f"{prefix}offset").to_numpy()
        within = rows.column(f"{prefix}row").to_numpy()
        if several:
            within = np.where(within < 0, within, places.rows[at])
        for name, column in (
            ("partition", places.partitions[at]),
            ("offset", places.offsets[at]),
            ("row", within),
        ):
            index = rows.schema.get_field_index(prefix + name)
            field = rows.schema.field(index)
            rows = rows.set_column(index, field, pa.array(column, field.type))
        both.append(rows)
    placed, dead = both
    return Parsed(placed, dead, parsed.left_out, parsed.read)
