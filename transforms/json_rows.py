"""JSON messages to Arrow, columnar; a batch with bad ones costs little more than a clean one.

Arrow's JSON reader refuses a batch as a whole. When it does, two regular expressions (one pass each,
in native code) pick out the messages that are not flat, well-formed JSON or hold a value that does
not fit its column; those are decoded one by one with the standard library, which says what is wrong
or finds that nothing is, and the rest is read again. What both overlook is found by bisection.

Seen with pyarrow 25.0.1: ``null`` as the first line ends the process; ``{"a":1}{"a":2}`` in one message
gives two rows; an empty message gives none; a pretty-printed object gives one; invalid UTF-8 passes.
So only messages from ``{`` to ``}`` without a line break reach the reader, whose rows must be as many as
the messages: since no JSON value may begin right after a ``}`` but at the top level, and no string may
hold a line break, message and document boundaries then agree.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.dead_letters import (
    MALFORMED,
    NOT_AN_OBJECT,
    NOT_FINITE,
    OUT_OF_RANGE,
    SEVERAL_OBJECTS,
    UNKNOWN_COLUMN,
    WRONG_TYPE,
)

I64 = npt.NDArray[np.int64]
Faults = dict[int, tuple[str, str]]
#: Below this many messages, bisection gives up and decodes one by one.
_BISECT_MESSAGES_MIN = 32
#: A message with more opening brackets may be nested deeper than Arrow's reader can bear.
_BRACKETS_MAX = 5_000
_INT_RANGE = {"int64": (-(1 << 63), (1 << 63) - 1), "uint64": (0, (1 << 64) - 1)}


def decode_json(messages: Sequence[bytes], schema: EventSchema) -> tuple[pa.Table, I64, Faults]:
    """Decode messages that begin with ``{``.

    Args:
        messages: (n,) each ought to be one JSON object.
        schema: the declared columns.

    Returns:
        The rows of the decodable messages, in order, in ``schema.json_schema``; (rows,) which message
        each row came from; message -> (reason, detail) of the others.
    """
    alone = [i for i, m in enumerate(messages) if not _fit_for_arrow(m)]
    together = np.delete(np.arange(len(messages)), alone) if alone else np.arange(len(messages))
    parts: list[tuple[pa.Table, I64]] = []
    faults: Faults = {}
    table = _read(messages, together, schema)
    if table is not None:
        parts.append((table, together))
    else:
        odd = _screen(messages, together, schema)
        alone += together[odd].tolist()
        _bisect(messages, together[~odd], schema, parts, alone)
    if alone:
        rows: list[dict[str, Any]] = []
        whence: list[int] = []
        for i in sorted(alone):
            answer = decode_one(messages[i], schema)
            if isinstance(answer, dict):
                rows.append(answer)
                whence.append(i)
            else:
                faults[i] = answer
        parts.append((pa.Table.from_pylist(rows, schema=schema.json_schema), np.array(whence, np.int64)))
    if schema.unknown_columns == "dead_letter":
        parts = [_refuse_unknown(table, index, faults, schema) for table, index in parts]
    table = pa.concat_tables([part for part, _ in parts])
    index = np.concatenate([at for _, at in parts])
    if len(parts) > 1:
        order = np.argsort(index, kind="stable")
        table, index = table.take(pa.array(order)), index[order]
    return table, index, faults


def _fit_for_arrow(message: bytes) -> bool:
    """Whether a message may go to Arrow's reader together with others."""
    if message[-1:] != b"}" or b"\n" in message:
        return False
    if len(message) > _BRACKETS_MAX and message.count(b"[") + message.count(b"{") > _BRACKETS_MAX:
        return False
    if not message.isascii():
        try:
            message.decode()
        except UnicodeDecodeError:
            return False
    return True


def _read(messages: Sequence[bytes], which: I64, schema: EventSchema) -> pa.Table | None:
    """These messages as a table, or None where Arrow refuses them or sees another number of rows."""
    if not len(which):
        return schema.json_schema.empty_table()
    chosen = messages if len(which) == len(messages) else [messages[i] for i in which.tolist()]
    blob = b"\n".join([*chosen, b""])
    try:
        table = pj.read_json(
            pa.BufferReader(blob),
            read_options=pj.ReadOptions(use_threads=False, block_size=max(len(blob) + 1, 64)),
            parse_options=pj.ParseOptions(
                explicit_schema=schema.json_schema,
                unexpected_field_behavior="infer" if schema.unknown_columns == "dead_letter" else "ignore",
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    return table if table.num_rows == len(which) else None


def _bisect(
    messages: Sequence[bytes],
    which: I64,
    schema: EventSchema,
    parts: list[tuple[pa.Table, I64]],
    alone: list[int],
) -> None:
    table = _read(messages, which, schema)
    if table is not None:
        parts.append((table, which))
    elif len(which) < _BISECT_MESSAGES_MIN:
        alone += which.tolist()
    else:
        middle = len(which) // 2
        _bisect(messages, which[:middle], schema, parts, alone)
        _bisect(messages, which[middle:], schema, parts, alone)


def _refuse_unknown(table: pa.Table, index: I64, faults: Faults, schema: EventSchema) -> tuple[pa.Table, I64]:
    """The rows without a value in any column that is not declared."""
    keep = np.ones(len(index), np.bool_)
    for name in set(table.schema.names) - set(schema.columns):
        found = table.column(name).is_valid().to_numpy()
        for at in index[found].tolist():
            faults.setdefault(at, (UNKNOWN_COLUMN, _unknown(name)))
        keep &= ~found
    return table.select(schema.json_schema.names).filter(pa.array(keep)), index[keep]


def _unknown(name: str) -> str:
    return f"expected only declared columns, received {name!r}; declare it, or ignore unknown columns"


# --- what Arrow will refuse, by regular expression ------------------------------------------

_BLANK = r"[ \t\r]*"
_STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u(?:[0-9abcefABCEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}))*"'
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,2})?"
_SCALAR = rf"(?:{_STRING}|{_NUMBER}|true|false|null)"
_LIST = rf"\[{_BLANK}(?:{_SCALAR}(?:{_BLANK},{_BLANK}{_SCALAR})*)?{_BLANK}\]"
_PAIR = rf"{_STRING}{_BLANK}:{_BLANK}(?:{_SCALAR}|{_LIST})"
_FLAT_OBJECT = rf"^{_BLANK}\{{{_BLANK}(?:{_PAIR}(?:{_BLANK},{_BLANK}{_PAIR})*)?{_BLANK}\}}{_BLANK}$"

