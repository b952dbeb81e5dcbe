"""ReadLogs: the impressions and the actions log as one source of elements for the join."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial

from cuckooflow.logs.address import LogAddress, to_address
from cuckooflow.transforms.columns import EventSchema
from cuckooflow.transforms.front_ends import Firing, FrontEnd, PollSourceTransform
from cuckooflow.transforms.hand_over import HandOver
from cuckooflow.transforms.poll_core import PollCore, PollOptions, PollSource
from cuckooflow.transforms.replay_bound import ReplayBound


@dataclass(frozen=True)
class LogInput:
    """A log to read: where it lies, and the shape of its rows."""

    place: LogAddress | str | os.PathLike[str]
    schema: EventSchema

    def open(self) -> PollSource:
        """Open it.

        Raises:
            LogNotFound: no log is there.
            LogUnavailable: no broker answers.
        """
        return PollSource(to_address(self.place).open_reader(), self.schema)


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


class ReadLogs(PollSourceTransform):
    """Read both event logs.

    Outputs: ``main``, ``(shard, RecordBatch)`` with the columns and the header of
    :mod:`cuckooflow.transforms.in_band`; ``dead``, batches of ``DEAD_LETTER_SCHEMA``; ``balances``, records of
    :mod:`cuckooflow.transforms.balances`.

    Args:
        impressions, actions: the logs.
        options: default as :class:`~cuckooflow.transforms.poll_core.PollOptions` says.
        front_end: see :mod:`~cuckooflow.transforms.front_ends`.
        poll_interval_us: the wait after a poll that found nothing, default 100 ms.
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
        _open_poller(impressions, actions, options, hand_over, None, None)
        open_poller = partial(_open_poller, impressions, actions, options, hand_over, replay)
        super().__init__(open_poller, front_end, poll_interval_us, firing)
