"""How far each logical bucket has applied each partition of each log.

Not thread-safe: the store's lock makes check and update one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cuckooflow.errors import LogNotOpened, MarkMismatch, WrongIncarnation
from cuckooflow.logs.contract import LogRange, Position

MaskArray = npt.NDArray[np.uint8]


@dataclass
class LogMarks:
    """One log's marks: partition -> (buckets, 2) int64 of (offset, row)."""

    incarnation: str
    starts: dict[int, Position] = field(default_factory=dict)
    partitions: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)


class Marks:
    """The marks of a store."""

    def __init__(self, buckets: int) -> None:
        self._buckets = buckets
        self._logs: dict[str, LogMarks] = {}

    def incarnation(self, log: str) -> str | None:
        """The log's recorded incarnation, or None for an unopened log."""
        found = self._logs.get(log)
        return None if found is None else found.incarnation

    def missing(self, log: str, incarnation: str, starts: Mapping[int, Position]) -> dict[int, Position]:
        """Those of the partitions that are not open yet.

        Raises:
            WrongIncarnation: the log is open in another incarnation.
        """
        found = self._logs.get(log)
        if found is None:
            return dict(starts)
        if found.incarnation != incarnation:
            raise WrongIncarnation(
                f"log {log!r} is open in incarnation {found.incarnation!r}, received {incarnation!r}: it was "
                "recreated. Train a new store, or put the old log back."
            )
        return {partition: start for partition, start in starts.items() if partition not in found.partitions}

    def open(self, log: str, incarnation: str, starts: Mapping[int, Position]) -> None:
        """Open the partitions that are not open yet, at their start positions."""
        entry = self._logs.setdefault(log, LogMarks(incarnation))
        for partition, start in starts.items():
            if partition not in entry.partitions:
                partition, start = int(partition), Position(int(start[0]), int(start[1]))
                entry.starts[partition] = start
                entry.partitions[partition] = np.tile(np.array(start, np.int64), (self._buckets, 1))

    def plan(self, range_: LogRange) -> MaskArray:
        """(buckets,) uint8: 1 where the range, a checked one, is to be applied, 0 where it was applied already.

        Raises:
            LogNotOpened, WrongIncarnation, MarkMismatch.
        """
        marks = self._partition(range_)
        first, last = range_.first, range_.last
        done = (marks[:, 0] > last.offset) | ((marks[:, 0] == last.offset) & (marks[:, 1] >= last.row))
        here = (marks[:, 0] == first.offset) & (marks[:, 1] == first.row) & ~done
        elsewhere = ~(done | here)
        if elsewhere.any():
            distinct = sorted({Position(int(o), int(r)) for o, r in marks[elsewhere]})
            raise MarkMismatch(
                f"expected a range of {range_.log!r} partition {range_.partition} that begins at the marks "
                f"{_shown(distinct)}, received {_shown([first])} to {_shown([last])}. Cut the range at these "
                "marks, or read again from the lowest.",
                distinct,
            )
        mask: MaskArray = here.astype(np.uint8)
        return mask

    def advance(self, range_: LogRange, mask: MaskArray) -> None:
        """The masked buckets now stand at the range's end."""
        self._logs[range_.log].partitions[range_.partition][mask != 0] = tuple(range_.last)

    def distinct(self, log: str) -> dict[int, tuple[Position, ...]]:
        """Partition -> distinct marks, ascending."""
        found = self._logs.get(log)
        if found is None:
            return {}
        return {
            partition: tuple(sorted({Position(int(o), int(r)) for o, r in marks}))
            for partition, marks in sorted(found.partitions.items())
        }

    def lowest(self) -> dict[str, dict[int, Position]]:
        """Log -> partition -> the lowest mark over the buckets."""
        return {
            log: {partition: marks[0] for partition, marks in self.distinct(log).items()}
            for log in self._logs
        }

    def opened(self) -> dict[str, Any]:
        """What ``open_log`` recorded, for JSON."""
        return {
            log: {
                "incarnation": entry.incarnation,
                "starts": {str(partition): list(start) for partition, start in entry.starts.items()},
            }
            for log, entry in self._logs.items()
        }

    def restore_opened(self, body: Mapping[str, Any]) -> None:
        """Open what :meth:`opened` told; partitions already open keep their marks."""
        for log, entry in body.items():
            starts = {int(partition): Position(*start) for partition, start in entry["starts"].items()}
            self.open(log, entry["incarnation"], starts)

    def dump(self) -> dict[str, Any]:
        """Everything, for a checkpoint's JSON."""
        body = self.opened()
        for log, entry in self._logs.items():
            body[log]["marks"] = {
                str(partition): marks.tolist() for partition, marks in entry.partitions.items()
            }
        return body

    def load(self, body: Mapping[str, Any]) -> None:
        """What :meth:`dump` told."""
        self.restore_opened(body)
        for log, entry in body.items():
            for partition, marks in entry["marks"].items():
                self._logs[log].partitions[int(partition)][:] = np.array(marks, np.int64)

    def take(self, parts: Sequence[tuple[Marks, slice, slice]]) -> None:
        """Open what any part has open, and take over marks: (part, which of its buckets, which of these).

        A partition that a part has not opened stands at its start in that part's buckets.

        Raises:
            WrongIncarnation: the parts have a log open in different incarnations.
        """
        for part, _, _ in parts:
            for log, entry in part._logs.items():
                missing = self.missing(log, entry.incarnation, entry.starts)
                self.open(log, entry.incarnation, missing)
                starts = self._logs[log].starts
                for partition, start in entry.starts.items():
                    if start < starts[partition]:
                        starts[partition] = start
                        self._logs[log].partitions[partition][:] = start
        for part, theirs, ours in parts:
            for log, entry in part._logs.items():
                for partition, marks in entry.partitions.items():
                    self._logs[log].partitions[partition][ours] = marks[theirs]

    def _partition(self, range_: LogRange) -> npt.NDArray[np.int64]:
        entry = self._logs.get(range_.log)
        if entry is None or range_.partition not in entry.partitions:
            raise LogNotOpened(
                f"log {range_.log!r} partition {range_.partition} is not open in this store. "
                "Call open_log with its incarnation and start position first."
            )
        if entry.incarnation != range_.incarnation:
            raise WrongIncarnation(
                f"expected a range of {range_.log!r} in incarnation {entry.incarnation!r}, received "
                f"{range_.incarnation!r}: the log was recreated. Train a new store, or put the old log back."
            )
        return entry.partitions[range_.partition]


def _shown(positions: list[Position]) -> str:
    shown = ", ".join(f"({p.offset}, {p.row})" for p in positions[:8])
    return shown if len(positions) <= 8 else f"{shown} and {len(positions) - 8} more"
