"""Durations as people write them in a job spec: ``500ms``, ``30s``, ``10m``, ``6h``, ``7d``."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_UNITS_US = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*")


def parse_duration(text: Any) -> int:
    """Microseconds of a duration.

    Raises:
        ValueError: not a number followed by one of ms, s, m, h, d.

    >>> parse_duration("1.5h")
    5400000000
    """
    match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError("a duration is a number and a unit: 500ms, 30s, 10m, 6h or 7d")
    return round(float(match[1]) * _UNITS_US[match[2]])


def format_duration(us: int) -> str:
    """The shortest exact way to write it: the largest unit that divides it.

    >>> format_duration(5_400_000_000), format_duration(86_400_000_000), format_duration(1_800_500_000)
    ('90m', '1d', '1800500ms')
    """
    for unit in ("d", "h", "m", "s"):
        if us and us % _UNITS_US[unit] == 0:
            return f"{us // _UNITS_US[unit]}{unit}"
    return f"{us // 1_000}.{us % 1_000:03d}".rstrip("0").rstrip(".") + "ms"


#: A field that is written as a duration and held as whole microseconds.
DurationUs = Annotated[int, BeforeValidator(parse_duration), PlainSerializer(format_duration)]
