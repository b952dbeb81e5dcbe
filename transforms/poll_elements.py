"""From the rows of one poll to its elements: one a shard, with the poll's header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from cuckooflow.transforms.in_band import ACTIONS, IMPRESSIONS, ROW_COLUMNS, Header, attach

Element = tuple[int, pa.RecordBatch]
_EMPTY = pa.RecordBatch.from_pylist([], schema=pa.schema(ROW_COLUMNS))


def shard_elements(
    parts: Mapping[int, Sequence[pa.RecordBatch]], header: Header, shards: int
) -> list[Element]:
    """An element for each shard, also for those without rows.

    Args:
        parts: log -> rows of its partitions, a batch each, with the columns of :mod:`cuckooflow.transforms.in_band`.
        header: of all of them.
        shards: a row's is its ``_hash`` modulo this number.

    Returns:
        ``(shard, batch)`` in ascending order; rows lie by log, then partition, then offset.
    """
    tables = []
    for log in (IMPRESSIONS, ACTIONS):
        if parts[log]:
            ordered = sorted(parts[log], key=lambda rows: rows.column("_partition")[0].as_py())
            tables.append(pa.Table.from_batches(ordered))
    if not tables:
        return [(shard, attach(_EMPTY, header)) for shard in range(shards)]
    table = pa.concat_tables(tables, promote_options="default")
    shard_of = table.column("_hash").to_numpy() % np.uint64(shards)
    order = np.argsort(shard_of, kind="stable")
    bounds = np.searchsorted(shard_of[order], np.arange(shards + 1, dtype=np.uint64))
    rows = table.take(pa.array(order)).combine_chunks().to_batches()[0]
    empty = rows.slice(0, 0)
    elements = []
    for shard in range(shards):
        first, last = int(bounds[shard]), int(bounds[shard + 1])
        elements.append((shard, attach(rows.slice(first, last - first) if last > first else empty, header)))
    return elements
