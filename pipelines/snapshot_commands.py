"""``cuckooflow snapshot list | inspect | pin | unpin | rollback``: what is published to serving, and what is served of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cuckooflow.errors import NoSnapshot
from cuckooflow.models import snapshots
from cuckooflow.models.publish_gate import read_closed_gate
from cuckooflow.models.snapshot_pin import read_pin, remove_pin, write_pin
from cuckooflow.models.snapshots import Manifest
from cuckooflow.pipelines.cluster_commands import LINE_CHARS
from cuckooflow.pipelines.spec_file import load_spec

app = typer.Typer(no_args_is_help=True, help="Snapshots to serving: list, inspect, pin, unpin, rollback.")

Place = Annotated[
    Path, typer.Argument(metavar="JOB.YAML|DIR", help="the job spec, or its folder of snapshots")
]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON value instead of tables")]
Reason = Annotated[str, typer.Option(help="kept with the pin, for whoever finds it")]


@app.command("list")
def list_command(place: Place, as_json: AsJson = False) -> None:
    """Show the snapshots of a folder, the newest last, and which one is pinned."""
    folder = _folder(place)
    found = snapshots.list_manifests(folder)
    pin = read_pin(folder)
    if as_json:
        print(
            json.dumps(
                [
                    _short(manifest, pin is not None and pin.sequence == manifest.sequence)
                    for manifest in found
                ]
            )
        )
        return
    table = Table(
        "number", "kind", "taken", "events until", "rows", "MB", "metrics", "", box=None, pad_edge=False
    )
    for manifest in found:
        table.add_row(
            str(manifest.sequence),
            manifest.kind,
            _time(manifest.created_us),
            _time(manifest.event_time_us),
            f"{sum(rows.rows for rows in manifest.tables.values()):,}",
            f"{manifest.blob_bytes / 1e6:.1f}",
            " ".join(f"{name}={value:.4f}" for name, value in manifest.metrics.items() if value is not None),
            "pinned" if pin is not None and pin.sequence == manifest.sequence else "",
        )
    Console(width=LINE_CHARS, highlight=False).print(table)
    gate = read_closed_gate(folder)
    if gate is not None:
        print(
            f"the gate is closed since {_time(gate.since_us)}, nothing is published: {'; '.join(gate.reasons)}"
        )
    if pin is not None and pin.reason:
        print(f"pinned since {_time(pin.since_us)}: {pin.reason}")


@app.command()
def inspect(
    place: Place,
    number: Annotated[int | None, typer.Argument(metavar="[NUMBER]", help="default: the newest")] = None,
) -> None:
    """Show all that a snapshot's manifest says, as JSON, after its blob was checked. Exit 1 where it is damaged."""
    folder = _folder(place)
    sequence = number or snapshots.newest_sequence(folder)
    manifest = _published(folder, sequence)
    snapshots.read_snapshot(folder, manifest)
    print(manifest.model_dump_json(indent=1))


@app.command()
def pin(place: Place, number: int, reason: Reason = "") -> None:
    """Have every replica of a folder serve this snapshot until it is unpinned; publishing goes on."""
    folder = _folder(place)
    _published(folder, number)
    for manifest in snapshots.way_to(folder, number):
        snapshots.read_snapshot(folder, manifest)
    write_pin(folder, number, reason)
    print(f"pinned {number}; replicas serve it within a few seconds, until cuckooflow snapshot unpin {place}")


@app.command()
def unpin(place: Place) -> None:
    """Let replicas follow the newest snapshot again."""
    folder = _folder(place)
    print("replicas follow the newest again" if remove_pin(folder) else "nothing was pinned")


@app.command()
def rollback(
    place: Place,
    before: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%dT%H:%M:%S"], help="UTC; default: before the newest full one"),
    ] = None,
    reason: Reason = "",
) -> None:
    """Pin the last snapshot that was taken before a moment."""
    folder = _folder(place)
    found = snapshots.list_manifests(folder)
    fulls = [manifest for manifest in found if manifest.kind == "full"]
    limit_us = int(before.replace(tzinfo=UTC).timestamp() * 1e6) if before is not None else None
    if limit_us is None and fulls:
        limit_us = fulls[-1].created_us
    earlier = [manifest for manifest in found if limit_us is not None and manifest.created_us < limit_us]
    if not earlier:
        raise NoSnapshot(
            f"expected a snapshot in {folder} from before {'the newest full one' if before is None else before}, found "
            "none; see snapshot list, or rewind the training"
        )
    pin(place, earlier[-1].sequence, reason)


def _folder(place: Path) -> Path:
    """Of a job spec, or itself."""
    if place.is_dir():
        return place
    job = load_spec(place)
    return job.path(job.snapshots.dir)


def _published(folder: Path, sequence: int) -> Manifest:
    try:
        return snapshots.read_manifest(folder, sequence)
    except FileNotFoundError:
        known = snapshots.sequences(folder)
        there = f"{known[0]} to {known[-1]}" if known else "none at all"
        raise NoSnapshot(
            f"expected snapshot {sequence} in {folder}, found {there}; see snapshot list"
        ) from None


def _short(manifest: Manifest, pinned: bool) -> dict[str, object]:
    return {
        "sequence": manifest.sequence,
        "kind": manifest.kind,
        "created_us": manifest.created_us,
        "event_time_us": manifest.event_time_us,
        "bytes": manifest.blob_bytes,
        "metrics": manifest.metrics,
        "pinned": pinned,
    }


def _time(at_us: int | None) -> str:
    return "-" if at_us is None else datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")
