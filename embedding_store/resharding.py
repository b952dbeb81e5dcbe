"""A store of n shards dealt out to another number of shards.

With each logical bucket go its rows with all optimizer slots, its region of the admission filters, its marks
and its dense parameters. Shards may have stood at different marks: each bucket keeps its own, and
trainers lead them together, as after any restore.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.api import StoreConfig
from cuckooflow.embedding_store.checkpoint import read_newest
from cuckooflow.embedding_store.checkpoint_files import CheckpointReader, checkpoints
from cuckooflow.embedding_store.config_json import config_to_json
from cuckooflow.embedding_store.data_folder import DataFolder
from cuckooflow.embedding_store.durable import whole_folder
from cuckooflow.embedding_store.marks import Marks
from cuckooflow.embedding_store.native_core import NativeCore, dense_bucket
from cuckooflow.embedding_store.row_images import cut_images, image_ids
from cuckooflow.embedding_store.shards import Ownership, Shard, check_shard
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.errors import CheckpointDamaged, CheckpointNotFound, ConfigDiffers, SpecError, WrongShard

log = logging.getLogger(__name__)


def shard_folder(target: Path, number: int) -> Path:
    """Where :func:`reshard` puts a shard."""
    return target / f"shard-{number}"


def reshard(sources: Sequence[Path], target: Path, of: int) -> list[Path]:
    """Write the newest whole checkpoints of all shards as a store of ``of`` shards.

    ``target`` appears whole, by one rename. The sources stay as they are; they must not be served
    meanwhile, and not be trained on afterwards where the new ones are. One source shard and one new
    shard are in memory at a time.

    Args:
        sources: the data folders of all shards, in any order.
        target: gets a data folder for each new shard; absent or empty.
        of: how many new shards.

    Returns:
        The new data folders, shard after shard.

    Raises:
        SpecError: ``target`` holds something, or the store cannot have so many shards.
        CheckpointNotFound: a source holds no store.
        CheckpointDamaged: a source has checkpoints, but none is whole.
        ConfigDiffers, WrongShard: the sources are not all shards of one store.
        WrongIncarnation: they were trained on different incarnations of a log.
        StoreLocked: a source is in use.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SpecError(f"expected an empty or absent folder, received {target}, which holds something.")
    folders = [_open(Path(source)) for source in sources]
    try:
        config, ordered = _all_shards(folders)
        check_shard(Shard(0, of), config.buckets)
        with whole_folder(target) as building:
            _deal(config, ordered, building, of)
    finally:
        for folder in folders:
            folder.close()
    return [shard_folder(target, number) for number in range(of)]


def _open(source: Path) -> DataFolder:
    if not (source / "store.json").exists():
        raise CheckpointNotFound(f"{source} holds no store. Name the data folder of every shard.")
    return DataFolder(source)


def _all_shards(folders: Sequence[DataFolder]) -> tuple[StoreConfig, list[DataFolder]]:
    """The store's configuration, and its shards in their order.

    Raises:
        SpecError, ConfigDiffers, WrongShard.
    """
    if not folders:
        raise SpecError("expected the data folders of all shards, received none.")
    configs = [folder.config() for folder in folders]
    config = configs[0]
    assert config is not None
    for folder, other in zip(folders, configs, strict=True):
        if other is None or config_to_json(other) != config_to_json(config):
            raise ConfigDiffers(
                f"expected shards of one store, received {folder.path} with another configuration than "
                f"{folders[0].path}. Name shards of one store."
            )
    shards = [folder.shard() for folder in folders]
    expected = [Shard(i, shards[0].of) for i in range(shards[0].of)]
    if sorted(shards) != expected:
        shown = ", ".join(f"{shard} in {folder.path}" for shard, folder in zip(shards, folders, strict=True))
        raise WrongShard(
            f"expected each of the {shards[0].of} shards once, received {shown}. Name all of them."
        )
    return config, [folder for _, folder in sorted(zip(shards, folders, strict=True), key=lambda p: p[0])]


