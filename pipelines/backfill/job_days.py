"""The days of a job's folder as the trainer looks at them, and what of them it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

import numpy as np

from cuckooflow.embedding_store.client import connect
from cuckooflow.errors import FilesGap, LogNotFound, TrainedTwice, WrongIncarnation
from cuckooflow.logs.contract import LogReader, Position
from cuckooflow.models.example_columns import is_late
from cuckooflow.pipelines.backfill.trained_days import TrainedDays
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.options import join_options, store_addresses
from cuckooflow.pipelines.train.skips import read_skips
from cuckooflow.transforms.day_files import DAY_US, day_start_us
from cuckooflow.transforms.day_log import DayLog, look
from cuckooflow.transforms.day_reader import DayReader
from cuckooflow.transforms.examples_reader import ExamplesReader, Skip


@dataclass(frozen=True)
class JobDays:
    """Looks at the days of a job's folder, and refuses what the store cannot go on with. Travels to workers.

    Attributes:
        job, out, until: as of the request.
        expected: log and incarnation of an earlier look; None at the first.
        compared: the days that were compared with the examples log.
    """

    job: JobSpec
    out: str
    until: date | None
    expected: tuple[str, str] | None = None
    compared: set[date] = field(default_factory=set, compare=False)

    def __call__(self) -> DayLog:
        """The days up to ``until``.

        Raises:
            FilesGap: there is no day.
            WrongIncarnation: they are of another log than before.
            DayMadeAnew: the store has trained a part of a day that was made anew since.
            TrainedTwice: the examples log holds examples that a backfill's days hold too.
        """
        found = self.look()
        if found is None:
            raise FilesGap(f"expected days of examples in {self.out}, found none; make some first")
        if self.expected is not None and (found.log, found.incarnation) != self.expected:
            raise WrongIncarnation(
                f"expected days of {self.expected}, found days of {(found.log, found.incarnation)} in {self.out}"
            )
        if found.of_backfill:
            store = connect(store_addresses(self.job))
            try:
                marks = store.marks(found.log)
            finally:
                store.close()
            TrainedDays.of(self.job).check(found, marks)
            if not self.compared >= set(found.runs):
                check_disjoint(self.job, found, self.until)
                self.compared.update(found.runs)
        return found

    def look(self) -> DayLog | None:
        """What is there."""
        found = look(self.out, self.job.join.num_shards, self.job.training.late != "ignore")
        return None if found is None else found.until(self.until, self.job.join.num_shards)

    def open(self, skip: Mapping[int, tuple[Skip, ...]]) -> DayReader:
        """A reader of the days."""
        return DayReader(self, skip)


def examples_log(job: JobSpec) -> LogReader | None:
    """A reader of the examples log; None where there is none yet."""
    try:
        return job.address(job.logs.examples).open_reader()
    except LogNotFound:
        return None


def check_disjoint(job: JobSpec, days: DayLog, until: date | None) -> None:
    """Refuse a backfill's days whose examples the log holds as well.

    Raises:
        TrainedTwice: naming one.
    """
    log = examples_log(job)
    if log is None:
        return
    first_us = day_start_us(min(days.runs))
    end_us = day_start_us(max(days.runs)) + DAY_US
    if days.closed_us is not None:
        end_us = days.closed_us - join_options(job).window_us + 1
    if until is not None:
        end_us = min(end_us, day_start_us(until))
    skip = read_skips(job, log.incarnation())
    for partition in log.partitions():
        reader = ExamplesReader(log, 0, skip)
        at, end = Position(log.start_offset(partition)), Position(log.end_offset(partition))
        while at < end:
            rows, header = reader.read(partition, at, end)
            if header.range.last == at:
                break
            at = header.range.last
            if not rows.num_rows:
                continue
            times = rows.column("_time").to_numpy()
            both = np.flatnonzero((times >= first_us) & (times < end_us) & ~is_late(rows))
            if len(both):
                place = tuple(rows.column(name)[int(both[0])].as_py() for name in ("_offset", "_row"))
                raise TrainedTwice(
                    f"expected no example of {log.name} from the time that the days in {days.out} cover, found one at "
                    f"{place} of partition {partition}, of {np.datetime64(int(times[both[0]]), 'us')}Z. Train the log "
                    "alone, or an archive of it (cuckooflow backfill archive), or the days up to where the log begins "
                    "(--until); a live join goes on from a backfill with run join --hand-over"
                )
    log.close()
