"""Files as a log: what a live join reads where events come as whole files.

* Files are numbered, in each partition, in the order in which they were first seen; a manifest keeps that
  (:mod:`~cuckooflow.transforms.files_manifest`), so a file that comes later is behind all others, whatever its name is.
* A message's offset is its file's number and its own number in the file (:func:`offset_of`): the same at every
  read, whenever and wherever that is.
* A file is one that was whole when it had its name. One that is damaged, or has another size than when it was seen, gives
  what is readable of it and then one message that is not, which becomes a dead letter. A file that is gone is
  retention: a read of it raises.
* Events of a message were there when its file was last modified: that is its append time.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems

from cuckooflow.errors import LogNotFound, OffsetOutOfRange
from cuckooflow.logs.contract import MessageBatch
from cuckooflow.transforms.file_messages import Damage, FileCursor, FileShape
from cuckooflow.transforms.files_address import FilesAddress
from cuckooflow.transforms.files_manifest import FileEntry, FilesManifest
from cuckooflow.transforms.whole_read import UnansweredRead

_LOGGER = logging.getLogger(__name__)

#: Bits of an offset for the number in the file: messages of one file, at most.
_NUMBER_BITS = 32
_ROWS = 1_024
#: Files that one read opens at most.
_FILES_A_READ = 256
#: A listing is asked for so much more seldom than it takes; after one that failed, no more seldom than this.
_LISTING_SHARE = 20
_RETRY_S_MAX = 30.0
_NONE = pa.array([], pa.binary())


def offset_of(file: int, message: int = 0) -> int:
    """The offset of a message of a file, by their numbers."""
    return file << _NUMBER_BITS | message


class FilesLog:
    """Implements :class:`~cuckooflow.logs.contract.FilesReader`. Not thread-safe.

    Args:
        address: see :class:`~cuckooflow.transforms.files_address.FilesAddress`.
        clock_us: the wall clock, for files whose file system tells no time.
        tick_s: a clock that only goes forward, which spaces listings.
        rows: of a Parquet file in one message, default 1,024. Fixed in each manifest, as positions depend on it.

    Raises:
        LogNotFound: the folder is not there.
        LogUnavailable: the file system does not answer.
    """

    def __init__(
        self,
        address: FilesAddress,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
        tick_s: Callable[[], float] = time.monotonic,
        rows: int = _ROWS,
    ) -> None:
        assert address.manifest is not None, "an address of a job, see FilesAddress.resolved_in"
        self._address = address
        self._clock_us = clock_us
        self._tick_s = tick_s
        if "://" not in address.base and not Path(address.base).is_dir():
            raise LogNotFound(
                f"expected the folder {address.base} for {address}, it is not there; correct the path"
            )
        fixed = {
            "partitions": address.partitions,
            "rows": rows,
            "format": address.format,
            "value": address.value,
        }
        try:
            self._manifest = FilesManifest(address.manifest, {"files": fixed})
        except OSError as error:
            raise UnansweredRead(f"expected to read the manifest {address.manifest}: {error}") from error
        self._shape = FileShape(address.format, address.value, rows)
        self._files: list[list[FileEntry]] = [[] for _ in range(address.partitions)]
        self._first = [0] * address.partitions
        self._dealt = 0
        self._cursors: dict[int, tuple[int, FileCursor | None]] = {}
        self._next_listing_s = self._tick_s()
        self._failed: UnansweredRead | None = None
        self._look()

    @property
    def name(self) -> str:
        """The path or pattern."""
        return self._address.name

    def incarnation(self) -> str:
        """The manifest's."""
        return self._manifest.incarnation

    def partitions(self) -> Sequence[int]:
        """As many as the address says."""
        return range(self._address.partitions)

    def start_offset(self, partition: int) -> int:
        """The first message of the first file that is still there."""
        return offset_of(self._first[partition])

    def end_offset(self, partition: int) -> int:
        """The first message of the file that comes next; looks for new files, now and then."""
        self._look()
        return offset_of(len(self._files[partition]))

    def sealed(self, partition: int) -> bool:  # noqa: ARG002
        """Never: files may follow."""
        return False

    def files_left(self, partition: int, offset: int) -> int:
        """See :class:`~cuckooflow.logs.contract.FilesReader`."""
        self._look()
        return len(self._files[partition]) - (offset >> _NUMBER_BITS)

    def path_at(self, partition: int, offset: int) -> str:
        """The file that a message lies in.

        Raises:
            OffsetOutOfRange: there is none.
        """
        number = offset >> _NUMBER_BITS
        if not 0 <= number < len(self._files[partition]):
            raise OffsetOutOfRange(
                f"expected one of {len(self._files[partition])} files, received offset {offset}"
            )
        return self._address.base + self._files[partition][number].path

    def read(
        self, partition: int, offset: int, max_messages: int = 65_536, max_bytes: int = 16 << 20
    ) -> MessageBatch:
        """See :class:`~cuckooflow.logs.contract.LogReader`; over the borders of files.

        Raises:
            OffsetOutOfRange: a file was deleted, or there is none.
            LogUnavailable: the file system does not answer.
        """
        if offset >> _NUMBER_BITS == len(self._files[partition]):
            self._look()
        end = offset_of(len(self._files[partition]))
        if not 0 <= offset <= end:
            raise OffsetOutOfRange(
                f"expected an offset of {self.name}/{partition} up to {end}, received {offset}: its manifest lists fewer "
                "files; start the job anew, without its state"
            )
        at, cursor = self._cursors.pop(partition, (offset, None))
        if cursor is not None and at != offset:
            cursor.close()
            cursor = None
        batch, cursor = self._read(partition, offset, end, max_messages, max_bytes, cursor)
        self._cursors[partition] = (batch.next_offset, cursor)
        return batch

    def read_range(self, partition: int, first: int, last: int) -> Iterator[MessageBatch]:
        """See :class:`~cuckooflow.logs.contract.LogReader`."""
        end = self.end_offset(partition)
        if not 0 <= first <= last <= end:
            raise OffsetOutOfRange(
                f"expected a range within {self.name}/{partition}, which ends at {end}, received {first} to {last}"
            )
        cursor: FileCursor | None = None
        try:
            while first < last:
                batch, cursor = self._read(partition, first, end, 65_536, 16 << 20, cursor)
                batch = batch.until(last)
                first = batch.next_offset
                if len(batch):
                    yield batch
        finally:
            if cursor is not None:
                cursor.close()

    def close(self) -> None:
        """Close the files that are open. Idempotent."""
        for _, cursor in self._cursors.values():
            if cursor is not None:
                cursor.close()
        self._cursors.clear()

    # --- reading ----------------------------------------------------------------------------

    def _read(
        self, partition: int, offset: int, end: int, most: int, most_bytes: int, cursor: FileCursor | None
    ) -> tuple[MessageBatch, FileCursor | None]:
        """What is at ``offset``, and the cursor that stands behind it, if it does so in a file."""
        parts = _Parts(partition, offset)
        opened = 0
        while parts.next_offset < end and parts.messages < most and parts.bytes < max(1, most_bytes):
            number = parts.next_offset >> _NUMBER_BITS
            entry = self._files[partition][number]
            try:
                if cursor is None:
                    if opened == _FILES_A_READ:
                        break
                    opened += 1
                    changed = self._fault(entry)
                    if changed is not None:
                        parts.add(entry, Damage(changed))
                        parts.next_offset = offset_of(number + 1)
                        continue
                    path = self._address.base + entry.path
                    cursor = FileCursor(path, self._shape, parts.next_offset - offset_of(number))
                found = cursor.take(most - parts.messages, max(1, most_bytes - parts.bytes))
            except (UnansweredRead, OffsetOutOfRange):
                if cursor is not None:
                    cursor.close()
                    cursor = None
                if not parts.messages:
                    raise
                break  # what was read before it is not lost; the next read says it
            if found is not None:
                parts.add(entry, found)
            if found is None or isinstance(found, Damage):
                cursor.close()
                cursor = None
                parts.next_offset = offset_of(number + 1)
        return parts.batch(), cursor

    def _fault(self, entry: FileEntry) -> str | None:
        """What is wrong with a file before it is opened.

        Raises:
            OffsetOutOfRange: it is gone.
            UnansweredRead: the file system does not answer.
        """
        path = self._address.base + entry.path
        found = _match(path)
        if not found:
            raise OffsetOutOfRange(
                f"expected {path}, which was seen before, found nothing: it was deleted before it was read; put it back or, "
                "to go on without it, an empty file of its name"
            )
        size = int(found[0].size_in_bytes)
        if size != entry.size:
            return (
                f"expected {path} of {entry.size} bytes, as it was when it was first seen, found {size}: it was changed, or "
                "had its name before it was whole; give it another name"
            )
        return None

    # --- new files --------------------------------------------------------------------------

    def _look(self) -> None:
        """Take up new files, unless it was done a moment ago.

        Raises:
            UnansweredRead: the last look failed: whether there are new files is not known.
        """
        begin_s = self._tick_s()
        if begin_s >= self._next_listing_s:
            pause_s = self._address.list_every / 1e6
            try:
                listed = self._listed()
                self._failed = None
            except UnansweredRead as error:
                self._failed = error
            took_s = self._tick_s() - begin_s
            most_s = float("inf") if self._failed is None else _RETRY_S_MAX
            self._next_listing_s = begin_s + took_s + max(pause_s, min(most_s, _LISTING_SHARE * took_s))
            if self._failed is None:
                self._deal(listed)
        if self._failed is not None:
            raise self._failed

    def _listed(self) -> AbstractSet[str]:
        """The paths of all files that are there; those that are new are in the manifest when this returns."""
        base = len(self._address.base)
        matched = _match(self._address.pattern)
        found = {entry.path[base:]: entry for entry in matched if is_event_file(entry.path[base:])}
        fresh = [self._seen(path, entry) for path, entry in found.items() if path not in self._manifest]
        by_time = self._address.order == "modified"
        fresh.sort(key=lambda entry: (entry.modified_us if by_time else 0, entry.path))
        if fresh:
            try:
                self._manifest.add(fresh)
            except OSError as error:
                raise UnansweredRead(
                    f"expected to write the manifest {self._address.manifest}: {error}"
                ) from error
            _LOGGER.info("log=%s files=%d new", self.name, len(fresh))
        return found.keys()

    def _deal(self, listed: AbstractSet[str]) -> None:
        """Deal the manifest's new files out to partitions, and find the first that is still there in each."""
        for entry in self._manifest.entries[self._dealt :]:
            self._files[zlib.crc32(entry.path.encode()) % len(self._files)].append(entry)
        self._dealt = len(self._manifest.entries)
        for partition, files in enumerate(self._files):
            while self._first[partition] < len(files) and files[self._first[partition]].path not in listed:
                self._first[partition] += 1

    def _seen(self, path: str, entry: FileMetadata) -> FileEntry:
        modified_us = int((entry.last_updated_in_seconds or 0) * 1_000_000)
        return FileEntry(path, int(entry.size_in_bytes), modified_us or self._clock_us())


