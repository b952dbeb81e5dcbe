"""The coder of one element: an Arrow RecordBatch as an IPC stream, header and all.

Importing this module registers it, so that Beam uses it wherever a type hint says
``pa.RecordBatch``. The keys beside it, shards and partitions, are ints, whose coder is deterministic.
"""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa
from apache_beam import coders

#: The type of an element between two stages: a shard or partition, and its rows.
Keyed = tuple[int, pa.RecordBatch]

#: What closes an IPC stream (Arrow columnar format, "IPC streaming format").
_END_MARK = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def encode_batch(batch: pa.RecordBatch) -> bytes:
    """A RecordBatch, its schema metadata included, as one IPC stream; only its own rows of a slice."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def decode_batch(blob: bytes) -> pa.RecordBatch:
    """What :func:`encode_batch` wrote; the columns lie in ``blob``, nothing is copied.

    Raises:
        pyarrow.ArrowInvalid: the bytes are not one whole batch.
    """
    return pa.ipc.open_stream(pa.py_buffer(blob)).read_next_batch()


def decode_stream(buffer: pa.Buffer) -> pa.Table:
    """All rows of an IPC stream of any number of batches, which must be there to its end mark.

    Arrow itself takes a stream that was cut off between two of its messages for a shorter one.

    Raises:
        pyarrow.ArrowInvalid, OSError: the bytes are not one whole stream.
    """
    if buffer.size < len(_END_MARK) or buffer[-len(_END_MARK) :] != _END_MARK:
        raise pa.ArrowInvalid(
            "the end mark is missing: the stream was cut off, or its writer never closed it"
        )
    return pa.ipc.open_stream(buffer).read_all()


class RecordBatchCoder(coders.Coder):
    """Arrow IPC. Not deterministic, so never a key: equal batches may differ in their buffers."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        return encode_batch(value)

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
