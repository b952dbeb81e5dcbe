"""The ways a poller becomes a Beam source; the same polls and the same elements behind each.

* ``generator``: one DoFn call that polls until the end. In the in-process runner, which fuses the whole
  pipeline, every element is through the pipeline before the next poll. It keeps no state across a
  restart of the job.
* ``splittable`` (:mod:`cuckooflow.transforms.splittable_poll`): one poll a bundle, then the rest is deferred
  with the poller's state as the restriction; for Prism, Dataflow, and Flink with a runner that does not leak
  deferred restrictions (apache/beam#27648).
* ``stateful`` (:mod:`cuckooflow.transforms.stateful_poll`): a keyed DoFn with the poller's state in a state
  cell, driven by a timer; for Flink with a runner that leaks, as its checkpoints stay flat.

* ``native``: as ``splittable``, and Pub/Sub is read by the runner itself
  (:mod:`cuckooflow.transforms.given_messages`); for Dataflow.

None tells the runner a watermark: time travels in band.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import apache_beam as beam
import pyarrow as pa

from cuckooflow.transforms.acknowledge import Acknowledge
from cuckooflow.transforms.coders import Keyed
from cuckooflow.transforms.pollers import (
    BALANCES,
    DEAD,
    RECEIPTS,
    STOP,
    OpenPoller,
    PollAnswer,
    Poller,
    allow_sources,
    opened,
    outputs,
    stop_sources,
    wall_clock_us,
)
from cuckooflow.transforms.splittable_poll import PollTracker, SplittablePoll
from cuckooflow.transforms.stateful_poll import Firing, Seed, StatefulPoll

__all__ = [
    "DEAD",
    "FRONT_ENDS",
    "Firing",
    "FrontEnd",
    "OpenPoller",
    "PollAnswer",
    "PollSourceTransform",
    "PollTracker",
    "Poller",
    "allow_sources",
    "stop_sources",
    "wall_clock_us",
]

FrontEnd = Literal["generator", "splittable", "stateful", "native"]
FRONT_ENDS: tuple[FrontEnd, ...] = ("generator", "splittable", "stateful", "native")


class PollSourceTransform(beam.PTransform):
    """A source: outputs ``main``, ``(key, RecordBatch)``, ``dead``, dead letters, and ``balances``, dicts.

    Args:
        open_poller: see :data:`OpenPoller`.
        front_end: see the module.
        poll_interval_us: the shortest wait after a poll that found nothing, default 100 ms. Costs freshness.
        firing: how much the ``stateful`` front end polls at once.
        acknowledge: takes the receipts of messages that are read once; default none, for logs.
    """

    def __init__(
        self,
        open_poller: OpenPoller,
        front_end: FrontEnd = "generator",
        poll_interval_us: int = 100_000,
        firing: Firing | None = None,
        acknowledge: Acknowledge | None = None,
    ) -> None:
        super().__init__()
        if front_end not in FRONT_ENDS or poll_interval_us < 1:
            raise ValueError(
                f"expected a front_end of {', '.join(FRONT_ENDS)} and a poll interval of 1 us or more, received "
                f"{front_end!r} and {poll_interval_us}"
            )
        self._open_poller = open_poller
        self._front_end = front_end
        self._poll_interval_us = poll_interval_us
        self._firing = firing or Firing()
        self._acknowledge = acknowledge

    def expand(self, begin: Any) -> Any:
        if self._front_end == "stateful":
            start = begin | "Seed" >> Seed(self._firing.endless)
            fn: beam.DoFn = StatefulPoll(self._open_poller, self._poll_interval_us, self._firing)
        else:
            start = begin | "Impulse" >> beam.Impulse()
            make = _GeneratorPoll if self._front_end == "generator" else SplittablePoll
            fn = make(self._open_poller, self._poll_interval_us)
        poll = beam.ParDo(fn).with_output_types(Keyed)
        tags = (DEAD, BALANCES) if self._acknowledge is None else (DEAD, BALANCES, RECEIPTS)
        tagged = start | "Poll" >> poll.with_outputs(*tags, main="main")
        tagged[DEAD].element_type = pa.RecordBatch
        tagged[BALANCES].element_type = dict[str, Any]
        if self._acknowledge is not None:
            tagged[RECEIPTS].element_type = dict[int, tuple[str, ...]]
            tagged[RECEIPTS] | "Acknowledge" >> beam.ParDo(self._acknowledge)
        return tagged


class _GeneratorPoll(beam.DoFn):
    def __init__(self, open_poller: OpenPoller, poll_interval_us: int) -> None:
        self._open_poller = open_poller
        self._poll_interval_us = poll_interval_us

    def process(self, _: bytes) -> Iterator[Any]:
        reading = opened(self._open_poller, None)
        poller = reading.poller
        while not poller.ended and not STOP.is_set():
            answer = poller.poll(wall_clock_us())
            yield from outputs(answer)
            pause_us = reading.pause_us(answer.progressed, self._poll_interval_us)
            if pause_us and not poller.ended:
                STOP.wait(pause_us / 1e6)
