"""Checkpoint, restore and deltas beside what the disk does with the same bytes."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.store_peers import DIM
from benchmarks.store_table import Pusher, ids_of
from cuckooflow.embedding_store.store import EmbeddedStore

PIECE_BYTES = 8 << 20
ALIGN = 4_096


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second, sequential, of the best round: the disk's and the store's."""

    disk_write: float
    checkpoint: float
    disk_read: float
    restore: float
    first_touch: float  # of fresh memory by one thread

    @property
    def ratio(self) -> float:
        """The lesser of checkpoint and restore, as a share of the disk's bandwidth."""
        return min(self.checkpoint / self.disk_write, self.restore / self.disk_read)


def bandwidth(pusher: Pusher, data: Path, rounds: int) -> Bandwidth:
    """Checkpoints of a store with a folder and restores of it, in turns with plain files of the same bytes.

    The disk's bandwidth is the better of cached writes (or reads) and direct ones, in pieces of 8 MiB. Both end in one fsync
    of the file and of its folder, as a checkpoint does; nothing that is read is in the page cache. Restores take turns
    with plain reads of the same file: what a virtual disk gives changes within seconds. Before each, as much memory
    as it takes is touched and given back: a virtual machine whose host has free pages back gets them at a tenth of
    the disk's bandwidth, whoever asks for them.
    """
    best = dict.fromkeys(("disk_write", "checkpoint", "disk_read", "restore"), 0.0)
    first_touch = 0.0
    rows = pusher.store._core.stats()["rows"]["rows"]
    plain = data / "plain"

    def note(figure: str, size: int, call: Callable[[], object]) -> object:
        begun = time.perf_counter()
        result = call()
        best[figure] = max(best[figure], size / (time.perf_counter() - begun))
        return result

    for _ in range(rounds):
        pusher.fill(0, 1)  # something new for the next checkpoint
        size = int(rows) * pusher.store._core.raw.row_bytes(0)
        name = note("checkpoint", size, pusher.store.checkpoint)
        for direct in (False, True):
            plain.unlink(missing_ok=True)
            note("disk_write", size, partial(_write, plain, size, direct))
        plain.unlink()
    pusher.store.close()
    files = list((data / str(name)).iterdir())
    rows_file = max(files, key=lambda file: file.stat().st_size)
    for _ in range(rounds):
        for direct in (False, True):
            _forget(rows_file)
            note("disk_read", size, partial(_read, rows_file, size, direct))
        for file in files:
            _forget(file)
        first_touch = max(first_touch, _touch(size * 5 // 4))
        restored = note("restore", size, lambda: EmbeddedStore.restore(data))
        assert isinstance(restored, EmbeddedStore)
        assert restored._core.stats()["rows"]["rows"] == rows
        restored.close()
        del restored
    return Bandwidth(**best, first_touch=first_touch)


def delta_seconds(pusher: Pusher, rows: int, touched: int, rounds: int) -> float:
    """The best time of a delta, ack included, after ``touched`` rows of the store were pushed."""
    store = pusher.store
    store.ack("bench", store.delta("bench", full=True).version)
    rng = np.random.default_rng(5)
    gradients = np.ones((touched, DIM), np.float32)
    best = float("inf")
    for _ in range(rounds):
        pusher.push(ids_of(rng.choice(rows, touched, replace=False).astype(np.uint64)), gradients)
        begun = time.perf_counter()
        delta = store.delta("bench")
        store.ack("bench", delta.version)
        best = min(best, time.perf_counter() - begun)
        assert len(delta.tables["rows"].ids) == touched
    return best


def _write(path: Path, size: int, direct: bool) -> None:
    piece = _piece()
    piece[:] = os.urandom(PIECE_BYTES)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (os.O_DIRECT if direct else 0), 0o644)
    try:
        left = size
        while left > 0:
            n = min(PIECE_BYTES, left)
            left -= os.write(handle, piece[: -(-n // ALIGN) * ALIGN])
        os.fsync(handle)
    finally:
        os.close(handle)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path, size: int, direct: bool) -> None:
    piece = _piece()
    handle = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        left = size
        while left > 0:
            left -= os.readv(handle, [piece])
    finally:
        os.close(handle)


def _piece() -> memoryview:
    """Aligned memory, as direct transfers need."""
    return memoryview(mmap.mmap(-1, PIECE_BYTES))


def _touch(size: int) -> float:
    """Take so much memory in huge pages and give it back: bytes a second of touching it."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        begun = time.perf_counter()
        for at in range(0, size, 2 << 20):
            memory[at] = 1
        return size / (time.perf_counter() - begun)


def _forget(path: Path) -> None:
    """Put a file out of the page cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
