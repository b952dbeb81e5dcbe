"""The folder of downloads: filled once, shared by every cluster of a user.

An entry is whole once its stamp is there, which comes last; what has none is made anew. Two
processes that want the same entry wait for each other at a lock file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cuckooflow.errors import DownloadDamaged, ToolMissing

#: The file that says that an entry is whole.
STAMP = ".complete"
CACHE_VARIABLE = "CUCKOOFLOW_CACHE"
_CHUNK_BYTES = 1 << 20


def default_cache() -> Path:
    """``$CUCKOOFLOW_CACHE``, else ``~/.cache/cuckooflow``."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "cuckooflow")


def cached_folder(cache: Path, name: str, fill: Callable[[Path], None]) -> Path:
    """The entry ``name``; where it is not there yet, ``fill`` is handed an empty folder for it."""
    entry = cache / name
    if not (entry / STAMP).exists():
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / f"{name}.lock"):
            if not (entry / STAMP).exists():
                shutil.rmtree(entry, ignore_errors=True)
                entry.mkdir()
                fill(entry)
                (entry / STAMP).touch()
    return entry


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock of a file, for which others wait."""
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def sha256(file: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def checked(file: Path, pinned: str) -> None:
    """Compare a file's digest.

    Raises:
        DownloadDamaged: it is another file than the pinned one.
    """
    received = sha256(file)
    if received != pinned:
        raise DownloadDamaged(
            f"{file.name}: expected sha-256 {pinned}, received {received}; is another file of this name served here?"
        )


def tool(name: str, what: str) -> str:
    """The path of a program.

    Raises:
        ToolMissing: it is not on the PATH.
    """
    found = shutil.which(name)
    if found is None:
        raise ToolMissing(f"expected {what} as {name!r} on the PATH, found none; install it and try again")
    return found
