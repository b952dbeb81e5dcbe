"""``cuckooflow backfill archive``: the examples log as files by day, every row with its position in the log.

The log is read partition by partition in the order of positions; each partition has one file in each day. Rows
that repeat an earlier one are left out by the reader's rule, so whoever reads the files sees what a reader of
the log sees. A day is archived when it is closed: when no shard of the join can give an example of it any
more, by the clocks in the log of balances. A day whose first rows the log has deleted since stays as it is.

Each manifest also says between which positions of each partition every row of the log is in some day of the folder
(``whole``), so that a trainer that reads the files knows up to where it may say that it has read the log.
"""

from __future__ import annotations

import contextlib
import json
import posixpath
import uuid
from collections.abc import Callable, Collection, Mapping
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from cuckooflow.errors import BackfillBusy, LogNotFound
from cuckooflow.logs.contract import LogReader, Position
from cuckooflow.pipelines.backfill.run_state import FolderLock, work_folder
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.transforms.balances import JOIN
from cuckooflow.transforms.day_files import (
    DAY_US,
    EXAMPLES,
    DayFile,
    DayFileWriter,
    DayManifest,
    commit_day,
    day_of,
    day_start_us,
    read_manifest,
    whole_days,
)
from cuckooflow.transforms.examples_reader import ExamplesReader
from cuckooflow.transforms.in_band import END_TIME_US
from cuckooflow.transforms.whole_files import remove

#: Messages that are read back from the end of the balances for each shard's newest.
_BALANCES_BACK = 4_096


def archive_examples(
    job: JobSpec,
    out: str,
    first: date | None,
    until: date | None,
    open_days: bool,
    tell: Callable[[str], None],
) -> None:
    """Write the days of the examples log; a day that is there already is replaced at once.

    Args:
        first, until: days of event time, half open; None for no bound.
        open_days: days that are not closed too, as they are now.

    Raises:
        LogNotFound: there is no examples log.
        BackfillBusy: another process writes into the folder, or an unfinished backfill does.
    """
    with FolderLock(out):
        reader = job.address(job.logs.examples).open_reader()
        closed_us = END_TIME_US if open_days else closed_until_us(job)
        low_us = 0 if first is None else day_start_us(first)
        high_us = closed_us - closed_us % DAY_US
        if until is not None:
            high_us = min(high_us, day_start_us(until))
        run = uuid.uuid4().hex[:12]
        if FileSystems.exists(work_folder(out)):
            raise BackfillBusy(
                f"expected no unfinished backfill in {out}, found one; archive into another folder"
            )
        written = posixpath.join(out, "_archive")
        remove(written)
        try:
            _Archive(job, reader, out, written, run, low_us, high_us, tell).run()
        finally:
            reader.close()
            remove(written)


def closed_until_us(job: JobSpec) -> int:
    """No example of an earlier impression will be given any more; 0 where that is not known."""
    try:
        balances = job.address(job.logs.join_balances).open_reader()
    except LogNotFound:
        return 0
    clocks: dict[int, int] = {}
    for partition in balances.partitions():
        end = balances.end_offset(partition)
        begin = max(balances.start_offset(partition), end - _BALANCES_BACK * job.join.num_shards)
        for batch in balances.read_range(partition, begin, end):
            for value in batch.values:
                record = json.loads(value.as_py())
                if record["stage"] == JOIN and record["clock_us"] is not None:
                    clocks[record["shard"]] = record["clock_us"]
    balances.close()
    if len(clocks) < job.join.num_shards:
        return 0
    behind_us = max(label.window for label in job.labels.values())
    if job.training.late != "ignore":  # then late examples go to the examples log too
        behind_us += job.join.late_horizon
    return max(0, min(clocks.values()) - behind_us)


class _Archive:
    def __init__(
        self,
        job: JobSpec,
        reader: LogReader,
        out: str,
        written: str,
        run: str,
        low_us: int,
        high_us: int,
        tell: Callable[[str], None],
    ) -> None:
        self._job = job
        self._reader = reader
        self._out = out
        self._written = written
        self._run = run
        self._low_us = low_us
        self._high_us = high_us
        self._tell = tell
        self._kept: set[date] = set()

    def run(self) -> None:
        """Write every partition's files, then commit day by day."""
        files: dict[date, list[DayFile]] = {}
        read: dict[str, tuple[int, int]] = {}
        whole: dict[str, tuple[int, int, int, int]] = {}
        left_open = 0
        partitions = self._reader.partitions()
        ends = {partition: self._reader.end_offset(partition) for partition in partitions}
        begins = {partition: self._reader.start_offset(partition) for partition in partitions}
        there = days_there(self._out, self._reader)
        for day, manifest in there.items():
            if any(
                file.first is not None and file.first < (begins[file.partition or 0], 0)
                for file in manifest.files
            ):
                self._kept.add(day)
                self._tell(f"day={day.isoformat()} kept: the log has deleted rows of it that are there")
        for partition in partitions:
            begin, end = begins[partition], ends[partition]
            read[str(partition)] = (begin, end)
            ranges = WholeRange(partition, Position(begin), self._kept, there, self._low_us, self._high_us)
            left_open += self._partition(partition, begin, end, files, ranges)
            whole[str(partition)] = (*ranges.begin, *ranges.end)
        for day in sorted(files):
            manifest = DayManifest(
                day=day.isoformat(),
                job=self._job.name,
                run=self._run,
                log=self._reader.name,
                incarnation=self._reader.incarnation(),
                partitions=len(partitions),
                files=tuple(files[day]),
                counts={"examples": sum(file.rows for file in files[day])},
                read=read,
                whole=whole,
                days=tuple(day.isoformat() for day in sorted(files)),
            )
            commit_day(self._out, manifest, self._written)
            self._tell(f"day={day.isoformat()} examples={manifest.rows(EXAMPLES)}")
        if left_open:
            self._tell(f"rows_of_open_days={left_open}; archive again when they are closed, or --open-days")

    def _partition(
        self, partition: int, begin: int, end: int, files: dict[date, list[DayFile]], whole: WholeRange
    ) -> int:
        """One partition's file of each day; how many rows are of days that are not closed."""
        examples = ExamplesReader(self._reader, self._job.training.dedupe_rows)
        left_open = 0
        at, last = Position(begin), Position(end)
        with _PartitionFiles(self._written, f"p{partition:05}-{self._run}") as written:
            while at < last:
                rows, header = examples.read(partition, at, last)
                if header.range.last == at:
                    break
                at = header.range.last
                rows = _placed(rows, partition)
                days = rows.column("_time").to_numpy() // DAY_US if rows.num_rows else np.empty(0, np.int64)
                whole.see(rows, days, at)
                for number in np.unique(days).tolist():
                    mine = rows.filter(pa.array(days == number))
                    if number * DAY_US >= self._high_us:
                        left_open += mine.num_rows
                    elif number * DAY_US >= self._low_us and day_of(number * DAY_US) not in self._kept:
                        written.write(day_of(number * DAY_US), mine)
        for day, file in written.files:
            files.setdefault(day, []).append(file)
        return left_open


