"""What was served, written to the impressions log: the loop from serving back to training."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cuckooflow.errors import BadRequest
from cuckooflow.logs.address import LogAddress, to_address
from cuckooflow.logs.contract import LogWriter
from cuckooflow.serving.times import TimeFormat


@dataclass(frozen=True)
class ImpressionOptions:
    """How impressions are written, and what their columns are called.

    Attributes:
        log: where the impressions log lies; None (default): requests to log are refused.
        partition: which of its partitions the scorer writes, default 0. Of a local log it holds the partition's
            lock from the first logged request on; who else writes that log needs partitions of their own.
        request_column, time_column: of request id and event time, default ``request_id`` and ``time``.
        version_column: takes the version of the model that scored, default ``model_version``.
        time_format: how the log writes event times, default seconds since the epoch.
    """

    log: LogAddress | str | os.PathLike[str] | None = None
    partition: int = 0
    request_column: str = "request_id"
    time_column: str = "time"
    version_column: str = "model_version"
    time_format: TimeFormat = field(default_factory=TimeFormat)


class ImpressionLog:
    """Appends impressions, durably. Thread-safe.

    Args:
        place: where the log lies.
        partition: see :class:`ImpressionOptions`.
    """

    def __init__(self, place: LogAddress | str | os.PathLike[str], partition: int) -> None:
        self._address = to_address(place)
        self._partition = partition
        self._lock = threading.Lock()
        self._writer: LogWriter | None = None

    def append(self, rows: Sequence[Mapping[str, object]], append_us: int) -> int:
        """Write a message for each row; durable when this returns. The first one's offset.

        Raises:
            BadRequest: a value cannot be written as JSON.
            LogError: another process writes the partition, there is no such log, or the disk or the broker
                refused. The next call tries again.
        """
        try:
            messages = [
                json.dumps(row, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
                for row in rows
            ]
        except ValueError as error:  # a lone surrogate, or a number past every float
            raise BadRequest(f"expected values that UTF-8 JSON can hold, received others: {error}") from error
        with self._lock:
            if self._writer is None:
                # At the first use, not at the start: until someone asks for it, the log is others' to write.
                self._writer = self._address.open_writer([self._partition])
            return self._writer.append(self._partition, messages, append_us)

    def close(self) -> None:
        """Release the partition. Idempotent."""
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