class _Parts:
    """Messages of one or several files on their way into a batch."""

    def __init__(self, partition: int, offset: int) -> None:
        self._partition = partition
        self._offsets: list[npt.NDArray[np.int64]] = []
        self._append_us: list[npt.NDArray[np.int64]] = []
        self._values: list[pa.BinaryArray] = []
        self._unreadable: dict[int, str] = {}
        self.next_offset = offset
        self.messages = 0
        self.bytes = 0

    def add(self, entry: FileEntry, found: pa.BinaryArray | Damage) -> None:
        if isinstance(found, Damage):
            self._unreadable[self.messages] = found.detail
            found = pa.nulls(1, pa.binary())
        self._offsets.append(np.arange(self.next_offset, self.next_offset + len(found)))
        self._append_us.append(np.full(len(found), entry.modified_us))
        self._values.append(found)
        self.messages += len(found)
        self.bytes += found.nbytes
        self.next_offset += len(found)

    def batch(self) -> MessageBatch:
        none = np.empty(0, np.int64)
        return MessageBatch(
            self._partition,
            np.concatenate([none, *self._offsets]),
            np.concatenate([none, *self._append_us]),
            pa.concat_arrays([_NONE, *self._values]),
            self.next_offset,
            unreadable=self._unreadable,
        )


def is_event_file(path: str) -> bool:
    """Whether a path below the folder names a whole file: no part of it begins with a dot or an underscore.

    A folder such as ``_hour=03`` is a partition's name, and no such mark.

    >>> [is_event_file(p) for p in ("dt=1/a.json", "_temporary/0/a.json", ".a.json.tmp", "_dt=1/a.json")]
    [True, False, False, True]
    """
    parts = path.split("/")
    return not any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in parts)


def _match(pattern: str) -> list[FileMetadata]:
    try:
        return list(FileSystems.match([pattern])[0].metadata_list)
    except Exception as error:  # each file system has errors of its own
        raise UnansweredRead(f"expected a listing of {pattern}: {error}") from error
