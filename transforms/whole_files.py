"""Files that are whole or absent, on any file system that Beam knows.

A file is written under a temporary name beside its own and then renamed, so a reader that finds the name finds
all of it, whatever was killed. A temporary name begins with a dot and ends in ``.tmp``.
"""

from __future__ import annotations

import contextlib
import posixpath
import uuid
from collections.abc import Iterator
from typing import Any

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[Any]:
    """A binary file to write; it has its name once the block ends well, and is gone if it does not."""
    folder, name = posixpath.split(path)
    beside = posixpath.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    file = FileSystems.create(beside, compression_type=CompressionTypes.UNCOMPRESSED)
    try:
        yield file
        file.close()
        rename(beside, path)
    except BaseException:
        with contextlib.suppress(Exception):
            file.close()
        remove(beside)
        raise


def write_whole(path: str, content: bytes) -> None:
    """Write a file at once."""
    with whole_file(path) as file:
        file.write(content)


def read_whole(path: str) -> bytes | None:
    """A file's content; None where there is none."""
    if not FileSystems.exists(path):
        return None
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            content: bytes = file.read()
    except (OSError, BeamIOError):
        if FileSystems.exists(path):
            raise
        return None  # taken away between the two
    return content


def rename(source: str, target: str) -> None:
    """Give a file its name, over an older one of that name."""
    try:
        FileSystems.rename([source], [target])
    except BeamIOError:
        # Some file systems do not rename over a file that is there.
        if not (FileSystems.exists(target) and FileSystems.exists(source)):
            raise
        remove(target)
        FileSystems.rename([source], [target])


def remove(path: str) -> None:
    """Delete a file or folder, if it is there."""
    if FileSystems.exists(path):
        FileSystems.delete([path])


def list_files(folder: str) -> list[FileMetadata]:
    """The whole files anywhere below a folder, by path."""
    found = FileSystems.match([posixpath.join(folder, "**")])[0].metadata_list
    whole = (entry for entry in found if not is_temporary(entry.path))
    return sorted(whole, key=lambda entry: entry.path)


def is_temporary(path: str) -> bool:
    """Whether this is the name of a file that is being written, or was when its writer was killed."""
    name = posixpath.basename(path)
    return name.startswith(".") and name.endswith(".tmp")
