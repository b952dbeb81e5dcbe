"""Where each partition of a poller stands, and how that is kept between two lives of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cuckooflow.transforms.in_band import NO_TIME_US

#: A log, ``IMPRESSIONS`` or ``ACTIONS``, and a partition of it.
Place = tuple[int, int]


@dataclass
class PartitionState:
    """Where one partition stands; all of it survives a checkpoint.

    Attributes:
        next_offset: where the next read begins.
        watermark_us: no later row may be this early without being out of order.
        chain: elements that have carried a link of this partition; the next link's number.
        told_us: the watermark in its last link; None before the first.
        idle_since_us: the poller's clock when it was first seen at its end with nothing new.
        stop_offset: with ``stop_at_end``, where it ends.
        ended: its end link was sent.
    """

    next_offset: int
    watermark_us: int = NO_TIME_US
    chain: int = 0
    told_us: int | None = None
    idle_since_us: int | None = None
    stop_offset: int | None = None
    ended: bool = False
    at_end: bool = field(default=False, compare=False)

    @classmethod
    def load(cls, entries: Iterable[list[Any]]) -> dict[Place, PartitionState]:
        """What :meth:`dump` gave."""
        return {(log, partition): cls(*values) for log, partition, *values in entries}

    @staticmethod
    def dump(states: Mapping[Place, PartitionState]) -> list[list[Any]]:
        """As JSON has it."""
        return [
            [
                *place,
                p.next_offset,
                p.watermark_us,
                p.chain,
                p.told_us,
                p.idle_since_us,
                p.stop_offset,
                p.ended,
            ]
            for place, p in states.items()
        ]
