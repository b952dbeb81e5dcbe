"""A store's content to a checkpoint and back."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cuckooflow.embedding_store.api import StoreConfig
from cuckooflow.embedding_store.checkpoint_chain import (
    CheckpointPolicy,
    Link,
    base_in_manifest,
    newest_link,
    prune,
    read_chain,
)
from cuckooflow.embedding_store.checkpoint_files import (
    Bytes,
    CheckpointReader,
    CheckpointWriter,
    checkpoints,
    set_aside,
)
from cuckooflow.embedding_store.config_json import config_to_json, evicts
from cuckooflow.embedding_store.marks import Marks
from cuckooflow.embedding_store.native_core import NativeCore
from cuckooflow.embedding_store.row_images import cut_images
from cuckooflow.embedding_store.shards import WHOLE, Ownership, Shard
from cuckooflow.errors import CheckpointDamaged, ConfigDiffers, WrongShard

log = logging.getLogger(__name__)


def write_checkpoint(
    data: Path,
    config: StoreConfig,
    core: NativeCore,
    begin_cut: Callable[[int], tuple[int, int, dict[str, Any]]],
    newest: Link | None,
    policy: CheckpointPolicy,
) -> Link:
    """Write the content as it stands when ``begin_cut`` returns: all of it, or what changed since ``newest``.

    Args:
        begin_cut: begins the core's cut of the rows touched since an epoch (-1: of all); answers the cut's
            epoch, since when it really is, and the marks and tables' rows of the same moment (and whatever else
            the manifest shall hold), as JSON. Pushes go on while the files are written.
        newest: the checkpoint before, None where there is none.
        policy: whether this is a full one.

    Raises:
        CheckpointGivenUp: pushes waited too long for it. The checkpoints before it are as they were.
    """
    full = newest is None or policy.is_full_due(newest) or not (data / newest.name).is_dir()
    base = None if full else newest
    numbers = [number for number, _ in checkpoints(data)]
    writer = CheckpointWriter(data, max(numbers, default=0) + 1)
    try:
        epoch, since, body = begin_cut(-1 if base is None else base.epoch)
        if since < 0:  # it was asked for less, and too much had gone to be remembered
            base = None
        try:
            for i, table in enumerate(config.tables):
                writer.write(f"table-{i}.rows", (images.reshape(-1) for images in cut_images(core, i)))
                writer.write(f"table-{i}.filter", [core.raw.cut_filter(i)])
                if base is not None and evicts(table):
                    writer.write(f"table-{i}.gone", [core.raw.cut_gone(i).view(np.uint8)])
            for i in range(len(config.dense)):
                writer.write(f"dense-{i}", [core.raw.cut_dense(i)])
        finally:
            core.raw.end_cut()
        size = writer.bytes
        name = writer.commit(
            {**body, "config": json.loads(config_to_json(config)), "base": base_in_manifest(base)}
        )
    except BaseException:
        writer.abandon()
        raise
    core.raw.saved(epoch)
    prune(data, policy.history_s, time.time())
    if base is None:
        return Link(name, writer.crc32, epoch, size)
    return base.next(name, writer.crc32, epoch, size)


def read_newest(
    data: Path, config: StoreConfig, owned: Ownership
) -> tuple[NativeCore, Marks, dict[str, Any]] | None:
    """The content of the newest checkpoint whose chain is whole, or None where there is none.

    Those on the way are renamed to ``damaged-...``. The manifest's content has the :class:`Link` of what was
    read under ``link``.

    Raises:
        CheckpointDamaged: there are checkpoints, but none is whole.
        ConfigDiffers: the checkpoint was written with another configuration.
        WrongShard: it was written by another shard.
    """
    faults = []
    for _, folder in reversed(checkpoints(data)):
        try:
            found = _read(folder, config, owned)
        except CheckpointDamaged as error:
            log.error("event=checkpoint_damaged folder=%s error=%s", folder, error)
            faults.append((folder, error))
            continue
        for damaged, _ in faults:
            set_aside(damaged)
        return found
    if faults:
        raise CheckpointDamaged(
            f"no checkpoint in {data} is whole: {'; '.join(str(error) for _, error in faults)} "
            "Put a copy back, or start a new store in another folder."
        )
    return None


def read_checkpoint(
    folder: Path, config: StoreConfig, owned: Ownership
) -> tuple[NativeCore, Marks, dict[str, Any]]:
    """One checkpoint's content; the folder stays as it is.

    Raises:
        CheckpointDamaged: it is not whole.
        ConfigDiffers, WrongShard: it was written with another configuration, or by another shard.
    """
    return _read(folder, config, owned)


def _read(folder: Path, config: StoreConfig, owned: Ownership) -> tuple[NativeCore, Marks, dict[str, Any]]:
    chain = read_chain(folder)
    reader = chain[0]
    if reader.body["config"] != json.loads(config_to_json(config)):
        raise ConfigDiffers(
            f"expected the configuration that {folder} was written with, received another. "
            "Use the old configuration, or another folder."
        )
    written_by = Shard(*reader.body.get("shard", WHOLE))
    if written_by != owned.shard:
        raise WrongShard(
            f"expected a checkpoint of {owned.shard}, received {folder}, which is of {written_by}."
        )
    core = NativeCore.of(config)
    for i in range(len(config.tables)):
        # Before the rows: they tell their time by it.
        if reader.body["clocks"][i] is not None:
            core.raw.set_clock(i, reader.body["clocks"][i])
        core.raw.reserve(i, reader.body["rows"][i])
        # The newest first: of what older links hold, just what no newer one has, or tells of as gone, is taken.
        for link in chain:
            _load_rows(core, i, link, older=link is not reader)
            if f"table-{i}.gone" in link.body["files"]:
                core.raw.load_gone(i, _whole(link, f"table-{i}.gone").view(np.uint64))
        core.raw.end_load(i)
        loaded = int(core.raw.table_stats(i)["rows"])
        if loaded != reader.body["rows"][i]:
            raise CheckpointDamaged(
                f"checkpoint {folder} is damaged: expected {reader.body['rows'][i]} rows of table {i} in its "
                f"chain, received {loaded}. Restore an older one."
            )
        if not core.raw.load_filter(i, _whole(reader, f"table-{i}.filter")):
            raise CheckpointDamaged(f"checkpoint {folder} is damaged: table-{i}.filter has the wrong size")
    for i in range(len(config.dense)):
        if not core.raw.load_dense(i, _whole(reader, f"dense-{i}")):
            raise CheckpointDamaged(f"checkpoint {folder} is damaged: dense-{i} has the wrong size")
    core.raw.saved(0)  # all rows have the epoch 0
    marks = Marks(owned.buckets)
    marks.load(reader.body["marks"])
    return core, marks, {**reader.body, "link": newest_link(chain)}


def _load_rows(core: NativeCore, table: int, reader: CheckpointReader, older: bool) -> None:
    name, row_bytes = f"table-{table}.rows", core.raw.row_bytes(table)
    if reader.size(name) % row_bytes:
        raise CheckpointDamaged(f"checkpoint {reader.folder} is damaged: {name} holds part of a row")
    for piece in reader.pieces(name, row_bytes):
        if not core.raw.load_rows(table, piece, older, reader.body["clocks"][table]):
            raise CheckpointDamaged(f"checkpoint {reader.folder} is damaged: {name} holds an id twice")


def _whole(reader: CheckpointReader, name: str) -> Bytes:
    pieces = [piece.copy() for piece in reader.pieces(name)]
    return np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
