"""Messages to validated rows, columnar; what is refused becomes a dead letter and the rest goes on.

The format of a log's messages is declared (:mod:`cuckooflow.transforms.message_format`); each has a decoder
in a file of its own, which answers rows of the declared columns. Validation is complete here: nothing behind
this point meets a missing key, a value of another type, NaN, or a time that cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cuckooflow.embedding_store.hashing import hash_rows
from cuckooflow.logs.contract import MessageBatch
from cuckooflow.transforms.arrow_messages import IPC_MAGIC, decode_arrow, decode_table
from cuckooflow.transforms.avro_messages import decode_avro
from cuckooflow.transforms.columns import EventSchema
from cuckooflow.transforms.dead_letters import EMPTY, TOMBSTONE, UNREADABLE_FILE, Refused, dead_letters
from cuckooflow.transforms.decoded import OTHER_ACTION, Decoded, Rows
from cuckooflow.transforms.in_band import NO_TIME_US
from cuckooflow.transforms.json_messages import decode_json
from cuckooflow.transforms.json_one import decode_one
from cuckooflow.transforms.row_checks import check_rows
from cuckooflow.transforms.tf_example_messages import decode_tf_example

I64 = npt.NDArray[np.int64]
_BLANKS = b" \t\r\n"


@dataclass(frozen=True)
class Parsed:
    """The rows of a batch of messages.

    Attributes:
        rows: in log order, in ``EventSchema.row_schema``; ``_wm`` is ``NO_TIME_US``, the poller sets it.
        dead: what was refused, by (offset, row), in ``DEAD_LETTER_SCHEMA``.
        left_out: reason -> how many, see :attr:`~cuckooflow.transforms.decoded.Decoded.left_out`.
        read: how many rows there were before any was refused or left out; a message that is refused as a
            whole is one, a message without items none.
    """

    rows: pa.RecordBatch
    dead: pa.RecordBatch
    left_out: Mapping[str, int] = field(default_factory=dict)
    read: int = 0


def parse_messages(
    batch: MessageBatch,
    log: int,
    log_name: str,
    schema: EventSchema,
    max_future_skew_us: int = 3_600_000_000,
) -> Parsed:
    """Decode and validate the messages of one partition.

    Args:
        batch: the messages.
        log: ``IMPRESSIONS`` or ``ACTIONS``, for the column ``_log``.
        log_name: for dead letters.
        schema: what was declared, the messages' format included.
        max_future_skew_us: an event time further past its append time is refused.
    """
    messages = batch.values.to_pylist()
    decoded = _decode(messages, schema, batch.unreadable)
    read = _rows_read(decoded)
    parts = []
    for part in decoded.parts:
        wanted = _wanted(part, schema, decoded)
        parts.append(_checked(wanted, messages, batch.append_us, schema, max_future_skew_us, decoded))
    rows = _assemble(parts, batch, log, schema)
    refused = _bytes_once(decoded.refused, messages)
    dead = dead_letters(log_name, batch.partition, batch.offsets, batch.append_us, refused)
    return Parsed(rows, dead, decoded.left_out, read)


def parse_table(
    table: pa.Table,
    append_us: I64,
    log: int,
    log_name: str,
    schema: EventSchema,
    max_future_skew_us: int = 3_600_000_000,
) -> Parsed:
    """Validate rows that are columns already, each as if it were a message; their offset is their number.

    A refused row's bytes are the row alone, as an Arrow IPC stream.

    Args:
        table: (n,) rows.
        append_us: (n,) when each was appended.
        log, log_name, schema, max_future_skew_us: as :func:`parse_messages`.
    """
    decoded = decode_table(table, schema)
    read = _rows_read(decoded)
    count = table.num_rows
    nothing = pa.nulls(count, pa.binary())
    batch = MessageBatch(0, np.arange(count), append_us, nothing, count)
    messages: list[bytes | None] = [None] * count
    parts = []
    for part in decoded.parts:
        wanted = _wanted(part, schema, decoded)
        parts.append(_checked(wanted, messages, append_us, schema, max_future_skew_us, decoded))
    refused = sorted(decoded.refused, key=lambda entry: entry[:2])
    dead = dead_letters(log_name, 0, batch.offsets, append_us, refused)
    return Parsed(_assemble(parts, batch, log, schema), dead, decoded.left_out, read)


# --- by format ------------------------------------------------------------------------------


def _decode(messages: Sequence[bytes | None], schema: EventSchema, unreadable: Mapping[int, str]) -> Decoded:
    """Every message to its format's decoder; what is no message in any format is refused here."""
    decoded = Decoded()
    kind = schema.message.kind
    there: list[int] = []
    arrow: list[int] = []
    blanks: list[int] = []
    for i, message in enumerate(messages):
        if i in unreadable:
            decoded.refused.append(Refused(i, -1, UNREADABLE_FILE, unreadable[i], None))
        elif message is None:
            refused = Refused(i, -1, TOMBSTONE, "expected a message, received a tombstone", None)
            decoded.refused.append(refused)
        elif kind == "json" and message[:1] != b"{":
            (arrow if message[:4] == IPC_MAGIC else blanks).append(i)
        elif not message:
            decoded.refused.append(Refused(i, -1, EMPTY, "expected a message, received no bytes", message))
        else:
            there.append(i)
    if blanks:
        decoded.add(_json_behind_blanks(messages, blanks, schema))
    for indices, decode in ((arrow, decode_arrow), (there, _DECODERS[kind])):
        if indices:
            chosen = messages if len(indices) == len(messages) else [messages[i] for i in indices]
            decoded.add(decode(chosen, np.array(indices, np.int64), schema))  # type: ignore[arg-type]
    return decoded


