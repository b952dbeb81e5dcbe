"""``cuckooflow job list | status | savepoint | stop | resume``: jobs on Flink, through its REST."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cuckooflow.pipelines.cluster_commands import LINE_CHARS
from cuckooflow.runners.cluster import DEFAULT_FOLDER, LocalCluster
from cuckooflow.runners.flink_rest import Checkpoint, FlinkJob, FlinkRest, find_flink

app = typer.Typer(no_args_is_help=True, help="Jobs on Flink: list, status, savepoint, stop, resume.")

JobName = Annotated[str, typer.Argument(metavar="JOB", help="Flink's id of the job, or its name")]
Rest = Annotated[
    str | None, typer.Option("--flink-rest", help="http://host:port; default: the local cluster's")
]
Cluster = Annotated[Path, typer.Option("--cluster", help="folder of the local cluster")]
To = Annotated[
    str | None, typer.Option("--to", help="folder of the savepoint, a URI; default: the cluster's")
]


class PipelineName(StrEnum):
    JOIN = "join"
    TRAIN = "train"


@app.command("list")
def list_command(cluster: Cluster = DEFAULT_FOLDER, flink_rest: Rest = None) -> None:
    """Show the jobs that Flink knows, the newest first, and what each could go on from."""
    rest = _client(cluster, flink_rest)
    columns = ("job", "name", "state", "started", "checkpoint", "size", "age", "path")
    table = Table(*columns, box=None, pad_edge=False, header_style="dim")
    for job in rest.jobs():
        table.add_row(*_row(job, rest.newest_checkpoint(job.id)))
    Console(width=LINE_CHARS, highlight=False).print(table)


@app.command()
def status(
    job: JobName,
    as_json: Annotated[bool, typer.Option("--json", help="one line, with every metric by name")] = False,
    cluster: Cluster = DEFAULT_FOLDER,
    flink_rest: Rest = None,
) -> None:
    """Show how a job does: state, checkpoints, lag, balances. Exit 1 where a task of it does not run."""
    from cuckooflow.pipelines.job_status import print_status, read_status

    found = read_status(_client(cluster, flink_rest), job)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        print_status(found, Console(width=LINE_CHARS, highlight=False))
    if not found.at_work:
        raise typer.Exit(1)


@app.command()
def savepoint(
    job: JobName, to: To = None, cluster: Cluster = DEFAULT_FOLDER, flink_rest: Rest = None
) -> None:
    """Take a savepoint of a job that goes on, and print its path."""
    rest = _client(cluster, flink_rest)
    print(rest.savepoint(rest.job(job).id, to))


@app.command()
def stop(
    job: JobName,
    to: To = None,
    without_savepoint: Annotated[
        bool, typer.Option("--without-savepoint", help="end at once; its last checkpoint stays")
    ] = False,
    cluster: Cluster = DEFAULT_FOLDER,
    flink_rest: Rest = None,
) -> None:
    """Stop a job with a savepoint, without draining, and print what it can go on from."""
    rest = _client(cluster, flink_rest)
    found = rest.job(job)
    if not without_savepoint:
        print(rest.stop(found.id, to))
        return
    rest.cancel(found.id)
    kept = rest.newest_checkpoint(found.id)
    print(kept.path if kept is not None and kept.path is not None else "no checkpoint")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def resume(
    context: typer.Context,
    pipeline: Annotated[PipelineName, typer.Argument()],
    spec_file: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="the job spec")],
    from_: Annotated[
        str | None,
        typer.Option("--from", help="savepoint or checkpoint; default: the newest of its last submission"),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="return once the job runs")] = False,
    cluster: Cluster = DEFAULT_FOLDER,
    flink_rest: Rest = None,
) -> None:
    """Run a pipeline on Flink from where it stood. Options not known here go to Beam."""
    from cuckooflow.pipelines.flink_run import run_on_flink
    from cuckooflow.pipelines.flink_state import newest_state
    from cuckooflow.pipelines.spec_file import load_spec

    job = load_spec(spec_file)
    state = from_ or newest_state(job, pipeline.value)
    print(f"{pipeline.value}: goes on from {state}", flush=True)
    addresses = LocalCluster(cluster).addresses()
    rest = find_flink(cluster, addresses, flink_rest)
    run_on_flink(pipeline.value, job, addresses, rest, context.args, spec_file, resume=state, detach=detach)


def _client(cluster: Path, flink_rest: str | None) -> FlinkRest:
    return find_flink(cluster, LocalCluster(cluster).addresses(), flink_rest)


def _row(job: FlinkJob, newest: Checkpoint | None) -> list[str]:
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(job.start_ms / 1_000))
    row = [job.id, job.name, job.state, started]
    if newest is None:
        return [*row, "none", "", "", ""]
    age_s = time.time() - newest.completed_ms / 1_000
    return [*row, newest.kind, f"{newest.size_bytes:,} B", f"{age_s:,.0f} s", newest.path or "not kept"]
