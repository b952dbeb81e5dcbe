"""ReadDays: the examples of days as files, by position, as a source of training elements.

The elements are those of :class:`~cuckooflow.transforms.read_examples.ReadExamples`; which log they are of, the days
say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cuckooflow.errors import SpecError
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.transforms.day_log import DayLog
from cuckooflow.transforms.day_reader import DayReader
from cuckooflow.transforms.examples_reader import Skip
from cuckooflow.transforms.front_ends import FrontEnd, PollSourceTransform
from cuckooflow.transforms.ranges import RangeHeader, attach_range
from cuckooflow.transforms.read_examples import ExamplesPolled


@dataclass(frozen=True)
class DaysOptions:
    """How days are read.

    Attributes:
        starts: partition -> where to begin.
        follow: go on as days appear, until the source is stopped; default false: end where the days end.
        done: of ``follow``: told of a look at the folder, whether nothing more is wanted; default never.
        look_us: with nothing left, the folder is looked at this often, default 5 s.
        max_rows: rows an element, default 8,192.
        heartbeat_us: with nothing new, each partition still gets an element this often, default 1 s.
        skip: partition -> (first, last) offsets whose rows are left out, default none.
    """

    starts: Mapping[int, Position]
    follow: bool = False
    done: Callable[[DayLog], bool] | None = None
    look_us: int = 5_000_000
    max_rows: int = 8_192
    heartbeat_us: int = 1_000_000
    skip: Mapping[int, Sequence[Skip]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.heartbeat_us < 1 or self.look_us < 1:
            raise SpecError(
                "expected max_rows, heartbeat_us and look_us of 1 or more, received "
                f"{self.max_rows}, {self.heartbeat_us} and {self.look_us}"
            )


@dataclass
class _Partition:
    start: Position
    position: Position
    spoken_us: int | None = None
    ended: bool = False


class DaysPoller:
    """Round robin over the partitions of the days. Not thread-safe.

    Raises:
        OffsetOutOfRange, DayNotWhole: as of :class:`~cuckooflow.transforms.day_reader.DayReader`.
    """

    def __init__(self, look: Callable[[], DayLog], options: DaysOptions, state: bytes | None = None) -> None:
        self._reader = DayReader(look, options.skip)
        self._options = options
        self._looked_us: int | None = None
        places = json.loads(state) if state is not None else []
        self._partitions = {
            p: _Partition(Position(*start), Position(*position), spoken_us, ended)
            for p, start, position, spoken_us, ended in places
        } or {p: _Partition(start, start) for p, start in sorted(options.starts.items())}

    @property
    def ended(self) -> bool:
        """Whether every partition has ended."""
        return all(now.ended for now in self._partitions.values())

    def poll(self, now_us: int) -> ExamplesPolled:
        """At most one element a partition: rows, or a heartbeat where one is due, or the end."""
        elements = []
        skipped, progressed, nothing_follows = 0, False, self._nothing_follows()
        open_ = {p: now for p, now in self._partitions.items() if not now.ended}
        for partition, now in open_.items():
            end = self._end(partition, now)
            batch, header = self._reader.read(
                partition, now.position, end, self._options.max_rows, start=now.start, polled_us=now_us
            )
            skipped += header.skipped
            moved = header.range.last != now.position
            now.position = header.range.last
            if moved and nothing_follows and now.position == end:
                # Said with the range that ends there: who sees the store stand at its end knows that all is told.
                batch = attach_range(batch, replace(header, end=True))
                now.ended = True
            due = now.spoken_us is None or now_us - now.spoken_us >= self._options.heartbeat_us
            if moved or due:
                elements.append((partition, batch))
                now.spoken_us = now_us
            progressed |= moved
        if not progressed and self._is_over(now_us):
            for partition, now in open_.items():
                log = self._reader.days
                range_ = LogRange(log.log, log.incarnation, partition, now.position, now.position)
                batch, _ = self._reader.read(partition, now.position, now.position, 1)
                last = attach_range(batch, RangeHeader(range_, now.start, now_us, end=True))
                elements = [element for element in elements if element[0] != partition] + [(partition, last)]
                now.ended = progressed = True
        return ExamplesPolled(elements, [], progressed, counted={"examples_skipped": skipped})

    def state(self) -> bytes:
        """Where it stands."""
        places = [
            [p, list(now.start), list(now.position), now.spoken_us, now.ended]
            for p, now in self._partitions.items()
        ]
        return json.dumps(places, separators=(",", ":")).encode()

    def _end(self, partition: int, now: _Partition) -> Position:
        end = self._reader.days.end(partition, now.position)
        return now.position if end is None else end

    def _is_over(self, now_us: int) -> bool:
        """With nothing left: look at the folder again where that is wanted, and whether that is all."""
        if not self._options.follow:
            return True
        if self._looked_us is None or now_us - self._looked_us >= self._options.look_us:
            self._looked_us = now_us
            self._reader.look_again()
            if any(self._end(p, now) > now.position for p, now in self._partitions.items()):
                return False
            return self._nothing_follows()
        return False

    def _nothing_follows(self) -> bool:
        """Whether the days as they were looked at last are all that is wanted."""
        if not self._options.follow:
            return True
        return self._options.done is not None and self._options.done(self._reader.days)


class ReadDays(PollSourceTransform):
    """Read the examples of days.

    Output: ``main``, ``(partition, RecordBatch)`` with a :class:`~cuckooflow.transforms.ranges.RangeHeader`.

    Args:
        look: looks at the folder; travels to the worker, so it must pickle.
        options: see :class:`DaysOptions`.
        front_end: see :mod:`~cuckooflow.transforms.front_ends`.
        poll_interval_us: the shortest wait after a poll that found nothing, default 100 ms.
    """

    def __init__(
        self,
        look: Callable[[], DayLog],
        options: DaysOptions,
        front_end: FrontEnd = "generator",
        poll_interval_us: int = 100_000,
    ) -> None:
        super().__init__(partial(DaysPoller, look, options), front_end, poll_interval_us)
