"""The list of files that a live join has seen: it fixes their order, and so every position in them, for good.

A folder. ``meta.json`` says what cannot change. Entries lie in segments, ``SEGMENT-COUNT.jsonl``, the number of the
segment and how many entries it holds, a line each. A segment is written anew, under its new name, when it gets
entries; of those of one number the longest counts, and the others are deleted after it is there. So a list that was
readable once is read again with at most more behind it, whatever is killed.

It is one job's. Whoever adds looks first at what is there: on a local file system under a lock. Elsewhere two that add
at the same moment, as a worker that was given up and its successor might, can pass each other; the next to add finds
that the list is not what it knew, and refuses.
"""

from __future__ import annotations

import contextlib
import json
import posixpath
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apache_beam.io.filesystems import FileSystems

from cuckooflow.errors import LogDamaged, LogRecreated, LogUnavailable, SpecError, TooManyFiles
from cuckooflow.file_lock import FileLock
from cuckooflow.transforms.whole_files import read_whole, remove, write_whole

_FORMAT = 1
#: Entries of a segment: what is written again when a file comes.
_SEGMENT_ENTRIES = 1_000
#: Files that a manifest may list; each costs about 300 bytes of memory.
FILES_MAX = 2_000_000
#: How long to wait for another process that adds to it; that takes milliseconds.
LOCK_WAIT_S = 10.0
_LOCK_POLL_S = 0.01
_SEGMENT = re.compile(r"(\d{8})-(\d{8})\.jsonl")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file that was seen.

    Attributes:
        path: below the folder of all.
        size: bytes.
        modified_us: when it was modified, microseconds; where its file system does not tell, when it was seen.
    """

    path: str
    size: int
    modified_us: int


class FilesManifest:
    """See the module. Made where it is not there. Not thread-safe.

    Args:
        folder: where it lies, on any of Beam's file systems.
        fixed: what must be the same at every opening.

    Attributes:
        incarnation: made when the manifest was.
        entries: all, in the order in which they were seen.

    Raises:
        SpecError: it was made with other options.
        LogDamaged: the folder holds something else.
    """

    def __init__(self, folder: str, fixed: dict[str, Any]) -> None:
        self._folder = folder
        self._local = "://" not in folder
        self.entries: list[FileEntry] = []
        self._seen: set[str] = set()
        with self._locked():
            blob = read_whole(self._path("meta.json"))
            if blob is None:
                blob = json.dumps({"format": _FORMAT, "incarnation": uuid.uuid4().hex, **fixed}).encode()
                write_whole(self._path("meta.json"), blob)
            self._take_meta(blob, fixed)
            self._take_new()

    def __contains__(self, path: str) -> bool:
        return path in self._seen

    def add(self, found: Sequence[FileEntry]) -> None:
        """Put files at the end, in this order; they are there for good when this returns.

        Those that another has added meanwhile come before, and once.

        Raises:
            LogRecreated: the manifest is another one, or was changed, since it was opened.
            TooManyFiles: it would hold more than :data:`FILES_MAX`.
        """
        with self._locked():
            self._take_new()
            fresh = [entry for entry in found if entry.path not in self._seen]
            if len(self.entries) + len(fresh) > FILES_MAX:
                raise TooManyFiles(
                    f"expected at most {FILES_MAX} files in {self._folder}, received more; start the job anew, without its "
                    "state, on a pattern of newer files"
                )
            while fresh:
                segment, held = divmod(len(self.entries), _SEGMENT_ENTRIES)
                some, fresh = fresh[: _SEGMENT_ENTRIES - held], fresh[_SEGMENT_ENTRIES - held :]
                whole = [*self.entries[len(self.entries) - held :], *some]
                lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in whole]
                write_whole(self._path(_segment_name(segment, len(whole))), "".join(lines).encode())
                if held:
                    remove(self._path(_segment_name(segment, held)))
                self._keep(some)

    def _take_meta(self, blob: bytes, fixed: dict[str, Any]) -> None:
        try:
            meta = json.loads(blob)
            self.incarnation = str(meta.pop("incarnation"))
            known = meta.pop("format")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LogDamaged(
                f"expected a manifest of files in {self._folder}, found another meta.json: {error}"
            ) from None
        if known != _FORMAT or meta != fixed:
            raise SpecError(
                f"expected files as the manifest {self._folder} was made for, {meta}, received {fixed}; these are fixed for "
                "its life: name another manifest, and start the job anew"
            )

    def _take_new(self) -> None:
        """What is there behind what is known."""
        longest: dict[int, int] = {}
        for entry in FileSystems.match([self._path("*.jsonl")])[0].metadata_list:
            name = _SEGMENT.fullmatch(posixpath.basename(entry.path))
            if name is not None:
                longest[int(name[1])] = max(longest.get(int(name[1]), 0), int(name[2]))
        sizes = [longest.get(segment, -1) for segment in range(len(longest))]
        total = sum(sizes)
        if -1 in sizes or any(size != _SEGMENT_ENTRIES for size in sizes[:-1]) or total < len(self.entries):
            raise LogRecreated(
                f"expected the manifest {self._folder} with its first {len(self.entries)} files, found segments of {sizes}: "
                "files of it were deleted; start the job anew, without its state, and with another manifest"
            )
        known = len(self.entries)
        for segment in range(max(0, known - 1) // _SEGMENT_ENTRIES, len(sizes)):
            before = segment * _SEGMENT_ENTRIES
            if before + sizes[segment] <= known and (self._local or segment < len(sizes) - 1):
                continue
            blob = read_whole(self._path(_segment_name(segment, sizes[segment]))) or b""
            try:
                lines = [FileEntry(**json.loads(line)) for line in blob.splitlines()]
            except (ValueError, TypeError) as error:
                raise LogDamaged(
                    f"expected entries in segment {segment} of {self._folder}: {error}"
                ) from None
            old = max(0, len(self.entries) - before)
            if len(lines) != sizes[segment] or lines[:old] != self.entries[before:]:
                raise LogRecreated(
                    f"expected the manifest {self._folder} with more files behind those that are known, found others in "
                    f"segment {segment}: another job adds to it; give each a manifest of its own"
                )
            self._keep(lines[old:])

    def _keep(self, entries: Sequence[FileEntry]) -> None:
        self.entries += entries
        self._seen.update(entry.path for entry in entries)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._local:
            yield
            return
        Path(self._folder).mkdir(parents=True, exist_ok=True)
        deadline_s = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                lock = FileLock(self._path(".lock"))
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise LogUnavailable(
                        f"expected the lock of the manifest {self._folder} within {LOCK_WAIT_S:g} s, another process "
                        "holds it; is a second job reading these files with it?"
                    ) from None
                time.sleep(_LOCK_POLL_S)
        try:
            yield
        finally:
            lock.release()

    def _path(self, name: str) -> str:
        return posixpath.join(self._folder, name)


def _segment_name(segment: int, count: int) -> str:
    return f"{segment:08d}-{count:08d}.jsonl"
