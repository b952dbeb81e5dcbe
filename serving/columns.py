"""JSON values to Arrow columns, by the types that a snapshot's manifest names.

A scorer must read a value as the trainer did: ``7`` and ``"7"`` have different hashes. So a value that is
not of its column's type is refused, with its place, as the parser of the event logs does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from cuckooflow.errors import BadRequest
from cuckooflow.serving.times import TimeFormat

_INT64 = range(-(1 << 63), 1 << 63)
_UINT64 = range(1 << 64)


def _is_int(value: object, allowed: range) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in allowed


def _is_float(value: object, largest: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and abs(value) <= largest
    except OverflowError:  # an integer past every float
        return False


def _is_list(value: object, element: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(item is None or element(item) for item in value)


def _is_string(value: object) -> bool:
    # A lone surrogate is valid in JSON text but is no character: Arrow cannot hold it.
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


_TYPES: dict[str, tuple[pa.DataType, Callable[[object], bool]]] = {
    "string": (pa.string(), _is_string),
    "int64": (pa.int64(), lambda v: _is_int(v, _INT64)),
    "uint64": (pa.uint64(), lambda v: _is_int(v, _UINT64)),
    "float32": (pa.float32(), lambda v: _is_float(v, 3.4028234e38)),
    "float64": (pa.float64(), lambda v: _is_float(v, math.inf)),
    "bool": (pa.bool_(), lambda v: isinstance(v, bool)),
    "list<string>": (pa.list_(pa.string()), lambda v: _is_list(v, _is_string)),
    "list<int64>": (pa.list_(pa.int64()), lambda v: _is_list(v, lambda e: _is_int(e, _INT64))),
}


#: The classes of JSON values of which Arrow makes such a column, or refuses it, just as the checks above do.
_CLASSES: dict[str, frozenset[type]] = {
    "string": frozenset({str, type(None)}),
    "int64": frozenset({int, type(None)}),
    "uint64": frozenset({int, type(None)}),
    "float32": frozenset({int, float, type(None)}),
    "float64": frozenset({int, float, type(None)}),
    "bool": frozenset({bool, type(None)}),
}


def decode_column(name: str, kind: str | None, values: Sequence[object]) -> pa.Array:
    """One column.

    Args:
        name: of the column, for messages.
        kind: as :class:`cuckooflow.models.snapshots.SnapshotInfo` spells it; None: the type of its values.
        values: parsed JSON; null is a missing value.

    Returns:
        (n,) of that type; a time as int64 microseconds since the epoch, UTC.

    Raises:
        BadRequest: a value has another type; the message has its row.

    >>> decode_column("age", "float64", [3, None]).to_pylist()
    [3.0, None]
    """
    if kind is None:
        kind = _common_type(name, values)
        if kind is None:
            return pa.nulls(len(values))
    if kind.startswith("time"):
        return _times(name, kind, values)
    if kind not in _TYPES:
        raise BadRequest(f"column {name!r} has the type {kind!r}, which this scorer does not know; update it")
    arrow, fits = _TYPES[kind]
    column = _at_once(kind, arrow, values)
    if column is not None:
        return column
    for row, value in enumerate(values):
        if value is not None and not fits(value):
            raise _misfit(name, kind, row, value)
    if pa.types.is_floating(arrow):  # Arrow refuses integers past 2^53 for a float
        values = [None if v is None else float(v) for v in values]  # type: ignore[arg-type]
    return pa.array(values, arrow)


def _at_once(kind: str, arrow: pa.DataType, values: Sequence[object]) -> pa.Array | None:
    """The column without a look at each value in Python; None where that has to be."""
    if not _CLASSES.get(kind, frozenset()).issuperset(map(type, values)):
        return None
    try:
        column = pa.array(values, arrow)
    except (pa.ArrowException, ValueError, OverflowError):
        return None
    if pa.types.is_floating(arrow) and pc.all(pc.is_finite(column)).as_py() is False:
        return None
    return column


def _common_type(name: str, values: Sequence[object]) -> str | None:
    """The narrowest known type that all values have; None where all are null."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    for kind in ("string", "bool", "int64", "uint64", "float64", "list<int64>", "list<string>"):
        if all(_TYPES[kind][1](value) for value in known):
            return kind
    raise BadRequest(
        f"column {name!r}: expected values of one type (string, number, boolean, list of strings or of "
        f"integers), received {_short(known[0])} and others; send one type a column"
    )


def _times(name: str, kind: str, values: Sequence[object]) -> pa.Array:
    try:
        unit = TimeFormat.from_type(kind)
    except ValueError as error:
        raise BadRequest(f"column {name!r}: {error}; publish snapshots with a known type") from error
    result: list[int | None] = []
    for row, value in enumerate(values):
        try:
            result.append(None if value is None else unit.to_us(value))
        except (ValueError, OverflowError) as error:
            raise _misfit(name, kind, row, value) from error
    return pa.array(result, pa.int64())


def _misfit(name: str, kind: str, row: int, value: object) -> BadRequest:
    return BadRequest(f"row {row}, column {name!r}: expected {kind}, received {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
