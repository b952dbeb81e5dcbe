"""``cuckooflow backfill compare``: whether a stream's examples are those of a backfill, row for row.

An example is known by its identity, and of both sides every column counts but the position, which a backfill gives
anew. What is compared is what both are done with: impressions of the backfill's days whose windows the stream had
closed, by its balances, and that the backfill had not left to a stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cuckooflow.errors import DayNotWhole
from cuckooflow.logs.contract import Position
from cuckooflow.pipelines.backfill.archive import closed_until_us
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.transforms.day_files import DAY_US, day_start_us, read_day, read_manifest, whole_days
from cuckooflow.transforms.examples_reader import IDENTITY_COLUMNS, ExamplesReader

_PLACES = ("_partition", "_offset", "_row")
#: Differences that are shown; all are counted.
SHOWN = 5


@dataclass(frozen=True)
class DayComparison:
    """One day.

    Attributes:
        rows: that are the same on both sides.
        left_open: rows of either side that the other is not done with.
        only_stream, only_backfill, different: how many; the sum is what is wrong.
        shown: the first of them, in words.
    """

    day: date
    rows: int
    left_open: int
    only_stream: int
    only_backfill: int
    different: int
    shown: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether nothing is wrong."""
        return not self.only_stream + self.only_backfill + self.different


def compare_days(job: JobSpec, out: str, until_us: int | None = None) -> Iterator[DayComparison]:
    """Compare the job's examples log with each whole day in a folder. Holds the rows of all days in memory.

    Args:
        until_us: compare impressions before this event time; default up to where the stream had closed windows.

    Raises:
        DayNotWhole: the folder has no whole day.
        LogNotFound: there is no examples log.
    """
    days = whole_days(out)
    if not days:
        raise DayNotWhole(
            f"expected whole days in {out}, found none; make them with: cuckooflow backfill join"
        )
    bound_us = closed_until_us(job) if until_us is None else until_us
    window_us = max(label.window for label in job.labels.values())
    stream = _stream(job, days)
    for day in days:
        manifest = read_manifest(out, day)
        handed_us = None if manifest is None or manifest.until_us is None else manifest.until_us - window_us
        until = bound_us if handed_us is None else min(bound_us, handed_us)
        yield _compare(day, stream.get(day, pa.table({})), read_day(out, day), until)


def _stream(job: JobSpec, days: list[date]) -> dict[date, pa.Table]:
    """The examples log's rows of each day, without repeats."""
    reader = job.address(job.logs.examples).open_reader()
    examples = ExamplesReader(reader, job.training.dedupe_rows)
    low_us, high_us = day_start_us(days[0]), day_start_us(days[-1]) + DAY_US
    batches: list[pa.Table] = []
    try:
        for partition in reader.partitions():
            at, last = Position(reader.start_offset(partition)), Position(reader.end_offset(partition))
            while at < last:
                rows, header = examples.read(partition, at, last)
                if header.range.last == at:
                    break
                at = header.range.last
                if rows.num_rows:
                    times = rows.column("_time").to_numpy()
                    table = pa.table(rows.replace_schema_metadata(None))
                    batches.append(table.filter(pa.array((times >= low_us) & (times < high_us))))
    finally:
        reader.close()
    if not batches:
        return {}
    every = pa.concat_tables(batches, promote_options="permissive")
    number = every.column("_time").to_numpy() // DAY_US
    return {day: every.filter(pa.array(number == day_start_us(day) // DAY_US)) for day in days}


def _compare(day: date, stream: pa.Table, backfill: pa.Table, until_us: int) -> DayComparison:
    sides = []
    left_open = 0
    for table in (stream, backfill):
        if table.num_rows:
            done = pc.less(table.column("_time"), until_us)
            left_open += table.num_rows - int(pc.sum(done).as_py() or 0)
            table = table.filter(done)
        sides.append(table.drop_columns([name for name in _PLACES if name in table.column_names]))
    ours, theirs = sides
    left, right = _identities(ours), _identities(theirs)
    both, at_left, at_right = np.intersect1d(left, right, return_indices=True)
    unequal = _unequal(ours.take(pa.array(at_left)), theirs.take(pa.array(at_right))) if len(both) else {}
    wrong = np.zeros(len(both), bool)
    for marks in unequal.values():
        wrong |= marks
    alone = [np.flatnonzero(~np.isin(mine, both)) for mine in (left, right)]
    shown = [_said("only in the stream", ours, n) for n in alone[0][:SHOWN].tolist()]
    shown += [_said("only in the backfill", theirs, n) for n in alone[1][:SHOWN].tolist()]
    for n in np.flatnonzero(wrong)[:SHOWN].tolist():
        names = ", ".join(name for name, marks in unequal.items() if marks[n])
        shown.append(_said(f"different in {names}, stream", ours, int(at_left[n])))
        shown.append(_said(f"different in {names}, backfill", theirs, int(at_right[n])))
    return DayComparison(
        day=day,
        rows=int(len(both) - wrong.sum()),
        left_open=left_open,
        only_stream=len(alone[0]),
        only_backfill=len(alone[1]),
        different=int(wrong.sum()),
        shown=tuple(shown[: 2 * SHOWN]),
    )


def _identities(table: pa.Table) -> npt.NDArray[Any]:
    """(n,) of two uint64 each, comparable."""
    pairs = np.empty(table.num_rows, np.dtype([("hi", np.uint64), ("lo", np.uint64)]))
    if table.num_rows:
        pairs["hi"], pairs["lo"] = (table.column(name).to_numpy() for name in IDENTITY_COLUMNS)
    return pairs


def _unequal(ours: pa.Table, theirs: pa.Table) -> dict[str, npt.NDArray[np.bool_]]:
    """Column -> (n,) where it differs; of columns that differ anywhere."""
    found = {}
    for name in dict.fromkeys([*ours.column_names, *theirs.column_names]):
        if name not in ours.column_names or name not in theirs.column_names:
            found[name] = np.ones(ours.num_rows, bool)
            continue
        left, right = ours.column(name), theirs.column(name)
        if left.equals(right):
            continue
        pairs = zip(left.to_pylist(), right.to_pylist(), strict=True)  # something differs: rare
        marks = np.array([a != b and not (a != a and b != b) for a, b in pairs], bool)
        if marks.any():
            found[name] = marks
    return found


def _said(what: str, table: pa.Table, row: int) -> str:
    return f"{what}: {table.slice(row, 1).to_pylist()[0]}"
