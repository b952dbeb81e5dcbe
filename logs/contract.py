"""What every event log offers: read, read_range, end offset, incarnation, append.

A log is a fixed set of partitions. A partition is a sequence of messages with ascending offsets;
offsets may have holes (compaction, transaction markers), so a reader continues at
:attr:`MessageBatch.next_offset`, never at "last offset + 1". A :class:`Position` names a row inside
a message, because one message may carry many rows and a training batch may end in the middle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa


class Position(NamedTuple):
    """The place of a row in a partition; ordered by (offset, row).

    A range is half open: ``first <= row < last``. ``Position(7, 0)`` is the start of message 7.
    """

    offset: int
    row: int = 0


class LogRange(NamedTuple):
    """A contiguous, half-open range of one partition of one incarnation of a log."""

    log: str
    incarnation: str
    partition: int
    first: Position
    last: Position


@dataclass(frozen=True)
class MessageBatch:
    """Messages of one partition, columnar.

    Attributes:
        partition: which partition.
        offsets: (n,) int64, ascending, may have holes.
        append_us: (n,) int64, when each message was appended, microseconds since the epoch, UTC.
        values: (n,) pa.BinaryArray; a null is a tombstone.
        next_offset: where the next read begins; past the last offset here, holes included.
        held_back: of an empty batch: messages follow that may not be read yet, as a transaction is open. Such a
            partition has been read as far as it goes, and yet is not at its end.
        labels: (n,) int64, what each message is called in rows and dead letters where that is not its offset.
        unreadable: index -> why the bytes cannot be had, of messages that are there; their values are null.
    """

    partition: int
    offsets: npt.NDArray[np.int64]
    append_us: npt.NDArray[np.int64]
    values: pa.BinaryArray
    next_offset: int
    held_back: bool = False
    labels: npt.NDArray[np.int64] | None = None
    unreadable: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)

    def until(self, offset: int) -> MessageBatch:
        """Without the messages at or past an offset; nothing is copied."""
        keep = int(np.searchsorted(self.offsets, offset))
        end = min(self.next_offset, offset)
        if keep == len(self):
            return replace(self, next_offset=end)
        return replace(
            self,
            offsets=self.offsets[:keep],
            append_us=self.append_us[:keep],
            values=self.values[:keep],
            next_offset=end,
            labels=None if self.labels is None else self.labels[:keep],
            unreadable={at: why for at, why in self.unreadable.items() if at < keep},
        )

    def behind(self, first: int) -> MessageBatch:
        """Without the first so many messages; nothing is copied."""
        left = {at - first: why for at, why in self.unreadable.items() if at >= first}
        return replace(
            self,
            offsets=self.offsets[first:],
            append_us=self.append_us[first:],
            values=self.values[first:],
            labels=None if self.labels is None else self.labels[first:],
            unreadable=left,
        )


class LogReader(Protocol):
    """The reading side. Safe to use while another process appends. Not thread-safe."""

    @property
    def name(self) -> str:
        """The log's name, as it stands in marks and dead letters."""
        ...

    def incarnation(self) -> str:
        """An identifier made when the log was created; a recreated log has another."""
        ...

    def partitions(self) -> Sequence[int]:
        """All partitions, ascending: from 0 on, without holes. A broker's topic may get more of them."""
        ...

    def start_offset(self, partition: int) -> int:
        """The first offset that retention has kept."""
        ...

    def end_offset(self, partition: int) -> int:
        """One past the last whole message."""
        ...

    def sealed(self, partition: int) -> bool:
        """Whether the log was closed for good, so that nothing follows ``end_offset``; never on a broker."""
        ...

    def read(
        self, partition: int, offset: int, max_messages: int = 65_536, max_bytes: int = 16 << 20
    ) -> MessageBatch:
        """What is there from ``offset`` on, at once; an empty batch at the end, never a wait.

        At least one message is returned when there is one, even if it is over ``max_bytes``. An empty
        batch whose ``next_offset`` is past ``offset`` says that there are only holes up to there.

        Raises:
            OffsetOutOfRange: ``offset`` is before ``start_offset`` or past the log's end.
            LogUnavailable: a broker did not answer within its bound; the same read may be tried again.
            LogRecreated: it is another log than the one that this reader was opened for.
        """
        ...

    def read_range(self, partition: int, first: int, last: int) -> Iterator[MessageBatch]:
        """Every message with ``first <= offset < last``, in order, in batches of bounded size.

        Raises:
            OffsetOutOfRange: a part of the range was deleted by retention or lies past the end.
        """
        ...

    def close(self) -> None:
        """Give connections back, if it holds any. Idempotent; one that is not closed does it when it is dropped."""
        ...