_BAD_INT = r'["tf\[{N]|-?[0-9]+[.eE]|-?[0-9]{20}|-?9[0-9]{18}'
_BAD_VALUE = {
    "string": r"[-0-9tf\[{NI]",
    "int64": _BAD_INT,
    "uint64": r'["tf\[{N-]|[0-9]+[.eE]|[0-9]{21}|1[89][0-9]{18}|[2-9][0-9]{19}',
    "float32": r'["tf\[{]',
    "float64": r'["tf\[{]',
    "bool": r'["0-9\[{NI-]',
    "list<string>": r'[^\[n \t]|\[[ \t]*[^" \t\]]|\[[^\]]*"[ \t]*,[ \t]*[^" \t]',
    "list<int64>": r"[^\[n \t]|\[[^\]]*[^-0-9, \t\]]",
}


@lru_cache(maxsize=64)
def _bad_value_pattern(columns: tuple[tuple[str, Column], ...]) -> str:
    """Matches where a declared column holds a value that its type refuses; may match too often."""
    options = []
    for name, column in columns:
        kind: str = column.type
        if kind == "time":
            kind = {"iso": "string", "s": "float64", "ms": "float64"}.get(str(column.unit), "int64")
        options.append(f'"{re.escape(name)}"{_BLANK}:{_BLANK}(?:{_BAD_VALUE[kind]})')
    return "|".join(options)


