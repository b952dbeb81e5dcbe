"""Locks of files: one owner at a time, whatever was forked while it had them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cuckooflow.file_lock import FileLock


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        FileLock(tmp_path / "lock")
    lock.release()
    lock.release()
    FileLock(tmp_path / "lock").release()


def test_a_process_that_was_forked_meanwhile_does_not_keep_it(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    wait, end = os.pipe()
    child = _forked(lambda: os.read(wait, 1))
    try:
        lock.release()
        FileLock(tmp_path / "lock").release()
    finally:
        os.write(end, b"x")
        assert os.waitpid(child, 0)[1] == 0
        os.close(wait)
        os.close(end)


def test_a_process_that_was_forked_meanwhile_cannot_release_it(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    assert os.waitpid(_forked(lock.release), 0)[1] == 0
    with pytest.raises(BlockingIOError):
        FileLock(tmp_path / "lock")
    lock.release()


def _forked(work: Callable[[], object]) -> int:
    """The pid of a process that does this alone, and ends with 0 if it could."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child
