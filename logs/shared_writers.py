"""One writer of a log for all that write to it in one process, however many instances a runner makes."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from cuckooflow.logs.address import LogAddress, to_address
from cuckooflow.logs.contract import LogWriter


@dataclass
class _Shared:
    writer: LogWriter
    incarnation: str
    users: int


_WRITERS: dict[LogAddress, _Shared] = {}
_LOCK = threading.Lock()


def acquire_writer(place: LogAddress | str | os.PathLike[str]) -> LogWriter:
    """The process's writer of all partitions of a log, opened for its first user.

    Raises:
        LogNotFound: no log is there.
        LogLocked: another process writes it.
        LogUnavailable: no broker answers.
    """
    address = to_address(place).resolved()
    with _LOCK:
        reader = address.open_reader()
        incarnation = reader.incarnation()
        reader.close()
        shared = _WRITERS.get(address)
        if shared is not None and shared.incarnation != incarnation:  # the log was made anew
            shared.writer.close()
            shared = None
        if shared is None:
            shared = _WRITERS[address] = _Shared(address.open_writer(), incarnation, 0)
        shared.users += 1
        return shared.writer


def release_writer(place: LogAddress | str | os.PathLike[str]) -> None:
    """Give it back; the last user's closes it. Without an acquired writer, nothing happens."""
    address = to_address(place).resolved()
    with _LOCK:
        shared = _WRITERS.get(address)
        if shared is None:
            return
        shared.users -= 1
        if shared.users <= 0:
            shared.writer.close()
            del _WRITERS[address]
