"""One writer of a log for all that write to it in one process, however many instances a runner makes."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from cuckooflow.logs.local_log import LocalLog, LocalLogWriter


@dataclass
class _Shared:
    writer: LocalLogWriter
    incarnation: str
    users: int


_WRITERS: dict[Path, _Shared] = {}
_LOCK = threading.Lock()


def acquire_writer(path: str | os.PathLike[str]) -> LocalLogWriter:
    """The process's writer of all partitions of a log, opened for its first user.

    Raises:
        LogNotFound: no log is there.
        LogLocked: another process writes it.
    """
    where = Path(path).resolve()
    with _LOCK:
        incarnation = LocalLog.open(where).incarnation()
        shared = _WRITERS.get(where)
        if shared is not None and shared.incarnation != incarnation:  # the log was made anew
            shared.writer.close()
            shared = None
        if shared is None:
            shared = _WRITERS[where] = _Shared(LocalLogWriter(where), incarnation, 0)
        shared.users += 1
        return shared.writer


def release_writer(path: str | os.PathLike[str]) -> None:
    """Give it back; the last user's closes it. Without an acquired writer, nothing happens."""
    where = Path(path).resolve()
    with _LOCK:
        shared = _WRITERS.get(where)
        if shared is None:
            return
        shared.users -= 1
        if shared.users <= 0:
            shared.writer.close()
            del _WRITERS[where]
