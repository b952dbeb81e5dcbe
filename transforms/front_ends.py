"""The two ways a poller becomes a Beam source: a generator, and a splittable DoFn that checkpoints.

* ``generator``: one DoFn call that polls until the end. In the in-process runner, which fuses the whole
  pipeline, every element is through the pipeline before the next poll. It keeps no state across a
  restart of the job.
* ``splittable``: one poll a bundle, then the rest is deferred with the poller's state as the restriction;
  for Prism, Dataflow, and Flink with a runner that does not leak deferred restrictions
  (apache/beam#27648). The restriction is never split in two: a poller is one by design.

Neither tells the runner a watermark: time travels in band.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder, Coder
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Duration

from cuckooflow.transforms.coders import Keyed

FrontEnd = Literal["generator", "splittable"]
DEAD = "dead"

_STOP = threading.Event()


def stop_sources() -> None:
    """End every source of this process after its current poll, without end marks: nothing drains."""
    _STOP.set()


def allow_sources() -> None:
    """Take :func:`stop_sources` back, so that a new pipeline of this process can read."""
    _STOP.clear()


def wall_clock_us() -> int:
    """The wall clock, microseconds since the epoch."""
    return time.time_ns() // 1_000


class PollAnswer(Protocol):
    """What one poll gave; ``progressed`` is false where the caller may wait before the next."""

    @property
    def elements(self) -> Sequence[tuple[int, pa.RecordBatch]]: ...

    @property
    def dead(self) -> Sequence[pa.RecordBatch]: ...

    @property
    def progressed(self) -> bool: ...


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


class PollSourceTransform(beam.PTransform):
    """A source: outputs ``main``, ``(key, RecordBatch)``, and ``dead``, dead letters.

    Args:
        open_poller: see :data:`OpenPoller`.
        front_end: see the module.
        poll_interval_us: the wait after a poll that found nothing, default 100 ms. Costs freshness.
    """

    def __init__(
        self, open_poller: OpenPoller, front_end: FrontEnd = "generator", poll_interval_us: int = 100_000
    ) -> None:
        super().__init__()
        if front_end not in ("generator", "splittable") or poll_interval_us < 1:
            raise ValueError(
                "expected front_end generator or splittable and a poll interval of 1 us or more, received "
                f"{front_end!r} and {poll_interval_us}"
            )
        self._open_poller = open_poller
        self._front_end = front_end
        self._poll_interval_us = poll_interval_us

    def expand(self, begin: Any) -> Any:
        make = _GeneratorPoll if self._front_end == "generator" else _SplittablePoll
        poll = beam.ParDo(make(self._open_poller, self._poll_interval_us)).with_output_types(Keyed)
        outputs = begin | "Impulse" >> beam.Impulse() | "Poll" >> poll.with_outputs(DEAD, main="main")
        outputs[DEAD].element_type = pa.RecordBatch
        return outputs


class _GeneratorPoll(beam.DoFn):
    def __init__(self, open_poller: OpenPoller, poll_interval_us: int) -> None:
        self._open_poller = open_poller
        self._poll_interval_us = poll_interval_us

    def process(self, _: bytes) -> Iterator[Any]:
        poller = self._open_poller(None)
        while not poller.ended and not _STOP.is_set():
            answer = poller.poll(wall_clock_us())
            yield from _outputs(answer)
            if not answer.progressed and not poller.ended:
                _STOP.wait(self._poll_interval_us / 1e6)


def _outputs(answer: PollAnswer) -> Iterator[Any]:
    yield from answer.elements
    for letters in answer.dead:
        yield beam.pvalue.TaggedOutput(DEAD, letters)


# --- splittable -----------------------------------------------------------------------------

_NEW, _GOES_ON, _DONE = b"N", b"S", b"D"

#: Pollers between two bundles, by source: a resumed bundle whose restriction is the state that the
#: poller still has goes on with it, and need not build it anew (a reader of examples seeds its
#: window). One entry for each source in this process.
_WAITING: dict[str, tuple[bytes, Poller]] = {}
_WAITING_LOCK = threading.Lock()


class PollTracker(RestrictionTracker):
    """A restriction is where the poller stands: ``N``, or ``S`` and its state, or ``D`` for done."""

    def __init__(self, restriction: bytes) -> None:
        self._restriction = restriction
        self._done = restriction == _DONE
        self._split = False

    def current_restriction(self) -> bytes:
        return self._restriction

    def try_claim(self, position: bytes) -> bool:
        """Claim a poll, by the restriction that holds after it; ``D`` if it was the last."""
        if self._split or self._done:
            return False
        self._restriction = position
        self._done = position == _DONE
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[bytes, bytes] | None:
        """Only a checkpoint: everything that is left goes to the residual."""
        if fraction_of_remainder != 0 or self._split or self._done:
            return None
        self._split = True
        residual, self._restriction = self._restriction, _DONE
        return _DONE, residual

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
        return _NEW

    def create_tracker(self, restriction: bytes) -> PollTracker:
        return PollTracker(restriction)

    def restriction_size(self, element: bytes, restriction: bytes) -> int:  # noqa: ARG002
        return 1

    def restriction_coder(self) -> Coder:
        return BytesCoder()


class _SplittablePoll(beam.DoFn):
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
        if restriction == _DONE:
            return
        if _STOP.is_set():
            tracker.try_claim(_DONE)
            return
        poller = self._resume(restriction)
        answer = poller.poll(wall_clock_us())
        position = _DONE if poller.ended else _GOES_ON + poller.state()
        if not tracker.try_claim(position):
            return  # checkpointed meanwhile: the residual reads the same again
        yield from _outputs(answer)
        if not poller.ended:
            with _WAITING_LOCK:
                _WAITING[self._source] = (position, poller)
            tracker.defer_remainder(Duration(micros=0 if answer.progressed else self._poll_interval_us))

    def _resume(self, restriction: bytes) -> Poller:
        with _WAITING_LOCK:
            waiting = _WAITING.pop(self._source, None)
        if waiting is not None and waiting[0] == restriction:
            return waiting[1]
        return self._open_poller(None if restriction == _NEW else restriction[len(_GOES_ON) :])
