"""ReadExamples: the examples log as a source of training elements, by position, without repeats."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from cuckooflow.errors import LogError, LogUnavailable, OffsetOutOfRange, PartitionsChanged, SpecError
from cuckooflow.logs.address import LogAddress, to_address
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.transforms.examples_reader import ExamplesReader, Skip
from cuckooflow.transforms.front_ends import Firing, FrontEnd, PollSourceTransform
from cuckooflow.transforms.log_watch import LogWatch
from cuckooflow.transforms.ranges import RangeHeader, attach_range

#: Of each partition in one look at all of them.
_PREFETCH_BYTES = 4 << 20


@dataclass(frozen=True)
class ExamplesOptions:
    """How the examples log is read.

    Attributes:
        starts: partition -> where to begin; a partition that is not named begins at its first offset.
        dedupe_rows: how far back a repeat is recognised, default 1 million rows a partition. Costs
            memory, see :class:`~cuckooflow.transforms.examples_reader.ExamplesReader`.
        max_rows: rows an element, default 8,192.
        stop_at_end: a partition ends where it ends as the job starts, default false. A sealed log
            ends in any case.
        heartbeat_us: with nothing new, each partition still gets an element this often, default 1 s.
        unavailable_for_us: how long the log's broker may be away before the poll raises, default 5 minutes.
        skip: partition -> (first, last) offsets whose rows are left out, default none.
    """

    starts: Mapping[int, Position] = field(default_factory=dict)
    dedupe_rows: int = 1_000_000
    max_rows: int = 8_192
    stop_at_end: bool = False
    heartbeat_us: int = 1_000_000
    unavailable_for_us: int = 300_000_000
    skip: Mapping[int, Sequence[Skip]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dedupe_rows < 0 or self.max_rows < 1 or self.heartbeat_us < 1:
            raise SpecError(
                "expected dedupe_rows >= 0, max_rows >= 1 and heartbeat_us >= 1, received "
                f"{self.dedupe_rows}, {self.max_rows} and {self.heartbeat_us}"
            )


@dataclass
class _Partition:
    start: Position
    position: Position
    stop: Position | None
    spoken_us: int | None = None
    ended: bool = False


@dataclass(frozen=True)
class ExamplesPolled:
    """What a poll gave: at most one ``(partition, batch)`` a partition, and dead letters."""

    elements: list[tuple[int, pa.RecordBatch]]
    dead: list[pa.RecordBatch]
    progressed: bool
    balances: tuple[dict[str, Any], ...] = ()
    counted: Mapping[str, int] = field(default_factory=dict)
    figures: Mapping[str, int] = field(default_factory=dict)
    receipts: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


class ExamplesPoller:
    """Round robin over the partitions of one examples log. Not thread-safe.

    Raises:
        OffsetOutOfRange: a start lies past the log's end, or before what retention has kept.
        PartitionsChanged: the log has another number of partitions than in the state, or than when it was opened.
        LogError: the state belongs to another log.
        SpecError: a start names a partition that the log does not have.
    """

    def __init__(self, reader: ExamplesReader, options: ExamplesOptions, state: bytes | None = None) -> None:
        self._reader = reader
        self._options = options
        log = reader.reader
        unknown = sorted(set(options.starts) - set(log.partitions()))
        if unknown:
            raise SpecError(f"expected starts for partitions of {list(log.partitions())}, received {unknown}")
        self._watch = LogWatch(log, options.unavailable_for_us)
        self._partitions: dict[int, _Partition] = {}
        if state is not None:
            body = json.loads(state)
            if body["incarnation"] != reader.incarnation:
                raise LogError(
                    f"expected {log.name} of incarnation {body['incarnation']}, found {reader.incarnation}: "
                    "it was recreated; start the job and the store anew"
                )
            for partition, start, position, stop, spoken_us, ended in body["partitions"]:
                self._partitions[partition] = _Partition(
                    Position(*start),
                    Position(*position),
                    None if stop is None else Position(*stop),
                    spoken_us,
                    ended,
                )
            self._check_count()
        else:
            for partition in log.partitions():
                start = options.starts.get(partition, Position(log.start_offset(partition)))
                stop = Position(log.end_offset(partition)) if options.stop_at_end else None
                self._partitions[partition] = _Partition(Position(*start), Position(*start), stop)
        for partition, now in self._partitions.items():
            first, last = log.start_offset(partition), log.end_offset(partition)
            if not Position(first) <= now.position <= Position(last):
                raise OffsetOutOfRange(
                    f"expected {log.name}/{partition} to begin within {first} to {last}, received "
                    f"{tuple(now.position)}: the store is ahead of the log, or retention "
                    "has deleted what it needs"
                )

    @property
    def ended(self) -> bool:
        """Whether every partition has ended."""
        return all(now.ended for now in self._partitions.values())

    def poll(self, now_us: int) -> ExamplesPolled:
        """At most one element a partition: rows, or a heartbeat where one is due, or the end."""
        elements: list[tuple[int, pa.RecordBatch]] = []
        dead: list[pa.RecordBatch] = []
        progressed, repeats, skipped = False, 0, 0
        self._check_count()
        open_ = {p: s.position.offset for p, s in self._partitions.items() if not s.ended}
        self._watch.begin_poll()
        self._watch.prefetch(open_, _PREFETCH_BYTES)
        for partition, now in self._partitions.items():
            if now.ended or self._watch.away:
                continue
            try:
                over = self._is_over(partition, now)  # before the read: what was there then is read now
                batch, header = self._reader.read(
                    partition,
                    now.position,
                    now.stop,
                    self._options.max_rows,
                    start=now.start,
                    polled_us=now_us,
                )
            except LogUnavailable as error:
                self._watch.note_away(error, now_us)
                continue
            self._watch.note_answer(now_us)
            if self._reader.dead_letters.num_rows:
                dead.append(self._reader.dead_letters)
            repeats += header.repeated
            skipped += header.skipped
            moved = header.range.last != now.position
            now.position = header.range.last
            due = now.spoken_us is None or now_us - now.spoken_us >= self._options.heartbeat_us
            if moved or due:
                elements.append((partition, batch))
                now.spoken_us = now_us
            if over and not moved:
                last = self._end_element(partition, now, batch, now_us)
                elements = [e for e in elements if e[0] != partition] + [(partition, last)]
                now.ended = True
            progressed |= moved or now.ended
        self._watch.report({p: s.position.offset for p, s in self._partitions.items()}, now_us)
        return ExamplesPolled(
            elements,
            dead,
            progressed,
            counted={"examples_repeats_dropped": repeats, "examples_skipped": skipped},
        )

    def state(self) -> bytes:
        """Where it stands."""
        body = {
            "incarnation": self._reader.incarnation,
            "partitions": [
                [
                    p,
                    list(s.start),
                    list(s.position),
                    None if s.stop is None else list(s.stop),
                    s.spoken_us,
                    s.ended,
                ]
                for p, s in self._partitions.items()
            ],
        }
        return json.dumps(body, separators=(",", ":")).encode()

    def _check_count(self) -> None:
        log = self._reader.reader
        if len(log.partitions()) != len(self._partitions):
            raise PartitionsChanged(
                f"expected the examples log {log.name} to have {len(self._partitions)} partitions as before, found "
                f"{len(log.partitions())}: its number is fixed when it is created; create a log under another name "
                "and begin the job and its store anew"
            )

    def _is_over(self, partition: int, now: _Partition) -> bool:
        if now.stop is not None:
            return now.position >= now.stop
        log = self._reader.reader
        return log.sealed(partition) and Position(log.end_offset(partition)) <= now.position

    def _end_element(
        self, partition: int, now: _Partition, batch: pa.RecordBatch, now_us: int
    ) -> pa.RecordBatch:
        range_ = LogRange(self._reader.log, self._reader.incarnation, partition, now.position, now.position)
        return attach_range(batch.slice(0, 0), RangeHeader(range_, now.start, now_us, end=True))


def _open_poller(address: LogAddress, options: ExamplesOptions, state: bytes | None) -> ExamplesPoller:
    return ExamplesPoller(
        ExamplesReader(address.open_reader(), options.dedupe_rows, options.skip), options, state
    )


class ReadExamples(PollSourceTransform):
    """Read the examples log.

    Outputs: ``main``, ``(partition, RecordBatch)`` with a
    :class:`~cuckooflow.transforms.ranges.RangeHeader`; ``dead``, batches of ``DEAD_LETTER_SCHEMA``.

    Args:
        place: where the log lies.
        options: see :class:`ExamplesOptions`.
        front_end: see :mod:`~cuckooflow.transforms.front_ends`.
        poll_interval_us: the shortest wait after a poll that found nothing, default 100 ms.
        firing: for ``stateful``, see :class:`~cuckooflow.transforms.stateful_poll.Firing`.

    Raises:
        LogNotFound, OffsetOutOfRange, SpecError: see :class:`ExamplesPoller`; while the pipeline is built.
    """

    def __init__(
        self,
        place: LogAddress | str | os.PathLike[str],
        options: ExamplesOptions | None = None,
        front_end: FrontEnd = "generator",
        poll_interval_us: int = 100_000,
        firing: Firing | None = None,
    ) -> None:
        options = options or ExamplesOptions()
        open_poller = partial(_open_poller, to_address(place), options)
        open_poller(None)
        super().__init__(open_poller, front_end, poll_interval_us, firing)