def _screen(messages: Sequence[bytes], which: I64, schema: EventSchema) -> npt.NDArray[np.bool_]:
    """Which messages Arrow would refuse, nearly."""
    texts = pa.array([messages[i] for i in which.tolist()], pa.binary()).cast(pa.string())
    flat = pc.match_substring_regex(texts, _FLAT_OBJECT)
    bad = pc.match_substring_regex(texts, _bad_value_pattern(tuple(schema.columns.items())))
    return pc.or_(pc.invert(flat), bad).to_numpy(zero_copy_only=False)


# --- one by one -----------------------------------------------------------------------------


class _Twice(ValueError):
    """An object names a column twice."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Twice
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs)


def decode_one(message: bytes, schema: EventSchema) -> dict[str, Any] | tuple[str, str]:
    """One message: its declared columns, or (reason, detail)."""
    try:
        text = message.decode()
        body = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        return MALFORMED, f"expected UTF-8, received {error.reason} at byte {error.start}"
    except _Twice:
        return MALFORMED, "expected each column once in an object, received one twice"
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[error.pos] == "{":
            return SEVERAL_OBJECTS, "expected one JSON object, received another one behind it"
        return MALFORMED, f"expected JSON: {error.msg} at character {error.pos}"
    except (RecursionError, ValueError) as error:
        return MALFORMED, f"expected JSON: {error or 'nested too deeply'}"
    if not isinstance(body, dict):
        return NOT_AN_OBJECT, f"expected a JSON object, received {_kind(body)}"
    if schema.unknown_columns == "dead_letter":
        for name, value in body.items():
            if name not in schema.columns and value is not None:
                return UNKNOWN_COLUMN, _unknown(name)
    row = {}
    for name, column in schema.columns.items():
        value = body.get(name)
        if value is not None:
            fault = _fault(name, value, column)
            if fault is not None:
                return fault
            if pa.types.is_floating(column.json_type):
                value = float(value)
        row[name] = value
    return row


def _kind(value: Any) -> str:
    names = {str: "text", bool: "a boolean", int: "an integer", float: "a fraction", list: "a list"}
    return names.get(type(value), "null" if value is None else "an object")


def _fault(name: str, value: Any, column: Column) -> tuple[str, str] | None:
    kind: str = column.type
    expected = f"expected {name} of type {kind}"
    if kind == "time":
        expected += f" in {column.unit}"
        kind = {"iso": "string", "s": "float64", "ms": "float64"}.get(str(column.unit), "int64")
    if kind.startswith("list"):
        inner = Column(type="string" if kind == "list<string>" else "int64")
        if type(value) is not list or any(item is None for item in value):
            return WRONG_TYPE, f"{expected}, received {_kind(value) if value != [] else 'null inside'}"
        return next(filter(None, (_fault(f"{name}[]", item, inner) for item in value)), None)
    accepted = {"string": (str,), "bool": (bool,), "float32": (int, float), "float64": (int, float)}
    if type(value) not in accepted.get(kind, (int,)):
        return WRONG_TYPE, f"{expected}, received {_kind(value)}"
    if kind in _INT_RANGE and not _INT_RANGE[kind][0] <= value <= _INT_RANGE[kind][1]:
        return OUT_OF_RANGE, f"expected {name} within {_INT_RANGE[kind][0]} to {_INT_RANGE[kind][1]}"
    if kind.startswith("float"):
        try:
            finite = math.isfinite(float(value))
        except OverflowError:
            finite = False
        if not finite:
            return NOT_FINITE, f"expected a finite number in {name}"
    if kind == "string":
        try:
            value.encode()
        except UnicodeEncodeError:
            return MALFORMED, f"expected text in {name}, received half a surrogate pair"
    return None
