"""``cuckooflow experiment sync-interval | collisions | reliability``: what a job's choices cost, measured on its own examples log."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cuckooflow.errors import SpecError
from cuckooflow.models.duration import parse_duration

if TYPE_CHECKING:
    from cuckooflow.pipelines.experiments.collisions import Size
    from cuckooflow.pipelines.experiments.outcome import Outcome
    from cuckooflow.pipelines.experiments.timeline import Timeline
    from cuckooflow.pipelines.job_spec import JobSpec

app = typer.Typer(
    no_args_is_help=True,
    help="Experiments over a job's examples, in event time. They change nothing of the job.",
)

_TIMES = ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d"]
SpecFile = Annotated[Path, typer.Argument(metavar="JOB.YAML", help="the job spec")]
WarmUp = Annotated[
    float, typer.Option(help="share of the rows that come before those that are scored, 0 up to 1")
]
First = Annotated[
    datetime | None, typer.Option("--from", formats=_TIMES, help="event time, UTC; default: all")
]
Until = Annotated[datetime | None, typer.Option("--to", formats=_TIMES, help="the time to stop before")]
RowsMax = Annotated[
    int, typer.Option(min=1, help="more examples are refused; some hundred bytes of memory each, twice")
]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON value instead of a table")]
Out = Annotated[Path | None, typer.Option("--out", help="folder for the plots and the table as files")]
ROWS_MAX = 10_000_000
#: Each has up to 8 consumers of the store's deltas, of at most 64.
INTERVALS_MAX = 7
HOUR_US = 3_600_000_000
HOURS_MAX = 100_000


@app.command("sync-interval")
def sync_interval_command(
    spec_file: SpecFile,
    intervals: Annotated[
        str,
        typer.Option(
            help="times between two copies, by comma; 0s: before every step. frozen comes by itself"
        ),
    ] = "24h,6h,1h,10m,1m",
    warm_up: WarmUp = 0.5,
    phases: Annotated[
        int,
        typer.Option(
            min=1,
            max=8,
            help="copies an interval, made at times spread over it; the mean is told, so the time of day does not count",
        ),
    ] = 4,
    stale_features: Annotated[
        bool, typer.Option("--stale-features", help="streaming features are as old as the parameters, too")
    ] = False,
    first: First = None,
    until: Until = None,
    rows_max: RowsMax = ROWS_MAX,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """What serving older parameters costs: a copy of the model every so often, beside one pass of training.

    Every row is predicted by the newest copy, then learned.
    """
    from cuckooflow.pipelines.experiments.learner import learner_of
    from cuckooflow.pipelines.experiments.sync_interval import FROZEN, Interval, sync_interval
    from cuckooflow.pipelines.spec_file import load_spec

    wanted = [Interval(text, _interval_us(text)) for text in _listed("--intervals", intervals)]
    if FROZEN in {interval.name for interval in wanted}:
        raise SpecError(f"expected durations in --intervals, received {FROZEN}, which comes by itself")
    if len(wanted) > INTERVALS_MAX:
        raise SpecError(f"expected at most {INTERVALS_MAX} values in --intervals, received {len(wanted)}")
    wanted.sort(key=lambda interval: -(interval.us or 0))
    _check_share("--warm-up", warm_up)
    job = load_spec(spec_file)
    _make(out)
    timeline = _timeline(job, first, until, rows_max)
    with _progress(len(timeline), as_json) as told:
        outcome = sync_interval(timeline, learner_of(job), wanted, warm_up, stale_features, phases, told)
    _show(outcome, job, as_json, out)


@app.command("collisions")
def collisions_command(
    spec_file: SpecFile,
    sizes: Annotated[
        str,
        typer.Option(
            help="rows of hashed tables, by comma: numbers, or 1/n of the rows that the collisionless table has in the end"
        ),
    ] = "1/1,1/2,1/4,1/16",
    warm_up: WarmUp = 0.5,
    first: First = None,
    until: Until = None,
    rows_max: RowsMax = ROWS_MAX,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """What collisions cost: hashed tables of several sizes beside the collisionless one, each in a pass of its own."""
    from cuckooflow.pipelines.experiments.collisions import collisions
    from cuckooflow.pipelines.experiments.learner import learner_of
    from cuckooflow.pipelines.spec_file import load_spec

    wanted = [_size(text) for text in _listed("--sizes", sizes)]
    _check_share("--warm-up", warm_up)
    job = load_spec(spec_file)
    _make(out)
    timeline = _timeline(job, first, until, rows_max)
    with _progress(len(timeline) * (1 + len(wanted)), as_json) as told:
        outcome = collisions(timeline, learner_of(job), wanted, warm_up, told)
    _show(outcome, job, as_json, out)


@app.command("reliability")
def reliability_command(
    spec_file: SpecFile,
    shards: Annotated[int, typer.Option(min=1, help="how many shards the store has")] = 3,
    shard: Annotated[int, typer.Option(min=0, help="which of them is lost")] = 0,
    hours: Annotated[float, typer.Option(help="how old the checkpoint is that it is restored from")] = 24.0,
    next_hours: Annotated[float, typer.Option("--next", help="hours after the loss that are scored")] = 24.0,
    warm_up: WarmUp = 0.5,
    first: First = None,
    until: Until = None,
    rows_max: RowsMax = ROWS_MAX,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """What a lost shard costs: restored some hours old, with replay of the examples log and without, in a pass each.

    It is lost where the rows that are scored begin.
    """
    from cuckooflow.embedding_store.shards import Shard, check_shard
    from cuckooflow.pipelines.experiments.learner import learner_of
    from cuckooflow.pipelines.experiments.reliability import Loss, reliability
    from cuckooflow.pipelines.spec_file import load_spec

    if shard >= shards:
        raise SpecError(f"expected --shard from 0 to {shards - 1}, received {shard}")
    for option, value in (("--hours", hours), ("--next", next_hours)):
        if not 0 < value <= HOURS_MAX:
            raise SpecError(f"expected {option} above 0, up to {HOURS_MAX:,}, received {value:g}")
    _check_share("--warm-up", warm_up)
    job = load_spec(spec_file)
    check_shard(Shard(shard, shards), job.store.buckets)
    _make(out)
    timeline = _timeline(job, first, until, rows_max)
    loss = Loss(shards, shard, round(hours * HOUR_US), round(next_hours * HOUR_US))
    with _progress(None, as_json) as told:
        outcome = reliability(timeline, learner_of(job), loss, warm_up, told)
    _show(outcome, job, as_json, out)


# --- what the experiments share ----------------------------------------------------------------


def _listed(option: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts) or len(set(parts)) != len(parts):
        raise SpecError(f"expected different values in {option}, separated by commas, received {text!r}")
    return parts


def _interval_us(text: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise SpecError(f"--intervals: {error}; received {text!r}") from None


def _size(text: str) -> Size:
    from cuckooflow.pipelines.experiments.collisions import Size
    from cuckooflow.pipelines.experiments.hashed import SIZE_MAX

    match = re.fullmatch(r"(1/)?(\d{1,16})", text)
    number = int(match[2]) if match else 0
    if match is None or not 1 <= number <= SIZE_MAX:
        raise SpecError(f"expected numbers of rows from 1 to 2^52, or 1/n, in --sizes, received {text!r}")
    return Size(text, share=1 / number) if match[1] else Size(text, rows=number)


def _check_share(option: str, share: float) -> None:
    if not 0 <= share < 1:
        raise SpecError(f"expected {option} from 0 up to, but not, 1, received {share:g}")


def _make(out: Path | None) -> None:
    """The folder of the report, before anything that takes long."""
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"expected a folder for --out at {out}, received: {error.strerror}") from None


def _timeline(job: JobSpec, first: datetime | None, until: datetime | None, rows_max: int) -> Timeline:
    from cuckooflow.pipelines.experiments.timeline import read_timeline

    from_us, until_us = (None if time is None else _time_us(time) for time in (first, until))
    if from_us is not None and until_us is not None and from_us >= until_us:
        raise SpecError(f"expected --from before --to, received {first} and {until}")
    return read_timeline(job, rows_max, from_us, until_us)


def _time_us(time: datetime) -> int:
    return round(time.replace(tzinfo=UTC).timestamp()) * 1_000_000


@contextmanager
def _progress(rows: int | None, hidden: bool) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal; what it gives is told how many rows more are done, of all or of nobody knows how many."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task("training", total=rows)
        yield lambda more: bar.advance(task, more)


def _show(outcome: Outcome, job: JobSpec, as_json: bool, out: Path | None) -> None:
    if out is not None:
        report = outcome.write(out, job.name)
    if as_json:
        print(json.dumps(outcome.to_json(job.name)))
        return
    outcome.print(Console(soft_wrap=True, highlight=False))
    if out is not None:
        print(f"report: {report}")
