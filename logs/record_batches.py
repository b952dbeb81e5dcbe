"""Kafka's record batches, as a fetch brings them, read by column.

Message format v2, see https://kafka.apache.org/documentation/#messageformat: a batch has a header of 61
bytes and then records whose fields are variable-length integers. Only the walk from one record's length
to the next is Python a message; fields are read for all records at once, and Arrow copies the values.
Batches of aborted transactions and control batches are left out; the offsets that they take are holes.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from crc32c import crc32c

from cuckooflow.errors import LogDamaged, LogError
from cuckooflow.logs.contract import MessageBatch

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

#: Base offset and length; then leader epoch, magic and checksum; what the checksum covers comes after.
_HEAD = struct.Struct(">qi")
_HEADER = struct.Struct(">qiibIhiqqqhii")
_CHECKED_FROM = 21
_MAGIC = 2
_CODECS = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
_CODEC_BITS = 0x07
_APPEND_TIME_BIT = 0x08
_TRANSACTIONAL_BIT = 0x10
_CONTROL_BIT = 0x20
_ABORT_MARKER = 0
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEAD = 16
#: Arrow's binary arrays address their bytes with 32 bits.
_BYTES_MAX = (1 << 31) - 1


@dataclass(frozen=True)
class _Batch:
    """Where the records of one batch lie, and what is common to them."""

    first: int
    end: int
    count: int
    base_offset: int
    base_ms: int
    append_ms: int | None
    payload: bytes | None  # uncompressed records; None: they lie in the fetched bytes


def decode_records(
    blob: bytes | memoryview,
    partition: int,
    first: int,
    aborted: Sequence[tuple[int, int]] = (),
    what: str = "a fetch",
) -> MessageBatch:
    """The messages from offset ``first`` on in fetched bytes.

    Args:
        blob: whole record batches, in order; a cut one at the end is left for the next fetch.
        partition: goes into the answer.
        first: messages before it, in a batch that begins before it, are left out.
        aborted: (producer id, first offset) of the transactions in these bytes that were aborted.
        what: names the place in errors.

    Returns:
        The messages; ``next_offset`` is past the last whole batch, or ``first`` where there is none.

    Raises:
        LogDamaged: a checksum or a length is wrong.
        LogError: the message format is older than Kafka 0.11's, or the compression is not known.
    """
    view = memoryview(blob)
    batches, next_offset = _kept_batches(view, first, sorted(aborted, key=lambda entry: entry[1]), what)
    try:
        offsets, append_us, values = _columns(view, batches, first)
    except (IndexError, ValueError, pa.ArrowInvalid) as error:
        raise LogDamaged(
            f"expected record batches of format 2 in {what}, could not read them: {error}"
        ) from None
    return MessageBatch(partition, offsets, append_us, values, max(next_offset, first))


def _kept_batches(
    view: memoryview, first: int, aborted: Sequence[tuple[int, int]], what: str
) -> tuple[list[_Batch], int]:
    """The batches with messages for the reader, and the offset after the last whole batch."""
    batches: list[_Batch] = []
    aborting: set[int] = set()
    at, next_transaction, next_offset = 0, 0, first
    while at + _HEAD.size <= len(view):
        base_offset, length = _HEAD.unpack_from(view, at)
        end = at + _HEAD.size + length
        if end > len(view):
            break
        if length < _HEADER.size - _HEAD.size or view[at + 16] != _MAGIC:
            raise LogError(
                f"expected record batches of message format 2 (Kafka 0.11 and later) in {what} at offset "
                f"{base_offset}, found format {view[at + 16] if length > 4 else 'unknown'}; write the topic anew"
            )
        (_, _, _, _, crc, attributes, last_delta, base_ms, max_ms, producer, _, _, count) = (
            _HEADER.unpack_from(view, at)
        )
        if crc32c(view[at + _CHECKED_FROM : end]) != crc:
            raise LogDamaged(
                f"expected record batch {base_offset} of {what} to have the checksum {crc:#010x}, it has another; "
                "look at the broker's disks, or skip the batch explicitly"
            )
        last = base_offset + last_delta
        while next_transaction < len(aborted) and aborted[next_transaction][1] <= last:
            aborting.add(aborted[next_transaction][0])
            next_transaction += 1
        if attributes & _CONTROL_BIT:
            if _marker(view, at + _HEADER.size, count) == _ABORT_MARKER:
                aborting.discard(producer)
        elif count and last >= first and not (attributes & _TRANSACTIONAL_BIT and producer in aborting):
            codec = attributes & _CODEC_BITS
            payload = _decompressed(bytes(view[at + _HEADER.size : end]), codec, what) if codec else None
            append_ms = max_ms if attributes & _APPEND_TIME_BIT else None
            batches.append(_Batch(at + _HEADER.size, end, count, base_offset, base_ms, append_ms, payload))
        next_offset = last + 1
        at = end
    return batches, next_offset


def _columns(view: memoryview, batches: Sequence[_Batch], first: int) -> tuple[I64, I64, pa.BinaryArray]:
    """Offsets, append times and values of the messages from ``first`` on."""
    if not batches:
        nothing = np.empty(0, np.int64)
        return nothing, nothing, pa.array([], pa.binary())
    data, places = _one_buffer(view, batches)
    starts: list[int] = []
    for batch, (begin, end) in zip(batches, places, strict=True):
        _walk(data, begin, end, batch.count, starts)
    counts = [batch.count for batch in batches]
    raw = np.frombuffer(data, np.uint8)
    delta_ms, at = _varints(raw, np.array(starts, np.int64) + 1)  # past the record's attributes
    delta, at = _varints(raw, at)
    offsets = np.repeat([batch.base_offset for batch in batches], counts) + delta
    key, at = _varints(raw, at)
    length, at = _varints(raw, at + np.maximum(key, 0))
    append_ms = np.repeat([batch.base_ms for batch in batches], counts) + delta_ms
    for batch, stop in zip(batches, np.cumsum(counts), strict=True):
        if batch.append_ms is not None:
            append_ms[stop - batch.count : stop] = batch.append_ms
    keep = offsets >= first
    if not keep.all():
        offsets, append_ms, at, length = offsets[keep], append_ms[keep], at[keep], length[keep]
    return offsets, append_ms * 1_000, _gathered(data, at, length)


def _one_buffer(view: memoryview, batches: Sequence[_Batch]) -> tuple[memoryview, list[tuple[int, int]]]:
    """All records in one buffer, and where each batch's lie in it: the fetch itself, or a copy if some
    were compressed."""
    if all(batch.payload is None for batch in batches):
        return view, [(batch.first, batch.end) for batch in batches]
    parts = [view[b.first : b.end] if b.payload is None else b.payload for b in batches]
    bounds = np.concatenate(([0], np.cumsum([len(part) for part in parts]))).tolist()
    if bounds[-1] > _BYTES_MAX:
        raise ValueError(
            f"{bounds[-1]} bytes after decompression, at most {_BYTES_MAX} fit; fetch fewer at once"
        )
    return memoryview(b"".join(parts)), list(itertools.pairwise(bounds))


def _walk(data: memoryview, at: int, end: int, count: int, starts: list[int]) -> None:
    """Add where each record's fields begin, after its length."""
    for _ in range(count):
        byte = data[at]
        at += 1
        length = byte & 0x7F
        shift = 7
        while byte & 0x80:
            byte = data[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
        starts.append(at)
        at += length >> 1  # zigzag; a length is never negative
    if at != end:
        raise ValueError(f"records of {at - end} bytes more than their batch")


def _varints(raw: U8, at: I64) -> tuple[I64, I64]:
    """The zigzag variable-length integers at each place, and where each ends."""
    byte = raw[at]
    value = (byte & 0x7F).astype(np.uint64)
    at = at + 1
    more = np.flatnonzero(byte & 0x80)
    shift = 7
    while len(more):
        byte = raw[at[more]]
        value[more] |= (byte & 0x7F).astype(np.uint64) << np.uint64(shift)
        at[more] += 1
        more = more[(byte & 0x80) != 0]
        shift += 7
        if shift > 63 and len(more):
            raise ValueError("a number of more than 64 bits")
    sign = (value & np.uint64(1)).astype(np.int64)
    return (value >> np.uint64(1)).astype(np.int64) ^ -sign, at


def _gathered(data: memoryview, at: I64, length: I64) -> pa.BinaryArray:
    """Values at places of a buffer as one array; a negative length is null.

    Values and the gaps between them are the elements of one array over the same bytes; taking every
    second one lets Arrow copy the values.
    """
    count = len(at)
    if not count:
        return pa.array([], pa.binary())
    ends = at + np.maximum(length, 0)
    if int(ends[-1]) > len(data):
        raise ValueError("a value that goes past its batch")
    bounds = np.stack((at, ends), axis=1).reshape(-1).astype(np.int32)
    validity = None
    if (length < 0).any():
        valid = np.ones(2 * count - 1, np.bool_)
        valid[::2] = length >= 0
        validity = pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    both = pa.Array.from_buffers(
        pa.binary(), 2 * count - 1, [validity, pa.py_buffer(bounds), pa.py_buffer(data)]
    )
    return both.take(pa.array(np.arange(0, 2 * count - 1, 2)))


def _marker(view: memoryview, at: int, count: int) -> int | None:
    """The type of a control batch: 0 aborts a transaction, 1 commits it."""
    if not count:
        return None
    raw, place = np.frombuffer(view, np.uint8), np.array([at], np.int64)
    for skipped in (0, 1, 0, 0):  # length; after the attributes time, offset, length of the key
        _, place = _varints(raw, place + skipped)
    return int(struct.unpack_from(">hh", view, int(place[0]))[1])


def _decompressed(payload: bytes, codec: int, what: str) -> bytes:
    name = _CODECS.get(codec)
    if name is None:
        raise LogError(
            f"expected a compression of {sorted(_CODECS.values())} in {what}, received codec {codec}"
        )
    try:
        if name == "snappy":
            return _unsnapped(payload)
        return pa.CompressedInputStream(pa.BufferReader(payload), name).read()
    except (OSError, pa.ArrowException) as error:
        raise LogDamaged(
            f"expected records compressed with {name} in {what}, could not read them: {error}"
        ) from None


def _unsnapped(payload: bytes) -> bytes:
    """Snappy as it is, or in the frames of the xerial library, which most producers write."""
    if not payload.startswith(_XERIAL):
        return _snappy_block(payload)
    blocks: list[bytes] = []
    at = _XERIAL_HEAD
    while at < len(payload):
        (size,) = struct.unpack_from(">i", payload, at)
        blocks.append(_snappy_block(payload[at + 4 : at + 4 + size]))
        at += 4 + size
    return b"".join(blocks)


def _snappy_block(block: bytes) -> bytes:
    """One block; it begins with its uncompressed size."""
    size, shift = 0, 0
    for byte in block[:5]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
    return pa.decompress(block, decompressed_size=size, codec="snappy", asbytes=True)
