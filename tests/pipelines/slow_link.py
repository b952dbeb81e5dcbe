"""A link to a process that holds back whatever it answers."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from cuckooflow.embedding_store.address import parse_address

_PIECE_BYTES = 1 << 16


class SlowLink:
    """Passes on at once what clients send, and late what the process answers.

    Args:
        to: the process's ``host:port``.
        delay_s: by which every piece of an answer is late.
        while_held: called for each piece meanwhile, by one thread at a time.

    Attributes:
        address: where clients find it.
    """

    def __init__(self, to: str, delay_s: float, while_held: Callable[[], None]) -> None:
        self._to, self._delay_s, self._while_held = parse_address(to), delay_s, while_held
        self._one_at_a_time = threading.Lock()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self._clients: list[socket.socket] = []
        self._links: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def close(self) -> None:
        """Cut every connection."""
        self._closed.set()
        _cut(self._listener)
        self._accepting.join()
        _cut(*self._clients)
        for link in self._links:
            link.join()

    def _accept(self) -> None:
        with self._listener, contextlib.suppress(OSError):  # it is cut
            while True:
                client = self._listener.accept()[0]
                self._clients.append(client)
                self._links.append(threading.Thread(target=self._link, args=(client,)))
                self._links[-1].start()

    def _link(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._to) as process:
            answers = threading.Thread(target=_pass_on, args=(process, client, self._hold))
            answers.start()
            _pass_on(client, process, lambda: None)
            answers.join()

    def _hold(self) -> None:
        with self._one_at_a_time:
            self._while_held()
        self._closed.wait(self._delay_s)


def _pass_on(source: socket.socket, sink: socket.socket, hold: Callable[[], None]) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := source.recv(_PIECE_BYTES):
            hold()
            sink.sendall(piece)
    _cut(source, sink)


def _cut(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):  # the other side did
            end.shutdown(socket.SHUT_RDWR)
