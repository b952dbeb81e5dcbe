"""What is asked of a backfill."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from cuckooflow.errors import SpecError
from cuckooflow.transforms.day_files import DAY_US, day_start_us


@dataclass(frozen=True)
class BackfillRequest:
    """What is asked of a backfill.

    Attributes:
        first, until: days of event time, UTC, half open.
        out: folder of the results, a path or an address of a file system that Beam knows.
        slice_bytes: rows of a slice in memory at once, default 256 MiB.
        range_messages: of a log, the messages that one task of the first pass reads at most, default 65,536.
            Costs its memory; a hand-over begins at the border of a range.
        restart: give up what an unfinished run of another request had begun here.
        hand_over_us: give what a stream has given when its clock reads this, and say in ``hand_over.json`` how a
            live join goes on; on the last day. None: the inputs end, and everything closes.
    """

    first: date
    until: date
    out: str
    slice_bytes: int = 256 << 20
    range_messages: int = 65_536
    restart: bool = False
    hand_over_us: int | None = None

    def __post_init__(self) -> None:
        if self.first >= self.until:
            raise SpecError(f"expected --from before --to, received {self.first} and {self.until}")
        until_us = day_start_us(self.until)
        if self.hand_over_us is not None and not until_us - DAY_US < self.hand_over_us <= until_us:
            raise SpecError(
                f"expected --hand-over-at within the last day, which ends at {until_us} us, received "
                f"{self.hand_over_us} us"
            )
