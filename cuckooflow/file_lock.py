"""A lock on a file that ends when its owner says so, or dies."""

from __future__ import annotations

import fcntl
import os


class FileLock:
    """Exclusive among all who lock this file, in this process and in others, from now until :meth:`release`.

    A process that was forked meanwhile inherits the descriptor, and with it keeps the file locked until it ends or
    becomes another program. So a release unlocks for all of them; only the process that took the lock can.

    Args:
        path: of the file; it is made where it is not there.

    Raises:
        BlockingIOError: another has the lock.
        OSError: the file cannot be opened for writing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._owner: int | None = os.getpid()
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(self.handle)
            raise

    def release(self) -> None:
        """Unlock, and close :attr:`handle`. Idempotent."""
        owner, self._owner = self._owner, None
        if owner is None:
            return
        if owner == os.getpid():
            fcntl.flock(self.handle, fcntl.LOCK_UN)
        os.close(self.handle)
