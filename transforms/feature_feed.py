"""Streaming features of one partition: what its rows see, and the updates that follow ``lag`` behind. No Beam.

A partition's *clock* at a row is the newest event time up to it. A row sees an example of its partition iff the
example's clock is at least ``lag`` behind its own: a prefix of the log, whatever the order of event times, and for an
example that came late, from when it came. Of other partitions it sees what the tables hold.

The tables hold the examples up to a mark of their own, under the name :func:`features_log` in the store, which
never passes what the first untrained row may see; the examples after it, up to those that were taken last, are
*pending* in memory. Whatever dies, both marks and the log say what is missing: updates are a function of the log's
rows alone, and are applied once, as gradients are. A bounded input's last ``lag`` stays pending.

After a restore of all shards, rows that are trained again see just what they saw before. Where some shards kept
what they had, those see what these have seen since.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.embedding_store.api import Store
from cuckooflow.embedding_store.kinds import Times
from cuckooflow.errors import LogNotOpened, MarkMismatch, PendingTooMany, SpecError, StoreError
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.models.streaming import Events, Streaming, event_times
from cuckooflow.transforms.training_options import TrainingOptions
from cuckooflow.transforms.training_rows import positions, rows_before

#: Reads the examples log between two positions: rows, and up to where they go, piece by piece.
ReadBetween = Callable[[Position, Position], Iterator[tuple[pa.RecordBatch, Position]]]


def features_log(log: str) -> str:
    """The name under which the store keeps how far the examples log has updated streaming features."""
    return f"{log}:features"


@dataclass(frozen=True)
class _Part:
    """Rows that follow each other: positions, the partition's clock at each, what they add."""

    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    clock_us: Times
    events: Events

    def __len__(self) -> int:
        return len(self.offsets)

    def position(self, row: int) -> Position:
        return Position(int(self.offsets[row]), int(self.rows[row]))

    def before(self, position: Position) -> int:
        return rows_before(self.offsets, self.rows, position)

    def between(self, start: int, stop: int) -> _Part:
        cut = slice(start, stop)
        return _Part(
            self.offsets[cut],
            self.rows[cut],
            self.clock_us[cut],
            self.events.between(start, min(stop, len(self))),
        )


@dataclass
class _Window:
    """Pending rows from ``begin``, a mark, to ``end``, and the clock there."""

    begin: Position
    end: Position
    clock_us: int | None = None
    parts: deque[_Part] = field(default_factory=deque)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def add(self, part: _Part) -> None:
        """Take the rows that the tables do not hold yet."""
        if len(part):
            self.clock_us = int(part.clock_us[-1])
        part = part.between(part.before(self.begin), len(part))
        if len(part):
            self.parts.append(part)

    def until(self, clock_us: int) -> list[_Part]:
        """Parts that begin at or before a clock."""
        found = []
        for part in self.parts:
            if part.clock_us[0] > clock_us:
                break
            found.append(part)
        return found


