"""Files of events opened for reading, such that what is cut off is never taken for a shorter file.

Beam's own reader of compressed files takes a stream that ends too soon for a whole one; Arrow's refuses it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from cuckooflow.errors import LogUnavailable

#: Beam's name of a compression -> Arrow's.
_CODECS = {CompressionTypes.GZIP: "gzip", CompressionTypes.BZIP2: "bz2", CompressionTypes.ZSTD: "zstd"}


class UnansweredRead(LogUnavailable):
    """The file system failed, which says nothing of the file."""


class _Asked(io.RawIOBase):
    """A file whose file system's errors are told apart from those of what is in it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._file: Any = self._ask(FileSystems.open, path, compression_type=CompressionTypes.UNCOMPRESSED)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found: bytes = self._ask(self._file.read, *(() if size < 0 else (size,)))
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        self._ask(self._file.seek, offset, whence)
        return self.tell()

    def tell(self) -> int:
        return int(self._ask(self._file.tell))

    def close(self) -> None:
        if not self.closed:
            file = getattr(self, "_file", None)
            if file is not None:
                with contextlib.suppress(Exception):
                    file.close()
            super().close()

    def _ask(self, what: Any, *args: Any, **more: Any) -> Any:
        try:
            return what(*args, **more)
        except Exception as error:  # each file system has errors of its own
            raise UnansweredRead(f"expected to read {self._path}: {error}") from error


@contextlib.contextmanager
def open_plain(path: str) -> Iterator[Any]:
    """A binary file as it is, which can seek.

    Raises:
        UnansweredRead: the file system failed, now or at a read.
    """
    file = _Asked(path)
    try:
        yield file
    finally:
        file.close()


@contextlib.contextmanager
def open_inflated(path: str) -> Iterator[Any]:
    """A binary file without its compression, which its name tells: .gz, .bz2 or .zst; it can seek if it has none.

    Raises:
        UnansweredRead: as :func:`open_plain`.
        OSError, EOFError: now or at a read: the stream is damaged, or ends before its end.
    """
    with open_plain(path) as file:
        codec = _CODECS.get(CompressionTypes.detect_compression_type(path))
        if codec is None:
            if is_compressed(path):
                raise OSError(f"expected .gz, .bz2, .zst or no compression of {path}, received another")
            yield file
            return
        if not file.read(1):
            raise EOFError(f"{path} is empty, where a compressed file has a header at least")
        file.seek(0)
        with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec) as inflated:
            yield inflated


def is_compressed(path: str) -> bool:
    """Whether a file can only be read from its beginning."""
    return CompressionTypes.detect_compression_type(path) != CompressionTypes.UNCOMPRESSED
