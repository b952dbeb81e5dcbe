"""Checks of decoded rows, columnar: what is required, finite, a time, in range; and times to microseconds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.dead_letters import (
    BAD_TIME,
    FUTURE_TIME,
    MISSING_COLUMN,
    NOT_FINITE,
    OUT_OF_RANGE,
    WRONG_TYPE,
)

Bools = npt.NDArray[np.bool_]
I64 = npt.NDArray[np.int64]

_UNIT_US = {"s": 1e6, "ms": 1e3}
_TIME_US_MAX = 1 << 61
_ZONE_SUFFIX = r"(?:[Zz]|[+-]\d\d(?::?\d\d)?)$"


@dataclass
class Checked:
    """Rows that were looked at.

    Attributes:
        columns: name -> (n,) array in the column's Arrow type; values of refused rows mean nothing.
        time_us: (n,) int64 event times.
        faults: row -> (reason, detail), the first fault found of each refused row.
    """

    columns: dict[str, pa.Array]
    time_us: I64
    faults: dict[int, tuple[str, str]]


def check_rows(table: pa.Table, schema: EventSchema, append_us: I64, max_future_skew_us: int) -> Checked:
    """Check decoded rows and give them their types.

    Args:
        table: (n,) rows with any of the declared columns, as they were decoded.
        schema: what was declared.
        append_us: (n,) when each row's message was appended.
        max_future_skew_us: an event time further past its append time is a fault.

    Raises:
        TypeError: a column's type as a whole cannot be its declared type.
    """
    checked = Checked({}, np.zeros(table.num_rows, np.int64), {})

    def mark(bad: Bools, reason: str, detail: str) -> None:
        for row in np.flatnonzero(bad).tolist():
            checked.faults.setdefault(row, (reason, detail))

    for name, column in schema.columns.items():
        if name in table.schema.names:
            values = table.column(name).combine_chunks()
        else:
            values = pa.nulls(table.num_rows, column.json_type)
        if column.required and values.null_count:
            mark(_mask(values.is_null()), MISSING_COLUMN, f"expected a value in {name}, found none or null")
        if column.type == "time":
            us, bad = times_us(values, column)
            missing = _mask(values.is_null())
            mark(bad, BAD_TIME, f"expected {name} to be a time after 1970 in {column.unit}")
            if name == schema.time:
                checked.time_us = us
                future = ~bad & ~missing & (us > append_us + max_future_skew_us)
                mark(
                    future,
                    FUTURE_TIME,
                    f"expected {name} at most {max_future_skew_us} us past the append time",
                )
            values = pa.array(us, mask=missing | bad)
        else:
            values = _as_declared(name, values, column, mark)
        checked.columns[name] = values
    return checked


def type_fault(name: str, kind: pa.DataType, column: Column) -> str | None:
    """Why values of an Arrow type cannot be a column's, whatever they are; None if some can."""
    values = pa.array([], kind)
    try:
        if column.type == "time":
            times_us(values, column)
        else:
            _as_declared(name, values, column, lambda *_: None)
    except (TypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        return str(error)
    return None


def _as_declared(name: str, values: pa.Array, column: Column, mark: Any) -> pa.Array:
    """The values in the declared type; ``mark(bad, reason, detail)`` is told of rows that have none."""
    target, kind = column.arrow_type, values.type
    if kind == target:
        pass
    elif pa.types.is_integer(kind) and column.type in ("int64", "uint64"):
        low, high = (-(1 << 63), (1 << 63) - 1) if column.type == "int64" else (0, (1 << 64) - 1)
        bad = np.zeros(len(values), np.bool_)
        if pa.types.is_signed_integer(kind) and low == 0:
            bad = _mask(pc.less(values, pa.scalar(0, kind)))
        elif kind == pa.uint64() and column.type == "int64":
            bad = _mask(pc.greater(values, pa.scalar(high, kind)))
        mark(bad, OUT_OF_RANGE, f"expected {name} within {low} to {high}")
        values = values.cast(target, safe=False)
    elif _castable(kind, target):
        values = values.cast(target, safe=False)
    else:
        raise TypeError(f"expected {name} of type {column.type}, received {kind}")
    if pa.types.is_floating(target):
        finite = _mask(pc.is_finite(values)) | _mask(values.is_null())
        if not finite.all():
            mark(~finite, NOT_FINITE, f"expected a finite number in {name}")
    if pa.types.is_list(target) and values.flatten().null_count:
        inner = pc.list_parent_indices(values).to_numpy()[_mask(values.flatten().is_null())]
        bad = np.zeros(len(values), np.bool_)
        bad[inner] = True
        mark(bad, WRONG_TYPE, f"expected {name} without null inside the list")
    return values


def _castable(kind: pa.DataType, target: pa.DataType) -> bool:
    if pa.types.is_null(kind):
        return True
    if pa.types.is_dictionary(kind):
        return _castable(kind.value_type, target) or kind.value_type == target
    if pa.types.is_floating(target):
        return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
    if pa.types.is_string(target):
        return bool(pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
    if pa.types.is_list(target):
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        return bool(lists) and (
            kind.value_type == target.value_type
            or _castable(kind.value_type, target.value_type)
            or (pa.types.is_signed_integer(kind.value_type) and pa.types.is_int64(target.value_type))
        )
    return False


def times_us(values: pa.Array, column: Column) -> tuple[I64, Bools]:
    """Times in microseconds since the epoch, and which values are no time after 1970.

    Args:
        values: (n,) numbers in the column's unit, ISO text, or Arrow timestamps.
        column: says unit and zone.

    Returns:
        (n,) int64, 0 for nulls and bad ones; (n,) bool, false for nulls.

    Raises:
        TypeError: the type of ``values`` is none of these.
    """
    kind = values.type
    missing = _mask(values.is_null())
    if pa.types.is_timestamp(kind):
        if kind.tz is None and column.zone is not None:
            values = _assume_zone(values, column.zone)
        us = values.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).fill_null(0).to_numpy()
        bad = np.zeros(len(us), np.bool_)
    elif column.unit == "iso":
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise TypeError(f"expected times as ISO text, received {kind}")
        us, bad = _iso_us(values.cast(pa.string()), column.zone or "UTC")
    elif pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind):
        unit = str(column.unit)
        if pa.types.is_integer(kind) or unit in ("us", "ns"):
            factor = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}[unit]
            raw = values.cast(pa.int64(), safe=False).fill_null(0).to_numpy()
            limit = _TIME_US_MAX // factor if unit != "ns" else (1 << 63) - 1
            bad = (raw > limit) | (raw < 0)
            us = np.where(bad, 0, raw) * factor // (1_000 if unit == "ns" else 1)
        else:
            scaled = values.cast(pa.float64()).fill_null(0.0).to_numpy() * _UNIT_US[unit]
            with np.errstate(invalid="ignore"):
                bad = ~(np.abs(scaled) < _TIME_US_MAX)
            us = np.round(np.where(bad, 0.0, scaled)).astype(np.int64)
    else:
        raise TypeError(f"expected times in {column.unit}, received {kind}")
    bad = (bad | (us <= 0)) & ~missing
    return np.where(bad | missing, 0, us), bad