class FeatureFeed:
    """Not thread-safe; its owner locks.

    Args:
        store: where the tables are.
        streaming: the features.
        options: ``lag_us`` and the bounds.
        read: reads the log again.
    """

    def __init__(
        self, store: Store, streaming: Streaming, options: TrainingOptions, read: ReadBetween
    ) -> None:
        self._store = store
        self._streaming = streaming
        self._options = options
        self._read = read
        self._log: LogRange | None = None
        self._main = _Window(Position(0), Position(0))
        self._again: _Window | None = None  # of rows that are trained again

    def open(self, range_: LogRange, start: Position, at: Position) -> None:
        """Begin at a position, with what is pending there read from the log.

        Args:
            range_: of the examples log.
            start: where a store begins that has never seen this partition.
            at: where training stands.

        Raises:
            TrainingGap, OffsetOutOfRange: what is pending cannot be read again.
            WrongIncarnation, StoreError: as of the store.
        """
        self._log = log = range_._replace(log=features_log(range_.log))
        self._store.open_log(log.log, log.incarnation, {log.partition: start})
        self._main, self._again = self._pending(at), None

    def take(self, batch: pa.RecordBatch, range_: LogRange) -> pa.RecordBatch:
        """The next rows with their streaming features; or rows before, which are trained again.

        Args:
            batch: of the examples log.
            range_: what it is; it begins where the last one ended, or anywhere before.

        Raises:
            SpecError: a column cannot be hashed. Such rows update nothing.
            PendingTooMany: more rows lie within the lag than may wait.
        """
        window = self._main
        if range_.first != window.end:
            if self._again is None or range_.first != self._again.end:
                self._again = self._pending(range_.first)
            window = self._again
        window.end = range_.last
        if not batch.num_rows:
            return batch
        part = _part(batch, self._streaming.events(batch), window.clock_us)
        window.add(part)
        if len(window) > self._options.pending_rows_max:
            raise PendingTooMany(
                f"expected at most {self._options.pending_rows_max} examples within training.lag of "
                f"{self._options.lag_us / 1e6:g} s in partition {range_.partition}, received more; shorten the lag, "
                "or raise pending_rows_max"
            )
        limits = part.clock_us - self._options.lag_us
        seen = window.until(int(limits[-1]))
        if not seen:
            seen = [part.between(0, 0)]
        clocks = np.concatenate([each.clock_us for each in seen])
        visible = np.searchsorted(clocks, limits, side="right")
        pending = Events.concat([each.events for each in seen])
        return self._streaming.replayed(batch, self._store.lookup_at, pending, visible)

    def advance(self, trained: Position) -> None:
        """Update the tables with what every row from ``trained`` on may see.

        Raises:
            StoreError: the store refused, or is gone.
        """
        window = self._main
        clock_us = self._clock_before(window, trained)
        while clock_us is not None and window.parts:
            part = window.parts[0]
            visible = int(np.searchsorted(part.clock_us, clock_us - self._options.lag_us, side="right"))
            count = min(visible, self._options.fill_rows_max)
            if not count:
                return
            rest = part.between(count, len(part))
            following = window.parts[1].position(0) if len(window.parts) > 1 else window.end
            last = rest.position(0) if len(rest) else following
            self._again = None
            self._push(window.begin, last, part.between(0, count))
            window.begin = last
            window.parts.popleft()
            if len(rest):
                window.parts.appendleft(rest)

    def check(self) -> None:
        """Bring a store that was restored up to where this partition's updates were."""
        for _ in range(self._options.push_attempts_max):
            lowest = self._marks()[0]
            if lowest >= self._main.begin:
                return
            self._fill(lowest, self._main.begin)
        raise StoreError(
            f"expected the store to reach {self._main.begin} of {self._named()}, it stands at {self._marks()[0]} "
            f"after {self._options.push_attempts_max} attempts; is it being restarted over and over?"
        )

    # --- what is pending --------------------------------------------------------------------------

    def _pending(self, at: Position) -> _Window:
        """The window that ends at a position, from the log."""
        marks = self._marks()
        if marks[0] < marks[-1]:  # some shards were restored: a sum must hold the same rows everywhere
            self._fill(marks[0], marks[-1])
        window = _Window(marks[-1], marks[-1])
        for batch, last in self._read_parts(window.begin, at):
            window.add(self._part_of(batch, window.clock_us))
            window.end = last
        window.end = at
        return window

    def _read_parts(self, first: Position, last: Position) -> Iterator[tuple[pa.RecordBatch, Position]]:
        if first < last:
            yield from self._read(first, last)

    def _part_of(self, batch: pa.RecordBatch, clock_us: int | None) -> _Part:
        try:
            return _part(batch, self._streaming.events(batch), clock_us)
        except SpecError:  # dead letters when they were taken
            empty = batch.slice(0, 0)
            return _part(empty, Events(event_times(empty), {}), clock_us)

    def _clock_before(self, window: _Window, position: Position) -> int | None:
        """The clock at the last pending row before a position."""
        for part in reversed(window.parts):
            before = part.before(position)
            if before:
                return int(part.clock_us[before - 1])
        return None

    # --- what goes into the tables ----------------------------------------------------------------

    def _fill(self, first: Position, last: Position) -> None:
        for batch, until in self._read_parts(first, last):
            self._push(first, until, self._part_of(batch, None))
            first = until

    def _push(self, first: Position, last: Position, part: _Part) -> None:
        """Push one range, whatever the store answers."""
        assert self._log is not None
        todo = [(first, last, part)]
        refused = 0
        while todo:
            first, last, part = todo.pop()
            newest_us = int(part.events.times_us.max()) if len(part) else 0
            try:
                self._store.push(
                    self._log._replace(first=first, last=last), part.events.pushes(), {}, newest_us
                )
                refused = 0
            except MarkMismatch as mismatch:
                refused += 1
                if refused > self._options.push_attempts_max:
                    raise StoreError(
                        f"expected the store to take {self._named()} from {first} to {last} within "
                        f"{self._options.push_attempts_max} attempts, received {mismatch}; stop the other trainer "
                        "of this partition"
                    ) from mismatch
                marks = sorted(Position(*mark) for mark in mismatch.marks)
                if marks and marks[0] < first:
                    todo.append((first, last, part))
                    self._fill(marks[0], first)
                else:
                    cuts = [first, *(mark for mark in marks if first < mark < last), last]
                    pieces = [
                        (low, high, part.between(part.before(low), part.before(high)))
                        for low, high in itertools.pairwise(cuts)
                    ]
                    todo.extend(reversed(pieces))

    def _marks(self) -> tuple[Position, ...]:
        assert self._log is not None
        marks = self._store.marks(self._log.log).get(self._log.partition)
        if not marks:
            raise LogNotOpened(
                f"expected the store to know {self._named()}, which was open before; it has lost its data folder: "
                "give it back, or begin again from the start"
            )
        return marks

    def _named(self) -> str:
        assert self._log is not None
        return f"partition {self._log.partition} of log {self._log.log!r}"


def _part(batch: pa.RecordBatch, events: Events, clock_us: int | None) -> _Part:
    offsets, rows = positions(batch)
    clock = np.maximum.accumulate(events.times_us)
    if clock_us is not None:
        clock = np.maximum(clock, clock_us)
    return _Part(offsets, rows, clock, events)
