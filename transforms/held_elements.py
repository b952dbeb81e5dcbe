"""Elements of a partition that came before their turn."""

from __future__ import annotations

import heapq
import itertools

import pyarrow as pa

from cuckooflow.logs.contract import Position
from cuckooflow.transforms.ranges import RangeHeader

_Element = tuple[RangeHeader, pa.RecordBatch]


class HeldElements:
    """Gives elements back by position: one whose turn it is at once, others when waiting is over.

    Args:
        max_elements: how many may be held.
        max_wait_us: how long one may be held, by the polls' clock, microseconds.
    """

    def __init__(self, max_elements: int, max_wait_us: int) -> None:
        self._max_elements = max_elements
        self._max_wait_us = max_wait_us
        self._heap: list[tuple[Position, Position, bool, int, _Element]] = []
        self._serial = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, header: RangeHeader, batch: pa.RecordBatch) -> None:
        """Hold an element."""
        range_ = header.range
        entry = (range_.first, range_.last, header.end, next(self._serial), (header, batch))
        heapq.heappush(self._heap, entry)

    def next(self, position: Position | None = None, now_us: int = 0) -> _Element | None:
        """The lowest element, if it begins at ``position`` or before, or need not wait any more.

        Args:
            position: how far the partition has come; None takes whatever is held.
            now_us: the newest poll's clock.
        """
        if not self._heap:
            return None
        first, *_, (header, _) = self._heap[0]
        waits = (
            position is not None
            and first > position
            and len(self._heap) <= self._max_elements
            and now_us - header.polled_us < self._max_wait_us
        )
        return None if waits else heapq.heappop(self._heap)[-1]

    def clear(self) -> None:
        """Drop what is held."""
        self._heap.clear()
