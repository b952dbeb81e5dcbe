"""A poller some of whose messages are given, see :mod:`cuckooflow.transforms.given_messages`."""

from __future__ import annotations

from collections.abc import Mapping

from cuckooflow.logs.once_messages import OnceMessages
from cuckooflow.transforms.pollers import PollAnswer, Poller


class GivenPoller:
    """A poller, and those of its readers that are given their messages."""

    def __init__(self, poller: Poller, readers: Mapping[int, OnceMessages]) -> None:
        self._poller = poller
        self.readers = readers

    @property
    def ended(self) -> bool:
        """See :class:`~cuckooflow.transforms.pollers.Poller`."""
        return self._poller.ended

    def poll(self, now_us: int) -> PollAnswer:
        """See :class:`~cuckooflow.transforms.pollers.Poller`."""
        return self._poller.poll(now_us)

    def state(self) -> bytes:
        """See :class:`~cuckooflow.transforms.pollers.Poller`."""
        return self._poller.state()
