"""Rows as a cut of the core gives them: images of rows as in memory, see :mod:`~cuckooflow.embedding_store.checkpoint_files`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cuckooflow.embedding_store.api import Floats, Ids
from cuckooflow.embedding_store.checkpoint_files import PIECE_BYTES, Bytes
from cuckooflow.embedding_store.kind_checks import state_bytes
from cuckooflow.embedding_store.native_core import NativeCore
from cuckooflow.errors import CheckpointGivenUp

_ID_BYTES = 8
#: id, epoch, step and time of last touch.
HEADER_BYTES = 16


def cut_images(core: NativeCore, table: int) -> Iterator[Bytes]:
    """(n, row_bytes) pieces of a table, in a cut that the caller has begun; each table once a cut.

    A piece is overwritten once the next one was asked for.

    Raises:
        CheckpointGivenUp: pushes waited too long for what is read here.
    """
    row_bytes = core.raw.row_bytes(table)
    left = core.raw.cut_rows(table)
    step = min(max(1, PIECE_BYTES // row_bytes), left)
    memory = np.empty(step * row_bytes, np.uint8)
    while left:
        n = min(step, left)
        images = core.raw.read_cut(table, n, memory)
        if images is None:
            raise CheckpointGivenUp(
                f"expected to read a table of {core.raw.cut_rows(table)} rows while pushes go on, but more of "
                "them changed in the meantime than may be kept as they were, and pushes waited for this in vain. "
                "Write to a faster disk, or raise cut_bytes_max of the CheckpointPolicy."
            )
        yield images.reshape(-1, row_bytes)
        left -= n


def image_ids(images: Bytes) -> Ids:
    """(n,) ids of (n, row_bytes) images."""
    return np.ascontiguousarray(images[:, :_ID_BYTES]).view(np.uint64).reshape(-1)


def image_weights(images: Bytes, dim: int) -> Floats:
    """(n, dim) weights of (n, row_bytes) images."""
    end = HEADER_BYTES + 4 * dim
    return np.ascontiguousarray(images[:, HEADER_BYTES:end]).view(np.float32)


def table_rows(core: NativeCore, table: int) -> Iterator[tuple[Ids, Floats]]:
    """Pieces of (n,) ids and (n, dim) weights of an embedding table, of one moment; one reader at a time."""
    for images in _images(core, table):
        yield image_ids(images), image_weights(images, core.tables[table].dim)


def table_states(core: NativeCore, table: int) -> Iterator[tuple[Ids, Bytes]]:
    """The same of a table of another kind: its rows' state as (n, bytes), see TableDelta."""
    size = state_bytes(core.tables[table])
    for images in _images(core, table):
        yield image_ids(images), np.ascontiguousarray(images[:, HEADER_BYTES : HEADER_BYTES + size])


def _images(core: NativeCore, table: int) -> Iterator[Bytes]:
    core.raw.begin_cut()
    try:
        yield from cut_images(core, table)
    finally:
        core.raw.end_cut()
