"""A log in a local folder: partitions of append-only segments, one writer, many tailing readers.

::

    impressions/
      meta.json                       incarnation, partitions, encoding
      0/                              a partition
        00000000000000000000.jsonl    a segment; the name is its first offset
        00000000000000000000.index    where its messages end and when they were appended
        lock                          held by the partition's writer
        sealed                        there once the log was closed for good

Appends and reads of different processes need no daemon between them: the index is the commit point
(see :mod:`cuckooflow.logs.segment`). A writer may be killed anywhere; an append that it had not
finished is then there up to some whole message, or not at all. Offsets have no holes.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cuckooflow.errors import (
    LogDamaged,
    LogError,
    LogLocked,
    LogNotFound,
    MessageTooLarge,
    OffsetOutOfRange,
)
from cuckooflow.file_lock import FileLock
from cuckooflow.logs.contract import AlreadySent, MessageBatch, Sent
from cuckooflow.logs.segment import (
    ENCODINGS,
    INDEX_ENTRY,
    Encoding,
    SegmentWriter,
    count_messages,
    data_path,
    decode,
    index_path,
    list_bases,
    repair,
)

_FORMAT = 1
_META = "meta.json"
_SEALED = "sealed"
#: A segment that vanishes between two looks was deleted by retention; more often than this it is a fault.
_LOOKS_MAX = 8


class LocalLog:
    """Where local logs are made and opened."""

    @staticmethod
    def create(
        path: str | os.PathLike[str],
        partitions: int = 1,
        encoding: Encoding = "lines",
        *,
        name: str | None = None,
        exist_ok: bool = False,
    ) -> LocalLogReader:
        """Make a log.

        Args:
            path: its folder; parents are made as needed.
            partitions: how many, fixed for the log's life.
            encoding: ``lines`` holds one message a line (no newline, no tombstone inside); ``frames``
                holds any bytes, with checksums.
            name: the log's name in marks and dead letters; default is the folder's name.
            exist_ok: a log that is there already is opened, whatever its partitions.

        Raises:
            LogError: something is there already, or an argument is out of bounds.
        """
        path = Path(path)
        if not 1 <= partitions <= 4096 or encoding not in ENCODINGS:
            raise LogError(
                f"expected 1 to 4096 partitions and an encoding of {ENCODINGS}, "
                f"received {partitions} and {encoding!r}"
            )
        if (path / _META).exists():
            if exist_ok:
                return LocalLogReader(path)
            raise LogError(
                f"expected no log at {path}, found one; open it, or remove the folder to start anew"
            )
        for partition in range(partitions):
            (path / str(partition)).mkdir(parents=True, exist_ok=True)
        meta = {
            "format": _FORMAT,
            "name": name or path.resolve().name,
            "incarnation": uuid.uuid4().hex,
            "partitions": partitions,
            "encoding": encoding,
        }
        temporary = path / f"{_META}.{os.getpid()}.{threading.get_ident()}.tmp"
        with temporary.open("w") as file:
            file.write(json.dumps(meta, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path / _META)  # unlike rename, fails where another was faster
        except FileExistsError:
            if not exist_ok:
                raise LogError(f"expected no log at {path}, found one that was made just now") from None
        finally:
            temporary.unlink()
        _sync_folder(path)
        return LocalLogReader(path)

    @staticmethod
    def open(path: str | os.PathLike[str]) -> LocalLogReader:
        """Open a log for reading.

        Raises:
            LogNotFound: no log is there.
            LogDamaged: its ``meta.json`` is not one.
        """
        return LocalLogReader(path)


class LocalLogReader:
    """Reads a local log, also while another process appends. Implements
    :class:`~cuckooflow.logs.contract.LogReader`. Not thread-safe."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        meta = _read_meta(self.path)
        self._name: str = meta["name"]
        self._count: int = meta["partitions"]
        self.encoding: Encoding = meta["encoding"]

    @property
    def name(self) -> str:
        """The log's name."""
        return self._name

    def incarnation(self) -> str:
        """Read anew each time, so that a log recreated under this reader is noticed."""
        return str(_read_meta(self.path)["incarnation"])

    def partitions(self) -> Sequence[int]:
        """All partitions, ascending."""
        return range(self._count)

    def start_offset(self, partition: int) -> int:
        """The first offset that retention has kept."""
        bases = list_bases(self._folder(partition), self.encoding)
        return bases[0] if bases else 0

    def end_offset(self, partition: int) -> int:
        """One past the last whole message."""
        return self._span(partition)[1]

    def sealed(self, partition: int) -> bool:
        """Whether the log was closed for good: past ``end_offset`` nothing will ever follow."""
        return (self._folder(partition) / _SEALED).exists()

    def read(
        self, partition: int, offset: int, max_messages: int = 65_536, max_bytes: int = 16 << 20
    ) -> MessageBatch:
        """See :meth:`cuckooflow.logs.contract.LogReader.read`. A batch never crosses a segment."""
        if max_messages < 1 or max_bytes < 1:
            raise LogError(
                f"expected bounds of at least 1, received {max_messages} messages, {max_bytes} bytes"
            )
        for _ in range(_LOOKS_MAX):
            bases, end = self._span(partition)
            start = bases[0] if bases else 0
            if not start <= offset <= end:
                raise OffsetOutOfRange(
                    f"expected an offset of {self._name}/{partition} within {start} to {end}, "
                    f"received {offset}; older ones were deleted by retention, start past them knowingly"
                )
            if offset == end:
                return _batch(partition, offset, np.empty(0, INDEX_ENTRY), pa.array([], pa.binary()))
            at = int(np.searchsorted(bases, offset, side="right")) - 1
            try:
                return self._read_segment(partition, bases[at], offset, max_messages, max_bytes)
            except FileNotFoundError:
                continue  # retention was faster: look again
        raise LogError(f"could not read {self._name}/{partition} at {offset}: its segments keep vanishing")

    def read_range(self, partition: int, first: int, last: int) -> Iterator[MessageBatch]:
        """See :meth:`cuckooflow.logs.contract.LogReader.read_range`."""
        bases, end = self._span(partition)
        start = bases[0] if bases else 0
        if not start <= first <= last <= end:
            raise OffsetOutOfRange(
                f"expected a range of {self._name}/{partition} within {start} to {end}, "
                f"received {first} to {last}"
            )
        while first < last:
            batch = self.read(partition, first, max_messages=min(65_536, last - first))
            yield batch
            first = batch.next_offset

    def close(self) -> None:
        """Nothing: files are open only while something is read."""

    def _folder(self, partition: int) -> Path:
        if not 0 <= partition < self._count:
            raise LogError(f"expected a partition of {self._name} below {self._count}, received {partition}")
        return self.path / str(partition)

    def _span(self, partition: int) -> tuple[list[int], int]:
        """First offsets of the segments, and the end offset."""
        folder = self._folder(partition)
        for _ in range(_LOOKS_MAX):
            bases = list_bases(folder, self.encoding)
            if not bases:
                return [], 0
            try:
                return bases, bases[-1] + count_messages(folder, bases[-1], self.encoding)
            except FileNotFoundError:
                continue
        raise LogError(f"could not find the end of {self._name}/{partition}: its segments keep vanishing")

    def _read_segment(
        self, partition: int, base: int, offset: int, max_messages: int, max_bytes: int
    ) -> MessageBatch:
        folder = self._folder(partition)
        first = offset - base
        with index_path(folder, base).open("rb") as file:
            file.seek(max(0, first - 1) * INDEX_ENTRY.itemsize)
            raw = file.read((max_messages + min(first, 1)) * INDEX_ENTRY.itemsize)
        whole = len(raw) // INDEX_ENTRY.itemsize
        entries = np.frombuffer(raw[: whole * INDEX_ENTRY.itemsize], INDEX_ENTRY)
        start = int(entries["end"][0]) if first else 0
        entries = entries[min(first, 1) :]
        if not len(entries):
            raise LogDamaged(
                f"expected message {offset} in segment {base} of {self._name}/{partition}, "
                "its index ends before"
            )
        keep = max(1, int(np.searchsorted(entries["end"], start + max_bytes, side="right")))
        entries = entries[:keep]
        path = data_path(folder, base, self.encoding)
        with path.open("rb") as file:
            file.seek(start)
            blob = file.read(int(entries["end"][-1]) - start)
        values = decode(blob, start, entries["end"], self.encoding, str(path))
        return _batch(partition, offset, entries, values)


