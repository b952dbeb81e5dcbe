"""``cuckooflow backfill join | train | archive``: whole days of examples as files, and training on them."""

from __future__ import annotations

from datetime import UTC, date, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cuckooflow.errors import SpecError
from cuckooflow.pipelines import job_commands
from cuckooflow.runners.cluster import DEFAULT_FOLDER, LocalCluster
from cuckooflow.runners.flink_rest import find_flink

if TYPE_CHECKING:
    from cuckooflow.pipelines.job_spec import JobSpec
    from cuckooflow.pipelines.run import BatchRuns

app = typer.Typer(no_args_is_help=True, help="Backfill: the join of whole days, from logs or files.")

SpecFile = Annotated[Path, typer.Argument(metavar="JOB.YAML", help="the job spec")]
Day = Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="first day of event time, UTC")]
Until = Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], help="the day to stop before")]
Out = Annotated[str, typer.Option("--out", help="folder of the days: a path, or an address such as gs://...")]


class BatchRunner(StrEnum):
    DIRECT = "direct"
    FLINK = "flink"


class TrainRunner(StrEnum):
    DIRECT = "direct"
    PRISM = "prism"
    FLINK = "flink"


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def join(
    context: typer.Context,
    spec_file: SpecFile,
    first: Day,
    until: Until,
    out: Out,
    runner: Annotated[BatchRunner, typer.Option(help="where the tasks run")] = BatchRunner.DIRECT,
    slice_mib: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="memory for the rows of one slice, MiB")
    ] = 256,
    range_messages: Annotated[
        int, typer.Option(min=1, help="messages of a log that one task of the first pass reads")
    ] = 65_536,
    hand_over_at: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d"],
            help="UTC, on the last day: stop where a stream's clock reads this, for `run join --hand-over`",
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="give up what another unfinished backfill began in this folder")
    ] = False,
    cluster: job_commands.Cluster = DEFAULT_FOLDER,
    flink_rest: job_commands.Rest = None,
) -> None:
    """Join the rows of whole days into files by day. Killed, the same command goes on where it was.

    Options not known here go to Beam.
    """
    from cuckooflow.pipelines.backfill.join import run_join_backfill
    from cuckooflow.pipelines.backfill.request import BackfillRequest
    from cuckooflow.pipelines.spec_file import load_spec

    hand_over_us = None
    if hand_over_at is not None:
        hand_over_us = int(hand_over_at.replace(tzinfo=UTC).timestamp()) * 1_000_000
    request = BackfillRequest(
        _day(first), _day(until), folder_of(out), slice_mib << 20, range_messages, restart, hand_over_us
    )
    job = load_spec(spec_file)
    batch = _batch(job, request.out, runner, context.args, cluster, flink_rest)
    run_join_backfill(job, request, batch, tell)


def _batch(
    job: JobSpec, out: str, runner: BatchRunner, beam_args: list[str], cluster: Path, flink_rest: str | None
) -> BatchRuns:
    """What runs the phases of a backfill of a job into a folder."""
    from cuckooflow.pipelines.flink_batch import FlinkBatch
    from cuckooflow.pipelines.run import DirectBatch

    if runner is BatchRunner.DIRECT:
        return DirectBatch(beam_args)
    addresses = LocalCluster(cluster).addresses()
    rest = find_flink(cluster, addresses, flink_rest)
    return FlinkBatch(f"{job.name}-backfill", out, addresses, rest, beam_args)


@app.command()
def plan(
    spec_file: SpecFile,
    first: Day,
    until: Until,
    slice_mib: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="memory for the rows of one slice, MiB")
    ] = 256,
) -> None:
    """Estimate time and disk of a backfill from a sample of its inputs. Writes nothing."""
    from rich.console import Console

    from cuckooflow.pipelines.backfill.plan import estimate, print_estimate
    from cuckooflow.pipelines.backfill.request import BackfillRequest
    from cuckooflow.pipelines.spec_file import load_spec

    request = BackfillRequest(_day(first), _day(until), "", slice_mib << 20)
    print_estimate(estimate(load_spec(spec_file), request), request, Console(soft_wrap=True, highlight=False))


