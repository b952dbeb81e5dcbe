"""The store's process beside a bare Flight exchange and Redis, all on loopback."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from benchmarks.store_peers import DIM, Floats, Ids, redis_command
from benchmarks.store_table import TABLE, ids_of, new_store
from cuckooflow.embedding_store.client import StoreClient
from cuckooflow.embedding_store.server import StoreServer

ASKED = 10_000
ROW_BYTES = 4 * DIM
SCHEMA = pa.schema([pa.field("bytes", pa.uint8(), nullable=False)])
START_S_MAX = 600.0
TURN = 16


class Echo(flight.FlightServerBase):
    """Takes the bytes of a call and answers as many as a lookup of :data:`ASKED` rows does, and nothing else."""

    def __init__(self) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._answer = _batch(np.zeros(ASKED * ROW_BYTES, np.uint8))

    def do_exchange(self, _context: Any, _descriptor: Any, reader: Any, writer: Any) -> None:
        """One round trip."""
        reader.read_chunk()
        writer.begin(SCHEMA)
        writer.write_batch(self._answer)


def round_trips(rows: int, seconds: float, redis: bool) -> dict[str, float]:
    """The best round trip of each, in seconds: ``cuckooflow``, ``echo`` and, where asked for, ``redis``.

    They take turns of :data:`TURN` calls, as a client under way makes them: single calls in turn would find each
    contender's memory out of every cache.
    """
    ids = [ids_of(batch) for batch in np.random.default_rng(6).integers(0, rows, (64, ASKED), np.uint64)]
    with contextlib.ExitStack() as stack:
        calls: dict[str, Callable[[Ids], Any]] = {
            "cuckooflow": stack.enter_context(_store(rows)),
            "echo": stack.enter_context(_echo()),
        }
        if redis:
            calls["redis"] = stack.enter_context(_redis(rows))
        best = dict.fromkeys(calls, float("inf"))
        until, number = time.perf_counter() + seconds * len(calls), 0
        while time.perf_counter() < until or number < len(ids):
            for name, call in calls.items():
                for asked in (ids[(number + k) % len(ids)] for k in range(TURN)):
                    begun = time.perf_counter()
                    call(asked)
                    best[name] = min(best[name], time.perf_counter() - begun)
            number += TURN
    return best


@contextlib.contextmanager
def _store(rows: int) -> Iterator[Callable[[Ids], Any]]:
    with _process(_serve_store, rows) as port:
        client = StoreClient(f"127.0.0.1:{port}")
        try:
            yield lambda ids: client.lookup({TABLE: ids})
        finally:
            client.close()


@contextlib.contextmanager
def _echo() -> Iterator[Callable[[Ids], Any]]:
    with _process(_serve_echo) as port, flight.connect(f"grpc://127.0.0.1:{port}") as client:
        descriptor = flight.FlightDescriptor.for_command(b"echo")

        def call(ids: Ids) -> Any:
            writer, reader = client.do_exchange(descriptor)
            with writer:
                writer.begin(SCHEMA)
                writer.write_batch(_batch(ids.view(np.uint8)))
                writer.done_writing()
                return reader.read_chunk()

        yield call


def _batch(values: Any) -> Any:
    column = pa.Array.from_buffers(pa.uint8(), values.size, [None, pa.py_buffer(values)])
    return pa.RecordBatch.from_arrays([column], schema=SCHEMA)


def _serve_store(port: Connection, rows: int) -> None:
    server = StoreServer(new_store(rows).store, "127.0.0.1:0")
    port.send(server.port)
    server.serve()


def _serve_echo(port: Connection) -> None:
    server = Echo()
    port.send(server.port)
    server.serve()


@contextlib.contextmanager
def _process(target: Callable[..., None], *arguments: Any) -> Iterator[int]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(START_S_MAX):
            raise RuntimeError(f"{target.__name__} did not start within {START_S_MAX} s")
        yield here.recv()
    finally:
        process.terminate()
        process.join()


class RedisRows:
    """The least work a client of Redis can do: requests and answers of fixed width, made and read by numpy."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._answer = bytearray(1 << 25)

    def load(self, ids: Ids, rows: Floats) -> None:
        """MSET."""
        width = len(b"$8\r\n") + 8 + 2
        value = len(b"$%d\r\n" % ROW_BYTES) + ROW_BYTES + 2
        pairs = np.empty((len(ids), width + value), np.uint8)
        pairs[:, :width] = self._keys(ids)
        pairs[:, width:] = np.frombuffer(b"$%d\r\n" % ROW_BYTES + b"\0" * ROW_BYTES + b"\r\n", np.uint8)
        pairs[:, -2 - ROW_BYTES : -2] = rows.view(np.uint8)
        self._connection.sendall(b"*%d\r\n$4\r\nMSET\r\n" % (2 * len(ids) + 1) + pairs.tobytes())
        self._receive(len(b"+OK\r\n"))

    def lookup(self, ids: Ids) -> Floats:
        """MGET of (n,) ids that are all there: (n, DIM) weights."""
        self._connection.sendall(b"*%d\r\n$4\r\nMGET\r\n" % (len(ids) + 1) + self._keys(ids).tobytes())
        head = len(b"*%d\r\n" % len(ids))
        before = len(b"$%d\r\n" % ROW_BYTES)
        width = before + ROW_BYTES + 2
        answer = self._receive(head + len(ids) * width)
        table = np.frombuffer(answer, np.uint8, offset=head).reshape(len(ids), width)
        return np.ascontiguousarray(table[:, before:-2]).view(np.float32)

    def _keys(self, ids: Ids) -> Any:
        keys = np.empty((len(ids), 14), np.uint8)
        keys[:, :4] = np.frombuffer(b"$8\r\n", np.uint8)
        keys[:, 4:12] = ids.view(np.uint8).reshape(-1, 8)
        keys[:, 12:] = np.frombuffer(b"\r\n", np.uint8)
        return keys

    def _receive(self, size: int) -> memoryview:
        got = 0
        while got < size:
            n = self._connection.recv_into(memoryview(self._answer)[got:size])
            if n == 0:
                raise RuntimeError("Redis closed the connection")
            got += n
        return memoryview(self._answer)[:size]


@contextlib.contextmanager
def _redis(rows: int) -> Iterator[Callable[[Ids], Floats]]:
    command, environment = redis_command()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with path.open("wb") as log:
            process = subprocess.Popen([*command, *options, "--dir", folder], stdout=log, env=environment)
        try:
            with _connected(port) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client = RedisRows(connection)
                for start in range(0, rows, 16_384):
                    ids = ids_of(np.arange(start, min(rows, start + 16_384), dtype=np.uint64))
                    client.load(ids, _values(ids))
                probe_ids = ids_of(np.arange(min(rows, 1_000), dtype=np.uint64))
                if not np.array_equal(client.lookup(probe_ids), _values(probe_ids)):
                    raise RuntimeError("Redis answered other rows than were put in")
                yield client.lookup
        finally:
            process.terminate()
            process.wait()


def _values(ids: Ids) -> Floats:
    """A row for each id."""
    low = (ids & np.uint64(0xFFFF)).astype(np.float32)
    return np.ascontiguousarray(np.repeat(low[:, None], DIM, axis=1))


def _connected(port: int) -> socket.socket:
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