class LocalLogWriter:
    """Appends to a local log. Implements :class:`~cuckooflow.logs.contract.LogWriter`.

    Opening takes the lock of each partition and repairs its torn tail. Thread-safe: appends to one
    partition wait for each other.

    Args:
        path: the log's folder.
        partitions: which ones to lock and write, default all. Several processes may write one log as
            long as each has partitions of its own.
        segment_bytes: a segment past this size is closed and a new one begun, default 128 MiB.
            Retention deletes whole segments, so larger ones are kept longer.
        max_message_bytes: a larger message is refused, default 16 MiB.
        fsync: default on: what was appended survives a power loss, at one or two disk syncs an
            append; off, it survives only the process.

    Raises:
        LogNotFound: no log is there.
        LogLocked: another writer has one of the partitions.
        LogDamaged: the end of a partition is neither whole nor torn.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        partitions: Sequence[int] | None = None,
        *,
        segment_bytes: int = 128 << 20,
        max_message_bytes: int = 16 << 20,
        fsync: bool = True,
    ) -> None:
        self._reader = LocalLogReader(path)
        self.path = self._reader.path
        self._segment_bytes = segment_bytes
        self.max_message_bytes = max_message_bytes
        self._fsync = fsync
        self._segments: dict[int, SegmentWriter] = {}
        self._locks: dict[int, FileLock] = {}
        self._guards: dict[int, threading.Lock] = {}
        try:
            for partition in self._reader.partitions() if partitions is None else partitions:
                self._open(partition)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LocalLogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The log's name."""
        return self._reader.name

    @property
    def partitions(self) -> Sequence[int]:
        """The partitions that this writer holds."""
        return sorted(self._guards)

    def end_offset(self, partition: int) -> int:
        """The offset that the next message will have."""
        segment = self._segments[partition]
        return segment.base + segment.count

    def append(self, partition: int, values: Sequence[bytes | None] | pa.BinaryArray, append_us: int) -> int:
        """See :meth:`cuckooflow.logs.contract.LogWriter.append`.

        Raises:
            MessageTooLarge, MessageNotStorable: nothing of this call was written.
            LogError: this writer does not hold the partition, the log is sealed, or the disk refused.
        """
        if partition not in self._guards:
            raise LogError(
                f"expected a partition of {self.partitions}, received {partition}; is the writer closed?"
            )
        messages = values.to_pylist() if isinstance(values, pa.Array | pa.ChunkedArray) else values
        longest = max((len(value) for value in messages if value is not None), default=0)
        if longest > self.max_message_bytes:
            raise MessageTooLarge(
                f"expected messages of at most {self.max_message_bytes} bytes for {self.name}, "
                f"received {longest}"
            )
        with self._guards[partition]:
            if (self.path / str(partition) / _SEALED).exists():
                raise LogError(f"expected an open log, {self.name} was sealed: nothing can be appended")
            segment = self._segments[partition]
            if not messages:
                return segment.base + segment.count
            if segment.size >= self._segment_bytes:
                segment = self._roll(partition)
            return segment.append(messages, append_us)

    def send(self, partition: int, values: Sequence[bytes | None] | pa.BinaryArray, append_us: int) -> Sent:
        """As :meth:`append`: on a local disk nothing is won by not waiting."""
        return AlreadySent(self.append(partition, values, append_us))

    def retain(self, partition: int, before_offset: int) -> int:
        """Delete whole segments in which every offset is below ``before_offset``; the new start offset."""
        folder = self.path / str(partition)
        with self._guards[partition]:
            segment = self._segments[partition]
            if segment.count and before_offset >= segment.base + segment.count:
                self._roll(partition)
            bases = list_bases(folder, self._reader.encoding)
            for base, following in itertools.pairwise(bases):
                if following > before_offset:
                    return base
                # The data file names the segment: without it, the index is not looked for.
                data_path(folder, base, self._reader.encoding).unlink()
                index_path(folder, base).unlink(missing_ok=True)
            return bases[-1]

    def seal(self) -> None:
        """Close this writer's partitions for good: readers that reach the end know it is the end."""
        for partition, guard in self._guards.items():
            with guard:
                (self.path / str(partition) / _SEALED).touch()
                _sync_folder(self.path / str(partition))

    def close(self) -> None:
        """Release the locks. Idempotent."""
        for segment in self._segments.values():
            segment.close()
        for lock in self._locks.values():
            lock.release()
        self._segments, self._locks, self._guards = {}, {}, {}

    def _open(self, partition: int) -> None:
        folder = self.path / str(partition)
        encoding = self._reader.encoding
        self._reader._folder(partition)  # refuses a partition that the log does not have
        try:
            self._locks[partition] = FileLock(folder / "lock")
        except BlockingIOError:
            raise LogLocked(
                f"expected to be the only writer of {self.name}/{partition}, another has its lock; stop it, "
                "or write to another partition"
            ) from None
        bases = list_bases(folder, encoding)
        for base in bases[:-1]:
            if not index_path(folder, base).exists():
                repair(folder, base, encoding)
        if bases:
            repair(folder, bases[-1], encoding)
        self._segments[partition] = SegmentWriter(folder, bases[-1] if bases else 0, encoding, self._fsync)
        self._guards[partition] = threading.Lock()

    def _roll(self, partition: int) -> SegmentWriter:
        old = self._segments[partition]
        folder = self.path / str(partition)
        new = SegmentWriter(folder, old.base + old.count, self._reader.encoding, self._fsync)
        _sync_folder(folder)
        self._segments[partition] = new
        old.close()
        return new


def _batch(partition: int, offset: int, entries: Any, values: pa.BinaryArray) -> MessageBatch:
    count = len(entries)
    return MessageBatch(
        partition=partition,
        offsets=np.arange(offset, offset + count, dtype=np.int64),
        append_us=np.ascontiguousarray(entries["append_us"]).astype(np.int64, copy=False),
        values=values,
        next_offset=offset + count,
    )


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        text = (path / _META).read_text()
    except (FileNotFoundError, NotADirectoryError):
        raise LogNotFound(f"expected a log at {path}, found none; create it, or correct the path") from None
    try:
        meta = json.loads(text)
        if meta["format"] != _FORMAT or meta["encoding"] not in ENCODINGS:
            raise ValueError(f"format {meta['format']}, encoding {meta['encoding']}")
        return {**meta, "name": str(meta["name"]), "partitions": int(meta["partitions"])}
    except (ValueError, KeyError, TypeError) as error:
        raise LogDamaged(
            f"expected {path / _META} to describe a log of format {_FORMAT}, it does not: {error}"
        ) from None


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
