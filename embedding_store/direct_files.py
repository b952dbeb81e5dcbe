"""Large files, piece by piece, past the page cache where the file system can do that.

A checkpoint is written once and seldom read. Through the page cache the kernel copies it, throttles its
writer and drops what others have cached. Direct transfers have whole blocks of aligned memory, and go on
in a thread while the next piece is made or the last one is used. A file system without direct access
(tmpfs on an older kernel) gets ordinary calls.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

#: Transfers are in multiples of this, in bytes and in memory address: the largest block size in use.
BLOCK_BYTES = 4_096
BUFFER_BYTES = 8 << 20


def write_pieces(path: Path, pieces: Iterable[Bytes]) -> None:
    """A new file of these bytes, on disk when this returns. Takes two buffers of :data:`BUFFER_BYTES`.

    Raises:
        OSError: as of the calls; what was written is left there.
    """
    handle = _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with ThreadPoolExecutor(1) as writer:
            size = _write(handle, pieces, writer)
        os.ftruncate(handle, size)
        os.fsync(handle)
    finally:
        os.close(handle)


def read_pieces(path: Path, unit_bytes: int, size: int) -> Iterator[Bytes]:
    """A file's first ``size`` bytes, fewer where it ends before, in pieces of about :data:`BUFFER_BYTES`.

    All pieces but the last are whole units. One is read ahead; a piece is overwritten once the next one
    was asked for.

    Raises:
        OSError: as of the calls.
    """
    step = math.lcm(unit_bytes, BLOCK_BYTES)
    piece_bytes = max(1, BUFFER_BYTES // step) * step
    handle = _open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(1) as reader:
            yield from _read(handle, piece_bytes, size, reader)
    finally:
        os.close(handle)


def _write(handle: int, pieces: Iterable[Bytes], writer: ThreadPoolExecutor) -> int:
    buffers = [mmap.mmap(-1, BUFFER_BYTES) for _ in range(2)]
    current, filled, size = 0, 0, 0
    under_way: Future[None] | None = None
    for piece in pieces:
        size += piece.nbytes
        at = 0
        while at < piece.nbytes:
            n = min(BUFFER_BYTES - filled, piece.nbytes - at)
            np.frombuffer(buffers[current], np.uint8)[filled : filled + n] = piece[at : at + n]
            at, filled = at + n, filled + n
            if filled == BUFFER_BYTES:
                if under_way is not None:
                    under_way.result()
                under_way = writer.submit(_write_all, handle, memoryview(buffers[current]))
                current, filled = 1 - current, 0
    if under_way is not None:
        under_way.result()
    # The last block is whole as well; the caller cuts the file to its size.
    _write_all(handle, memoryview(buffers[current])[: -(-filled // BLOCK_BYTES) * BLOCK_BYTES])
    return size


def _write_all(handle: int, content: memoryview) -> None:
    while content:
        # A short write ends at a whole block, or the next call fails by name.
        content = content[os.write(handle, content) :]


def _read(handle: int, piece_bytes: int, size: int, reader: ThreadPoolExecutor) -> Iterator[Bytes]:
    buffers = [mmap.mmap(-1, piece_bytes) for _ in range(2)]
    left, current = size, 0
    under_way = reader.submit(_fill, handle, buffers[current])
    while left:
        n = min(under_way.result(), left)
        if n == 0:
            return
        left -= n
        content = np.frombuffer(buffers[current], np.uint8, n)
        current = 1 - current
        if left:
            under_way = reader.submit(_fill, handle, buffers[current])
        yield content


def _fill(handle: int, buffer: mmap.mmap) -> int:
    """Bytes read; less than the buffer's size at the file's end only."""
    got = 0
    while got < len(buffer):
        n = os.readv(handle, [memoryview(buffer)[got:]])
        got += n
        # Past a part of a block there is only the end, where a direct read may not start.
        if n == 0 or n % BLOCK_BYTES:
            break
    return got


def _open(path: Path, flags: int) -> int:
    flags |= os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o644)
    except OSError:
        return os.open(path, flags, 0o644)
