"""What a store's process takes on at once, and how what is over it is refused."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cuckooflow.embedding_store.wire import CALL_BYTES_MAX
from cuckooflow.embedding_store.wire_head import Array
from cuckooflow.errors import LimitExceeded, SpecError, StoreOverloaded

_ESTABLISHED = "01"
_SOCKET_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))


@dataclass(frozen=True)
class ServerLimits:
    """Bounds of a store's process; past each a call is refused at once, by a named error.

    Attributes:
        call_bytes_max: bound of one call's arrays, default 256 MiB. Memory for as many calls as run at once.
        rows_max: ids of one call over all tables, default 2^21. A lookup's answer takes 4 * dim bytes a row.
        calls_max: calls worked on at once, default 64. More threads share the processors.
        queue_max: calls that wait for a turn, default 256; each holds a thread.
        turn_wait_s_max: how long one waits, default 10 s.
        connections_max: connected clients, default 1,024; a call over a connection past it is refused.
            Known on Linux only; elsewhere connections are not counted.
        lookup_threads: threads that share a lookup of thousands of rows with its call, where they are free;
            default one less than the processors, at most 3. Answers to a few clients come sooner; with more
            calls at once than processors they gain nothing.
        finish_s_max: how long a process that is told to stop waits for calls under way, default 10 s; then it
            writes its checkpoint and ends without them.
    """

    call_bytes_max: int = CALL_BYTES_MAX
    rows_max: int = 1 << 21
    calls_max: int = 64
    queue_max: int = 256
    turn_wait_s_max: float = 10.0
    connections_max: int = 1024
    lookup_threads: int = max(0, min(3, (os.cpu_count() or 1) - 1))
    finish_s_max: float = 10.0

    def __post_init__(self) -> None:
        for name in ("call_bytes_max", "rows_max", "calls_max", "connections_max"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name}: expected at least 1, received {getattr(self, name)}")
        for name in ("queue_max", "turn_wait_s_max", "lookup_threads", "finish_s_max"):
            if getattr(self, name) < 0:
                raise SpecError(f"{name}: expected at least 0, received {getattr(self, name)}")


def check_rows(arrays: Mapping[str, Array], rows_max: int) -> int:
    """The ids in a call, over all tables.

    Raises:
        LimitExceeded: there are more than ``rows_max``.
    """
    rows = sum(array.size for array in arrays.values() if array.dtype == np.uint64)
    if rows > rows_max:
        raise LimitExceeded(
            f"expected at most {rows_max} ids in one call, received {rows}. Send fewer at once."
        )
    return rows


class Turns:
    """Calls at work and calls that wait; ``with turns:`` is one call's turn. Thread-safe.

    Raises:
        StoreOverloaded: on entering, too many wait already, or none of those before it ended in time.
    """

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self.waiting = 0
        self.working = 0

    def __enter__(self) -> None:
        with self._lock:
            if self.working >= self._limits.calls_max:
                self._wait()
            self.working += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.working -= 1
            if self.waiting:
                self._freed.notify()

    def _wait(self) -> None:
        limits = self._limits
        if self.waiting >= limits.queue_max:
            raise StoreOverloaded(
                f"{limits.calls_max} calls are worked on and {self.waiting} wait, which is as many as may. "
                "Call again later."
            )
        self.waiting += 1
        try:
            if not self._freed.wait_for(lambda: self.working < limits.calls_max, limits.turn_wait_s_max):
                raise StoreOverloaded(
                    f"{limits.calls_max} calls are worked on and none ended within {limits.turn_wait_s_max} s. "
                    "Call again later."
                )
        finally:
            self.waiting -= 1


class Connections:
    """Clients that are connected to a port. Thread-safe.

    Flight tells of a connection with its first call only, and nothing of its end; so a new peer's first call
    asks the system how many connections there are.
    """

    def __init__(self, limits: ServerLimits) -> None:
        self._max = limits.connections_max
        self._lock = threading.Lock()
        self._admitted: OrderedDict[str, None] = OrderedDict()

    def check(self, peer: str, port: int) -> None:
        """See that this peer is not one too many.

        Raises:
            StoreOverloaded.
        """
        with self._lock:
            if peer in self._admitted:
                self._admitted.move_to_end(peer)
                return
        connected = established(port)
        if connected > self._max:
            raise StoreOverloaded(
                f"expected at most {self._max} connections, received one more ({connected}). Close some, or "
                "call again later."
            )
        with self._lock:
            self._admitted[peer] = None
            if len(self._admitted) > self._max:
                self._admitted.popitem(last=False)


def established(port: int) -> int:
    """Connections to a local port that the system knows as established; 0 where it does not tell."""
    count = 0
    wanted = f":{port:04X}"
    for table in _SOCKET_TABLES:
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            count += local.endswith(wanted) and state == _ESTABLISHED
    return count
