"""Arrays for counter and recent tables, checked for the native core, and its answers by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store.api import AnyPush, TableConfig, TableDelta, TablePush
from cuckooflow.embedding_store.kinds import (
    TIME_US_MAX,
    AsOf,
    CounterPush,
    CounterRows,
    RecentPush,
    RecentRows,
    Times,
)
from cuckooflow.errors import BadShape

_PUSHES: dict[str, type[AnyPush]] = {"embedding": TablePush, "counter": CounterPush, "recent": RecentPush}


def check_push_kind(table: TableConfig, push: AnyPush) -> None:
    """See that a push is of the table's kind.

    Raises:
        BadShape: it is of another.
    """
    if not isinstance(push, _PUSHES[table.kind]):
        raise BadShape(
            f"table {table.name!r}: expected a {_PUSHES[table.kind].__name__}, since it is of kind {table.kind}, "
            f"received a {type(push).__name__}"
        )


def checked_array(table: str, what: str, values: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """An array, contiguous.

    Raises:
        BadShape: of another shape or dtype.
    """
    if not isinstance(values, np.ndarray) or values.dtype != dtype or values.shape != shape:
        seen = (
            f"{values.shape} and {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        )
        raise BadShape(
            f"table {table!r}: expected {what} of shape {shape} and dtype {np.dtype(dtype)}, received {seen}"
        )
    return np.ascontiguousarray(values)


def checked_times(table: str, times_us: Any, n: int) -> Times:
    """(n,) int64 event times within plus and minus :data:`TIME_US_MAX`.

    Raises:
        BadShape.
    """
    times: Times = checked_array(table, "times_us", times_us, (n,), np.int64)
    if n and not -TIME_US_MAX <= times.min() <= times.max() <= TIME_US_MAX:
        raise BadShape(
            f"table {table!r}: expected times within plus and minus 2^61 microseconds, received "
            f"{times.min()} to {times.max()}. Give microseconds since the epoch."
        )
    return times


def check_as_of(as_of_us: AsOf) -> None:
    """See that asked times are one time, times by table, or none.

    Raises:
        BadShape.
    """
    if as_of_us is not None and not isinstance(as_of_us, int | np.integer | Mapping):
        raise BadShape(
            "as_of_us: expected a whole number of microseconds, or arrays of them by table, received "
            f"{as_of_us!r}"
        )


def times_of(table: str, as_of_us: AsOf, n: int) -> Times | None:
    """The asked times of a table's n ids; None: as of each row's last update.

    Raises:
        BadShape.
    """
    if as_of_us is None:
        return None
    if isinstance(as_of_us, int | np.integer):
        in_bounds = max(-TIME_US_MAX - 1, min(TIME_US_MAX + 1, int(as_of_us)))
        return checked_times(table, np.full(n, in_bounds, np.int64), n)
    times = as_of_us.get(table)
    return None if times is None else checked_times(table, times, n)


def counter_rows(sums: npt.NDArray[np.float32], times: Times) -> CounterRows:
    """The core's answer of a counter table."""
    return CounterRows(sums, times[:, 0].copy(), times[:, 1].copy())


def recent_rows(values: npt.NDArray[np.uint64], times: Times) -> RecentRows:
    """The core's answer of a recent table."""
    return RecentRows(values, times)


def as_kind(table: TableConfig, delta: TableDelta) -> TableDelta:
    """A table's delta from the core, whose content comes as floats for every kind."""
    if table.kind == "embedding":
        return delta
    state = delta.weights.view(np.uint8)
    return TableDelta(delta.ids, np.empty((len(delta.ids), 0), np.float32), delta.tombstones, state)


def state_bytes(table: TableConfig) -> int:
    """Bytes of a row's state in a delta; 0 for embeddings."""
    return {"embedding": 0, "counter": 16 + 8 * table.dim, "recent": 16 * table.dim}[table.kind]
