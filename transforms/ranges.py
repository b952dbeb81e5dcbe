"""The header of a training element: which range of the examples log its rows are.

An element of the train pipeline is ``(partition, RecordBatch)``; its rows carry ``_offset`` and
``_row`` and its schema metadata a :class:`RangeHeader`. The range is contiguous with the element
that the source made before it, and holds holes too: offsets that do not exist, rows that did not
decode, repeats that the reader dropped. A runner may bring elements in another order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pyarrow as pa

from cuckooflow.logs.contract import LogRange, Position

_METADATA_KEY = b"cuckooflow.range"


@dataclass(frozen=True)
class RangeHeader:
    """What a training element says besides its rows.

    Attributes:
        range: log, incarnation, partition, first and last position (half open). ``first == last``
            in a heartbeat.
        start: where the source began to read the partition. Whichever element comes first, what lies
            between here and it is still to be trained.
        polled_us: the poller's clock when it polled, microseconds since the epoch; paces flushes
            and snapshots, decides no outcome.
        end: nothing will follow from this partition.
        repeated: rows that the reader dropped in this range as repeats.
        skipped: rows that it left out because it was told to.
    """

    range: LogRange
    start: Position
    polled_us: int
    end: bool = False
    repeated: int = 0
    skipped: int = 0


def attach_range(batch: pa.RecordBatch, header: RangeHeader) -> pa.RecordBatch:
    """The batch with the header in its schema metadata; rows are not copied."""
    r = header.range
    body = {
        "range": [r.log, r.incarnation, r.partition, list(r.first), list(r.last)],
        "start": list(header.start),
        "polled_us": header.polled_us,
        "end": header.end,
        "repeated": header.repeated,
        "skipped": header.skipped,
    }
    metadata = dict(batch.schema.metadata or {})
    metadata[_METADATA_KEY] = json.dumps(body, separators=(",", ":")).encode()
    return batch.replace_schema_metadata(metadata)


def read_range_header(batch: pa.RecordBatch) -> RangeHeader:
    """The header that :func:`attach_range` put there.

    Raises:
        KeyError: the batch carries none.
    """
    body = json.loads((batch.schema.metadata or {})[_METADATA_KEY])
    log, incarnation, partition, first, last = body["range"]
    return RangeHeader(
        range=LogRange(log, incarnation, partition, Position(*first), Position(*last)),
        start=Position(*body["start"]),
        polled_us=body["polled_us"],
        end=body["end"],
        repeated=body["repeated"],
        skipped=body.get("skipped", 0),
    )
