"""What a push and ``open_log`` say of a log, checked before anything changes.

The same in the process and over the wire: a position that only one of them could read would leave rows changed and
marks where they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cuckooflow.embedding_store.kinds import TIME_US_MAX
from cuckooflow.errors import BadShape
from cuckooflow.logs.contract import LogRange, Position

#: Partitions, offsets and rows within a message are kept as int64.
NUMBER_MAX = (1 << 63) - 1


def checked_range(range_: LogRange) -> LogRange:
    """A push's range, of plain ints.

    Raises:
        BadShape: a part is of another type or out of range, or the range ends before it begins.
    """
    first, last = _position("first", range_.first), _position("last", range_.last)
    if last < first:
        raise BadShape(
            f"expected a range that ends at or after its first position, received {tuple(first)} to {tuple(last)}"
        )
    return LogRange(
        _name("log", range_.log),
        _name("incarnation", range_.incarnation),
        _number("partition", range_.partition),
        first,
        last,
    )


def checked_starts(log: str, incarnation: str, starts: Mapping[int, Position]) -> dict[int, Position]:
    """Partition -> start position, of plain ints.

    Raises:
        BadShape: a part is of another type or out of range.
    """
    _name("log", log)
    _name("incarnation", incarnation)
    return {
        _number("partition", partition): _position(f"start of partition {partition}", start)
        for partition, start in starts.items()
    }


def checked_event_time(time_us: int) -> int:
    """The event time of a push, a plain int.

    Raises:
        BadShape: it is no whole number within plus and minus 2^61.
    """
    if not isinstance(time_us, int | np.integer) or not -TIME_US_MAX <= time_us <= TIME_US_MAX:
        raise BadShape(
            "event_time_us: expected a whole number within plus and minus 2^61, received "
            f"{time_us!r}. Give microseconds since the epoch."
        )
    return int(time_us)


def _position(what: str, value: Any) -> Position:
    if not isinstance(value, tuple) or len(value) != 2:
        raise BadShape(f"{what}: expected a Position(offset, row), received {value!r}")
    return Position(_number(f"offset of {what}", value[0]), _number(f"row of {what}", value[1]))


def _number(what: str, value: Any) -> int:
    if not isinstance(value, int | np.integer) or not 0 <= value <= NUMBER_MAX:
        raise BadShape(f"{what}: expected a whole number from 0 to 2^63-1, received {value!r}")
    return int(value)


def _name(what: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BadShape(f"{what}: expected a name, received {value!r}")
    return value
