"""A store's content to a checkpoint and back."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cuckooflow.embedding_store.api import StoreConfig
from cuckooflow.embedding_store.checkpoint_files import (
    PIECE_BYTES,
    Bytes,
    CheckpointReader,
    CheckpointWriter,
    checkpoints,
    prune,
    set_aside,
)
from cuckooflow.embedding_store.config_json import config_to_json
from cuckooflow.embedding_store.marks import Marks
from cuckooflow.embedding_store.native_core import NativeCore
from cuckooflow.embedding_store.shards import WHOLE, Ownership, Shard
from cuckooflow.errors import CheckpointDamaged, ConfigDiffers, WrongShard

log = logging.getLogger(__name__)


def write_checkpoint(
    data: Path, config: StoreConfig, core: NativeCore, begin_cut: Callable[[], dict[str, Any]]
) -> str:
    """Write the content as it stands when ``begin_cut`` returns; its name.

    Args:
        begin_cut: begins the core's cut and answers the marks of the same moment (and whatever else
            the manifest shall hold), as JSON. Pushes go on while the files are written.
    """
    numbers = [number for number, _ in checkpoints(data)]
    writer = CheckpointWriter(data, max(numbers, default=0) + 1)
    try:
        body = begin_cut()
        try:
            for i in range(len(config.tables)):
                writer.write(f"table-{i}.rows", _row_pieces(core, i))
                writer.write(f"table-{i}.filter", [core.raw.cut_filter(i)])
            for i in range(len(config.dense)):
                writer.write(f"dense-{i}", [core.raw.cut_dense(i)])
        finally:
            core.raw.end_cut()
        name = writer.commit({**body, "config": json.loads(config_to_json(config))})
    except BaseException:
        writer.abandon()
        raise
    prune(data)
    return name


def read_newest(
    data: Path, config: StoreConfig, owned: Ownership
) -> tuple[NativeCore, Marks, dict[str, Any]] | None:
    """The newest whole checkpoint's content, or None where there is none.

    Damaged ones on the way are renamed to ``damaged-...``.

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


def _row_pieces(core: NativeCore, table: int) -> Iterator[Bytes]:
    step = max(1, PIECE_BYTES // core.raw.row_bytes(table))
    left = core.raw.cut_rows(table)
    while left:
        n = min(step, left)
        yield core.raw.read_cut(table, n)
        left -= n


def _read(folder: Path, config: StoreConfig, owned: Ownership) -> tuple[NativeCore, Marks, dict[str, Any]]:
    reader = CheckpointReader(folder)
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
        row_bytes = core.raw.row_bytes(i)
        # Before the rows: they tell their time by it.
        if reader.body["clocks"][i] is not None:
            core.raw.set_clock(i, reader.body["clocks"][i])
        if reader.size(f"table-{i}.rows") % row_bytes:
            raise CheckpointDamaged(f"checkpoint {folder} is damaged: table-{i}.rows holds part of a row")
        for piece in reader.pieces(f"table-{i}.rows", row_bytes):
            if not core.raw.load_rows(i, piece):
                raise CheckpointDamaged(f"checkpoint {folder} is damaged: table-{i}.rows holds an id twice")
        if not core.raw.load_filter(i, _whole(reader, f"table-{i}.filter")):
            raise CheckpointDamaged(f"checkpoint {folder} is damaged: table-{i}.filter has the wrong size")
    for i in range(len(config.dense)):
        if not core.raw.load_dense(i, _whole(reader, f"dense-{i}")):
            raise CheckpointDamaged(f"checkpoint {folder} is damaged: dense-{i} has the wrong size")
    marks = Marks(owned.buckets)
    marks.load(reader.body["marks"])
    return core, marks, reader.body


def _whole(reader: CheckpointReader, name: str) -> Bytes:
    pieces = [piece.copy() for piece in reader.pieces(name)]
    return np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
