"""One segment of a local log's partition: messages in a data file, their ends in an index beside it.

The data file is append-only. With the encoding ``lines`` it holds one message a line, so that it
can be read with ``head``; with ``frames`` each message follows a header with its length, a checksum
and its append time. The index holds 16 bytes a message: where it ends in the data file, and when it
was appended. **The index is the commit point**: data is written and synced first, so a message
exists for readers once its index entry is whole, and bytes of data past the last entry are a torn
tail that the next writer cuts off. A lost index is rebuilt from the data (append times are then the
data file's modification time, except with ``frames``, which hold their own).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.errors import LogDamaged, LogError, MessageNotStorable

Encoding = Literal["lines", "frames"]
ENCODINGS: tuple[Encoding, ...] = ("lines", "frames")

#: An index entry: end of the message in the data file, and its append time in microseconds.
INDEX_ENTRY = np.dtype([("end", "<i8"), ("append_us", "<i8")])

_SUFFIX: dict[Encoding, str] = {"lines": ".jsonl", "frames": ".frames"}
_FRAME = struct.Struct("<IIq")  # length, CRC-32 of append time and payload, append time
_TOMBSTONE = 0xFFFFFFFF
_REBUILD_BLOCK = 1 << 20


def data_path(folder: Path, base: int, encoding: Encoding) -> Path:
    """The data file of the segment whose first message has offset ``base``."""
    return folder / f"{base:020d}{_SUFFIX[encoding]}"


def index_path(folder: Path, base: int) -> Path:
    """The index file of the segment whose first message has offset ``base``."""
    return folder / f"{base:020d}.index"


def list_bases(folder: Path, encoding: Encoding) -> list[int]:
    """First offsets of the segments in a partition's folder, ascending."""
    suffix = _SUFFIX[encoding]
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(suffix)]
    return sorted(int(name[: -len(suffix)]) for name in names)


def count_messages(folder: Path, base: int, encoding: Encoding) -> int:
    """Committed messages of a segment.

    Raises:
        LogDamaged: there is data but no index.
        FileNotFoundError: the segment is not there (any more).
    """
    index = index_path(folder, base)
    for _ in range(2):
        try:
            return index.stat().st_size // INDEX_ENTRY.itemsize
        except FileNotFoundError:
            # The writer makes the data file, then the index, then writes data. Data without an index is
            # damage only if the index is still not there after the data were seen.
            if data_path(folder, base, encoding).stat().st_size == 0:
                return 0
    raise LogDamaged(
        f"expected the index {index}, found none; open the partition with a LocalLogWriter once, it "
        "rebuilds the index from the data"
    )


def encode(
    values: Sequence[bytes | None], append_us: int, encoding: Encoding
) -> tuple[bytes, npt.NDArray[np.int64]]:
    """Messages as they stand in the data file, and where each one ends, counted from the first byte.

    Raises:
        MessageNotStorable: ``lines`` and a message is a tombstone or holds a newline.
    """
    if encoding == "lines":
        if any(value is None for value in values):
            raise MessageNotStorable(
                "expected messages without a tombstone, received one; a log of lines cannot hold it, "
                "create the log with encoding='frames'"
            )
        blob = b"\n".join([*values, b""])  # type: ignore[list-item]
        if blob.count(b"\n") != len(values):
            at = next(i for i, value in enumerate(values) if b"\n" in (value or b""))
            raise MessageNotStorable(
                f"expected messages without a newline, received one in message {at} of this call; "
                "write the JSON on one line, or create the log with encoding='frames'"
            )
        lengths = np.fromiter((len(value or b"") + 1 for value in values), np.int64, len(values))
        return blob, np.cumsum(lengths)
    parts: list[bytes] = []
    lengths = np.empty(len(values), np.int64)
    stamp = struct.pack("<q", append_us)
    for i, value in enumerate(values):
        payload = value or b""
        length = _TOMBSTONE if value is None else len(payload)
        parts += (_FRAME.pack(length, zlib.crc32(payload, zlib.crc32(stamp)), append_us), payload)
        lengths[i] = _FRAME.size + len(payload)
    return b"".join(parts), np.cumsum(lengths)


def decode(
    blob: bytes, start: int, ends: npt.NDArray[np.int64], encoding: Encoding, what: str
) -> pa.BinaryArray:
    """Messages from their bytes in the data file.

    Args:
        blob: bytes of the data file from ``start`` on.
        start: where ``blob`` begins in the data file.
        ends: (n,) where each message ends in the data file.
        encoding: of the data file.
        what: names the place in errors.

    Raises:
        LogDamaged: the data are not what the index says.
    """
    stops = ends - start
    starts = np.concatenate(([0], stops[:-1]))
    if len(blob) != (stops[-1] if len(stops) else 0) or (stops <= starts).any():
        raise LogDamaged(f"expected {int(stops[-1])} bytes of messages in {what}, found {len(blob)}")
    if encoding == "lines":
        raw = np.frombuffer(blob, np.uint8)
        if blob.count(b"\n") != len(stops) or not (raw[stops - 1] == 10).all():
            raise LogDamaged(f"expected one line a message in {what}, found other line ends; was it edited?")
        offsets = np.concatenate(([0], stops - np.arange(1, len(stops) + 1))).astype(np.int32)
        body = blob.translate(None, delete=b"\n")
        return pa.BinaryArray.from_buffers(
            pa.binary(), len(stops), [None, pa.py_buffer(offsets), pa.py_buffer(body)]
        )
    values: list[bytes | None] = []
    for first, last in zip(starts.tolist(), stops.tolist(), strict=True):
        length, crc, append_us = (
            _FRAME.unpack_from(blob, first) if last - first >= _FRAME.size else (-1, 0, 0)
        )
        payload = blob[first + _FRAME.size : last]
        whole = len(payload) == (0 if length == _TOMBSTONE else length)
        if not whole or zlib.crc32(payload, zlib.crc32(struct.pack("<q", append_us))) != crc:
            raise LogDamaged(
                f"expected a whole message at byte {start + first} of {what}, found a wrong checksum or "
                "length; restore the file, or skip the message explicitly"
            )
        values.append(None if length == _TOMBSTONE else payload)
    return pa.array(values, pa.binary())


