"""A poller as a keyed, stateful DoFn that a timer drives; its checkpoints are one small cell.

All of the source has one key. The first seed arms a processing-time timer, and each firing polls, emits,
writes where the poller stands into its cell and arms the timer again. State is what counts: after a
recovery the cell is older than the poller that this process may still hold, which is then dropped.

The seed must come from a source that does not end: Flink drops processing-time timers without a word where
the input has ended, as it has after a ``Create``. It must come seldom: Flink 1.19 with Beam's runner 2.70 keeps
about 19 kB in its checkpoints for every impulse. So a job with this source never ends by itself, also
when every partition has ended and the timer rests; its driver stops it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.transforms.periodicsequence import PeriodicImpulse, RebaseMode
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer

from cuckooflow.transforms.pollers import (
    DONE,
    NEW,
    STOP,
    WAITING,
    OpenPoller,
    outputs,
    place_of,
    resume,
    wall_clock_us,
)
from cuckooflow.transforms.state_sizes import size_flat_state_directly

#: Ten years: only the first seed is needed.
_SEED_INTERVAL_S = 10 * 365 * 86_400.0
_PLACE = ReadModifyWriteStateSpec("poller", BytesCoder())
_AGAIN = TimerSpec("poll_again", TimeDomain.REAL_TIME)


@dataclass(frozen=True)
class Firing:
    """How much one firing of the timer polls.

    Attributes:
        max_bytes: rows emitted, as Arrow counts them; the poll that passes it is the last. Default 64 MiB.
            Costs memory, and what is read again after a failure. Flink moves on what a firing gave only
            when it has ended, and fires again when that has gone, so a smaller one costs throughput.
        min_bytes: a poll that gives less is the firing's last: little is waiting, and that goes on at once. Default 256 KiB.
            Costs bundles; a larger one costs freshness.
        max_us: time since the firing began, after which no further poll begins; default 300 ms. A checkpoint
            waits for a firing to end.
        endless: whether the seed's input stays open, default true; then the job ends only when it is
            stopped. False is for bounded reads on runners that fire due timers after the input has ended (in
            process, Prism): there a job ends with its logs.
    """

    max_bytes: int = 64 << 20
    min_bytes: int = 1 << 18
    max_us: int = 300_000
    endless: bool = True

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.max_us < 1 or self.min_bytes < 0:
            raise ValueError(
                f"expected max_bytes and max_us of 1 or more and min_bytes of 0 or more, received {self}"
            )


class Seed(beam.PTransform):
    """The input that :class:`StatefulPoll` wants: one element, of the source's only key.

    Args:
        endless: see :class:`Firing`.
    """

    def __init__(self, endless: bool) -> None:
        super().__init__()
        self._endless = endless

    def expand(self, begin: Any) -> Any:
        if self._endless:
            # Its ``data`` would end it: with one datum it has no rest to defer.
            impulse: beam.PTransform = PeriodicImpulse(
                fire_interval=_SEED_INTERVAL_S, rebase=RebaseMode.REBASE_START
            )
        else:
            impulse = beam.Impulse()
        return begin | "Impulse" >> impulse | "Key" >> beam.Map(_one_key).with_output_types(tuple[int, bytes])


def _one_key(_: Any) -> tuple[int, bytes]:
    return 0, b""


class StatefulPoll(beam.DoFn):
    """See the module.

    Args:
        open_poller: see :data:`~cuckooflow.transforms.pollers.OpenPoller`.
        poll_interval_us: the shortest wait after a poll that found nothing.
        firing: see :class:`Firing`.
    """

    def __init__(self, open_poller: OpenPoller, poll_interval_us: int, firing: Firing) -> None:
        self._open_poller = open_poller
        self._poll_interval_us = poll_interval_us
        self._firing = firing
        self._source = uuid.uuid4().hex

    def setup(self) -> None:
        size_flat_state_directly()

    def process(
        self,
        _: tuple[int, bytes],
        cell: Any = beam.DoFn.StateParam(_PLACE),
        again: Any = beam.DoFn.TimerParam(_AGAIN),
    ) -> None:
        """The seed. Later ones change nothing."""
        if cell.read() is None:
            cell.write(NEW)
            again.set(time.time())

    @on_timer(_AGAIN)
    def on_again(
        self,
        cell: Any = beam.DoFn.StateParam(_PLACE),
        again: Any = beam.DoFn.TimerParam(_AGAIN),
    ) -> Iterator[Any]:
        """Poll while there is something and the firing's bounds allow it."""
        place = cell.read() or NEW
        if place == DONE or STOP.is_set():
            return
        opened = resume(self._source, place, self._open_poller)
        poller = opened.poller
        begin, emitted = time.monotonic(), 0
        progressed = True
        while progressed and not poller.ended and not STOP.is_set():
            answer = poller.poll(wall_clock_us())
            yield from outputs(answer)
            progressed = answer.progressed
            given = sum(batch.nbytes for _, batch in answer.elements)
            emitted += given
            if given < self._firing.min_bytes or emitted >= self._firing.max_bytes:
                break
            if (time.monotonic() - begin) * 1e6 >= self._firing.max_us:
                break
        after = place_of(poller)
        if after != place:
            cell.write(after)
            place = after
        if not poller.ended and not STOP.is_set():
            WAITING.keep(self._source, place, opened)
            again.set(time.time() + opened.pause_us(progressed, self._poll_interval_us) / 1e6)
