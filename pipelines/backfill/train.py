"""``cuckooflow backfill train``: the batch stage over days of examples as files; the online stage goes on from there.

An archive's days are the examples log: they are trained as ranges of it, so ``run train`` finds the store's marks where
the files ended. A backfill's days are a log of their own in the store; a live join that the backfill handed over to gives
the rest, so the two logs have no example in common, which is looked at before anything is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial

import apache_beam as beam

from cuckooflow.embedding_store.api import Store
from cuckooflow.embedding_store.client import connect
from cuckooflow.errors import FilesGap, PartitionsChanged, SpecError, StoreUnavailable, WrongIncarnation
from cuckooflow.logs.contract import LogRange, LogReader, Position
from cuckooflow.pipelines.backfill.job_days import JobDays, examples_log
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.options import model, store_addresses, training_options
from cuckooflow.pipelines.run import PRESETS, Build, await_end, on_signal, submit
from cuckooflow.pipelines.train.pipeline import create_reports, train_elements
from cuckooflow.pipelines.train.skips import read_skips
from cuckooflow.transforms.day_log import DayLog, holes
from cuckooflow.transforms.examples_reader import Skip
from cuckooflow.transforms.feature_feed import FeatureFeed, features_log
from cuckooflow.transforms.front_ends import FrontEnd, stop_sources
from cuckooflow.transforms.log_again import LogAgain
from cuckooflow.transforms.pollers import STOP
from cuckooflow.transforms.read_days import DaysOptions, ReadDays

Tell = Callable[[str], None]
#: Is handed what adds the stages, and what says whether all is trained.
OnFlink = Callable[[Build, Callable[[], bool]], None]
Marks = Mapping[int, tuple[Position, ...]]
#: How often an empty folder is looked at for its first day.
_FIRST_DAY_S = 1.0
#: How often a folder that is followed is looked at for whether that is all.
_LOOK_S = 5.0


@dataclass(frozen=True)
class TrainRequest:
    """What is asked of the batch stage.

    Attributes:
        out: the folder of the days.
        until: stop before the first example of this day; None: all that is there.
        follow: go on as days appear, until stopped, or until everything before ``until`` is trained.
        runner: ``direct`` or ``prism``; Flink is handed to :func:`run_train_backfill` instead.
        beam_args: further options for Beam.
    """

    out: str
    until: date | None = None
    follow: bool = False
    runner: str = "direct"
    beam_args: tuple[str, ...] = ()


def run_train_backfill(
    job: JobSpec, request: TrainRequest, tell: Tell, on_flink: OnFlink | None = None
) -> None:
    """Train the days, or go on where a run that was killed stood.

    Args:
        on_flink: runs what it is handed until that is done, see
            :func:`~cuckooflow.pipelines.flink_run.train_days_on_flink`; default: the request's runner does.
        tell: is given a line for what is found and what was done.

    Raises:
        FilesGap: the files do not go from where the store stands to where the examples log begins.
        TrainedTwice: the examples log holds examples that the days hold too.
        DayMadeAnew, WrongIncarnation, DayNotWhole: as of the days.
        SpecError: the days are of another job.
        CuckooflowError: by name.
    """
    on_signal(stop_sources)
    days = JobDays(job, request.out, request.until)
    if request.follow:
        _await_first_day(days, tell)
    if STOP.is_set():
        return
    found = days()
    days = JobDays(job, request.out, request.until, (found.log, found.incarnation))
    _check_days(job, found, request)
    log = examples_log(job)
    store = connect(store_addresses(job))
    try:
        if not found.of_backfill:
            _check_same_log(found, log)
        marks = store.marks(found.log)
        starts = _starts(found, marks)
        if log is not None and not request.follow:
            _check_reaches(found, starts, log)
        skip = read_skips(job, found.incarnation) if not found.of_backfill else {}
        _tell_found(found, starts, marks, tell)
        create_reports(job)
        options = DaysOptions(
            starts=starts,
            follow=request.follow,
            done=None if request.until is None else partial(_has_all_before, request.until),
            skip=skip,
        )

        def build(pipeline: beam.Pipeline, front_end: FrontEnd) -> None:
            elements = pipeline | "ReadDays" >> ReadDays(days, options, front_end)
            train_elements(job, elements.main, partial(days.open, skip))

        if on_flink is None:
            submit(build, PRESETS[request.runner](request.beam_args), partial(await_end, "train"))
        else:
            on_flink(build, _Reached(request, days, store, found, starts))
        _finish(job, days, store, log, skip, tell)
    finally:
        store.close()
        if log is not None:
            log.close()


# --- before ---------------------------------------------------------------------------------------


def _await_first_day(days: JobDays, tell: Tell) -> None:
    if days.look() is None:
        tell(f"waiting for a first day in {days.out}")
    while days.look() is None and not STOP.wait(_FIRST_DAY_S):
        pass


def _check_days(job: JobSpec, days: DayLog, request: TrainRequest) -> None:
    own = f"{job.name}/backfill"
    if days.of_backfill and days.log != own:
        raise SpecError(f"expected days of {own} in {request.out}, found days of {days.log}: of another job")
    missing = [day for day in holes(days) if request.until is None or day < request.until]
    if missing and not request.follow:
        shown = ", ".join(day.isoformat() for day in missing)
        raise FilesGap(
            f"expected every day from {min(days.runs)} to {max(days.runs)} in {request.out}, {shown} is missing; make it "
            "with cuckooflow backfill join, or stop before it with --until"
        )


def _check_same_log(days: DayLog, log: LogReader | None) -> None:
    if log is None:
        return
    if days.log != log.name:
        raise SpecError(
            f"expected an archive of {log.name} in {days.out}, found one of {days.log}: of another job"
        )
    if days.incarnation != log.incarnation():
        raise WrongIncarnation(
            f"expected an archive of {log.name} of incarnation {log.incarnation()}, found one of {days.incarnation}: "
            "the log was recreated since, so the positions name other rows; train the archive with the old log's "
            "store, or archive the new log into another folder"
        )
    if len(days.ranges) != len(log.partitions()):
        raise PartitionsChanged(
            f"expected {len(log.partitions())} partitions, as {log.name} has, in {days.out}, found {len(days.ranges)}"
        )


def _starts(days: DayLog, marks: Marks) -> dict[int, Position]:
    """Where each partition goes on.

    Raises:
        FilesGap: the files lack rows from there on.
    """
    starts = days.starts()
    for partition, known in marks.items():
        start = starts[partition] = min(known)
        ranges = days.ranges.get(partition, ())
        if days.end(partition, start) is None and any(first > start for first, _ in ranges):
            shown = "; ".join(f"{tuple(first)} to {tuple(last)}" for first, last in ranges)
            raise FilesGap(
                f"expected files of {days.log}/{partition} from {tuple(start)} on, where the store stands, {days.out} "
                f"holds {shown}: add the days in between, or train them from the log with cuckooflow run train"
            )
    return starts


def _check_reaches(days: DayLog, starts: Mapping[int, Position], log: LogReader) -> None:
    """Refuse an archive that ends before what the log has kept: the online stage could not go on."""
    if days.of_backfill:
        return
    for partition, start in starts.items():
        end = days.end(partition, start) or start
        kept = log.start_offset(partition)
        if Position(kept) > end:
            raise FilesGap(
                f"expected files of {days.log}/{partition} up to {kept} at least, from where on the log has kept its "
                f"messages, {days.out} holds them up to {tuple(end)}: examples in between are in neither. Add the days "
                "that hold them; or train up to there, and begin a new store for what is left"
            )


@dataclass
class _Reached:
    """Whether the store stands where the days end, and nothing follows them."""

    request: TrainRequest
    days: JobDays
    store: Store
    found: DayLog
    starts: Mapping[int, Position]
    looked_s: float = 0.0

    def __call__(self) -> bool:
        try:
            return self._all_trained()
        except StoreUnavailable:  # the job knows for how long it waits
            return False

    def _all_trained(self) -> bool:
        marks = self.store.marks(self.found.log)
        if not self._stands_at_end(marks):
            return False
        if not self.request.follow:
            return True
        if self.request.until is None or time.monotonic() - self.looked_s < _LOOK_S:
            return False
        self.looked_s = time.monotonic()
        self.found = self.days()
        return _has_all_before(self.request.until, self.found) and self._stands_at_end(marks)

    def _stands_at_end(self, marks: Marks) -> bool:
        for partition, start in self.starts.items():
            at = min(marks.get(partition, (start,)))
            if self.found.end(partition, at) not in (at, None):
                return False
        return True


def _has_all_before(until: date, days: DayLog) -> bool:
    there = until - timedelta(days=1) in days.runs or max(days.runs) >= until
    return there and not any(day < until for day in holes(days))


def _tell_found(days: DayLog, starts: Mapping[int, Position], marks: Marks, tell: Tell) -> None:
    rows = sum(
        days.rows(partition, start, days.end(partition, start) or start)
        for partition, start in starts.items()
    )
    tell(f"days={min(days.runs)}..{max(days.runs)} log={days.log} rows_at_most={rows}")
    for partition, start in sorted(starts.items()):
        end = days.end(partition, start)
        begun = "goes on" if partition in marks else "begins"
        upto = "nothing to train" if end is None or end == start else f"to {tuple(end)}"
        tell(f"partition={partition} {begun} at {tuple(start)} {upto}")


# --- after ----------------------------------------------------------------------------------------


def _finish(
    job: JobSpec,
    days: JobDays,
    store: Store,
    log: LogReader | None,
    skip: Mapping[int, tuple[Skip, ...]],
    tell: Tell,
) -> None:
    """Make what was trained durable, and say where it ended."""
    found = days()
    marks = store.marks(found.log)
    reached = {partition: known[0] for partition, known in sorted(marks.items())}
    whole = all(found.end(partition, mark) in (mark, None) for partition, mark in reached.items())
    if whole and model(job).streaming is not None and _waits_in_vain(found, store, log):
        _apply_pending(job, days, found, store, reached, skip)
        tell("streaming features: what waited for its lag was applied")
    name = store.checkpoint()
    for partition, mark in reached.items():
        tell(f"partition={partition} trained up to {tuple(mark)}")
    tell(
        f"checkpoint={name}; {'cuckooflow run train goes on from here' if whole else 'stopped before the end'}"
    )


def _waits_in_vain(days: DayLog, store: Store, log: LogReader | None) -> bool:
    """Whether updates that wait for their lag would never be made, as nobody reads these examples again."""
    if days.of_backfill:
        return days.closed_us is not None  # handed over: no further day of this log
    fed = store.marks(features_log(days.log))
    return log is not None and any(log.start_offset(p) > min(marks).offset for p, marks in fed.items())


def _apply_pending(
    job: JobSpec,
    days: JobDays,
    found: DayLog,
    store: Store,
    reached: Mapping[int, Position],
    skip: Mapping[int, tuple[Skip, ...]],
) -> None:
    streaming = model(job).streaming
    assert streaming is not None
    options = training_options(job)
    for partition, mark in reached.items():
        again = LogAgain(partial(days.open, skip), options.fill_rows_max)
        feed = FeatureFeed(store, streaming, options.model_copy(update={"lag_us": 0}), again)
        feed.open(LogRange(found.log, found.incarnation, partition, mark, mark), mark, mark)
        feed.advance(mark)
        feed.check()
