"""The coder of one element: an Arrow RecordBatch as an IPC stream, header and all.

Importing this module registers it, so that Beam uses it wherever a type hint says
``pa.RecordBatch``. The keys beside it, shards and partitions, are ints, whose coder is deterministic.
"""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa
from apache_beam import coders

from cuckooflow.transforms.batch_bytes import decode_batch, encode_batch

#: The type of an element between two stages: a shard or partition, and its rows.
Keyed = tuple[int, pa.RecordBatch]


class RecordBatchCoder(coders.Coder):
    """Arrow IPC, compressed, as a runner copies an element several times.

    Not deterministic, so never a key: equal batches may differ in their buffers.
    """

    def encode(self, value: pa.RecordBatch) -> bytes:
        return encode_batch(value, compressed=True)

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        return decode_batch(encoded)

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type:
        return pa.RecordBatch

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
