"""``cuckooflow cluster up | status | address | down | fetch``: the local cluster by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cuckooflow.errors import SpecError
from cuckooflow.runners.cluster import ALL_PARTS, DEFAULT_FOLDER, ClusterOptions, LocalCluster, PartStatus

app = typer.Typer(no_args_is_help=True, help="Kafka, Flink, job server and workers on this machine.")

Folder = Annotated[Path, typer.Option("--dir", help="where the cluster lives")]
Parts = Annotated[str, typer.Option(help="which, by comma")]
#: Ids and paths are shown whole, to be copied, however wide the terminal is.
LINE_CHARS = 1_000
_EVERY = ",".join(ALL_PARTS)


@app.command()
def up(
    folder: Folder = DEFAULT_FOLDER,
    parts: Parts = _EVERY,
    task_slots: Annotated[
        int | None, typer.Option(min=1, help="subtasks the TaskManager takes; default 4")
    ] = None,
    flink_job_server_jar: Annotated[
        Path | None, typer.Option(help="Beam's job server; default: merged from Maven's jars")
    ] = None,
    worker_python: Annotated[
        Path | None, typer.Option(help="interpreter of the workers; default: of a wheel of this cuckooflow")
    ] = None,
) -> None:
    """Start what does not run, and wait until it answers. The first time it downloads some 500 MB."""
    given = {
        "task_slots": task_slots,
        "job_server_jar": flink_job_server_jar and flink_job_server_jar.resolve(),
        # Not resolved: the interpreter of a virtual environment is a link, and is known by where it lies.
        "worker_python": worker_python and worker_python.absolute(),
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options = ClusterOptions(**chosen) if chosen else None
    cluster = LocalCluster(folder, options=options, on_event=_tell)
    cluster.up(_named(parts))
    _show(cluster.status())


@app.command()
def status(
    folder: Folder = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON value instead of a table")] = False,
) -> None:
    """Show every part; exit 1 where one that was started has ended or does not answer."""
    parts = LocalCluster(folder).status()
    if as_json:
        print(json.dumps([{**asdict(part), "log": str(part.log)} for part in parts]))
    else:
        _show(parts)
    if any(part.state in ("dead", "silent") for part in parts):
        raise typer.Exit(1)


@app.command()
def address(
    part: Annotated[str, typer.Argument(help="such as kafka")], folder: Folder = DEFAULT_FOLDER
) -> None:
    """Print where a part that was started is reached, for scripts."""
    found = {one.name: one.address for one in LocalCluster(folder).status()}.get(part)
    if found is None:
        raise SpecError(
            f"expected one of {_EVERY} that was started, received {part}; see cuckooflow cluster status"
        )
    print(found)


@app.command()
def down(folder: Folder = DEFAULT_FOLDER) -> None:
    """End whatever this cluster started. Data and logs stay in its folder."""
    cluster = LocalCluster(folder)
    ended = [part.name for part in cluster.status() if part.state != "down"]
    cluster.down()
    print(f"ended: {', '.join(ended) or 'nothing ran'}")


@app.command()
def fetch(parts: Parts = _EVERY) -> None:
    """Download and build what the parts need, and start nothing."""
    LocalCluster(DEFAULT_FOLDER, on_event=_tell).fetch(_named(parts))
    print("everything is in the cache")


def _tell(line: str) -> None:
    print(f"cluster: {line}", flush=True)


def _named(parts: str) -> list[str]:
    return [name.strip() for name in parts.split(",") if name.strip()]


def _show(parts: list[PartStatus]) -> None:
    table = Table("part", "state", "pid", "address", "log", box=None, pad_edge=False, header_style="dim")
    for part in parts:
        table.add_row(part.name, part.state, str(part.pid or ""), part.address or "", str(part.log))
    Console(width=LINE_CHARS, highlight=False).print(table)
