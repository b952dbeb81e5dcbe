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

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.embedding_store.api import Store
from cuckooflow.embedding_store.kinds import Times
from cuckooflow.errors import PendingTooMany, SpecError
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.models.streaming import Events, Streaming, event_times
from cuckooflow.transforms.log_again import LogAgain
from cuckooflow.transforms.log_rows import LogRows, Piece, positions
from cuckooflow.transforms.store_partition import StorePartition
from cuckooflow.transforms.training_options import TrainingOptions


def features_log(log: str) -> str:
    """The name under which the store keeps how far the examples log has updated streaming features."""
    return f"{log}:features"


@dataclass(frozen=True)
class _Part(LogRows):
    """Rows that follow each other: positions, the partition's clock at each, what they add."""

    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    clock_us: Times
    events: Events

    def slice(self, start: int, stop: int) -> _Part:
        cut = np.s_[start:stop]
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
        part = part.slice(part.before(self.begin), len(part))
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
        again: reads the log again.
    """

    def __init__(self, store: Store, streaming: Streaming, options: TrainingOptions, again: LogAgain) -> None:
        self._store = store
        self._streaming = streaming
        self._options = options
        self._log = again
        self._examples: LogRange | None = None
        self._place: StorePartition | None = None
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
        self._examples = range_
        log = range_._replace(log=features_log(range_.log))
        self._place = StorePartition(self._store, log, start, self._options.push_attempts_max)
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
            seen = [part.slice(0, 0)]
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
            rest = part.slice(count, len(part))
            following = window.parts[1].position(0) if len(window.parts) > 1 else window.end
            last = rest.position(0) if len(rest) else following
            self._again = None
            self._push(Piece(window.begin, last, part.slice(0, count)))
            window.begin = last
            window.parts.popleft()
            if len(rest):
                window.parts.appendleft(rest)

    def check(self) -> None:
        """Bring a store that was restored up to where this partition's updates were."""
        self._partition.settle(self._main.begin, self._fill)

    # --- what is pending --------------------------------------------------------------------------

    def _pending(self, at: Position) -> _Window:
        """The window that ends at a position, from the log."""
        marks = self._partition.marks()
        if marks[0] < marks[-1]:  # some shards were restored: a sum must hold the same rows everywhere
            self._fill(marks[0], marks[-1])
        window = _Window(marks[-1], marks[-1])
        for batch, last in self._log.between(self._range(window.begin, at)):
            window.add(self._part_of(batch, window.clock_us))
            window.end = last
        window.end = at
        return window

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
        while first < last:
            for piece in self._missing(first, last):
                self._push(piece)
                first = piece.last

    def _missing(self, first: Position, last: Position) -> list[Piece[_Part]]:
        batch, until, _ = self._log.read(self._range(first, last))
        return [Piece(first, until, self._part_of(batch, None))]

    def _push(self, piece: Piece[_Part]) -> None:
        """Push one range, whatever the store answers."""
        self._partition.apply(piece, self._push_once, self._missing)

    def _push_once(self, piece: Piece[_Part], _: bool) -> None:
        part = piece.rows
        assert part is not None
        newest_us = int(part.events.times_us.max()) if len(part) else 0
        range_ = self._partition.range(piece.first, piece.last)
        self._store.push(range_, part.events.pushes(), {}, newest_us)

    def _range(self, first: Position, last: Position) -> LogRange:
        """Of the examples log."""
        assert self._examples is not None
        return self._examples._replace(first=first, last=last)

    @property
    def _partition(self) -> StorePartition:
        assert self._place is not None
        return self._place


def _part(batch: pa.RecordBatch, events: Events, clock_us: int | None) -> _Part:
    offsets, rows = positions(batch)
    clock = np.maximum.accumulate(events.times_us)
    if clock_us is not None:
        clock = np.maximum(clock, clock_us)
    return _Part(offsets, rows, clock, events)