@runtime_checkable
class PrefetchingReader(Protocol):
    """A reader that can ask for several partitions in one round trip."""

    def prefetch(self, offsets: Mapping[int, int], max_bytes: int = 16 << 20) -> None:
        """Look at once at what lies at these places, partition -> offset.

        Each one's next :meth:`LogReader.read` at that offset may be answered as of now. Never raises for
        a broker that is away: the reads then say so.
        """
        ...


@runtime_checkable
class ReportingReader(Protocol):
    """A reader that can tell lag tools how far it has come."""

    def report(self, offsets: Mapping[int, int]) -> None:
        """Tell partition -> next offset, if the log's address names a group. Nothing is ever read from where
        a report says; that a report failed is logged, and no more."""
        ...


@runtime_checkable
class FilesReader(LogReader, Protocol):
    """A reader of files: offsets say which file and which message of it, so their difference counts nothing."""

    def files_left(self, partition: int, offset: int) -> int:
        """Files that are not read to their ends by who stands at ``offset``.

        Raises:
            LogUnavailable: the file system does not answer.
        """
        ...


@runtime_checkable
class RetainingReader(Protocol):
    """A reader of a log that deletes old messages by itself."""

    def retention_us(self) -> int | None:
        """How long a message is kept at least, in microseconds; None: for ever, or it may not be known.

        Raises:
            LogUnavailable: no broker answers.
        """
        ...


@dataclass(frozen=True)
class Receipts:
    """What was read since the last time that somebody asked.

    Attributes:
        ids: to acknowledge messages by, once what became of them is durable.
        repeated: messages that had been read before, and were left out.
        waiting: messages whose acknowledgement is outstanding, these included.
    """

    ids: tuple[str, ...] = ()
    repeated: int = 0
    waiting: int = 0


@runtime_checkable
class OnceReader(LogReader, Protocol):
    """A reader of what hands messages out and keeps none that was acknowledged. It has one partition.

    Its offsets number the messages in the order in which they came, and so mean something to this reader and its
    state alone. Messages come in any order, and again until they are acknowledged; those known are left out.
    """

    def restore(self, state: Any) -> None:
        """Go on from what :meth:`state` gave; before the first read."""
        ...

    def state(self) -> Any:
        """Which messages were read, as JSON has it."""
        ...

    def keep(self) -> None:
        """Tell that what waits is still being worked on. To be called with every poll, also where none is read."""
        ...

    def receipts(self) -> Receipts:
        """What was read since the last call."""
        ...


class Sent(Protocol):
    """Messages on their way."""

    def wait(self) -> int:
        """Until all of them are durable and readable; the first one's offset.

        Raises:
            LogError: as :meth:`LogWriter.append`.
        """
        ...


@dataclass(frozen=True)
class AlreadySent:
    """A :class:`Sent` of a log whose ``send`` is an ``append``."""

    first: int

    def wait(self) -> int:
        """The first message's offset."""
        return self.first


class LogWriter(Protocol):
    """The writing side. A local log has one writer a partition, held by a lock; a broker takes many."""

    @property
    def max_message_bytes(self) -> int:
        """A larger message is refused."""
        ...

    def send(self, partition: int, values: Sequence[bytes] | pa.BinaryArray, append_us: int) -> Sent:
        """As :meth:`append`, without waiting for a broker's answer: it may still fail, which ``wait`` says.

        Messages of one partition keep their order. How many may be under way is bounded: a call past that
        waits for the oldest.
        """
        ...

    def append(self, partition: int, values: Sequence[bytes] | pa.BinaryArray, append_us: int) -> int:
        """Append messages; they are durable and readable when this returns. The first one's offset.

        Args:
            partition: one of the log's.
            values: a null is a tombstone.
            append_us: when, microseconds since the epoch, UTC; a broker keeps milliseconds, or its own time.

        Raises:
            LogLocked: another process writes this partition.
            MessageTooLarge, MessageNotStorable: nothing of this call was written.
            LogUnavailable: a broker did not acknowledge within its bound; a part may have been written.
        """
        ...

    def close(self) -> None:
        """Release the locks. Idempotent."""
        ...