@app.command()
def archive(
    spec_file: SpecFile,
    out: Out,
    first: Annotated[
        datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="first day of event time, UTC")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="the day to stop before")
    ] = None,
    open_days: Annotated[
        bool, typer.Option("--open-days", help="also days that may get more examples, as they are now")
    ] = False,
) -> None:
    """Write the job's examples log into files by day, with positions. Run again, it replaces the days."""
    from cuckooflow.pipelines.backfill.archive import archive_examples
    from cuckooflow.pipelines.spec_file import load_spec

    days = [None if day is None else _day(day) for day in (first, until)]
    archive_examples(load_spec(spec_file), folder_of(out), days[0], days[1], open_days, tell)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    spec_file: SpecFile,
    days: Annotated[
        str | None,
        typer.Argument(metavar="DIR", help="folder of the days, as backfill join and archive write them"),
    ] = None,
    follow: Annotated[
        str | None,
        typer.Option("--follow", metavar="DIR", help="train what is there, and go on as whole days appear"),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--until", formats=["%Y-%m-%d"], help="the day to stop before")
    ] = None,
    runner: Annotated[TrainRunner, typer.Option(help="where it runs")] = TrainRunner.DIRECT,
    cluster: job_commands.Cluster = DEFAULT_FOLDER,
    flink_rest: job_commands.Rest = None,
) -> None:
    """Train the store on days of examples as files; `run train` then goes on from exactly there.

    Killed, the same command goes on where the store stands. The store must run. Options not known here go to Beam.
    """
    from cuckooflow.pipelines.backfill.train import TrainRequest, run_train_backfill
    from cuckooflow.pipelines.spec_file import load_spec

    if days is not None and days.startswith("-"):
        raise SpecError(f"expected the folder of the days before options for Beam, received {days}")
    if (days is None) == (follow is None):
        raise SpecError("expected DIR or --follow DIR, received both or none")
    request = TrainRequest(
        out=folder_of(follow if days is None else days),  # type: ignore[arg-type]
        until=None if until is None else _day(until),
        follow=follow is not None,
        runner=runner.value,
        beam_args=tuple(context.args),
    )
    job = load_spec(spec_file)
    on_flink = None
    if runner is TrainRunner.FLINK:
        from cuckooflow.pipelines.flink_run import train_days_on_flink

        addresses = LocalCluster(cluster).addresses()
        rest = find_flink(cluster, addresses, flink_rest)
        on_flink = partial(train_days_on_flink, job, addresses, rest, context.args)
    run_train_backfill(job, request, tell, on_flink)


@app.command()
def compare(spec_file: SpecFile, out: Out) -> None:
    """Compare the job's examples log with a backfill's days, row for row; exit 1 where a row differs."""
    from cuckooflow.pipelines.backfill.compare import compare_days
    from cuckooflow.pipelines.spec_file import load_spec

    rows, wrong = 0, False
    for found in compare_days(load_spec(spec_file), folder_of(out)):
        rows, wrong = rows + found.rows, wrong or not found.same
        say = (
            "same rows"
            if found.same
            else (
                f"only in the stream {found.only_stream:,}, only in the backfill {found.only_backfill:,}, "
                f"different {found.different:,}"
            )
        )
        print(
            f"{found.day}: {found.rows:,} equal, {say}; {found.left_open:,} not compared, their windows are open"
        )
        for line in found.shown:
            print(f"  {line}")
    if wrong:
        raise typer.Exit(1)
    print(f"same rows: {rows:,}")


def tell(line: str) -> None:
    """Show a line of progress at once."""
    print(f"backfill: {line}", flush=True)


def _day(time: datetime) -> date:
    return time.date()


def folder_of(out: str) -> str:
    """An absolute path, or an address as it is."""
    return out.rstrip("/") if "://" in out else str(Path(out).resolve())
