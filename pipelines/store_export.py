"""A store's tables as Parquet files, each of which appears whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cuckooflow.embedding_store.api import Floats, Ids, TableConfig
from cuckooflow.embedding_store.kinds import NEVER_US
from cuckooflow.errors import BadShape

ROWS_A_GROUP = 100_000

Number = TypeVar("Number", bound=np.generic)
Pieces = Iterator[tuple[Ids, npt.NDArray[np.uint8]]]

_ID = pa.field("id", pa.uint64(), False)
WEIGHTS = pa.schema([_ID, pa.field("weights", pa.list_(pa.float32()), False)])
COUNTER = pa.schema(
    [
        _ID,
        pa.field("first_us", pa.int64(), False),
        pa.field("last_us", pa.int64(), False),
        pa.field("sums", pa.list_(pa.float64()), False),
    ]
)
RECENT = pa.schema(
    [
        _ID,
        pa.field("values", pa.list_(pa.uint64()), False),
        pa.field("times_us", pa.list_(pa.int64()), False),
    ]
)


def in_groups(ids: Ids, rows: npt.NDArray[Number]) -> Iterator[tuple[Ids, npt.NDArray[Number]]]:
    """(n,) ids and their rows in pieces of :data:`ROWS_A_GROUP`."""
    for start in range(0, len(ids), ROWS_A_GROUP):
        yield ids[start : start + ROWS_A_GROUP], rows[start : start + ROWS_A_GROUP]


def write_weights(out: Path, table: TableConfig, pieces: Iterator[tuple[Ids, Floats]]) -> None:
    """``TABLE.parquet`` of an embedding table: (n,) ids and (n, dim) weights, piece by piece.

    Raises:
        BadShape: weights of another dim.
    """

    def batches() -> Iterator[Any]:
        for ids, weights in pieces:
            if weights.shape != (len(ids), table.dim):
                raise BadShape(
                    f"table {table.name!r}: expected weights of {(len(ids), table.dim)}, received {weights.shape}"
                )
            yield pa.record_batch([pa.array(ids), _lists(weights)], schema=WEIGHTS)

    _write(out, table.name, WEIGHTS, batches())


def write_states(out: Path, table: TableConfig, pieces: Pieces) -> None:
    """``TABLE.parquet`` of a counter or recent table: (n,) ids and their states as in a TableDelta."""
    if table.kind == "counter":
        _write(out, table.name, COUNTER, (_counters(ids, states) for ids, states in pieces))
    else:
        _write(out, table.name, RECENT, (_recents(ids, states) for ids, states in pieces))


def _counters(ids: Ids, states: npt.NDArray[np.uint8]) -> Any:
    times = np.ascontiguousarray(states[:, :16]).view("<i8")
    sums = np.ascontiguousarray(states[:, 16:]).view("<f8")
    columns = [pa.array(ids), pa.array(times[:, 0]), pa.array(times[:, 1]), _lists(sums)]
    return pa.record_batch(columns, schema=COUNTER)


def _recents(ids: Ids, states: npt.NDArray[np.uint8]) -> Any:
    words = states.view("<u8").reshape(len(ids), -1, 2)
    values, times = words[:, :, 0], words[:, :, 1].view("<i8")
    kept = times != NEVER_US
    offsets = pa.array(np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32))
    lists = [pa.ListArray.from_arrays(offsets, pa.array(part[kept])) for part in (values, times)]
    return pa.record_batch([pa.array(ids), *lists], schema=RECENT)


def _lists(rows: npt.NDArray[Any]) -> Any:
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.reshape(-1)))


def _write(out: Path, table: str, schema: Any, batches: Iterator[Any]) -> None:
    path = out / f"{quote(table, safe=' ')}.parquet"
    beside = path.with_name(f".{path.name}.tmp")
    count = 0
    with pq.ParquetWriter(beside, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            count += len(batch)
    beside.rename(path)
    print(f"{path}: {count} rows")
