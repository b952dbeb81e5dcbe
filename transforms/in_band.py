"""Time and order that travel in band, with every element.

A runner promises neither the order between a source and a keyed DoFn nor a useful watermark, so
each element brings its own: for every partition it has news of, a contiguous chain number and that
partition's watermark. The header lies in the RecordBatch's schema metadata.

Columns that the source adds to every row (see :data:`ROW_COLUMNS`):

==============  ======  ==================================================================
``_log``        int8    0 impressions, 1 actions
``_partition``  int32   the partition it was read from
``_offset``     int64   offset of its message
``_row``        int32   row within the message
``_time``       int64   event time, microseconds since the epoch, UTC
``_wm``         int64   its own partition's watermark just before it, microseconds
``_append``     int64   when its message was appended, microseconds since the epoch, UTC
``_hash``       uint64  hash of the join key (the shard is ``_hash mod num_shards``)
==============  ======  ==================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

IMPRESSIONS = 0
ACTIONS = 1
LOG_NAMES = ("impressions", "actions")

#: No event can be this early: the watermark of a partition that has shown nothing.
NO_TIME_US = -(1 << 62)
#: Past every event: the clock after ``end`` was heard from every partition.
END_TIME_US = 1 << 62

ROW_COLUMNS: tuple[pa.Field, ...] = (
    pa.field("_log", pa.int8()),
    pa.field("_partition", pa.int32()),
    pa.field("_offset", pa.int64()),
    pa.field("_row", pa.int32()),
    pa.field("_time", pa.int64()),
    pa.field("_wm", pa.int64()),
    pa.field("_append", pa.int64()),
    pa.field("_hash", pa.uint64()),
)

_METADATA_KEY = b"cuckooflow.header"


@dataclass(frozen=True)
class Link:
    """One partition's news in one element.

    Attributes:
        log: ``IMPRESSIONS`` or ``ACTIONS``.
        partition: which partition.
        chain: contiguous number of this partition's elements to this shard, from 0.
        watermark_us: the partition's watermark after the element's rows.
        end: nothing will ever follow from this partition.
    """

    log: int
    partition: int
    chain: int
    watermark_us: int
    end: bool = False


@dataclass(frozen=True)
class Header:
    """What an element says besides its rows.

    Attributes:
        links: one entry for each partition that this element brings news of.
        partitions: log -> number of its partitions; a shard has no clock before it heard from all.
        polled_us: the poller's clock when it polled, microseconds since the epoch. For pacing and
            freshness only: no row's outcome depends on it.
    """

    links: tuple[Link, ...]
    partitions: Mapping[int, int]
    polled_us: int


def attach(batch: pa.RecordBatch, header: Header) -> pa.RecordBatch:
    """The batch with the header in its schema metadata; rows are not copied."""
    body = {
        "links": [[n.log, n.partition, n.chain, n.watermark_us, int(n.end)] for n in header.links],
        "partitions": [[log, count] for log, count in header.partitions.items()],
        "polled_us": header.polled_us,
    }
    metadata = dict(batch.schema.metadata or {})
    metadata[_METADATA_KEY] = json.dumps(body, separators=(",", ":")).encode()
    return batch.replace_schema_metadata(metadata)


def read_header(batch: pa.RecordBatch) -> Header:
    """The header that :func:`attach` put there.

    Raises:
        KeyError: the batch carries none; it did not come from a cuckooflow source.
    """
    body = json.loads((batch.schema.metadata or {})[_METADATA_KEY])
    return Header(
        links=tuple(Link(a, b, c, d, bool(e)) for a, b, c, d, e in body["links"]),
        partitions=dict(body["partitions"]),
        polled_us=body["polled_us"],
    )
