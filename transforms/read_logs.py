"""ReadLogs: the impressions and the actions log as one source of elements for the join."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any

from cuckooflow.logs.address import LogAddress, to_address
from cuckooflow.logs.once_messages import OnceMessages
from cuckooflow.logs.pubsub_address import PubSubAddress
from cuckooflow.transforms.acknowledge import Acknowledge
from cuckooflow.transforms.columns import EventSchema
from cuckooflow.transforms.files_address import FilesAddress
from cuckooflow.transforms.front_ends import Firing, FrontEnd, PollSourceTransform
from cuckooflow.transforms.given_poller import GivenPoller
from cuckooflow.transforms.hand_over import HandOver
from cuckooflow.transforms.in_band import ACTIONS, IMPRESSIONS
from cuckooflow.transforms.poll_core import PollCore
from cuckooflow.transforms.poll_options import PollOptions
from cuckooflow.transforms.poll_sources import PollSource
from cuckooflow.transforms.replay_bound import ReplayBound


@dataclass(frozen=True)
class LogInput:
    """A log to read: where it lies, and the shape of its rows."""

    place: LogAddress | PubSubAddress | FilesAddress | str | os.PathLike[str]
    schema: EventSchema

    def open(self) -> PollSource:
        """Open it.

        Raises:
            LogNotFound: no log is there.
            LogUnavailable: no broker answers.
        """
        place = self.place
        if not isinstance(place, PubSubAddress | FilesAddress):
            place = to_address(place)
        return PollSource(place.open_reader(), self.schema)


def _open_poller(
    impressions: LogInput,
    actions: LogInput,
    options: PollOptions,
    hand_over: HandOver | None,
    replay: ReplayBound | None,
    state: bytes | None,
) -> PollCore:
    if replay is not None:
        replay.check(state)
    return PollCore(impressions.open(), actions.open(), options, state, hand_over)


def _open_given(
    impressions: LogInput,
    actions: LogInput,
    options: PollOptions,
    hand_over: HandOver | None,
    replay: ReplayBound | None,
    state: bytes | None,
) -> GivenPoller:
    """As :func:`_open_poller`, with readers of subscriptions that are given their messages."""
    if replay is not None:
        replay.check(state)
    readers: dict[int, OnceMessages] = {}
    sources: dict[int, PollSource] = {}
    for log, source in ((IMPRESSIONS, impressions), (ACTIONS, actions)):
        if isinstance(source.place, PubSubAddress):
            readers[log] = OnceMessages(source.place)
            sources[log] = PollSource(readers[log], source.schema)
        else:
            sources[log] = source.open()
    core = PollCore(sources[IMPRESSIONS], sources[ACTIONS], options, state, hand_over)
    return GivenPoller(core, readers)


class ReadLogs(PollSourceTransform):
    """Read both event logs.

    Outputs: ``main``, ``(shard, RecordBatch)`` with the columns and the header of
    :mod:`cuckooflow.transforms.in_band`; ``dead``, batches of ``DEAD_LETTER_SCHEMA``; ``balances``, records of
    :mod:`cuckooflow.transforms.balances`.

    Args:
        impressions, actions: the logs.
        options: default as :class:`~cuckooflow.transforms.poll_core.PollOptions` says.
        front_end: see :mod:`~cuckooflow.transforms.front_ends`.
        poll_interval_us: the shortest wait after a poll that found nothing, default 100 ms.
        firing: for ``stateful``, see :class:`~cuckooflow.transforms.stateful_poll.Firing`.
        hand_over: where a backfill ended, see :class:`~cuckooflow.transforms.poll_core.PollCore`.
        replay: what a start, or a resume, may write again; default None: it is not held against anything. It is
            checked where the source runs, since only there it is known from where it goes on.

    Raises:
        LogNotFound, SpecError: a log is not there, or the two do not go together; while the pipeline is
            built, not when it runs.
    """

    def __init__(
        self,
        impressions: LogInput,
        actions: LogInput,
        options: PollOptions | None = None,
        front_end: FrontEnd = "generator",
        poll_interval_us: int = 100_000,
        firing: Firing | None = None,
        hand_over: HandOver | None = None,
        replay: ReplayBound | None = None,
    ) -> None:
        options = options or PollOptions()
        for source in (impressions, actions):
            if hand_over is not None and isinstance(source.place, FilesAddress):
                raise source.place.read_only("a hand-over")
        once = {
            log: source.place
            for log, source in ((IMPRESSIONS, impressions), (ACTIONS, actions))
            if isinstance(source.place, PubSubAddress)
        }
        native = front_end == "native" and bool(once)
        given = (impressions, actions, options, hand_over)
        (_open_given if native else _open_poller)(*given, None, None)
        acknowledge = Acknowledge(uuid.uuid4().hex, once) if once and not native else None
        super().__init__(
            partial(_open_poller, *given, replay), front_end, poll_interval_us, firing, acknowledge
        )
        self._open_given = partial(_open_given, *given, replay)
        self._interval_us = poll_interval_us
        self._native = once if native else {}

    def expand(self, begin: Any) -> Any:
        """The source, or the runner's own and a poller behind it."""
        if not self._native:
            return super().expand(begin)
        # Imported here: only a runner with a reader of its own needs Beam's Pub/Sub.
        from cuckooflow.transforms.given_messages import PollGiven, read_given

        given = read_given(begin, self._native)
        return given | "Given" >> PollGiven(self._open_given, self._interval_us)