def repair(folder: Path, base: int, encoding: Encoding) -> int:
    """Cut off a torn tail, or rebuild a lost index; afterwards data and index agree.

    Returns:
        Bytes of data that were cut off.
    """
    data, index = data_path(folder, base, encoding), index_path(folder, base)
    size = data.stat().st_size
    if not index.exists():
        entries = _rebuild(data, encoding)
        temporary = index.with_suffix(".rebuild")
        with temporary.open("wb") as file:
            file.write(entries.tobytes())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(index)
    else:
        count = index.stat().st_size // INDEX_ENTRY.itemsize
        with index.open("rb") as file:
            entries = np.frombuffer(file.read(count * INDEX_ENTRY.itemsize), INDEX_ENTRY)
        good = (np.diff(entries["end"], prepend=0) > 0) & (entries["end"] <= size)
        if not good.all():
            entries = entries[: int(np.argmin(good))]
    end = int(entries["end"][-1]) if len(entries) else 0
    if index.stat().st_size != entries.nbytes:
        os.truncate(index, entries.nbytes)
    if size != end:
        os.truncate(data, end)
    if len(entries):  # the last message as a sample: a wrong file is found before anything is appended
        first = int(entries["end"][-2]) if len(entries) > 1 else 0
        with data.open("rb") as file:
            file.seek(first)
            decode(file.read(end - first), first, entries["end"][-1:], encoding, str(data))
    return size - end


def _rebuild(data: Path, encoding: Encoding) -> npt.NDArray[np.void]:
    """The index entries of the whole messages at the beginning of a data file."""
    found: list[tuple[int, int]] = []
    with data.open("rb") as file:
        if encoding == "lines":
            modified_us = os.fstat(file.fileno()).st_mtime_ns // 1000
            at = 0
            while block := file.read(_REBUILD_BLOCK):
                ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + 1 + at
                found += [(int(end), modified_us) for end in ends]
                at += len(block)
        else:
            at = 0
            while len(header := file.read(_FRAME.size)) == _FRAME.size:
                length, crc, append_us = _FRAME.unpack(header)
                expected = 0 if length == _TOMBSTONE else length
                payload = file.read(expected)
                stamp = struct.pack("<q", append_us)
                if len(payload) != expected or zlib.crc32(payload, zlib.crc32(stamp)) != crc:
                    break
                at += _FRAME.size + expected
                found.append((at, append_us))
    return np.array(found, INDEX_ENTRY)


class SegmentWriter:
    """Appends to the last segment of a partition. Not thread-safe; the partition's lock is held."""

    def __init__(self, folder: Path, base: int, encoding: Encoding, fsync: bool) -> None:
        self.base = base
        self._encoding: Encoding = encoding
        self._fsync = fsync
        self._what = str(data_path(folder, base, encoding))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._data = os.open(data_path(folder, base, encoding), flags, 0o644)
        self._index = os.open(index_path(folder, base), flags, 0o644)
        self.size = os.fstat(self._data).st_size
        self.count = os.fstat(self._index).st_size // INDEX_ENTRY.itemsize

    def append(self, values: Sequence[bytes | None], append_us: int) -> int:
        """Append messages; the offset of the first. What fails half-way is taken back."""
        blob, ends = encode(values, append_us, self._encoding)
        entries = np.empty(len(ends), INDEX_ENTRY)
        entries["end"] = ends + self.size
        entries["append_us"] = append_us
        try:
            _write_all(self._data, blob)
            if self._fsync:
                os.fdatasync(self._data)
            _write_all(self._index, entries.tobytes())
            if self._fsync:
                os.fdatasync(self._index)
        except OSError as error:
            os.ftruncate(self._index, self.count * INDEX_ENTRY.itemsize)
            os.ftruncate(self._data, self.size)
            raise LogError(f"could not append {len(blob)} bytes to {self._what}: {error}") from error
        first = self.base + self.count
        self.size += len(blob)
        self.count += len(ends)
        return first

    def close(self) -> None:
        """Close the files. Idempotent."""
        for name in ("_data", "_index"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)


def _write_all(file: int, blob: bytes) -> None:
    view = memoryview(blob)
    while view:
        view = view[os.write(file, view) :]