_DECODERS: dict[str, Callable[[Sequence[bytes], I64, EventSchema], Decoded]] = {
    "json": decode_json,
    "arrow": decode_arrow,
    "tf_example": decode_tf_example,
    "avro": decode_avro,
}


def _json_behind_blanks(
    messages: Sequence[bytes | None], blanks: Sequence[int], schema: EventSchema
) -> Decoded:
    """Messages of a JSON log that do not begin with ``{``: nothing, an object behind blanks, or no object."""
    decoded = Decoded()
    objects: list[int] = []
    for i in blanks:
        message = messages[i] or b""
        stripped = message.strip(_BLANKS)
        if not stripped:
            detail = "expected a message, received no more than blanks"
            decoded.refused.append(Refused(i, -1, EMPTY, detail, message))
        elif stripped[:1] == b"{":
            objects.append(i)
        else:
            fault = decode_one(message, schema).fault
            assert fault is not None, "only what begins with { is an object"
            decoded.refused.append(Refused(i, -1, *fault, message))
    if objects:
        bodies = [(messages[i] or b"").strip(_BLANKS) for i in objects]
        answer = decode_json(bodies, np.array(objects, np.int64), schema)
        for at, entry in enumerate(answer.refused):
            if entry.value is not None:
                answer.refused[at] = entry._replace(value=messages[entry.message])
        decoded.add(answer)
    return decoded


def _rows_read(decoded: Decoded) -> int:
    rows = sum(len(part.message) for part in decoded.parts)
    return rows + len(decoded.refused) + decoded.left_out.get(OTHER_ACTION, 0)


# --- what every format's rows go through ----------------------------------------------------


def _wanted(part: Rows, schema: EventSchema, decoded: Decoded) -> Rows:
    """Without the rows of action types that nobody wants, which are counted."""
    name, only = schema.action_type, schema.message.only
    if only is None or name is None or name not in part.table.schema.names:
        return part
    values = part.table.column(name).combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    known = pc.is_in(values, value_set=pa.array(only, values.type))
    keep = pc.or_(known, pc.is_null(values)).to_numpy(zero_copy_only=False)
    if keep.all():
        return part
    decoded.leave_out(OTHER_ACTION, len(keep) - int(keep.sum()))
    return part.filter(keep)


def _checked(
    part: Rows,
    messages: Sequence[bytes | None],
    append_us: I64,
    schema: EventSchema,
    max_future_skew_us: int,
    decoded: Decoded,
) -> tuple[pa.Table, I64, I64]:
    """The rows that hold, as columns; the others are refused."""
    checked = check_rows(part.table, schema, append_us[part.message], max_future_skew_us)
    brought: set[int] = set()
    for row, (reason, detail) in sorted(checked.faults.items()):
        i = int(part.message[row])
        value = messages[i] if part.bytes_of is None else part.bytes_of(row)
        if part.shared is not None:
            shared = int(part.shared[row])
            value = None if shared in brought else value
            brought.add(shared)
        decoded.refused.append(Refused(i, int(part.row[row]), reason, detail, value))
    columns = {name: values for name, values in checked.columns.items() if name != schema.time}
    table = pa.table({**columns, "_time": pa.array(checked.time_us)})
    message, row_in = part.message, part.row
    if checked.faults:
        keep = np.ones(len(message), np.bool_)
        keep[list(checked.faults)] = False
        table, message, row_in = table.filter(pa.array(keep)), message[keep], row_in[keep]
    return table, message, row_in


def _bytes_once(refused: Sequence[Refused], messages: Sequence[bytes | None]) -> list[Refused]:
    """By position; of the rows of one message, only the first brings the message's bytes."""
    found: list[Refused] = []
    for entry in sorted(refused, key=lambda entry: entry[:2]):
        whole = entry.value is messages[entry.message]
        again = whole and bool(found) and found[-1].message == entry.message
        found.append(entry._replace(value=None) if again else entry)
    return found


def _assemble(
    parts: Sequence[tuple[pa.Table, I64, I64]], batch: MessageBatch, log: int, schema: EventSchema
) -> pa.RecordBatch:
    """The parts in log order, with the columns of ``ROW_COLUMNS``."""
    if not parts:
        return pa.RecordBatch.from_pylist([], schema=schema.row_schema)
    table = pa.concat_tables([part for part, _, _ in parts])
    message = np.concatenate([at for _, at, _ in parts])
    row = np.concatenate([at for _, _, at in parts])
    if len(parts) > 1:
        order = np.lexsort((row, message))
        table, message, row = table.take(pa.array(order)), message[order], row[order]
    count = len(message)
    table = table.combine_chunks()
    key = [table.column(name) for name in schema.key]
    added = {
        "_log": pa.array(np.full(count, log, np.int8)),
        "_partition": pa.array(np.full(count, batch.partition, np.int32)),
        "_offset": pa.array(batch.offsets[message]),
        "_row": pa.array(row.astype(np.int32)),
        "_time": table.column("_time"),
        "_wm": pa.array(np.full(count, NO_TIME_US, np.int64)),
        "_append": pa.array(batch.append_us[message]),
        "_hash": pa.array(hash_rows(key)),
    }
    arrays = [added[f.name] if f.name in added else table.column(f.name) for f in schema.row_schema]
    table = pa.Table.from_arrays(arrays, schema=schema.row_schema).combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=schema.row_schema)
