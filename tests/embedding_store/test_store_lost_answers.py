"""Answers that get lost on their way, and calls of several shards under way at once."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from cuckooflow.embedding_store import (
    EmbeddedStore,
    LogRange,
    Optimizer,
    Position,
    Shard,
    StoreConfig,
    TableConfig,
    TablePush,
    connect,
)
from cuckooflow.embedding_store.client import StoreClient
from cuckooflow.embedding_store.server import StoreServer
from cuckooflow.embedding_store.store_metrics import StoreMetrics

CONFIG = StoreConfig((TableConfig("t", 2, Optimizer("sgd", 1.0), init_stddev=0.0, ttl_us=100),), buckets=8)
IDS = np.arange(50, dtype=np.uint64)
SECONDS_MAX = 60


class Line:
    """A connection to a server through which answers can be kept from coming."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.swallows = threading.Event()
        self._start(self._accept)

    def _start(self, run: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=run, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [near, far]
                self._start(self._pass, near, far, False)
                self._start(self._pass, far, near, True)

    def _pass(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                if not (answers and self.swallows.is_set()):
                    sink.sendall(content)

    def cut(self) -> None:
        """End the connections that there are; later ones pass everything again."""
        self.swallows.clear()
        broken, self._sockets = self._sockets, []
        for end in broken:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(SECONDS_MAX)


@pytest.fixture
def lost(
    tmp_path, wait_for
) -> Iterator[tuple[EmbeddedStore, StoreClient, Callable[[str, Callable[[], Any]], Any]]]:
    """A store, a client of its process, and what makes a call whose first answer gets lost: ``(verb, call)``."""
    store, metrics = EmbeddedStore(CONFIG, tmp_path), StoreMetrics()
    server = StoreServer(store, "127.0.0.1:0", metrics=metrics)
    line = Line(server.port)
    client = StoreClient(line.address)

    def answered(verb: str) -> float:
        return metrics.registry.get_sample_value("cuckooflow_store_calls_total", {"verb": verb}) or 0.0

    def losing(verb: str, call: Callable[[], Any]) -> Any:
        client.shard()  # connected
        before, answers = answered(verb), []
        line.swallows.set()
        calling = threading.Thread(target=lambda: answers.append(call()))
        calling.start()
        wait_for(lambda: answered(verb) > before, f"an answer to {verb}", SECONDS_MAX)
        assert answered(verb) == before + 1 and not answers
        line.cut()
        calling.join(SECONDS_MAX)
        assert answered(verb) == before + 2  # asked again
        return answers[0]

    try:
        yield store, client, losing
    finally:
        client.close()
        line.close()
        server.shutdown()
        store.close()


def push(n: int) -> tuple[LogRange, dict[str, TablePush], dict[str, Any], int]:
    range_ = LogRange("examples", "made-once", 0, Position(n), Position(n + 1))
    return range_, {"t": TablePush(IDS, np.full((len(IDS), 2), -1.0, np.float32))}, {}, n


def test_a_push_whose_answer_got_lost_is_applied_once(lost):
    store, client, losing = lost
    losing("open_log", lambda: client.open_log("examples", "made-once", {0: Position(0)}))
    assert losing("push", lambda: client.push(*push(0))) == (0, 8, 0)  # it had been applied
    assert client.push(*push(1)) == (8, 0, 0)
    assert (store.lookup({"t": IDS})["t"] == 2).all()
    assert store.marks("examples") == {0: (Position(2),)}


def test_a_delta_that_got_lost_keeps_its_keys_and_an_ack_may_come_twice(lost):
    _, client, losing = lost
    client.open_log("examples", "made-once", {0: Position(0)})
    full = losing("delta", lambda: client.delta("replica", full=True))
    losing("ack", lambda: client.ack("replica", full.version))
    client.push(*push(0))
    delta = losing("delta", lambda: client.delta("replica"))
    np.testing.assert_array_equal(np.sort(delta.tables["t"].ids), IDS)
    losing("ack", lambda: client.ack("replica", delta.version))
    assert len(client.delta("replica").tables["t"].ids) == 0
    assert losing("checkpoint", client.checkpoint).startswith("checkpoint-")


def test_shards_are_asked_at_once(monkeypatch):
    """Each shard's answer waits for the calls of all others: one after another they would never come."""
    meet = threading.Barrier(3, timeout=SECONDS_MAX)
    for verb in ("lookup", "push", "delta", "marks"):
        original = getattr(EmbeddedStore, verb)

        def met(self, *arguments, _original=original):
            meet.wait()
            return _original(self, *arguments)

        monkeypatch.setattr(EmbeddedStore, verb, met)
    servers = [StoreServer(EmbeddedStore(CONFIG, shard=Shard(i, 3)), "127.0.0.1:0") for i in range(3)]
    client = connect([f"127.0.0.1:{server.port}" for server in servers])
    try:
        client.open_log("examples", "made-once", {0: Position(0)})
        assert client.push(*push(0)).applied == 8
        assert (client.lookup({"t": IDS})["t"] == 1).all()
        assert len(client.delta("replica", full=True).tables["t"].ids) == len(IDS)
        assert client.marks("examples") == {0: (Position(1),)}
    finally:
        client.close()
        for server in servers:
            server.shutdown()
