"""A log as a poller sees it: read over and over, away now and then, and maybe growing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from cuckooflow.errors import LogUnavailable
from cuckooflow.logs.contract import (
    FilesReader,
    LogReader,
    MessageBatch,
    OnceReader,
    PrefetchingReader,
    ReportingReader,
)

_LOGGER = logging.getLogger(__name__)

#: Between two reports of progress to lag tools.
REPORT_US = 5_000_000


class LogWatch:
    """Reads one log poll by poll. Not thread-safe.

    A broker that is away is waited for, poll after poll: that it is away says nothing of what its log
    holds, so nobody may take it for an end. Only past a bound is it an error.

    Args:
        reader: of the log.
        unavailable_for_us: how long it may be away before a read raises.
        slow_us: how long a call may take before the poll says nothing of silence, see :attr:`is_doubtful`;
            default any time.
    """

    def __init__(self, reader: LogReader, unavailable_for_us: int, slow_us: int | None = None) -> None:
        self.reader = reader
        self._unavailable_for_us = unavailable_for_us
        self._slow_us = slow_us
        self._is_slow = False
        self._away_since_us: int | None = None
        self._away_in_this_poll = False
        self._reported_us: int | None = None
        self._reported: dict[int, int] = {}

    def begin_poll(self) -> None:
        """A poll begins."""
        self._away_in_this_poll = self._is_slow = False

    def partitions(self) -> Sequence[int]:
        """The log's partitions as they are known."""
        with self._timed():
            return self.reader.partitions()

    def prefetch(self, offsets: Mapping[int, int], max_bytes: int) -> None:
        """The poll will read partitions at these offsets: one round trip for all, if that helps."""
        if isinstance(self.reader, OnceReader):
            self.reader.keep()
        if isinstance(self.reader, PrefetchingReader) and len(offsets) > 1:
            with self._timed():
                self.reader.prefetch(offsets, max_bytes)

    def read(
        self, partition: int, offset: int, max_messages: int, max_bytes: int, now_us: int
    ) -> MessageBatch | None:
        """What is there from ``offset`` on; None: that is not known, as the broker is away.

        Raises:
            LogUnavailable: it has been away for longer than it may be.
            LogError: as :meth:`~cuckooflow.logs.contract.LogReader.read`.
        """
        if self.away:
            return None
        try:
            with self._timed():
                batch = self.reader.read(partition, offset, max_messages=max_messages, max_bytes=max_bytes)
        except LogUnavailable as error:
            self.note_away(error, now_us)
            return None
        self.note_answer(now_us)
        return batch

    def end_offset(self, partition: int, now_us: int) -> int | None:
        """One past the last message; None: that is not known, as the broker is away.

        Raises:
            LogUnavailable: it has been away for longer than it may be.
        """
        if self.away:
            return None
        if isinstance(self.reader, OnceReader):
            return None  # it has none
        return self._asked(self.reader.end_offset, partition, now_us)

    def start_offset(self, partition: int, now_us: int) -> int | None:
        """The first message's; None: that is not known, as the broker is away.

        Raises:
            LogUnavailable: it has been away for longer than it may be.
        """
        return None if self.away else self._asked(self.reader.start_offset, partition, now_us)

    def files_left(self, partition: int, offset: int, now_us: int) -> int | None:
        """See :class:`~cuckooflow.logs.contract.FilesReader`; None: that is not known, as the file system is away.

        Raises:
            LogUnavailable: it has been away for longer than it may be.
        """
        assert isinstance(self.reader, FilesReader)
        left = self.reader.files_left
        return None if self.away else self._asked(lambda p: left(p, offset), partition, now_us)

    def away_us(self, now_us: int) -> int:
        """For how long the broker has not answered; 0 where it does."""
        return 0 if self._away_since_us is None else now_us - self._away_since_us

    @property
    def away(self) -> bool:
        """Whether it did not answer in this poll: each further wait would hold up others."""
        return self._away_in_this_poll

    @property
    def is_doubtful(self) -> bool:
        """Whether the broker may have been away in this poll, for a time that was waited out within a call or not.

        Who writes could not write either, so that nothing new is there means nothing: no partition of any log was
        silent, whichever log it was that waited, as they may share their broker.
        """
        return self._away_in_this_poll or self._is_slow

    def note_answer(self, now_us: int) -> None:
        """The broker answered."""
        if self._away_since_us is not None:
            away_s = (now_us - self._away_since_us) / 1e6
            _LOGGER.warning("log=%s available again after_s=%.1f", self.reader.name, away_s)
            self._away_since_us = None

    def note_away(self, error: LogUnavailable, now_us: int) -> None:
        """The broker did not answer.

        Raises:
            LogUnavailable: the same, if it has been away for longer than it may be.
        """
        self._away_in_this_poll = True
        if self._away_since_us is None:
            self._away_since_us = now_us
            _LOGGER.warning("log=%s unavailable, its partitions hold the clock: %s", self.reader.name, error)
        elif now_us - self._away_since_us > self._unavailable_for_us:
            raise error

    def report(self, offsets: Mapping[int, int], now_us: int) -> None:
        """Tell lag tools how far it has come, now and then."""
        due = self._reported_us is None or now_us - self._reported_us >= REPORT_US
        if due and isinstance(self.reader, ReportingReader) and not self._away_in_this_poll:
            self._reported_us = now_us
            if dict(offsets) != self._reported:
                with self._timed():
                    self.reader.report(offsets)
                self._reported = dict(offsets)

    def _asked(self, ask: Callable[[int], int], partition: int, now_us: int) -> int | None:
        try:
            with self._timed():
                return ask(partition)
        except LogUnavailable as error:
            self.note_away(error, now_us)
            return None

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begin_s = time.monotonic()
        try:
            yield
        finally:
            if self._slow_us is not None and (time.monotonic() - begin_s) * 1e6 >= self._slow_us:
                self._is_slow = True
