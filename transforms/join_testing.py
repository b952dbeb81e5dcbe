"""Elements for tests of the join: a small source that gives rows positions, watermarks and chains.

It does what the real source does, from plain dicts, so that a test says what arrives and in which order.
:class:`Collect` brings what a pipeline in this process gives out back to the test.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import apache_beam as beam
import numpy as np
import pyarrow as pa

from cuckooflow.embedding_store.hashing import hash_rows
from cuckooflow.transforms.in_band import (
    ACTIONS,
    END_TIME_US,
    IMPRESSIONS,
    NO_TIME_US,
    ROW_COLUMNS,
    Header,
    Link,
    attach,
)


class ElementFeed:
    """Polls of both logs, as elements for each shard.

    Args:
        impressions, actions: declared columns of the two logs, without the event time.
        key: join key columns.
        partitions: log -> number of its partitions.
        max_skew_us: how far a partition's watermark stays behind its latest event.
        num_shards: shards that rows are divided over.
    """

    def __init__(
        self,
        impressions: pa.Schema,
        actions: pa.Schema,
        key: Sequence[str],
        partitions: Mapping[int, int] | None = None,
        max_skew_us: int = 0,
        num_shards: int = 1,
    ) -> None:
        self._schemas = {IMPRESSIONS: impressions, ACTIONS: actions}
        self._key = tuple(key)
        self._partitions = dict(partitions or {IMPRESSIONS: 1, ACTIONS: 1})
        self._skew_us = max_skew_us
        self._num_shards = num_shards
        self._offsets: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._watermarks: defaultdict[tuple[int, int], int] = defaultdict(lambda: NO_TIME_US)
        self._chains: defaultdict[tuple[int, int, int], int] = defaultdict(int)

    def _schema(self) -> pa.Schema:
        names: dict[str, pa.DataType] = {}
        for schema in self._schemas.values():
            names |= {f.name: f.type for f in schema}
        return pa.schema([*(pa.field(n, t) for n, t in names.items()), *ROW_COLUMNS])

    def poll(
        self,
        rows: Sequence[Mapping[str, Any]],
        polled_us: int = 0,
        partitions: Sequence[tuple[int, int]] | None = None,
        end: bool = False,
    ) -> dict[int, pa.RecordBatch]:
        """One element for every shard.

        Args:
            rows: ``_log``, ``_partition`` (default 0), ``_time``, ``_append`` (default 0) and the
                columns of that log; in the order of their partition. ``_wm`` overrides the watermark,
                ``_offset`` the position.
            polled_us: the poller's clock.
            partitions: (log, partition) that the elements have news of; default those of the rows.
            end: nothing will follow from these partitions.
        """
        full = []
        for given in rows:
            log, partition = given["_log"], given.get("_partition", 0)
            place = (log, partition)
            row = {"_partition": partition, "_row": 0, "_append": 0, **given}
            row.setdefault("_offset", self._offsets[place])
            row.setdefault("_wm", self._watermarks[place])
            self._offsets[place] = row["_offset"] + 1
            self._watermarks[place] = max(self._watermarks[place], row["_time"] - self._skew_us)
            full.append(row)
        full.sort(key=lambda row: (row["_log"], row["_partition"], row["_offset"], row["_row"]))
        news = partitions
        if news is None:
            news = sorted({(row["_log"], row["_partition"]) for row in full})
        schema = self._schema()
        columns = [pa.array([row.get(f.name) for row in full], f.type) for f in schema if f.name != "_hash"]
        batch = pa.RecordBatch.from_arrays(
            columns, schema=pa.schema([f for f in schema if f.name != "_hash"])
        )
        hashes = hash_rows([batch.column(name) for name in self._key])
        if full and "_hash" in full[0]:
            hashes = np.array([row["_hash"] for row in full], np.uint64)
        batch = batch.append_column("_hash", pa.array(hashes, pa.uint64()))
        elements = {}
        for shard in range(self._num_shards):
            mine = batch.filter(pa.array(hashes % np.uint64(self._num_shards) == shard))
            links = tuple(self._link(shard, log, partition, end) for log, partition in news)
            elements[shard] = attach(mine, Header(links, self._partitions, polled_us))
        return elements

    def advance(self, time_us: int, polled_us: int = 0) -> dict[int, pa.RecordBatch]:
        """Elements without rows that move every partition's watermark to ``time_us``."""
        every = [(log, p) for log, n in self._partitions.items() for p in range(n)]
        for place in every:
            self._watermarks[place] = max(self._watermarks[place], time_us)
        return self.poll([], polled_us, every)

    def end(self, polled_us: int = 0) -> dict[int, pa.RecordBatch]:
        """The last elements: nothing will follow from any partition."""
        every = [(log, p) for log, n in self._partitions.items() for p in range(n)]
        return self.poll([], polled_us, every, end=True)

    def _link(self, shard: int, log: int, partition: int, end: bool) -> Link:
        chain = self._chains[shard, log, partition]
        self._chains[shard, log, partition] = chain + 1
        return Link(log, partition, chain, END_TIME_US if end else self._watermarks[log, partition], end)


class Collect(beam.DoFn):
    """Keep every element in a list of this process, for an in-process runner.

    Args:
        name: of the list; :meth:`taken` gives it back once.
    """

    _lists: ClassVar[defaultdict[str, list[Any]]] = defaultdict(list)

    def __init__(self, name: str) -> None:
        self._name = name

    def process(self, element: Any) -> None:
        """Keep it."""
        Collect._lists[self._name].append(element)

    @classmethod
    def taken(cls, name: str) -> list[Any]:
        """The elements kept under a name, which are forgotten here."""
        return cls._lists.pop(name, [])
