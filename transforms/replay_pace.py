"""A replay at a chosen speed: messages are read ahead and held back until their event time is due."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cuckooflow.logs.contract import MessageBatch
from cuckooflow.transforms.poll_state import Place

I64 = npt.NDArray[np.int64]


@dataclass
class _Held:
    batch: MessageBatch
    offsets: I64
    times_us: I64


class ReplayPace:
    """Says which messages are due. Not thread-safe.

    Event time begins to run when the first messages are there, at the earliest of their times; a poller that
    was stopped and goes on begins again where it stood, and makes up no time. Nothing of it is state: a
    message that is held back has not been read.

    Args:
        speed: event time per wall second.
    """

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._held: dict[Place, _Held] = {}
        self._began: tuple[int, int] | None = None  # wall clock, event time

    def holds(self, place: Place) -> bool:
        """Whether messages of a partition wait for their time."""
        return place in self._held

    def hold(self, place: Place, batch: MessageBatch, offsets: I64, times_us: I64) -> None:
        """Take messages of a partition that holds none.

        Args:
            batch: one or more.
            offsets, times_us: (n,) of their rows, in order. Messages without rows are due with the next that has some.
        """
        self._held[place] = _Held(batch, offsets, times_us)

    def begin(self, now_us: int) -> None:
        """Let event time run, if there is an event and it does not run yet."""
        firsts = [int(held.times_us.min()) for held in self._held.values() if len(held.times_us)]
        if self._began is None and firsts:
            self._began = (now_us, min(firsts))

    def due(self, place: Place, now_us: int) -> MessageBatch | None:
        """The messages of a partition whose time has come, once; None where it is that of none."""
        held = self._held.get(place)
        if held is None:
            return None
        late = np.zeros(0, np.int64)
        if self._began is not None:
            limit_us = self._began[1] + int((now_us - self._began[0]) * self._speed)
            late = np.flatnonzero(held.times_us > limit_us)
        if not len(late):
            del self._held[place]
            return held.batch
        cut = int(held.offsets[late[0]])
        first = int(np.searchsorted(held.batch.offsets, cut))
        if first == 0:
            return None
        keep = held.offsets >= cut
        rest = held.batch.behind(first)
        self._held[place] = _Held(rest, held.offsets[keep], held.times_us[keep])
        return held.batch.until(cut)
