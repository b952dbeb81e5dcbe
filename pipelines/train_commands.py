"""``cuckooflow train rewind | warm-start``: take the training back; begin with what another job has learned."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cuckooflow.embedding_store.checkpoint_files import checkpoints, written_s
from cuckooflow.embedding_store.rewinding import Rewinding
from cuckooflow.errors import CheckpointNotFound, OffsetOutOfRange, SpecError
from cuckooflow.models.warm_plan import Kept
from cuckooflow.pipelines.options import store_folder
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.pipelines.train.skips import add_skips, parse_skip

app = typer.Typer(
    no_args_is_help=True,
    help="The training: take it back to before something went wrong, or begin it with another job's tables.",
)


@app.command("rewind")
def rewind_command(
    spec_file: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="the job spec")],
    checkpoint: Annotated[
        str | None, typer.Option(help="its name; of several shards each has one of it")
    ] = None,
    before: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%dT%H:%M:%S"], help="UTC; each shard's newest one from before that"),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip", metavar="PARTITION:FIRST-LAST", help="offsets of the examples log to leave out for good"
        ),
    ] = None,
) -> None:
    """Have the store restore an older checkpoint, and the trainer go on from there without some ranges of the log.

    Stop the trainer and the store before. Nothing is deleted: newer checkpoints are renamed to rewound-...
    """
    if (checkpoint is None) == (before is None):
        raise SpecError("expected one of --checkpoint and --before, received both or none")
    job = load_spec(spec_file)
    skips = [parse_skip(text) for text in skip or ()]
    reader = job.address(job.logs.examples).open_reader()
    with contextlib.ExitStack() as open_:
        open_.callback(reader.close)
        incarnation, partitions = reader.incarnation(), reader.partitions()
        unknown = sorted({partition for partition, _ in skips} - set(partitions))
        if unknown:
            raise SpecError(f"expected partitions of {list(partitions)} in --skip, received {unknown}")
        shards = []
        for folder in [store_folder(job, shard) for shard in range(job.store.shards)]:
            shards.append(Rewinding(folder, checkpoint or _newest_before(folder, before)))
            open_.callback(shards[-1].close)
        for shard in shards:
            for partition, position in shard.marks.lowest().get(reader.name, {}).items():
                kept = reader.start_offset(partition)
                if position.offset < kept:
                    raise OffsetOutOfRange(
                        f"expected {reader.name}/{partition} from {tuple(position)} on, retention has kept it from {kept} "
                        "on; choose a newer checkpoint"
                    )
        # Before the store goes back: in between, a trainer would leave them out of what is new, and nothing else.
        add_skips(job, incarnation, skips)
        for shard in shards:
            aside = shard.apply()
            print(f"{shard.data}: {shard.name} is the newest, {len(aside)} newer ones put aside")
    for partition, (first, last) in skips:
        print(f"skipped from now on: {reader.name}/{partition} {first} to {last}")
    print("start the store and the trainer again; replicas get a full snapshot")


@app.command("warm-start")
def warm_start_command(
    spec_file: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="the job spec, whose store is made")],
    from_: Annotated[
        Path,
        typer.Option("--from", metavar="JOB.YAML|DIR", help="the other job's spec, or a folder of snapshots"),
    ],
    from_start: Annotated[
        bool, typer.Option("--from-start", help="train the examples log again, from its start")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="put the job's store aside, if it has one")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be kept")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON value instead of a table")] = False,
) -> None:
    """Make a job's store from the tables of another job's newest checkpoint or snapshot, as far as they fit.

    Says of every feature, table and dense parameter what was kept and what begins anew. Training goes on in the examples
    log where the other store stood, where both jobs read the same log. The other job may run meanwhile.
    """
    from cuckooflow.pipelines.train.warm_start import warm_start

    job = load_spec(spec_file)
    source, lines = warm_start(job, from_, from_start, replace, dry_run)
    if as_json:
        print(
            json.dumps({"from": source, "dry_run": dry_run, "parts": [dataclasses.asdict(x) for x in lines]})
        )
        return
    _show_kept(f"{'would start' if dry_run else 'started'} from {source}", lines)


def _show_kept(title: str, lines: Sequence[Kept]) -> None:
    table = Table("what", "name", "state", "kept", "of", "optimizer", "why", box=None, pad_edge=False)
    for line in lines:
        state = {"new": "begins anew"}.get(line.state, line.state)
        optimizer = {None: "", True: "kept", False: "anew"}[line.optimizer]
        counts = ("" if n is None else f"{n:,}" for n in (line.kept, line.of))
        table.add_row(line.kind, line.name, state, *counts, optimizer, line.why)
    console = Console(soft_wrap=True, highlight=False)
    console.print(title)
    console.print(table)


def _newest_before(folder: Path, before: datetime | None) -> str:
    assert before is not None
    limit_s = before.replace(tzinfo=UTC).timestamp()
    found = checkpoints(folder)
    earlier = [path.name for _, path in found if written_s(path) < limit_s]
    if not earlier:
        times = ", ".join(
            f"{path.name} of {datetime.fromtimestamp(written_s(path), UTC):%Y-%m-%dT%H:%M:%S}"
            for _, path in found
        )
        raise CheckpointNotFound(
            f"expected a checkpoint from before {before:%Y-%m-%dT%H:%M:%S} in {folder}, found {times or 'none'}."
        )
    return earlier[-1]
