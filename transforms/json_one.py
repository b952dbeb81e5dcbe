"""One JSON message by the standard library: its rows, or what is wrong with it.

The slow way, for messages that the columnar reader refuses, so that it can say why. It accepts what that one
accepts; so that a message's fate does not depend on its neighbours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cuckooflow.transforms.column_path import Each, Path, format_path
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.dead_letters import (
    MALFORMED,
    MISSING_COLUMN,
    NOT_AN_OBJECT,
    NOT_FINITE,
    OUT_OF_RANGE,
    SEVERAL_OBJECTS,
    UNKNOWN_COLUMN,
    WRONG_TYPE,
)

#: Reason and detail of a dead letter.
Fault = tuple[str, str]
_INT_RANGE = {"int64": (-(1 << 63), (1 << 63) - 1), "uint64": (0, (1 << 64) - 1)}


@dataclass(frozen=True)
class OneMessage:
    """What a message holds.

    Attributes:
        rows: one, or the exploded list's, in its order: the declared columns, or a fault.
        fault: of the message as a whole; it has no rows then.
        empty: it is whole, but its list has no items.
    """

    rows: tuple[dict[str, Any] | Fault, ...] = ()
    fault: Fault | None = None
    empty: bool = False


class _Object(dict[str, Any]):
    """A JSON object that remembers which names it holds twice."""

    twice: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        found.twice = frozenset(name for name in found if names.count(name) > 1)
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


class _Refused(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.fault: Fault = (reason, detail)


def decode_one(message: bytes, schema: EventSchema) -> OneMessage:
    """Decode one message.

    Args:
        message: any bytes.
        schema: the declared columns.
    """
    try:
        body = _body(message)
        if schema.unknown_columns == "dead_letter":
            _refuse_unknown(body, schema)
        contexts: list[Any] = [None]
        path = schema.message.list_path
        if path is not None:
            items = _at(body, path)
            if items is None:
                raise _Refused(MISSING_COLUMN, missing_list(path))
            if type(items) is not list:
                raise _Refused(WRONG_TYPE, f"expected a list in {format_path(path)}, received {_kind(items)}")
            contexts = items
    except _Refused as error:
        return OneMessage(fault=error.fault)
    return OneMessage(tuple(_row(body, item, schema) for item in contexts), empty=not contexts)


def missing_list(path: Path) -> str:
    """The detail of a message without the list that it is exploded by."""
    return f"expected a list in {format_path(path)}, found none or null"


def _body(message: bytes) -> _Object:
    try:
        text = message.decode()
        body = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise _Refused(MALFORMED, f"expected UTF-8, received {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[error.pos] == "{":
            raise _Refused(
                SEVERAL_OBJECTS, "expected one JSON object, received another one behind it"
            ) from None
        raise _Refused(MALFORMED, f"expected JSON: {error.msg} at character {error.pos}") from None
    except (RecursionError, ValueError) as error:
        raise _Refused(MALFORMED, f"expected JSON: {error or 'nested too deeply'}") from None
    if not isinstance(body, _Object):
        raise _Refused(NOT_AN_OBJECT, f"expected a JSON object, received {_kind(body)}")
    return body


def _row(body: _Object, item: Any, schema: EventSchema) -> dict[str, Any] | Fault:
    """A row's declared columns, or the first fault; a row of an unwanted type is taken as it is."""
    row: dict[str, Any] = {}
    try:
        for name in schema.columns_in_turn:
            column, place = schema.columns[name], schema.places[name]
            value = _at(body, place.outer) if place.inner is None else _at(item, place.inner)
            if value is not None:
                _check(name, value, column)
                if pa.types.is_floating(column.json_type):
                    value = float(value)
            row[name] = value
            if name == schema.action_type and not schema.wanted(value):
                return row
    except _Refused as error:
        return error.fault
    return row


def _at(value: Any, path: Path) -> Any:
    for step in path:
        if value is None:
            return None
        if isinstance(step, str):
            if not isinstance(value, _Object):
                raise _Refused(
                    WRONG_TYPE, f"expected an object with the field {step}, received {_kind(value)}"
                )
            if step in value.twice:
                raise _Refused(MALFORMED, f"expected {step} once in an object, received it twice")
            value = value.get(step)
        elif type(value) is not list:
            raise _Refused(WRONG_TYPE, f"expected a list in {format_path(path)}, received {_kind(value)}")
        else:
            assert not isinstance(step, Each), "a place has no [] left"
            value = value[step] if step < len(value) else None
    return value


# --- columns that nobody declared -----------------------------------------------------------


def _refuse_unknown(body: _Object, schema: EventSchema) -> None:
    for path in _unknown(body, schema.document_schema, ()):
        raise _Refused(UNKNOWN_COLUMN, unknown_detail(path))


def unknown_detail(path: Path) -> str:
    """The detail of a message with a value that no column takes."""
    return f"expected only declared columns, received {format_path(path)!r}; declare it, or ignore unknown columns"


def _unknown(value: Any, declared: Any, at: Path) -> Iterator[Path]:
    """Paths of values that no declared column lies on; ``declared`` is a schema or a type."""
    if isinstance(value, _Object) and (isinstance(declared, pa.Schema) or pa.types.is_struct(declared)):
        fields = {f.name: f.type for f in declared}
        for name, inner in value.items():
            if name not in fields:
                if inner is not None:
                    yield (*at, name)
            else:
                yield from _unknown(inner, fields[name], (*at, name))
    elif type(value) is list and not isinstance(declared, pa.Schema) and pa.types.is_list(declared):
        for i, inner in enumerate(value):
            yield from _unknown(inner, declared.value_type, (*at, i))


# --- values ---------------------------------------------------------------------------------


def _kind(value: Any) -> str:
    names = {str: "text", bool: "a boolean", int: "an integer", float: "a fraction", list: "a list"}
    return names.get(type(value), "null" if value is None else "an object")


def _check(name: str, value: Any, column: Column) -> None:
    """Refuse a value that is not of its column's type."""
    kind: str = column.type
    expected = f"expected {name} of type {kind}"
    if kind == "time":
        expected += f" in {column.unit}"
        kind = {"iso": "string", "s": "float64", "ms": "float64"}.get(str(column.unit), "int64")
    if kind.startswith("list"):
        inner = Column(type="string" if kind == "list<string>" else "int64")
        if type(value) is not list or any(item is None for item in value):
            received = _kind(value) if type(value) is not list else "null inside"
            raise _Refused(WRONG_TYPE, f"{expected}, received {received}")
        for item in value:
            _check(f"{name}[]", item, inner)
        return
    accepted = {"string": (str,), "bool": (bool,), "float32": (int, float), "float64": (int, float)}
    if type(value) not in accepted.get(kind, (int,)):
        raise _Refused(WRONG_TYPE, f"{expected}, received {_kind(value)}")
    if kind in _INT_RANGE and not _INT_RANGE[kind][0] <= value <= _INT_RANGE[kind][1]:
        raise _Refused(OUT_OF_RANGE, f"expected {name} within {_INT_RANGE[kind][0]} to {_INT_RANGE[kind][1]}")
    if kind.startswith("float"):
        try:
            finite = math.isfinite(float(value))
        except OverflowError:
            finite = False
        if not finite:
            raise _Refused(NOT_FINITE, f"expected a finite number in {name}")
    if kind == "string":
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Refused(MALFORMED, f"expected text in {name}, received half a surrogate pair") from None