@dataclass
class _Source:
    """A shard as its newest whole checkpoint holds it."""

    owned: Ownership
    core: NativeCore
    marks: Marks
    body: dict[str, Any]

    @classmethod
    def read(cls, config: StoreConfig, folder: DataFolder) -> _Source:
        owned = Ownership(config, folder.shard())
        found = read_newest(folder.path, config, owned)
        core, marks, body = found or (NativeCore.of(config), Marks(owned.buckets), {})
        marks.restore_opened(folder.opened_logs())
        return cls(owned, core, marks, body)


def _deal(config: StoreConfig, folders: Sequence[DataFolder], target: Path, of: int) -> None:
    held: _Source | None = None
    # A row's time of last touch is told from its table's clock, which moves on only: the oldest part first.
    folders = sorted(folders, key=lambda folder: _event_time_us(folder.path))
    for number in range(of):
        owned = Ownership(config, Shard(number, of))
        core, marks = NativeCore.of(config), Marks(owned.buckets)
        parts, bodies = [], []
        for folder in folders:
            source_range = Ownership(config, folder.shard())
            first, end = max(owned.first, source_range.first), min(owned.end, source_range.end)
            if first >= end:
                continue
            if held is None or held.owned.shard != source_range.shard:
                held = None  # before the next one is read: one is in memory at a time
                held = _Source.read(config, folder)
            _load_buckets(config, held.core, core, first, end)
            bodies.append(held.body)
            parts.append(
                (
                    held.marks,
                    slice(first - source_range.first, end - source_range.first),
                    slice(first - owned.first, end - owned.first),
                )
            )
        marks.take(parts)
        _write(config, owned, shard_folder(target, number), core, marks, _newest(bodies))
        log.info("event=shard_written folder=%s", shard_folder(target, number))


def _event_time_us(data: Path) -> int:
    """Of the newest checkpoint, as far as its manifest can be read."""
    found = checkpoints(data)
    try:
        newest = CheckpointReader(found[-1][1]).body["event_time_us"] if found else None
    except CheckpointDamaged:
        newest = None
    return -(1 << 63) if newest is None else int(newest)


def _load_buckets(config: StoreConfig, source: NativeCore, target: NativeCore, first: int, end: int) -> None:
    """Copy what belongs to the logical buckets from ``first`` to before ``end``."""
    source.raw.begin_cut()
    try:
        for table in range(len(config.tables)):
            clock = source.raw.clock(table)
            if clock is not None:
                target.raw.set_clock(table, clock)
            for images in cut_images(source, table):
                buckets = _native.buckets_of(image_ids(images), config.buckets)
                mine = images[(buckets >= first) & (buckets < end)]
                if not target.raw.load_rows(table, mine.reshape(-1), clock=clock):
                    raise CheckpointDamaged(f"table {config.tables[table].name!r} holds an id twice")
            if not target.raw.load_filter_buckets(table, source.raw.cut_filter(table), first, end):
                raise CheckpointDamaged(
                    f"the filter of table {config.tables[table].name!r} has the wrong size"
                )
        for i, dense in enumerate(config.dense):
            if first <= dense_bucket(dense.name, config.buckets) < end:
                target.raw.load_dense(i, source.raw.cut_dense(i))
    finally:
        source.raw.end_cut()


def _newest(bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What manifests tell besides content: of each number the highest."""
    names = {name for body in bodies for name, value in body.items() if isinstance(value, int | float)}
    return {name: max(body[name] for body in bodies if body.get(name) is not None) for name in names}


def _write(
    config: StoreConfig, owned: Ownership, path: Path, core: NativeCore, marks: Marks, body: dict[str, Any]
) -> None:
    folder = DataFolder(path)
    try:
        folder.claim(config, owned.shard)
        folder.record_logs(marks.opened())
        EmbeddedStore.assemble(config, owned, folder, core, marks, body).checkpoint()
    finally:
        folder.close()
