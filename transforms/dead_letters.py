"""Rows that were refused: with their bytes, the reason and where they lay, so that they can be replayed."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

# --- reasons: a small fixed vocabulary, so that they can be counted -------------------------

#: A null message: a compacted log's deletion mark.
TOMBSTONE = "tombstone"
#: No bytes, or only blanks.
EMPTY = "empty"
#: JSON, but not one object.
NOT_AN_OBJECT = "not_an_object"
#: More than one JSON object in one message.
SEVERAL_OBJECTS = "several_objects"
#: A file that is damaged from here on, or is not the one that was seen; ``value`` is null.
UNREADABLE_FILE = "unreadable_file"
#: Neither JSON nor a whole Arrow stream.
MALFORMED = "malformed"
#: A column that the schema does not declare, where it asks for that to be refused.
UNKNOWN_COLUMN = "unknown_column"
#: A required column is absent or null.
MISSING_COLUMN = "missing_column"
#: A value that is not of its column's type.
WRONG_TYPE = "wrong_type"
#: An integer outside its type's range.
OUT_OF_RANGE = "out_of_range"
#: NaN or infinity.
NOT_FINITE = "not_finite"
#: A time that is zero, negative, or not a time.
BAD_TIME = "bad_time"
#: An event time too far past the append time.
FUTURE_TIME = "future_time"

PARSE_REASONS: tuple[str, ...] = (
    TOMBSTONE,
    UNREADABLE_FILE,
    EMPTY,
    NOT_AN_OBJECT,
    SEVERAL_OBJECTS,
    MALFORMED,
    UNKNOWN_COLUMN,
    MISSING_COLUMN,
    WRONG_TYPE,
    OUT_OF_RANGE,
    NOT_FINITE,
    BAD_TIME,
    FUTURE_TIME,
)

#: ``row`` is -1 where the message as a whole was refused. ``value`` is null for a tombstone, for an unreadable file,
#: and for a further refused item of a message that was exploded, whose bytes stand with the first one: to replay, skip
#: these.
DEAD_LETTER_SCHEMA = pa.schema(
    [
        pa.field("log", pa.string()),
        pa.field("partition", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("row", pa.int32()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("value", pa.binary()),
        pa.field("append", pa.int64()),
    ]
)
_DETAIL_CHARS_MAX = 500


class Refused(NamedTuple):
    """One refused row: its message's index in the batch, the row in it, and why."""

    message: int
    row: int
    reason: str
    detail: str
    value: bytes | None


def dead_letters(
    log: str,
    partition: int | npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    append_us: npt.NDArray[np.int64],
    refused: Sequence[Refused],
) -> pa.RecordBatch:
    """Refused rows of messages as a RecordBatch of :data:`DEAD_LETTER_SCHEMA`.

    Args:
        log, partition: where the messages were read; an array, (n,), where they are of several partitions.
        offsets, append_us: (n,) of the messages; ``Refused.message`` is an index into them.
        refused: in any order; they come out by (message, row).
    """
    ordered = sorted(refused, key=lambda entry: entry[:2])
    at = np.array([entry.message for entry in ordered], np.int64)
    columns = [
        pa.array([log] * len(ordered), pa.string()),
        pa.array(np.broadcast_to(partition, len(offsets))[at], pa.int32()),
        pa.array(offsets[at], pa.int64()),
        pa.array([entry.row for entry in ordered], pa.int32()),
        pa.array([entry.reason for entry in ordered], pa.string()),
        pa.array([entry.detail[:_DETAIL_CHARS_MAX] for entry in ordered], pa.string()),
        pa.array([entry.value for entry in ordered], pa.binary()),
        pa.array(append_us[at], pa.int64()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=DEAD_LETTER_SCHEMA)


def no_dead_letters() -> pa.RecordBatch:
    """A RecordBatch of :data:`DEAD_LETTER_SCHEMA` without rows."""
    return pa.RecordBatch.from_pylist([], schema=DEAD_LETTER_SCHEMA)


def letters_by_reason(batch: pa.RecordBatch) -> dict[str, int]:
    """Counters of the dead letters in a batch, by name.

    >>> letters_by_reason(dead_letters("a", 0, np.arange(1), np.arange(1), [Refused(0, 0, EMPTY, "", b"")]))
    {'dead_letters_empty': 1}
    """
    found = batch.column("reason").value_counts()
    return {f"dead_letters_{entry['values']}": entry["counts"] for entry in found.to_pylist()}


def to_json_lines(batch: pa.RecordBatch, line_bytes: int | None = None) -> list[bytes]:
    """Dead letters as JSON, one a row.

    The original bytes stand in ``value`` where they are UTF-8, else in ``value_base64``; neither is
    there where :data:`DEAD_LETTER_SCHEMA` has null.

    Args:
        line_bytes: a longer line has ``value_left_out``, the length of the original bytes, in their place:
            they are to be read at the letter's position. Default None: none is too long.
    """
    lines = []
    for row in batch.to_pylist():
        value = row.pop("value")
        if value is not None:
            try:
                row["value"] = value.decode()
            except UnicodeDecodeError:
                row["value_base64"] = base64.b64encode(value).decode()
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()
        if line_bytes is not None and len(line) > line_bytes and value is not None:
            row = {k: v for k, v in row.items() if k not in ("value", "value_base64")}
            row["value_left_out"] = len(value)
            line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()
        lines.append(line)
    return lines


def original_value(line: bytes) -> bytes | None:
    """The original bytes of a dead letter that :func:`to_json_lines` wrote; None where it has none.

    >>> original_value(b'{"reason":"malformed","value":"{"}')
    b'{'
    """
    body = json.loads(line)
    if "value_base64" in body:
        return base64.b64decode(body["value_base64"])
    return body["value"].encode() if "value" in body else None
