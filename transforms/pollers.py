"""What stands behind a source: a poller that can say where it is, and how sources are told to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import apache_beam as beam
import pyarrow as pa

from cuckooflow.transforms.metrics import count, counter, show
from cuckooflow.transforms.quiet import pause_us

#: The tags of a source's further outputs.
DEAD, BALANCES, RECEIPTS = "dead", "balances", "receipts"

#: The longest wait between two polls of a source that has long been quiet.
PAUSE_MAX_US = 1_000_000

#: Set by :func:`stop_sources`.
STOP = threading.Event()


def stop_sources() -> None:
    """End every source of this process after its current poll, without end marks: nothing drains."""
    STOP.set()


def allow_sources() -> None:
    """Take :func:`stop_sources` back, so that a new pipeline of this process can read."""
    STOP.clear()


def wall_clock_us() -> int:
    """The wall clock, microseconds since the epoch."""
    return time.time_ns() // 1_000


class PollAnswer(Protocol):
    """What one poll gave; ``progressed`` is false where the caller may wait before the next.

    ``receipts``, log -> ids, is there where messages wait for their acknowledgement.
    """

    @property
    def elements(self) -> Sequence[tuple[int, pa.RecordBatch]]: ...

    @property
    def dead(self) -> Sequence[pa.RecordBatch]: ...

    @property
    def balances(self) -> Sequence[dict[str, Any]]: ...

    @property
    def receipts(self) -> Mapping[int, tuple[str, ...]]: ...

    @property
    def progressed(self) -> bool: ...

    @property
    def counted(self) -> Mapping[str, int]:
        """Name of a counter -> by how much this poll moved it."""
        ...

    @property
    def figures(self) -> Mapping[str, int]:
        """Name of a gauge -> its value, where it is told anew."""
        ...


class Poller(Protocol):
    """What stands behind a source."""

    @property
    def ended(self) -> bool:
        """Nothing will follow."""
        ...

    def poll(self, now_us: int) -> PollAnswer:
        """Read what is there, bounded; never wait."""
        ...

    def state(self) -> bytes:
        """Where it stands, to go on from later."""
        ...


#: Makes a poller from its state, or a new one from None. Travels to the worker, so it must pickle.
OpenPoller = Callable[[bytes | None], Poller]


def outputs(answer: PollAnswer) -> Iterator[Any]:
    """A poll's elements and, tagged, its dead letters and balances, as a DoFn yields them; and its metrics told."""
    count({"source_polls": 1, **answer.counted})
    show(answer.figures)
    yield from answer.elements
    for letters in answer.dead:
        yield beam.pvalue.TaggedOutput(DEAD, letters)
    for record in answer.balances:
        yield beam.pvalue.TaggedOutput(BALANCES, record)
    if answer.receipts:
        yield beam.pvalue.TaggedOutput(RECEIPTS, answer.receipts)


# --- between two bundles --------------------------------------------------------------------

#: A source's place in a runner's hands: a new one, one with the poller's state, one that has ended.
NEW, GOES_ON, DONE = b"N", b"S", b"D"


@dataclass
class OpenedPoller:
    """A poller of this process.

    Attributes:
        found_us: the wall clock when it last found something, or was opened.
    """

    poller: Poller
    found_us: int

    def pause_us(self, progressed: bool, interval_us: int) -> int:
        """How long to wait after a poll: not at all where it found something, and longer the longer it is quiet.

        Args:
            progressed: whether it found something.
            interval_us: the shortest wait after a poll that found nothing.
        """
        now_us = wall_clock_us()
        if progressed:
            self.found_us = now_us
            return 0
        return pause_us(now_us - self.found_us, interval_us, PAUSE_MAX_US)


class WaitingPollers:
    """Pollers of this process between two bundles, by source, so that the next bundle need not build one.

    The runner's state decides: a poller goes on only where it stands exactly at the place that the runner
    hands out. After a failed bundle, or a recovery from a checkpoint, it does not, and is dropped. One entry for each
    source in this process. Thread-safe; a poller that was taken is nobody else's.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[bytes, OpenedPoller]] = {}
        self._lock = threading.Lock()

    def keep(self, source: str, place: bytes, poller: OpenedPoller) -> None:
        """Put a poller that stands at ``place`` aside for the next bundle."""
        with self._lock:
            self._waiting[source] = (place, poller)

    def take(self, source: str, place: bytes) -> OpenedPoller | None:
        """The source's poller if it stands at ``place``; in any case none waits afterwards."""
        with self._lock:
            waiting = self._waiting.pop(source, None)
        return waiting[1] if waiting is not None and waiting[0] == place else None


WAITING = WaitingPollers()


def resume(source: str, place: bytes, open_poller: OpenPoller) -> OpenedPoller:
    """The poller that stands at ``place``."""
    waiting = WAITING.take(source, place)
    if waiting is not None:
        return waiting
    return opened(open_poller, None if place == NEW else place[len(GOES_ON) :])


def opened(open_poller: OpenPoller, state: bytes | None) -> OpenedPoller:
    """A poller from its state, or a new one from None."""
    poller = open_poller(state)
    counter("source_pollers_opened").inc()
    return OpenedPoller(poller, wall_clock_us())


def place_of(poller: Poller) -> bytes:
    """What the runner keeps of a poller."""
    return DONE if poller.ended else GOES_ON + poller.state()