def days_there(out: str, reader: LogReader) -> dict[date, DayManifest]:
    """The days of this very log that a folder holds."""
    found = ((day, read_manifest(out, day)) for day in whole_days(out))
    mine = (reader.name, reader.incarnation())
    return {day: m for day, m in found if m is not None and (m.log, m.incarnation) == mine}


class WholeRange:
    """The last range of a partition of which every row is in the folder, before rows of days that are not closed.

    Args:
        begin: where reading begins.
        kept: days that stay as they are.
        there: the days in the folder.
        low_us, high_us: days in between are written anew.

    Attributes:
        begin, end: the range, half open.
    """

    def __init__(
        self,
        partition: int,
        begin: Position,
        kept: Collection[date],
        there: Mapping[date, DayManifest],
        low_us: int,
        high_us: int,
    ) -> None:
        self.begin = self.end = begin
        self._partition = partition
        self._kept, self._there = kept, there
        self._low_us, self._high_us = low_us, high_us
        self._open = False

    def see(self, rows: pa.RecordBatch, days: npt.NDArray[np.int64], until: Position) -> None:
        """Take the next rows, with the number of each one's day, and up to where they go."""
        if self._open:
            return
        opened = np.flatnonzero(days * DAY_US >= self._high_us)
        n = int(opened[0]) if len(opened) else rows.num_rows
        absent = np.flatnonzero(self._absent(rows.slice(0, n), days[:n]))
        if len(absent):
            self.begin = _position(rows, int(absent[-1]), 1)
        self.end = until
        if len(opened):
            self._open = True
            self.end = _position(rows, n)

    def _absent(self, rows: pa.RecordBatch, days: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """(n,) which rows are in no day of the folder."""
        absent = np.zeros(len(days), np.bool_)
        for number in np.unique(days).tolist():
            day = day_of(number * DAY_US)
            if number * DAY_US >= self._low_us and day not in self._kept:
                continue
            first, end = (0, 0)
            if day in self._there:
                first, end = self._there[day].read.get(str(self._partition), (0, 0))
            offsets = rows.column("_offset").to_numpy()
            absent |= (days == number) & ((offsets < first) | (offsets >= end))
        return absent


def _position(rows: pa.RecordBatch, at: int, further: int = 0) -> Position:
    return Position(rows.column("_offset")[at].as_py(), rows.column("_row")[at].as_py() + further)


class _PartitionFiles:
    """A file of each day, and a further one where the columns change. Use it as a context manager.

    Attributes:
        files: those that were written, with their days; once it is left.
    """

    def __init__(self, folder: str, stem: str) -> None:
        self._folder = folder
        self._stem = stem
        self._stack = contextlib.ExitStack()
        self._open: dict[date, tuple[DayFileWriter, pa.Schema]] = {}
        self._all: list[tuple[date, DayFileWriter]] = []
        self.files: list[tuple[date, DayFile]] = []

    def __enter__(self) -> _PartitionFiles:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        self.files = [(day, writer.file) for day, writer in self._all if writer.file is not None]

    def write(self, day: date, rows: pa.RecordBatch) -> None:
        """Add rows of a day."""
        writer, schema = self._open.get(day, (None, None))
        if writer is None or not rows.schema.equals(schema):
            name = f"{EXAMPLES}-{day.isoformat()}-{len(self._all):05}-{self._stem}"
            writer = self._stack.enter_context(DayFileWriter(self._folder, EXAMPLES, name))
            self._open[day] = (writer, rows.schema)
            self._all.append((day, writer))
        writer.write(rows)


def _placed(rows: pa.RecordBatch, partition: int) -> pa.RecordBatch:
    """Rows with their position as the last three columns, without the reader's header."""
    names = [name for name in rows.schema.names if name not in ("_partition", "_offset", "_row")]
    there = rows.select(names).replace_schema_metadata(None)
    column = pa.array(np.full(rows.num_rows, partition, np.int32))
    there = there.append_column(pa.field("_partition", pa.int32()), column)
    for name in ("_offset", "_row"):
        there = there.append_column(rows.schema.field(name), rows.column(name))
    return there
