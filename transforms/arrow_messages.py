"""Arrow IPC messages, each a stream of any number of rows, to rows; messages of one schema are taken together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.transforms.batch_bytes import decode_stream, encode_batch
from cuckooflow.transforms.columns import EventSchema
from cuckooflow.transforms.dead_letters import (
    MALFORMED,
    MISSING_COLUMN,
    UNKNOWN_COLUMN,
    WRONG_TYPE,
    Refused,
)
from cuckooflow.transforms.decoded import NO_ITEMS, Decoded, Rows
from cuckooflow.transforms.documents import flat_rows
from cuckooflow.transforms.row_checks import type_fault

I64 = npt.NDArray[np.int64]
#: An IPC stream's first bytes: the continuation mark of its schema message.
IPC_MAGIC = b"\xff\xff\xff\xff"


def decode_arrow(messages: Sequence[bytes], index: I64, schema: EventSchema) -> Decoded:
    """Decode Arrow messages.

    Args:
        messages: (n,) each ought to be one whole IPC stream.
        index: (n,) int64, what to call each of them in the answer.
        schema: the declared columns. Columns are taken by their paths.
    """
    decoded = Decoded()
    alike: list[tuple[pa.Schema, list[tuple[int, pa.Table]]]] = []
    for i, message in enumerate(messages):
        try:
            table = _table(message)
        except (pa.ArrowException, OSError, ValueError) as error:
            detail = f"expected a whole Arrow IPC stream: {error}"
            decoded.refused.append(Refused(int(index[i]), -1, MALFORMED, detail, message))
            continue
        group = next((group for known, group in alike if known.equals(table.schema)), None)
        if group is None:
            fault = _schema_fault(table.schema, schema)
            if fault is not None:
                decoded.refused.append(Refused(int(index[i]), -1, *fault, message))
                continue
            group = []
            alike.append((table.schema, group))
        group.append((i, table))
    for _, group in alike:
        _take_group(group, index, schema, decoded)
    return decoded


def decode_table(table: pa.Table, schema: EventSchema) -> Decoded:
    """Rows that are columns already, each called by its number.

    Args:
        table: (n,) rows; a column that is not there is null.
        schema: the declared columns. Columns are taken by their paths.
    """
    decoded = Decoded()
    table = table.replace_schema_metadata(None).combine_chunks()
    tops = {str(place.outer[0]) for place in schema.places.values()}
    for name, column in schema.columns.items():
        top = str(schema.places[name].outer[0])
        if top not in table.schema.names and column.required:
            table = table.append_column(top, pa.nulls(table.num_rows, column.json_type))
    fault = _schema_fault(table.schema.remove_metadata(), _lenient(schema))
    if fault is not None:
        every = enumerate(_alone(table, at) for at in range(table.num_rows))
        decoded.refused += [Refused(at, 0, *fault, value) for at, value in every]
        return decoded
    keep = np.ones(table.num_rows, np.bool_)
    if schema.unknown_columns == "dead_letter":
        for name in sorted(set(table.schema.names) - tops):
            there = np.flatnonzero(table.column(name).is_valid().to_numpy() & keep)
            detail = f"expected only declared columns, received {name}"
            decoded.refused += [
                Refused(at, 0, UNKNOWN_COLUMN, detail, _alone(table, at)) for at in there.tolist()
            ]
            keep[there] = False
    which = np.flatnonzero(keep)
    rows = table.take(pa.array(which)).combine_chunks()
    _take(rows, which, np.zeros(len(which), np.int64), schema, decoded)
    return decoded


def _lenient(schema: EventSchema) -> EventSchema:
    """The schema, for a look at the types alone: unknown columns are looked at row by row."""
    return schema.model_copy(update={"unknown_columns": "ignore"})


def _table(message: bytes) -> pa.Table:
    table = decode_stream(pa.py_buffer(message))
    table.validate(full=True)
    return table.replace_schema_metadata(None)


def _schema_fault(found: pa.Schema, schema: EventSchema) -> tuple[str, str] | None:
    """What is wrong with every row of a message with this schema."""
    names = found.names
    if len(set(names)) != len(names):
        return MALFORMED, f"expected each column once, received {names}"
    tops = {str(place.outer[0]) for place in schema.places.values()}
    unknown = sorted(set(names) - tops)
    if unknown and schema.unknown_columns == "dead_letter":
        return UNKNOWN_COLUMN, f"expected only declared columns, received {', '.join(unknown)}"
    missing = [n for n, c in schema.columns.items() if c.required and schema.places[n].outer[0] not in names]
    if missing:
        return MISSING_COLUMN, f"expected the columns {', '.join(missing)}, received {', '.join(names)}"
    try:
        flat = flat_rows(found.empty_table(), schema.places, schema.message.list_path)
    except TypeError as error:
        return WRONG_TYPE, str(error)
    for name in flat.table.schema.names:
        fault = type_fault(name, flat.table.schema.field(name).type, schema.columns[name])
        if fault is not None:
            return WRONG_TYPE, fault
    return None


def _take_group(
    group: Sequence[tuple[int, pa.Table]], index: I64, schema: EventSchema, decoded: Decoded
) -> None:
    """Messages of one schema."""
    tables = [table for _, table in group]
    whole = pa.concat_tables(tables).combine_chunks() if len(tables) > 1 else tables[0].combine_chunks()
    lengths = np.array([table.num_rows for table in tables])
    message = np.repeat(index[np.array([i for i, _ in group])], lengths)
    row = np.arange(whole.num_rows) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    _take(whole, message, row, schema, decoded)


def _take(whole: pa.Table, message: I64, row: I64, schema: EventSchema, decoded: Decoded) -> None:
    """Rows, (n,) with the message of each and its row in it."""

    def refuse(documents: I64, reason: str, detail: str) -> None:
        for at in documents.tolist():
            entry = Refused(int(message[at]), int(row[at]), reason, detail, _alone(whole, at))
            decoded.refused.append(entry)

    flat = flat_rows(whole, schema.places, schema.message.list_path)
    refuse(flat.without_list, MISSING_COLUMN, f"expected a list in {schema.message.explode}, found null")
    decoded.leave_out(NO_ITEMS, len(flat.empty))
    document = flat.document
    exploded = schema.message.list_path is not None
    # Items are counted through the message, not through each of its lists.
    place = _running(message[document]) if exploded else row[document]
    decoded.parts.append(
        Rows(
            flat.table,
            message[document],
            place,
            lambda at: _alone(whole, int(document[at])),
            document if exploded else None,
        )
    )


def _alone(table: pa.Table, at: int) -> bytes:
    """One row as a message of its own."""
    # A copy: a slice's padding holds bytes of its neighbours, and so would not be the same everywhere.
    return encode_batch(table.take(pa.array([at])).combine_chunks().to_batches()[0])


def _running(groups: I64) -> I64:
    """0, 1, 2... within each run of equal values."""
    begins = np.flatnonzero(np.diff(groups, prepend=-1))
    lengths = np.diff(np.append(begins, len(groups)))
    return np.arange(len(groups)) - np.repeat(begins, lengths)
