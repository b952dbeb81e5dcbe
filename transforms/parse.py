"""Messages to validated rows, columnar; what is refused becomes a dead letter and the rest goes on.

A message is one JSON object, or an Arrow IPC stream of many rows; which of the two is seen from its
first bytes. Validation is complete here: nothing behind this point meets a missing key, a value of
another type, NaN, or a time that cannot be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.embedding_store.hashing import hash_rows
from cuckooflow.logs.contract import MessageBatch
from cuckooflow.transforms.batch_bytes import decode_stream, encode_batch
from cuckooflow.transforms.columns import EventSchema
from cuckooflow.transforms.dead_letters import (
    EMPTY,
    MALFORMED,
    MISSING_COLUMN,
    TOMBSTONE,
    UNKNOWN_COLUMN,
    WRONG_TYPE,
    Refused,
    dead_letters,
)
from cuckooflow.transforms.in_band import NO_TIME_US
from cuckooflow.transforms.json_rows import decode_json, decode_one
from cuckooflow.transforms.row_checks import Checked, check_rows

I64 = npt.NDArray[np.int64]
_IPC_MAGIC = b"\xff\xff\xff\xff"
_BLANKS = b" \t\r\n"


@dataclass(frozen=True)
class Parsed:
    """The rows of a batch of messages.

    Attributes:
        rows: in log order, in ``EventSchema.row_schema``; ``_wm`` is ``NO_TIME_US``, the poller sets it.
        dead: what was refused, by (offset, row), in ``DEAD_LETTER_SCHEMA``.
    """

    rows: pa.RecordBatch
    dead: pa.RecordBatch


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
        schema: what was declared.
        max_future_skew_us: an event time further past its append time is refused.
    """
    messages = batch.values.to_pylist()
    refused: list[Refused] = []
    objects: list[int] = []
    parts: list[tuple[pa.Table, I64, I64]] = []  # checked rows; which message; row in the message
    for i, message in enumerate(messages):
        if message is not None and message[:1] == b"{":
            objects.append(i)
        else:
            _sort_out(i, message, messages, objects, refused, parts, batch, schema, max_future_skew_us)
    if objects:
        chosen = messages if len(objects) == len(messages) else [messages[i] for i in objects]
        table, at, faults = decode_json(chosen, schema)
        index = np.array(objects, np.int64)
        for i, (reason, detail) in faults.items():
            refused.append(Refused(objects[i], 0, reason, detail, messages[objects[i]]))
        whence = index[at]
        checked = check_rows(table, schema, batch.append_us[whence], max_future_skew_us)
        for row, (reason, detail) in checked.faults.items():
            message_at = int(whence[row])
            refused.append(Refused(message_at, 0, reason, detail, messages[message_at]))
        parts.append(_without_faults(checked, whence, np.zeros(len(whence), np.int64), schema))
    rows = _assemble(parts, batch, log, schema)
    return Parsed(rows, dead_letters(log_name, batch.partition, batch.offsets, batch.append_us, refused))


def _sort_out(
    i: int,
    message: bytes | None,
    messages: list[bytes | None],
    objects: list[int],
    refused: list[Refused],
    parts: list[tuple[pa.Table, I64, I64]],
    batch: MessageBatch,
    schema: EventSchema,
    max_future_skew_us: int,
) -> None:
    """A message that does not begin with ``{``: refuse it, strip its blanks, or read it as Arrow."""
    if message is None:
        refused.append(Refused(i, -1, TOMBSTONE, "expected a message, received a tombstone", None))
    elif message[:4] == _IPC_MAGIC:
        try:
            parts.append(_arrow_rows(i, message, refused, batch, schema, max_future_skew_us))
        except _Whole as error:
            refused.append(Refused(i, -1, error.reason, str(error), message))
    elif not (stripped := message.strip(_BLANKS)):
        refused.append(Refused(i, -1, EMPTY, "expected a message, received no more than blanks", message))
    elif stripped[:1] == b"{":
        messages[i] = stripped
        objects.append(i)
    else:
        answer = decode_one(message, schema)
        assert not isinstance(answer, dict), "only what begins with { is an object"
        refused.append(Refused(i, -1, *answer, message))


class _Whole(Exception):
    """An Arrow message that is refused as a whole."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _arrow_rows(
    i: int,
    message: bytes,
    refused: list[Refused],
    batch: MessageBatch,
    schema: EventSchema,
    max_future_skew_us: int,
) -> tuple[pa.Table, I64, I64]:
    try:
        table = decode_stream(pa.py_buffer(message))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _Whole(MALFORMED, f"expected a whole Arrow IPC stream: {error}") from None
    names = table.schema.names
    if len(set(names)) != len(names):
        raise _Whole(MALFORMED, f"expected each column once, received {names}")
    unknown = sorted(set(names) - set(schema.columns))
    if unknown and schema.unknown_columns == "dead_letter":
        raise _Whole(UNKNOWN_COLUMN, f"expected only declared columns, received {', '.join(unknown)}")
    missing = [n for n, c in schema.columns.items() if c.required and n not in names]
    if missing:
        raise _Whole(
            MISSING_COLUMN, f"expected the columns {', '.join(missing)}, received {', '.join(names)}"
        )
    count = table.num_rows
    append_us = np.full(count, batch.append_us[i], np.int64)
    try:
        checked = check_rows(table, schema, append_us, max_future_skew_us)
    except (TypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _Whole(WRONG_TYPE, str(error)) from None
    for row, (reason, detail) in checked.faults.items():
        alone = table.slice(row, 1).combine_chunks().to_batches()[0]
        refused.append(Refused(i, row, reason, detail, encode_batch(alone)))
    return _without_faults(checked, np.full(count, i, np.int64), np.arange(count, dtype=np.int64), schema)


def _without_faults(
    checked: Checked, message: I64, row: I64, schema: EventSchema
) -> tuple[pa.Table, I64, I64]:
    columns = {name: values for name, values in checked.columns.items() if name != schema.time}
    table = pa.table({**columns, "_time": pa.array(checked.time_us)})
    if checked.faults:
        keep = np.ones(len(message), np.bool_)
        keep[list(checked.faults)] = False
        table, message, row = table.filter(pa.array(keep)), message[keep], row[keep]
    return table, message, row


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
