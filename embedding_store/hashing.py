"""Stable 64-bit hashes of Arrow columns: shards, feature ids and sampling are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cuckooflow.embedding_store import _native

#: What a null hashes to, before mixing with other columns.
NULL_HASH = np.uint64(0x6A09E667F3BCC908)


def hash_column(column: pa.Array | pa.ChunkedArray, seed: int = 0) -> npt.NDArray[np.uint64]:
    """Hash every value of a column; equal values hash equally whatever the integer or string width.

    Args:
        column: (n,) of an integer, boolean, string, binary, float, date or timestamp type. Floats
            hash by the bits of their float64 value.
        seed: another seed gives an independent hash.

    Returns:
        (n,) uint64. Nulls give :data:`NULL_HASH`.

    Raises:
        TypeError: the column's type has no hash (lists, structs).

    >>> int(hash_column(pa.array([7], pa.int8()))[0]) == int(hash_column(pa.array([7], pa.uint64()))[0])
    True
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        hashes = _hash_strings(column, np.int32, seed)
    elif pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        hashes = _hash_strings(column, np.int64, seed)
    else:
        hashes = _native.hash_ints(_as_bits(column), seed)
    if column.null_count:
        hashes[column.is_null().to_numpy(zero_copy_only=False)] = NULL_HASH
    return hashes


def hash_int64(values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """What :func:`hash_column` gives for a column of each of these values: uint64 of the same shape."""
    return _native.hash_ints(values.reshape(-1).view(np.uint64), 0).reshape(values.shape)


def hash_rows(columns: Sequence[pa.Array | pa.ChunkedArray], seed: int = 0) -> npt.NDArray[np.uint64]:
    """Hash rows over several columns, their order counting: (n,) uint64. One column hashes as itself."""
    total = hash_column(columns[0], seed)
    for column in columns[1:]:
        total = _native.hash_ints(total ^ (hash_column(column, seed) * np.uint64(0x9E3779B97F4A7C15)), seed)
    return total


def _hash_strings(column: pa.Array, width: type, seed: int) -> npt.NDArray[np.uint64]:
    if len(column) == 0:
        return np.empty(0, np.uint64)
    _, offsets, data = column.buffers()
    at: npt.NDArray[np.integer] = np.frombuffer(
        offsets, width, len(column) + 1, column.offset * np.dtype(width).itemsize
    )
    raw = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
    hasher = _native.hash_strings32 if width is np.int32 else _native.hash_strings64
    return hasher(at, raw, seed)


def _as_bits(column: pa.Array) -> npt.NDArray[np.uint64]:
    kind = column.type
    if pa.types.is_floating(kind):
        floats: npt.NDArray[np.float64] = (
            column.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
        )
        return floats.view(np.uint64)
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif pa.types.is_temporal(kind):
        column = column.cast(pa.int64())
    elif not pa.types.is_integer(kind):
        raise TypeError(f"expected a column of integers, strings or times, received {kind}: it has no hash")
    if column.null_count:
        column = pc.fill_null(column, 0)
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values.astype(np.int64).view(np.uint64) if values.dtype.kind == "i" else values.astype(np.uint64)
