"""A poller as a splittable DoFn: one poll a bundle, then the rest is deferred.

The restriction is where the poller stands. It is never split in two: a poller is one by design.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder, Coder
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Duration

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


class PollTracker(RestrictionTracker):
    """A restriction is where the poller stands: ``NEW``, or ``GOES_ON`` and its state, or ``DONE``."""

    def __init__(self, restriction: bytes) -> None:
        self._restriction = restriction
        self._done = restriction == DONE
        self._split = False

    def current_restriction(self) -> bytes:
        return self._restriction

    def try_claim(self, position: bytes) -> bool:
        """Claim a poll, by the restriction that holds after it; ``DONE`` if it was the last."""
        if self._split or self._done:
            return False
        self._restriction = position
        self._done = position == DONE
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[bytes, bytes] | None:
        """Only a checkpoint: everything that is left goes to the residual."""
        if fraction_of_remainder != 0 or self._split or self._done:
            return None
        self._split = True
        residual, self._restriction = self._restriction, DONE
        return DONE, residual

    def check_done(self) -> bool:
        if not (self._done or self._split):
            raise ValueError("expected the source to have ended or deferred its rest, it did neither")
        return True

    def current_progress(self) -> RestrictionProgress:
        return RestrictionProgress(completed=1.0, remaining=0.0 if self._done or self._split else 1.0)

    def is_bounded(self) -> bool:
        return False


class _PollProvider(RestrictionProvider):
    def initial_restriction(self, element: bytes) -> bytes:  # noqa: ARG002
        return NEW

    def create_tracker(self, restriction: bytes) -> PollTracker:
        return PollTracker(restriction)

    def restriction_size(self, element: bytes, restriction: bytes) -> int:  # noqa: ARG002
        return 1

    def restriction_coder(self) -> Coder:
        return BytesCoder()


class SplittablePoll(beam.DoFn):
    """See the module.

    Args:
        open_poller: see :data:`~cuckooflow.transforms.pollers.OpenPoller`.
        poll_interval_us: the shortest wait after a poll that found nothing.
    """

    def __init__(self, open_poller: OpenPoller, poll_interval_us: int) -> None:
        self._open_poller = open_poller
        self._poll_interval_us = poll_interval_us
        self._source = uuid.uuid4().hex

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        _: bytes,
        tracker: Any = beam.DoFn.RestrictionParam(_PollProvider()),  # noqa: B008
    ) -> Iterator[Any]:
        yield from self._poll_once(tracker)

    def _poll_once(self, tracker: Any) -> Iterator[Any]:
        restriction: bytes = tracker.current_restriction()
        if restriction == DONE:
            return
        if STOP.is_set():
            tracker.try_claim(DONE)
            return
        opened = resume(self._source, restriction, self._open_poller)
        poller = opened.poller
        answer = poller.poll(wall_clock_us())
        place = place_of(poller)
        if not tracker.try_claim(place):
            return  # checkpointed meanwhile: the residual reads the same again
        yield from outputs(answer)
        if not poller.ended:
            WAITING.keep(self._source, place, opened)
            pause_us = opened.pause_us(answer.progressed, self._poll_interval_us)
            tracker.defer_remainder(Duration(micros=pause_us))
