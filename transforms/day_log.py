"""The days of a folder as the log of examples that they are: which positions of which partition they hold whole.

An archive's days are the examples log itself: rows have the log's positions, and a run says between which of them it
left no row out. A backfill's days are a log of their own: a slice of time of a shard is a message, its offset
grows with time, so a day is a range of offsets, the same in every partition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta

from cuckooflow.errors import DayNotWhole, FilesGap, WrongIncarnation
from cuckooflow.logs.contract import Position
from cuckooflow.transforms.day_files import (
    EXAMPLES,
    LATE,
    DayFile,
    DayManifest,
    day_start_us,
    read_manifest,
    whole_days,
)

#: The incarnation of every log of a backfill's days: what its days were made of is recorded day by day.
OF_DAYS = "days"
#: Late rows of a slice come after its examples: their ``_row`` is moved up by so much.
LATE_ROW = 1 << 30


@dataclass(frozen=True)
class PlacedFile:
    """A file of rows with places, and the day that it is of.

    Attributes:
        day, file: see :class:`DayFile`.
        first, last: positions of its first and last row.
        row_shift: added to ``_row``.
    """

    day: date
    file: DayFile
    first: Position
    last: Position
    row_shift: int = 0


@dataclass(frozen=True)
class DayLog:
    """One look at a folder.

    Attributes:
        out: the folder.
        log, incarnation: which log the positions are of.
        of_backfill: whether the days are a log of their own; otherwise an archive's.
        files: partition -> its files, by first position.
        ranges: partition -> the ranges of positions that the files hold whole, ascending, half open.
        runs: day -> the run that made it.
        closed_us: of a backfill, up to when the clock of its join went on the last day; None: nothing follows.
    """

    out: str
    log: str
    incarnation: str
    of_backfill: bool
    files: Mapping[int, tuple[PlacedFile, ...]]
    ranges: Mapping[int, tuple[tuple[Position, Position], ...]]
    runs: Mapping[date, str]
    closed_us: int | None = None

    def starts(self) -> dict[int, Position]:
        """Where a store that has never seen the log begins: the first position of each partition."""
        return {partition: ranges[0][0] for partition, ranges in self.ranges.items()}

    def end(self, partition: int, position: Position) -> Position | None:
        """Up to where the files hold every row from a position on; None: they do not hold it."""
        for first, last in self.ranges.get(partition, ()):
            if first <= position <= last:
                return last
        return None

    def rows(self, partition: int, first: Position, last: Position) -> int:
        """Rows of the files that reach into a range, at least those of the range."""
        files = self.files.get(partition, ())
        return sum(file.file.rows for file in files if file.last >= first and file.first < last)

    def until(self, day: date | None, num_shards: int) -> DayLog:
        """The same without what lies at or after the first row of a day or of one after it."""
        if day is None:
            return self
        ranges = {}
        for partition, known in self.ranges.items():
            bound = _day_position(day, num_shards) if self.of_backfill else None
            for file in self.files.get(partition, ()):
                if file.day >= day and (bound is None or file.first < bound):
                    bound = file.first
            cut = [(first, last if bound is None else min(last, bound)) for first, last in known]
            ranges[partition] = tuple((first, last) for first, last in cut if first <= last)
        return replace(self, ranges={p: found for p, found in ranges.items() if found})


def look(out: str, num_shards: int, late: bool) -> DayLog | None:
    """What a folder holds now; None where no day is whole.

    Args:
        out: the folder.
        num_shards: of the job's join.
        late: late examples are trained, so a backfill's are rows too.

    Raises:
        WrongIncarnation: the days are of two incarnations of the examples log.
        FilesGap: an archive that does not say up to where it is whole.
        DayNotWhole: late examples without a place.
    """
    found = [(day, read_manifest(out, day)) for day in whole_days(out)]
    days = {day: manifest for day, manifest in found if manifest is not None}
    if not days:
        return None
    of_log = {(m.log, m.incarnation) for m in days.values() if m.read}
    of_backfill = not of_log
    names = {m.log for m in days.values()}
    if len(names) > 1 or len(of_log) > 1:
        shown = ", ".join(sorted(f"{m.log} of {m.incarnation} on {day}" for day, m in days.items()))
        raise WrongIncarnation(
            f"expected days of one log in {out}, found {shown}; put those of each log into a folder of its own"
        )
    kinds = (EXAMPLES, LATE) if of_backfill and late else (EXAMPLES,)
    files: dict[int, list[PlacedFile]] = {}
    for day, manifest in sorted(days.items()):
        for kind in kinds:
            for file in manifest.of_kind(kind):
                placed = _placed(out, day, file)
                files.setdefault(placed.file.partition or 0, []).append(placed)
    partitions = max(m.partitions for m in days.values())
    ranges = _of_days(days, partitions, num_shards) if of_backfill else _of_archive(out, days)
    last = days[max(days)]
    return DayLog(
        out=out,
        log=names.pop(),
        incarnation=OF_DAYS if of_backfill else of_log.pop()[1],
        of_backfill=of_backfill,
        files={p: tuple(sorted(found, key=lambda f: (f.first, f.last))) for p, found in files.items()},
        ranges=ranges,
        runs={day: manifest.run for day, manifest in days.items()},
        closed_us=last.until_us,
    )


def holes(log: DayLog) -> list[date]:
    """Days of a backfill that are missing between its first and its last."""
    days = sorted(log.runs)
    if not log.of_backfill:
        return []
    wanted = (days[0] + timedelta(days=n) for n in range((days[-1] - days[0]).days))
    return [day for day in wanted if day not in log.runs]


def day_range(day: date, num_shards: int) -> tuple[Position, Position]:
    """The positions of a day of a backfill."""
    return _day_position(day, num_shards), _day_position(day + timedelta(days=1), num_shards)


def _day_position(day: date, num_shards: int) -> Position:
    return Position(day_start_us(day) // 1_000_000 * num_shards)


def _placed(out: str, day: date, file: DayFile) -> PlacedFile:
    if file.partition is None or file.first is None or file.last is None:
        raise DayNotWhole(
            f"expected the positions of {file.name} in the manifest of {day} in {out}, found none: an earlier version "
            "made it; make the day anew"
        )
    shift = LATE_ROW if file.kind == LATE else 0
    first, last = (Position(offset, row + shift) for offset, row in (file.first, file.last))
    return PlacedFile(day, file, first, last, shift)


def _of_days(
    days: Mapping[date, DayManifest], partitions: int, num_shards: int
) -> dict[int, tuple[tuple[Position, Position], ...]]:
    """Days that follow each other are one range."""
    found = _merged([day_range(day, num_shards) for day in days])
    return dict.fromkeys(range(partitions), found)


def _of_archive(
    out: str, days: Mapping[date, DayManifest]
) -> dict[int, tuple[tuple[Position, Position], ...]]:
    """What the runs of an archive say, of those whose days are all there."""
    ranges: dict[int, list[tuple[Position, Position]]] = {}
    for manifest in {m.run: m for m in days.values()}.values():
        there = [days.get(date.fromisoformat(day)) for day in manifest.days]
        if not all(m is not None and _reaches(m, manifest) for m in there):
            continue  # it was killed before it had written all of them
        for partition, (offset, row, last_offset, last_row) in manifest.whole.items():
            found = ranges.setdefault(int(partition), [])
            found.append((Position(offset, row), Position(last_offset, last_row)))
    if not ranges:
        raise FilesGap(
            f"expected an archive in {out} whose days say up to which position they are whole, found none: its last run "
            "was killed, or an earlier version made it; run cuckooflow backfill archive again"
        )
    return {partition: _merged(found) for partition, found in sorted(ranges.items())}


def _reaches(manifest: DayManifest, other: DayManifest) -> bool:
    """Whether a day was read at least up to where another run read."""
    return all(
        partition in manifest.read and manifest.read[partition][1] >= end
        for partition, (_, end) in other.read.items()
    )


def _merged(ranges: Sequence[tuple[Position, Position]]) -> tuple[tuple[Position, Position], ...]:
    merged: list[tuple[Position, Position]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)
