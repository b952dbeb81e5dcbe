"""The store as a process: the embedded store behind Arrow Flight, with periodic checkpoints.

``python -m cuckooflow.embedding_store.server --config store.json --data DIR --listen 127.0.0.1:0``
"""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from cuckooflow.embedding_store.address import check_loopback, parse_address, write_address
from cuckooflow.embedding_store.api import StoreConfig
from cuckooflow.embedding_store.config_json import config_from_json
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.embedding_store.verbs import perform
from cuckooflow.embedding_store.wire import CALL_BYTES_MAX, SCHEMA, drain, receive, send
from cuckooflow.embedding_store.wire_errors import error_to_head
from cuckooflow.errors import CuckooflowError, StoreError, StoreUnavailable

log = logging.getLogger(__name__)

#: Calls worked on at once; more wait their turn within their own timeout.
CALLS_MAX = 64
TURN_WAIT_S_MAX = 10.0


class StoreServer(flight.FlightServerBase):
    """Serves a store from construction until :meth:`shutdown`. Loopback only.

    Args:
        store: the store; the server does not close it.
        listen: ``host:port``; port 0 takes a free one, which :attr:`port` then tells.
        call_bytes_max: bound of one call's arrays.

    Raises:
        InsecureListen: the address can be reached from other machines.
        StoreUnavailable: the address is taken.
    """

    def __init__(self, store: EmbeddedStore, listen: str, call_bytes_max: int = CALL_BYTES_MAX) -> None:
        self.host, port = parse_address(listen)
        check_loopback(self.host)
        self._store = store
        self._call_bytes_max = call_bytes_max
        self._turns = threading.BoundedSemaphore(CALLS_MAX)
        try:
            super().__init__(flight.Location.for_grpc_tcp(self.host, port))
        except (pa.ArrowException, OSError) as error:
            raise StoreUnavailable(
                f"expected to listen at {listen}, received: {error}. Stop what listens there, or use port 0."
            ) from error

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """One call: a verb, its message, its answer or its error."""
        verb = descriptor.command.decode(errors="replace")
        try:
            with self._turn():
                head, arrays = receive(reader, self._call_bytes_max)
                answer, answer_arrays = perform(self._store, verb, head, arrays)
        except Exception as error:
            if not isinstance(error, StoreError):
                log.exception("event=call_failed verb=%s peer=%s", verb, context.peer())
            answer, answer_arrays = error_to_head(error), {}
            drain(reader, CALL_BYTES_MAX)
        writer.begin(SCHEMA)
        send(writer, answer, answer_arrays)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._turns.acquire(timeout=TURN_WAIT_S_MAX):
            raise StoreUnavailable(
                f"{CALLS_MAX} calls are worked on and none ended within {TURN_WAIT_S_MAX} s. Call again later."
            )
        try:
            yield
        finally:
            self._turns.release()


def serve(
    config: StoreConfig,
    data: Path,
    listen: str = "127.0.0.1:0",
    checkpoint_interval_s: float = 60.0,
    stop: threading.Event | None = None,
) -> None:
    """Serve the store that lies in ``data`` (or a new one) until SIGTERM or SIGINT, or until ``stop`` is set.

    The bound address stands in ``data/address``. A checkpoint is written every ``checkpoint_interval_s``
    if there is anything new, and a last one before this returns. A checkpoint costs a copy of the
    rows to disk; whatever was pushed since the newest one is trained again after a kill.

    Raises:
        InsecureListen, ConfigDiffers, CheckpointDamaged, StoreLocked, StoreUnavailable.
    """
    stop = stop or threading.Event()
    check_loopback(parse_address(listen)[0])
    with _stopped_by_signals(stop):
        store = open_store(config, data)
        try:
            _serve_until(stop, store, Path(data) / "address", listen, checkpoint_interval_s)
            if store.changed_since_checkpoint():
                store.checkpoint()
            log.info("event=store_stopped data=%s", data)
        finally:
            store.close()


def _serve_until(
    stop: threading.Event, store: EmbeddedStore, address: Path, listen: str, checkpoint_interval_s: float
) -> None:
    # A killed predecessor left its own, which nobody must take for this one's.
    address.unlink(missing_ok=True)
    server = StoreServer(store, listen)
    try:
        write_address(address, server.host, server.port)
        log.info(
            "event=store_serving address=%s:%d incarnation=%s", server.host, server.port, store.incarnation()
        )
        while not stop.wait(checkpoint_interval_s):
            _checkpoint(store)
    finally:
        address.unlink(missing_ok=True)
        server.shutdown()


def _checkpoint(store: EmbeddedStore) -> None:
    """A periodic one; a full disk must not end a store that serves."""
    if not store.changed_since_checkpoint():
        return
    try:
        name = store.checkpoint()
    except OSError as error:
        log.error("event=checkpoint_failed error=%s", error)
    else:
        log.info("event=checkpoint_written name=%s", name)


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
    parser = argparse.ArgumentParser(description="Serve an embedding store.")
    parser.add_argument("--config", type=Path, required=True, help="the store's configuration, JSON")
    parser.add_argument("--data", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--listen", default="127.0.0.1:0", help="loopback host:port; port 0 takes a free one")
    parser.add_argument("--checkpoint-interval-s", type=float, default=60.0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="time=%(asctime)s level=%(levelname)s %(message)s")
    try:
        config = config_from_json(options.config.read_text())
        serve(config, options.data, options.listen, options.checkpoint_interval_s)
    except (CuckooflowError, OSError) as error:
        log.error("event=store_failed error=%s: %s", type(error).__name__, error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