def _iso_us(texts: pa.Array, zone: str) -> tuple[I64, Bools]:
    zoned = pc.match_substring_regex(texts, _ZONE_SUFFIX)
    try:
        aware = pc.if_else(zoned, texts, None).cast(pa.timestamp("us", "UTC"))
        naive = _assume_zone(pc.if_else(zoned, None, texts).cast(pa.timestamp("us")), zone)
        both = pc.coalesce(aware, naive.cast(pa.timestamp("us", "UTC")))
        return both.cast(pa.int64()).fill_null(0).to_numpy(), np.zeros(len(texts), np.bool_)
    except pa.ArrowInvalid:  # some text is no time: one by one
        us = np.zeros(len(texts), np.int64)
        bad = np.zeros(len(texts), np.bool_)
        for i, text in enumerate(texts.to_pylist()):
            if text is not None:
                parsed = iso_to_us(text, zone)
                us[i], bad[i] = (0, True) if parsed is None else (parsed, False)
        return us, bad


def iso_to_us(text: str, zone: str) -> int | None:
    """Microseconds since the epoch of an ISO 8601 time, ``zone`` where it says none; None if it is none.

    >>> iso_to_us("1970-01-01T01:00:00.5", "Europe/Zurich")
    500000
    """
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is None:
            time = time.replace(tzinfo=ZoneInfo(zone))
        gap = time - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return (gap.days * 86_400 + gap.seconds) * 1_000_000 + gap.microseconds


def _assume_zone(values: pa.Array, zone: str) -> pa.Array:
    return pc.assume_timezone(values, zone, ambiguous="earliest", nonexistent="earliest")


def _mask(values: pa.Array) -> Bools:
    return values.fill_null(False).to_numpy(zero_copy_only=False)
