"""Times as an event log writes them, to microseconds since the epoch and back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

TimeUnit = Literal["s", "ms", "us", "ns", "iso"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US_PER: dict[str, float] = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1e-3}
#: Year 9999; a number past it was written in a finer unit than the log's.
_LAST_US = 253_402_300_800_000_000


@dataclass(frozen=True)
class TimeFormat:
    """How a log writes times.

    Attributes:
        unit: ``s``, ``ms``, ``us`` or ``ns`` since the epoch, or ``iso`` for text; default ``s``.
        zone: of ``iso`` times that do not say theirs, an IANA name; default None: UTC. A local time that a
            clock change repeats is taken as the earlier one.
    """

    unit: TimeUnit = "s"
    zone: str | None = None

    @classmethod
    def from_type(cls, spelled: str) -> TimeFormat:
        """From a column's type: ``time[ms]``, ``time[iso]``, ``time[iso,Asia/Shanghai]``.

        Raises:
            ValueError: it is not spelled like that.
        """
        unit, _, zone = spelled.removeprefix("time[").removesuffix("]").partition(",")
        if not (spelled.startswith("time[") and spelled.endswith("]") and unit in (*_US_PER, "iso")):
            raise ValueError(
                f"expected time[s], time[ms], time[us], time[ns] or time[iso], received {spelled}"
            )
        if zone:
            try:
                ZoneInfo(zone)
            except (KeyError, OSError):
                raise ValueError(f"expected an IANA zone such as Asia/Shanghai, received {zone!r}") from None
        return cls(unit, zone or None)  # type: ignore[arg-type]  # checked above

    def to_us(self, value: object) -> int:
        """Microseconds since the epoch, UTC.

        Raises:
            ValueError: not a time in this unit.

        >>> TimeFormat("s").to_us(1.5), TimeFormat("iso", "Asia/Shanghai").to_us("1970-01-01T08:00:00")
        (1500000, 0)
        """
        if self.unit == "iso":
            if not isinstance(value, str):
                raise ValueError(f"expected a time such as 2022-04-25T08:00:00Z, received {value!r}")
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=ZoneInfo(self.zone or "UTC"))
            return (moment - _EPOCH) // timedelta(microseconds=1)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"expected a number of {self.unit} since the epoch, received {value!r}")
        if isinstance(value, float) and self.unit in ("us", "ns") and not value.is_integer():
            raise ValueError(f"expected a whole number of {self.unit} since the epoch, received {value!r}")
        if not 0 < value * _US_PER[self.unit] < _LAST_US:
            raise ValueError(f"expected {self.unit} since the epoch up to the year 9999, received {value!r}")
        if self.unit == "ns":
            return int(value) // 1_000
        return round(value * int(_US_PER[self.unit]))

    def from_us(self, us: int) -> int | float | str:
        """A time as the log writes it; seconds keep their fraction."""
        match self.unit:
            case "iso":
                return (_EPOCH + timedelta(microseconds=us)).isoformat()
            case "s":
                return us / 1e6
            case "ms":
                return us // 1_000
            case "us":
                return us
            case "ns":
                return us * 1_000
