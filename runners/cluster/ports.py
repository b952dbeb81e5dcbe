"""Free ports on loopback, for processes that are started later."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from pathlib import Path

from cuckooflow.errors import PartFailed

LOOPBACK = "127.0.0.1"
_FIRST_PORT = 15_000
_TRIES_MAX = 1_000


def free_port(taken: Collection[int] = ()) -> int:
    """A port that nobody listens on and that the system hands to no outgoing connection.

    A client that retries a port of the ephemeral range while its server is away can connect to
    itself and so keep the server from coming back; hence a port below that range.
    """
    for _ in range(_TRIES_MAX):
        port = random.SystemRandom().randrange(_FIRST_PORT, _first_ephemeral())
        if port not in taken and is_free(port):
            return port
    raise PartFailed(f"expected a free port on {LOOPBACK}, found none in {_TRIES_MAX} tries")


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do after a restart
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def accepts(port: int, timeout_s: float = 1.0) -> bool:
    """Whether something accepts connections on the port."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout_s):
            return True
    except OSError:
        return False


def _first_ephemeral() -> int:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return max(first, _FIRST_PORT + _TRIES_MAX)
