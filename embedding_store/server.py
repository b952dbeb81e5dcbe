"""The store as a process: the embedded store behind Arrow Flight, with periodic checkpoints.

``python -m cuckooflow.embedding_store.server --config store.json --data DIR --listen 127.0.0.1:0``, and for
one shard of several ``--shard 0 --of 3`` besides, each with a folder of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import hmac
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from cuckooflow.embedding_store.address import check_loopback, parse_address, write_address
from cuckooflow.embedding_store.api import StoreConfig
from cuckooflow.embedding_store.checkpoint_chain import CheckpointPolicy
from cuckooflow.embedding_store.config_json import config_from_file
from cuckooflow.embedding_store.durable import write_durably
from cuckooflow.embedding_store.security import ServerSecurity
from cuckooflow.embedding_store.served_call import ServedCall
from cuckooflow.embedding_store.server_limits import Connections, ServerLimits, Turns, check_rows
from cuckooflow.embedding_store.shards import WHOLE, Shard, check_shard
from cuckooflow.embedding_store.status_server import StatusServer
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.embedding_store.store_metrics import StoreMetrics
from cuckooflow.embedding_store.verbs import Message, perform
from cuckooflow.embedding_store.wire import (
    CALL_BYTES_MAX,
    SCHEMA,
    WHOLE_BYTES_MAX,
    drain,
    from_ticket,
    receive,
    send,
)
from cuckooflow.errors import CheckpointGivenUp, CuckooflowError, SpecError, StoreError, StoreUnavailable

log = logging.getLogger(__name__)

#: How long a signal may go unnoticed.
SIGNAL_NOTICED_S_MAX = 0.5


class StoreServer(flight.FlightServerBase):
    """Serves a store from construction until :meth:`shutdown`.

    Args:
        store: the store; the server does not close it.
        listen: ``host:port``; port 0 takes a free one, which :attr:`port` then tells.
        limits: see :class:`~cuckooflow.embedding_store.server_limits.ServerLimits`.
        security: TLS and token; none by default, which is for loopback only.
        metrics: where calls are counted.

    Attributes:
        turns: calls at work and calls that wait.

    Raises:
        InsecureListen: the address can be reached from other machines, and TLS or the token is missing.
        StoreUnavailable: the address is taken.
    """

    def __init__(
        self,
        store: EmbeddedStore,
        listen: str,
        limits: ServerLimits | None = None,
        security: ServerSecurity | None = None,
        metrics: StoreMetrics | None = None,
    ) -> None:
        self.host, port = parse_address(listen)
        security = security or ServerSecurity()
        check_loopback(self.host, security)
        self._store = store
        self._limits = limits or ServerLimits()
        self._metrics = metrics or StoreMetrics()
        self.turns = Turns(self._limits)
        self._connections = Connections(self._limits)
        store.share_lookups(self._limits.lookup_threads)
        options: dict[str, Any] = {}
        location = flight.Location.for_grpc_tcp(self.host, port)
        if security.certificate is not None:
            location = flight.Location.for_grpc_tls(self.host, port)
            options["tls_certificates"] = [(security.certificate, security.key)]
        if security.token is not None:
            options["middleware"] = {"token": _TokenCheck(security.token, self._metrics)}
        try:
            super().__init__(location, **options)
        except (pa.ArrowException, OSError) as error:
            raise StoreUnavailable(
                f"expected to listen at {listen}, received: {error}. Stop what listens there, or use port 0."
            ) from error

    def do_get(self, context: Any, ticket: Any) -> Any:
        """One small call: all of it in the ticket; its answer or its error."""
        call = ServedCall(self._metrics)
        try:
            verb, head, arrays = from_ticket(ticket.ticket, self._limits.call_bytes_max)
        except StoreError as error:
            answer = call.refused(error)
        else:
            call.names(verb)
            answer = self._answer(context, call, lambda: (head, arrays))
        if sum(array.nbytes for array in answer[1].values()) <= WHOLE_BYTES_MAX:
            return call.sent_whole(*answer)
        return flight.GeneratorStream(SCHEMA, call.sending(*answer))

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """One call: a verb, its message, its answer or its error."""
        call = ServedCall(self._metrics)
        call.names(descriptor.command.decode(errors="replace"))
        answer = self._answer(context, call, lambda: receive(reader, self._limits.call_bytes_max))
        if "error" in answer[0]:
            drain(reader, CALL_BYTES_MAX)
        writer.begin(SCHEMA)
        send(writer, call.sending(*answer))

    def _answer(self, context: Any, call: ServedCall, take: Callable[[], Message]) -> Message:
        try:
            self._connections.check(context.peer(), self.port)
            with self.turns:
                head, arrays = take()
                call.received(arrays)
                call.asks(check_rows(arrays, self._limits.rows_max))
                answer = perform(self._store, call.verb, head, arrays)
            call.done()
            return answer
        except Exception as error:
            if not isinstance(error, StoreError):
                log.exception("event=call_failed verb=%s peer=%s", call.verb, context.peer())
            return call.refused(error)

    def finish(self) -> bool:
        """Shut down once calls under way have ended; whether they did within the bound.

        One whose client stands still would never end.
        """
        finishing = threading.Thread(target=self.shutdown, name="store-finish", daemon=True)
        finishing.start()
        finishing.join(self._limits.finish_s_max)
        finished = not finishing.is_alive()
        if not finished:
            log.warning(
                "event=calls_abandoned working=%d after_s=%s", self.turns.working, self._limits.finish_s_max
            )
        return finished


class _TokenCheck(flight.ServerMiddlewareFactory):
    """Refuses calls without the token, before anything of them is read."""

    def __init__(self, token: str, metrics: StoreMetrics) -> None:
        self._expected = f"Bearer {token}".encode()
        self._metrics = metrics

    def start_call(self, info: Any, headers: Any) -> None:
        del info
        received = [
            value for name, values in headers.items() if name.lower() == "authorization" for value in values
        ]
        if len(received) != 1 or not hmac.compare_digest(_bytes(received[0]), self._expected):
            self._metrics.errors.labels("unknown", "Unauthenticated").inc()
            raise flight.FlightUnauthenticatedError("expected the store's bearer token")


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def serve(
    config: StoreConfig,
    data: Path,
    listen: str = "127.0.0.1:0",
    checkpoint_interval_s: float = 60.0,
    stop: threading.Event | None = None,
    *,
    shard: Shard = WHOLE,
    http: str | None = None,
    limits: ServerLimits | None = None,
    security: ServerSecurity | None = None,
    policy: CheckpointPolicy | None = None,
) -> bool:
    """Serve the store that lies in ``data`` (or a new one) until SIGTERM or SIGINT, or until ``stop`` is set.

    The bound address stands in ``data/address``, that of HTTP in ``data/http_address``. A checkpoint is written
    every ``checkpoint_interval_s`` if there is anything new, and a last one before this returns. A checkpoint
    costs a copy of the rows to disk; whatever was pushed since the newest one is trained again after a kill.
    A signal lets calls under way finish, for ``limits.finish_s_max`` at most.

    Args:
        shard: which part of the store this is.
        http: loopback ``host:port`` of health and metrics; None: nowhere.
        limits, security: see :class:`StoreServer`.
        policy: when checkpoints are full ones, and how long they are kept.

    Returns:
        Whether all calls under way finished. Else their threads stand still yet, and would keep an interpreter from
        ending; see :func:`leave`.

    Raises:
        InsecureListen, ConfigDiffers, WrongShard, CheckpointDamaged, StoreLocked, StoreUnavailable, SpecError.
    """
    stop = stop or threading.Event()
    check_loopback(parse_address(listen)[0], security)
    if http is not None:
        check_loopback(parse_address(http)[0])
    check_shard(shard, config.buckets)
    with _stopped_by_signals(stop):
        store = open_store(config, data, shard, policy or CheckpointPolicy())
        try:
            metrics = StoreMetrics()
            server = _Served(store, Path(data), metrics)
            finished = server.until(stop, listen, http, checkpoint_interval_s, limits, security)
            if store.changed_since_checkpoint():
                with metrics.checkpoint_seconds.time():
                    store.checkpoint()
            log.info("event=store_stopped data=%s", data)
        finally:
            store.close()
    return finished


def leave(finished: bool) -> None:
    """End this process with code 0 after :func:`serve`, also where threads of abandoned calls keep it."""
    if finished:
        return
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class _Served:
    """A store while it is served: its listeners, their address files, its periodic checkpoints."""

    def __init__(self, store: EmbeddedStore, data: Path, metrics: StoreMetrics) -> None:
        self._store = store
        self._data = data
        self._metrics = metrics

    def until(
        self,
        stop: threading.Event,
        listen: str,
        http: str | None,
        checkpoint_interval_s: float,
        limits: ServerLimits | None,
        security: ServerSecurity | None,
    ) -> bool:
        address, http_address = self._data / "address", self._data / "http_address"
        # A killed predecessor left its own, which nobody must take for this one's.
        for file in (address, http_address):
            file.unlink(missing_ok=True)
        server = StoreServer(self._store, listen, limits, security, self._metrics)
        status = None
        finished = False
        try:
            self._metrics.watch(self._store, server.turns, self._data)
            if http is not None:
                status = StatusServer(http, self._metrics.registry, lambda: self._health(stop))
                write_durably(http_address, f"{status.address}\n".encode())
            write_address(address, server.host, server.port)
            log.info(
                "event=store_serving address=%s:%d shard=%d of=%d incarnation=%s",
                server.host,
                server.port,
                *self._store.shard,
                self._store.incarnation(),
            )
            while not _stopped_within(stop, checkpoint_interval_s):
                self._checkpoint()
        finally:
            address.unlink(missing_ok=True)
            finished = server.finish()
            if status is not None:
                http_address.unlink(missing_ok=True)
                status.close()
        return finished

    def _health(self, stop: threading.Event) -> dict[str, object]:
        return {
            "status": "stopping" if stop.is_set() else "serving",
            "shard": list(self._store.shard),
            "incarnation": self._store.incarnation(),
        }

    def _checkpoint(self) -> None:
        """A periodic one; a full or slow disk must not end a store that serves."""
        if not self._store.changed_since_checkpoint():
            return
        try:
            with self._metrics.checkpoint_seconds.time():
                name = self._store.checkpoint()
        except (OSError, CheckpointGivenUp) as error:
            self._metrics.checkpoints_failed.inc()
            log.error("event=checkpoint_failed error=%s", error)
        else:
            log.info("event=checkpoint_written name=%s", name)


def _stopped_within(stop: threading.Event, seconds: float) -> bool:
    """Whether it is set within so long.

    Waits piece by piece: a signal that comes as a wait begins, or to another thread, does not wake the main thread,
    which handles it after the wait.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if stop.wait(min(left, SIGNAL_NOTICED_S_MAX)):
            return True
    return stop.is_set()


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, _: FrameType | None) -> None:
        log.info("event=signal number=%d", number)
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: list[str] | None = None) -> int:
    """The module's command line; 0, or 1 with the error's message on stderr."""
    parser = argparse.ArgumentParser(description="Serve an embedding store, or one shard of it.")
    parser.add_argument(
        "--config",
        type=Path,
        help="the store's configuration, JSON; default: of the store that lies in --data",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--shard", type=int, default=0, help="which shard, from 0; default 0")
    parser.add_argument("--of", type=int, default=1, help="how many shards; default 1")
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0 takes a free one")
    parser.add_argument("--http", help="loopback host:port of /healthz and /metrics")
    parser.add_argument("--tls-certificate", type=Path, help="PEM; with --tls-key")
    parser.add_argument("--tls-key", type=Path, help="PEM")
    parser.add_argument("--token-file", type=Path, help="holds the token that clients must send")
    parser.add_argument("--checkpoint-interval-s", type=float, default=60.0)
    for field in dataclasses.fields(ServerLimits):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="time=%(asctime)s level=%(levelname)s %(message)s")
    try:
        limits = {field.name: getattr(options, field.name) for field in dataclasses.fields(ServerLimits)}
        finished = serve(
            read_config(options.config, options.data),
            options.data,
            options.listen,
            options.checkpoint_interval_s,
            shard=Shard(options.shard, options.of),
            http=options.http,
            limits=ServerLimits(**limits),
            security=ServerSecurity.load(options.tls_certificate, options.tls_key, options.token_file),
        )
    except (CuckooflowError, OSError) as error:
        log.error("event=store_failed error=%s: %s", type(error).__name__, error)
        return 1
    leave(finished)
    return 0


def read_config(file: Path | None, data: Path) -> StoreConfig:
    """A store's configuration, from a file or from the store that lies in ``data``.

    Raises:
        SpecError: there is neither, or it is wrong, or it cannot be read.
    """
    here = Path(data) / "store.json"
    if file is None and not here.exists():
        raise SpecError(f"expected a configuration or a store in {data}, received neither. Give --config.")
    return config_from_file(file or here)


if __name__ == "__main__":
    raise SystemExit(main())
