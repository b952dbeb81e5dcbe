"""Records of a TFRecord file, in batches, with the byte that each begins at.

A record is its length in eight bytes, a checksum of those in four, its bytes and their checksum
(tensorflow/core/lib/io/record_writer.h). Where one begins can only be known from the one before, so a file is read
from its beginning, by one task.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import crc32c
import numpy as np
import numpy.typing as npt

from cuckooflow.errors import MessageTooLarge

#: A longer record is refused, default 64 MiB.
RECORD_BYTES_MAX = 64 << 20
_HEAD_BYTES = 12
_TAIL_BYTES = 4
_MASK = 0xA282EAD8


def records_of(file: Any, batch_bytes: int) -> Iterator[tuple[list[bytes], npt.NDArray[np.int64]]]:
    """The records of a file, from where it stands.

    Args:
        file: a binary file.
        batch_bytes: of a batch, roughly.

    Yields:
        records, and (n,) first bytes.

    Raises:
        EOFError: it ends inside a record, or a checksum is wrong: it is no whole TFRecord file.
        MessageTooLarge: a record is over :data:`RECORD_BYTES_MAX`.
    """
    at, size = 0, 0
    records: list[bytes] = []
    starts: list[int] = []
    while head := file.read(_HEAD_BYTES):
        if len(head) < _HEAD_BYTES or masked(head[:8]) != struct.unpack("<I", head[8:])[0]:
            raise EOFError(f"no length of a record at byte {at}")
        (length,) = struct.unpack("<Q", head[:8])
        if length > RECORD_BYTES_MAX:
            raise MessageTooLarge(
                f"expected records of at most {RECORD_BYTES_MAX} bytes, received one of {length} at byte {at}"
            )
        body = file.read(length + _TAIL_BYTES)
        if len(body) < length + _TAIL_BYTES or masked(body[:length]) != struct.unpack("<I", body[length:])[0]:
            raise EOFError(f"the record at byte {at} is cut off or damaged")
        records.append(body[:length])
        starts.append(at)
        at += _HEAD_BYTES + length + _TAIL_BYTES
        size += length
        if size >= batch_bytes:
            yield records, np.array(starts, np.int64)
            records, starts, size = [], [], 0
    if records:
        yield records, np.array(starts, np.int64)


def masked(data: bytes) -> int:
    """The checksum that stands in the file."""
    crc = crc32c.crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF
