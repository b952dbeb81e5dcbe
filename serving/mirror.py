"""Follows a log of snapshots into a folder of the scorer's own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cuckooflow.errors import CuckooflowError
from cuckooflow.logs.address import LogAddress
from cuckooflow.models.snapshot_log import REQUESTS, SnapshotMirror

_log = logging.getLogger(__name__)

#: A full snapshot is asked for no more often than this.
_ASK_EVERY_S = 30.0
#: After an error the log is opened anew, no sooner than this.
_AGAIN_S = 1.0


def follow_log(
    address: LogAddress,
    folder: Path,
    stop: threading.Event,
    interval_s: float,
    failed: Callable[[], None] = lambda: None,
) -> None:
    """Copy snapshots until ``stop`` is set, looking for new ones every ``interval_s``.

    A log that does not answer, is not there yet, or holds something else, is only logged, and tried again.

    Args:
        failed: called for each time that it was.
    """
    while not stop.is_set():
        try:
            _follow(address, folder, stop, interval_s)
        except (CuckooflowError, OSError) as error:
            failed()
            _log.warning("event=snapshot_log_failed log=%s error=%s", address, error)
            stop.wait(max(_AGAIN_S, interval_s))


def _follow(address: LogAddress, folder: Path, stop: threading.Event, interval_s: float) -> None:
    reader = address.open_reader()
    try:
        mirror = SnapshotMirror(folder, reader)
        asked_s = -_ASK_EVERY_S
        while not stop.is_set():
            mirror.poll()
            if mirror.wants_full and time.monotonic() - asked_s >= _ASK_EVERY_S:
                asked_s = time.monotonic()
                writer = address.open_writer([REQUESTS])
                try:
                    mirror.ask(writer, time.time_ns() // 1_000)
                finally:
                    writer.close()
            stop.wait(interval_s)
    finally:
        reader.close()
