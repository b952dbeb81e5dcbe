"""Parts of bounded inputs that are read in any order: what one of them is, and those of logs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from cuckooflow.errors import LogError
from cuckooflow.logs.contract import LogReader
from cuckooflow.transforms.columns import EventSchema
from cuckooflow.transforms.parse import Parsed, parse_messages
from cuckooflow.transforms.poll_sources import PollSource

#: A range of a log holds about so many bytes at most, default 64 MiB: a task of the first pass.
RANGE_BYTES = 64 << 20
#: What an estimate reads of a range at most: messages, and bytes at either end.
SAMPLE_MESSAGES = 2_048
SAMPLE_BYTES = 512 << 10


class InputRange(Protocol):
    """A part of an input. It travels to workers, so it pickles.

    Attributes:
        log: ``IMPRESSIONS`` or ``ACTIONS``.
        partition, first: of an ordered range, which block it is: the ranges of one partition are in the order
            of ``first``. Of others, no matter.
        ordered: whether it holds a contiguous part of one partition, in the order of positions; else rows of
            any partitions in any order, each with its position.
        size: of it, in bytes, roughly.
    """

    @property
    def log(self) -> int: ...

    @property
    def partition(self) -> int: ...

    @property
    def first(self) -> int: ...

    @property
    def ordered(self) -> bool: ...

    @property
    def size(self) -> int: ...

    def parsed(self, max_future_skew_us: int) -> Iterator[Parsed]:
        """Its rows and refused events, in batches of bounded size.

        Raises:
            CuckooflowError: it is not what it was when it was listed, or cannot be read.
        """
        ...

    def sample(self, max_future_skew_us: int) -> tuple[Parsed, float]:
        """Some of its rows, for an estimate, and the share of the range that they are, (0, 1]."""
        ...


class OpenLog(Protocol):
    """Opens a log where the work is done; pickles."""

    @property
    def schema(self) -> EventSchema: ...

    def open(self) -> PollSource: ...


@dataclass(frozen=True)
class LogRangeInput:
    """Messages of one partition of a log, ``first <= offset < last``."""

    source: OpenLog
    log: int
    incarnation: str
    partition: int
    first: int
    last: int
    size: int
    ordered: bool = True

    def parsed(self, max_future_skew_us: int) -> Iterator[Parsed]:
        """See :meth:`InputRange.parsed`."""
        opened = self.source.open()
        with contextlib.closing(opened.reader) as reader:
            if reader.incarnation() != self.incarnation:
                raise LogError(
                    f"expected the log {reader.name} of incarnation {self.incarnation}, found "
                    f"{reader.incarnation()}: it was recreated; start the backfill anew"
                )
            for batch in reader.read_range(self.partition, self.first, self.last):
                if len(batch):
                    yield parse_messages(batch, self.log, reader.name, opened.schema, max_future_skew_us)

    def sample(self, max_future_skew_us: int) -> tuple[Parsed, float]:
        """See :meth:`InputRange.sample`; from both ends, so that it shows how long the range lasts."""
        opened = self.source.open()
        half = min(SAMPLE_MESSAGES // 2, -(-(self.last - self.first) // 2))
        parts, messages = [], 0
        with contextlib.closing(opened.reader) as reader:
            for at in sorted({self.first, max(self.first + half, self.last - half)}):
                if at < self.last:
                    batch = reader.read(self.partition, at, min(half, self.last - at), SAMPLE_BYTES)
                    parsed = parse_messages(batch, self.log, reader.name, opened.schema, max_future_skew_us)
                    parts.append(parsed)
                    messages += len(batch)
        rows = pa.concat_batches([part.rows for part in parts])
        dead = pa.concat_batches([part.dead for part in parts])
        return Parsed(rows, dead), min(1.0, messages / (self.last - self.first))


@dataclass(frozen=True)
class LogSpan:
    """What of a partition is read, and in which steps.

    Attributes:
        first, end: offsets, half open.
        step: offsets of a range.
        message_bytes: of a message, roughly.
    """

    first: int
    end: int
    step: int
    message_bytes: float


def log_span(reader: LogReader, partition: int, range_messages: int) -> LogSpan:
    """A partition as it is now, in ranges of so many messages at most, and of about :data:`RANGE_BYTES`."""
    first, end = reader.start_offset(partition), reader.end_offset(partition)
    head = reader.read(partition, first, max_messages=256) if first < end else None
    each = max(1.0, head.values.nbytes / max(1, len(head))) if head is not None else 1.0
    return LogSpan(first, end, max(1, min(range_messages, int(RANGE_BYTES / each))), each)


def log_ranges(
    source: OpenLog, log: int, incarnation: str, spans: Mapping[int, LogSpan]
) -> list[LogRangeInput]:
    """The ranges of a log, by partition."""
    ranges = []
    for partition, span in spans.items():
        for at in range(span.first, span.end, span.step):
            last = min(at + span.step, span.end)
            size = int(span.message_bytes * (last - at))
            ranges.append(LogRangeInput(source, log, incarnation, partition, at, last, size))
    return ranges
