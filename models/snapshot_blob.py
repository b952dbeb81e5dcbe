"""A snapshot's blob: one Arrow IPC file with a row for every table and dense parameter.

Each row holds its arrays whole, as list values: ids and tombstones uint64, weights float32, bit for bit
what the store held; for counter and recent tables, the rows' state in bytes. Any Arrow reader opens it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.embedding_store.api import Delta, TableDelta

_BLOB_SCHEMA = pa.schema(
    [
        pa.field("part", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("ids", pa.large_list(pa.uint64()), nullable=False),
        pa.field("weights", pa.large_list(pa.float32()), nullable=False),
        pa.field("tombstones", pa.large_list(pa.uint64()), nullable=False),
        pa.field("state", pa.large_list(pa.uint8()), nullable=True),
    ]
)


def _blob_rows(delta: Delta) -> Iterator[pa.RecordBatch]:
    no_ids = np.empty(0, np.uint64)
    for name, table in delta.tables.items():
        shape = table.weights.shape
        if len(shape) != 2 or shape[0] != len(table.ids):
            raise ValueError(
                f"table {name!r}: expected weights of shape ({len(table.ids)}, dim), received {shape}"
            )
        yield _blob_row("table", name, shape, table.ids, table.weights, table.tombstones, table.state)
    for name, value in delta.dense.items():
        yield _blob_row("dense", name, value.shape, no_ids, value, no_ids)


def _blob_row(
    part: str,
    name: str,
    shape: tuple[int, ...],
    ids: npt.NDArray[np.uint64],
    weights: npt.NDArray[np.float32],
    tombstones: npt.NDArray[np.uint64],
    state: npt.NDArray[np.uint8] | None = None,
) -> pa.RecordBatch:
    columns = [
        pa.array([part], pa.string()),
        pa.array([name], pa.string()),
        pa.array([list(shape)], pa.list_(pa.int64())),
        _one_list(ids, np.dtype(np.uint64)),
        _one_list(weights, np.dtype(np.float32)),
        _one_list(tombstones, np.dtype(np.uint64)),
        pa.nulls(1, pa.large_list(pa.uint8())) if state is None else _one_list(state, np.dtype(np.uint8)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_BLOB_SCHEMA)


def _one_list(values: npt.NDArray[np.generic], dtype: np.dtype[np.generic]) -> pa.LargeListArray:
    """A column of one row that holds the whole array, without copying it where it is contiguous."""
    flat = np.ascontiguousarray(values, dtype).reshape(-1)
    return pa.LargeListArray.from_arrays(pa.array([0, len(flat)], pa.int64()), pa.array(flat))


class _HashingFile:
    """A file that takes the checksum of what is written, so that the blob is read once, not twice."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: bytes | memoryview) -> int:
        self.sha256.update(data)
        written = self._file.write(data)
        self.size += written
        return written

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self.size


def write_blob(path: Path, delta: Delta) -> tuple[int, str]:
    """Write and sync a new file; its size and hexadecimal sha256.

    Raises:
        ValueError: a table's weights do not fit its ids.
    """
    with path.open("xb") as file:
        hashing = _HashingFile(file)
        with pa.ipc.new_file(pa.PythonFile(hashing, mode="w"), _BLOB_SCHEMA) as writer:
            for row in _blob_rows(delta):
                writer.write_batch(row)
        file.flush()
        os.fsync(file.fileno())
    return hashing.size, hashing.sha256.hexdigest()


def parse_blob(raw: bytes) -> tuple[dict[str, TableDelta], dict[str, npt.NDArray[np.float32]]]:
    """Tables and dense parameters, as views of ``raw``.

    Raises:
        pa.ArrowException, ValueError, KeyError: this is not such a blob.
    """
    reader = pa.ipc.open_file(pa.BufferReader(raw))
    if reader.schema != _BLOB_SCHEMA:
        raise ValueError(f"schema {reader.schema}")
    tables: dict[str, TableDelta] = {}
    dense: dict[str, npt.NDArray[np.float32]] = {}
    for at in range(reader.num_record_batches):
        row = reader.get_batch(at)
        name = row.column("name")[0].as_py()
        shape = tuple(row.column("shape")[0].as_py())
        weights = _values(row, "weights").reshape(shape)
        if row.column("part")[0].as_py() == "dense":
            dense[name] = weights
            continue
        ids = _values(row, "ids")
        if len(shape) != 2 or shape[0] != len(ids):
            raise ValueError(f"table {name!r} with {len(ids)} ids and weights of shape {shape}")
        state = None
        if row.column("state").null_count == 0:
            # Where there are no rows, nothing tells their width; nor does it matter.
            state = _values(row, "state").reshape(len(ids), -1) if len(ids) else np.empty((0, 0), np.uint8)
        tables[name] = TableDelta(ids, weights, _values(row, "tombstones"), state)
    return tables, dense


def _values(row: pa.RecordBatch, column: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = row.column(column).flatten().to_numpy(zero_copy_only=True)
    return values
