"""``cuckooflow train warm-start``: a job's store begins with what another job has learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from cuckooflow.embedding_store.data_folder import DataFolder
from cuckooflow.embedding_store.warm_start import write_warm_store
from cuckooflow.errors import LogNotFound, StoreError, StoreNotEmpty
from cuckooflow.logs.contract import Position
from cuckooflow.models.warm_plan import Kept, Side, WarmStart, add_rows, plan_warm_start
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.options import model, store_config, store_folder
from cuckooflow.pipelines.train.warm_sources import WarmSource, open_source
from cuckooflow.transforms.feature_feed import features_log


def warm_start(
    job: JobSpec, place: Path, from_start: bool, replace: bool, dry_run: bool
) -> tuple[str, list[Kept]]:
    """Make the job's store from another one; what it came from, and the report.

    Args:
        place: the other job's spec, or a folder of snapshots.
        from_start: train the examples log from its start again, instead of going on where the other store stands.
        replace: put a store aside that is there.
        dry_run: only say what would be kept; rows are not counted.

    Raises:
        StoreNotEmpty: the job has a store already.
        StoreLocked: it is served.
        StoreError: the other store's shards stand at different positions.
        SpecError, CheckpointNotFound, ConfigDiffers, NoSnapshot: as of the source.
    """
    source = open_source(place)
    home = job.path(job.store.data)
    if not replace and not dry_run:
        check_empty(job)
    marks, log_lines = _marks(job, source, from_start)
    new = Side(model(job), store_config(job))
    planned: WarmStart = plan_warm_start(source.side, new, bool(marks), source.with_state)
    lines = [*planned.lines, *log_lines]
    if dry_run:
        return source.name, lines
    if replace:
        put_aside(job)
    plan = dataclasses.replace(planned.plan, logs=marks)
    taken = write_warm_store(new.config, plan, source.parts, home, job.store.shards)
    add_rows(lines, new.config, taken.rows, taken.left_out)
    return source.name, lines


def check_empty(job: JobSpec) -> None:
    """Refuse a job that has a store.

    Raises:
        StoreNotEmpty: it has.
    """
    home = job.path(job.store.data)
    if home.exists() and any(home.iterdir()):
        raise StoreNotEmpty(
            f"expected no store of job {job.name} in {home} yet, found one; name another folder in store.data, or put "
            "this one aside with --replace"
        )


def put_aside(job: JobSpec) -> Path | None:
    """Rename the job's store; its new name. None where there is none.

    Raises:
        StoreLocked: it is served.
    """
    home = job.path(job.store.data)
    if not home.exists():
        return None
    shards = [store_folder(job, shard) for shard in range(job.store.shards)]
    held = [DataFolder(folder) for folder in shards if (folder / "store.json").exists()]
    number = 1
    while (aside := home.with_name(f"{home.name}.replaced-{number}")).exists():
        number += 1
    try:
        home.rename(aside)
    finally:
        for folder in held:
            folder.close()
    return aside


def _marks(
    job: JobSpec, source: WarmSource, from_start: bool
) -> tuple[dict[str, tuple[str, Mapping[int, Position]]], list[Kept]]:
    """Where training goes on: log -> incarnation and positions; and a line for each of the source's logs.

    Raises:
        StoreError: the source's buckets stand at different positions.
    """
    try:
        reader = job.address(job.logs.examples).open_reader()
        here, incarnation = reader.name, reader.incarnation()
        reader.close()
    except LogNotFound:
        here, incarnation = "", ""
    # A backfill's days are a log by the job's name, without an incarnation of its own.
    mine = {here: incarnation, features_log(here): incarnation}
    days = f"{job.name}/backfill"
    mine |= {days: "days", features_log(days): "days"}
    marks: dict[str, tuple[str, Mapping[int, Position]]] = {}
    lines = []
    for log, (of, partitions) in source.marks.items():
        known = mine.get(log)
        if known is None or of not in ("", known):
            lines.append(
                Kept("log", log, "new", "not this job's examples log; training begins where that begins")
            )
            continue
        if from_start:
            lines.append(Kept("log", log, "new", "--from-start: every example is trained again"))
            continue
        apart = sorted(partition for partition, positions in partitions.items() if len(positions) > 1)
        if apart:
            raise StoreError(
                f"expected all shards of {source.name} at one position of each partition of {log}, found partitions "
                f"{apart} at several: let its trainer run until the shards are together, or train from the start with "
                "--from-start"
            )
        marks[log] = (known, {partition: positions[0] for partition, positions in partitions.items()})
        shown = ", ".join(f"{partition} at {tuple(at)}" for partition, at in sorted(marks[log][1].items()))
        lines.append(Kept("log", log, "kept", f"training goes on: partition {shown}"))
    return marks, lines
