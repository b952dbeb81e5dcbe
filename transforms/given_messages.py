"""The join's source where the runner itself reads Pub/Sub: messages are given, and what is known of them is state.

Dataflow has a reader of its own, which acknowledges what it has committed. Its messages come to one key, whose
timer polls as :mod:`cuckooflow.transforms.stateful_poll` does; a log that is no subscription is polled beside them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder, PickleCoder
from apache_beam.io.gcp.pubsub import PubsubMessage, ReadFromPubSub
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer

from cuckooflow.logs.once_messages import Message
from cuckooflow.logs.pubsub_address import PubSubAddress
from cuckooflow.transforms.coders import Keyed
from cuckooflow.transforms.given_poller import GivenPoller
from cuckooflow.transforms.in_band import LOG_NAMES
from cuckooflow.transforms.pollers import (
    BALANCES,
    DEAD,
    NEW,
    STOP,
    WAITING,
    outputs,
    place_of,
    resume,
    wall_clock_us,
)

_HELD = BagStateSpec("held", PickleCoder())
_PLACE = ReadModifyWriteStateSpec("poller", BytesCoder())
_AGAIN = TimerSpec("poll_again", TimeDomain.REAL_TIME)
#: Polls of one firing; what they leave waits for the next.
_POLLS_MAX = 64

#: A log, and a message of it; None is the seed.
Given = tuple[int, tuple[int, Message] | None]


#: As :data:`~cuckooflow.transforms.pollers.OpenPoller`.
OpenGiven = Callable[[bytes | None], GivenPoller]


class PollGiven(beam.PTransform):
    """Polls over given messages, ``(0, Given)``; outputs as
    :class:`~cuckooflow.transforms.front_ends.PollSourceTransform`.

    Args:
        open_poller: makes the poller; travels to the worker.
        poll_interval_us: between two polls, default 100 ms.
        endless: whether the timer goes on when nothing is left, default true. False is for bounded inputs.
    """

    def __init__(self, open_poller: OpenGiven, poll_interval_us: int = 100_000, endless: bool = True) -> None:
        super().__init__()
        self._fn = _PollGiven(open_poller, poll_interval_us, endless)

    def expand(self, given: Any) -> Any:
        poll = beam.ParDo(self._fn).with_output_types(Keyed)
        tagged = given | "Poll" >> poll.with_outputs(DEAD, BALANCES, main="main")
        tagged[DEAD].element_type = pa.RecordBatch
        tagged[BALANCES].element_type = dict[str, Any]
        return tagged


def read_given(begin: Any, addresses: Mapping[int, PubSubAddress]) -> Any:
    """The messages of subscriptions, log -> address, through the runner's own reader, and the seed."""
    parts = [begin | "Seed" >> beam.Impulse() | "SeedKey" >> beam.Map(_seed).with_output_types(Given)]
    for log, address in addresses.items():
        name = LOG_NAMES[log].capitalize()
        read = ReadFromPubSub(subscription=address.path, with_attributes=True)
        keyed = beam.Map(_keyed, log).with_output_types(Given)
        parts.append(begin | f"Read{name}" >> read | f"Key{name}" >> keyed)
    return parts | "Merge" >> beam.Flatten()


def _seed(_: bytes) -> Given:
    return 0, None


def _keyed(message: PubsubMessage, log: int) -> Given:
    return 0, (log, message_of(message))


def message_of(message: PubsubMessage) -> Message:
    """A message as Beam's reader gives it."""
    return Message(message.message_id, _us(message.publish_time), message.data)


def _us(time: datetime) -> int:
    gap = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (gap.days * 86_400 + gap.seconds) * 1_000_000 + gap.microseconds


class _PollGiven(beam.DoFn):
    def __init__(self, open_poller: OpenGiven, poll_interval_us: int, endless: bool) -> None:
        self._open_poller = open_poller
        self._poll_interval_us = poll_interval_us
        self._endless = endless
        self._source = uuid.uuid4().hex

    def process(
        self,
        element: Given,
        held: Any = beam.DoFn.StateParam(_HELD),
        cell: Any = beam.DoFn.StateParam(_PLACE),
        again: Any = beam.DoFn.TimerParam(_AGAIN),
    ) -> None:
        """A message waits for the next poll; the first element arms the timer."""
        if element[1] is not None:
            held.add(element[1])
        if cell.read() is None:
            cell.write(NEW)
            again.set(time.time())

    @on_timer(_AGAIN)
    def on_again(
        self,
        held: Any = beam.DoFn.StateParam(_HELD),
        cell: Any = beam.DoFn.StateParam(_PLACE),
        again: Any = beam.DoFn.TimerParam(_AGAIN),
    ) -> Iterator[Any]:
        """Poll what has come, until nothing is left or the firing has polled enough."""
        place = cell.read() or NEW
        opened = resume(self._source, place, self._open_poller)
        found = opened.poller
        assert isinstance(found, GivenPoller)
        given = list(held.read())
        if given:
            held.clear()
        for log, reader in found.readers.items():
            reader.give([message for of, message in given if of == log])
        progressed, polls = True, 0
        while progressed and polls < _POLLS_MAX:
            answer = found.poll(wall_clock_us())
            yield from outputs(answer)
            progressed, polls = answer.progressed, polls + 1
        for log, reader in found.readers.items():
            for message in reader.take_back():  # of a partition that is paused
                held.add((log, message))
        after = place_of(found)
        if after != place:
            cell.write(after)
        if not STOP.is_set() and (self._endless or progressed):
            WAITING.keep(self._source, after, opened)
            pause_us = opened.pause_us(progressed, self._poll_interval_us)
            again.set(time.time() + max(pause_us, self._poll_interval_us) / 1e6)
