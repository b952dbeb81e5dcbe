"""The store's verbs, answered by a store's process."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.flight as flight

from cuckooflow.embedding_store.address import Address
from cuckooflow.embedding_store.api import (
    AnyPush,
    Delta,
    Floats,
    Ids,
    Pulled,
    PushAnswer,
    ReadAt,
    Store,
    StoreConfig,
    Version,
)
from cuckooflow.embedding_store.config_json import config_from_json
from cuckooflow.embedding_store.kinds import AsOf, RowsAt
from cuckooflow.embedding_store.kinds_wire import pack_lookup, unpack_rows
from cuckooflow.embedding_store.range_checks import checked_starts
from cuckooflow.embedding_store.security import ClientSecurity
from cuckooflow.embedding_store.shards import Shard
from cuckooflow.embedding_store.verbs import pack_push, pushed_answer, unpack_delta
from cuckooflow.embedding_store.wire import (
    CALL_BYTES_MAX,
    SCHEMA,
    check_size,
    descriptor,
    end,
    messages,
    receive,
    receive_got,
    send,
    to_ticket,
)
from cuckooflow.embedding_store.wire_errors import raise_if_error
from cuckooflow.embedding_store.wire_head import Array
from cuckooflow.embedding_store.wire_names import check_arrays, keyed, unkeyed
from cuckooflow.errors import StoreOverloaded, StoreUnavailable, Unauthenticated
from cuckooflow.logs.contract import LogRange, Position

log = logging.getLogger(__name__)

#: How long a call is tried again before StoreUnavailable: a killed store is back well within it.
RETRY_S = 60.0
BACKOFF_FIRST_S = 0.05
BACKOFF_S_MAX = 2.0
#: One attempt; a full delta of gigabytes has to fit.
CALL_S_MAX = 300.0
#: A call of no more bytes than this travels in one message; larger ones in pieces.
GET_BYTES_MAX = 256 << 10
#: Bound of an answer's arrays.
ANSWER_BYTES_MAX = 16 << 30
#: An answer of a megabyte comes in one frame instead of 80, without waits for the sender's window to open.
_TRANSPORT = [("grpc.http2.max_frame_size", (1 << 24) - 1), ("grpc.http2.lookahead_bytes", 1 << 24)]


class StoreClient:
    """A store's process, with the answers and the named errors of the embedded form.

    Thread-safe. A call whose connection fails, or that an overloaded store refuses, is sent again, with
    growing pauses, for ``retry_s``; every verb bears that: a push that was applied already is skipped, a delta that got lost comes again.

    Args:
        address: ``host:port``, or the path of the store's address file, which is read again at every
            connection, since a restarted store may have another port.
        retry_s: how long to try before :class:`~cuckooflow.errors.StoreUnavailable`.
        call_s_max: how long one attempt may take.
        security: root certificate and token; by default what the environment names, see
            :meth:`~cuckooflow.embedding_store.security.ClientSecurity.load`.
    """

    def __init__(
        self,
        address: str | Path,
        retry_s: float = RETRY_S,
        call_s_max: float = CALL_S_MAX,
        security: ClientSecurity | None = None,
    ) -> None:
        self._security = ClientSecurity.load() if security is None else security
        self._address = Address(address, self._security)
        self._retry_s = retry_s
        self._call_s_max = call_s_max
        self._lock = threading.Lock()
        self._connection: Any = None
        self._config: StoreConfig | None = None
        self._closed = threading.Event()

    @property
    def config(self) -> StoreConfig:
        """The store's configuration; asked for once, since a store never changes it."""
        if self._config is None:
            self._config = config_from_json(self._call("config")[0]["config"])
        return self._config

    def shard(self) -> Shard:
        """Which shard of its store the process serves."""
        return Shard(*self._call("shard")[0]["shard"])

    def incarnation(self) -> str:
        """Changes with every creation and every restore."""
        return str(self._call("incarnation")[0]["incarnation"])

    def open_log(self, log: str, incarnation: str, starts: Mapping[int, Position]) -> None:
        """See :meth:`~cuckooflow.embedding_store.api.Store.open_log`."""
        checked = checked_starts(log, incarnation, starts)
        shown = {str(partition): list(start) for partition, start in checked.items()}
        self._call("open_log", {"log": log, "incarnation": incarnation, "starts": shown})

    def lookup(self, ids: Mapping[str, Ids]) -> dict[str, Floats]:
        """See :meth:`~cuckooflow.embedding_store.api.Store.lookup`."""
        return unkeyed("rows", self._call("lookup", {}, keyed("ids", ids))[1])

    def dense(self) -> dict[str, Floats]:
        """All dense parameters."""
        return unkeyed("dense", self._call("dense")[1])

    def pull(self, ids: Mapping[str, Ids]) -> Pulled:
        """Rows and all dense parameters, of one moment."""
        head, arrays = self._call("pull", {}, keyed("ids", ids))
        return Pulled(unkeyed("rows", arrays), unkeyed("dense", arrays), tuple(head["clock"]))

    def lookup_at(self, ids: Mapping[str, Ids], as_of_us: AsOf = None, with_dense: bool = False) -> RowsAt:
        """See :meth:`~cuckooflow.embedding_store.api.Store.lookup_at`."""
        return unpack_rows(self._call("lookup_at", *pack_lookup(ids, as_of_us, with_dense))[1])

    def push(
        self,
        range_: LogRange,
        tables: Mapping[str, AnyPush],
        dense: Mapping[str, Floats],
        event_time_us: int,
        read: ReadAt | None = None,
    ) -> PushAnswer:
        """See :meth:`~cuckooflow.embedding_store.api.Store.push`."""
        head, arrays = pack_push(range_, tables, dense, event_time_us, read)
        return pushed_answer(self._call("push", head, arrays)[0])

    def marks(self, log: str) -> dict[int, tuple[Position, ...]]:
        """See :meth:`~cuckooflow.embedding_store.api.Store.marks`."""
        marks = self._call("marks", {"log": log})[0]["marks"]
        return {int(partition): tuple(Position(*mark) for mark in of) for partition, of in marks.items()}

    def log_incarnation(self, log: str) -> str | None:
        """The incarnation that ``open_log`` recorded, or None."""
        found = self._call("log_incarnation", {"log": log})[0]["incarnation"]
        return None if found is None else str(found)

    def delta(self, consumer: str, full: bool = False) -> Delta:
        """See :meth:`~cuckooflow.embedding_store.api.Store.delta`."""
        return unpack_delta(*self._call("delta", {"consumer": consumer, "full": full}))

    def ack(self, consumer: str, version: Version) -> None:
        """See :meth:`~cuckooflow.embedding_store.api.Store.ack`."""
        self._call("ack", {"consumer": consumer, "version": [version[0], int(version[1])]})

    def rows(self, table: str) -> tuple[Ids, Floats]:
        """See :meth:`~cuckooflow.embedding_store.store.EmbeddedStore.rows`."""
        arrays = self._call("rows", {"table": table})[1]
        return arrays["ids"], arrays["weights"]

    def states(self, table: str) -> tuple[Ids, npt.NDArray[np.uint8]]:
        """See :meth:`~cuckooflow.embedding_store.store.EmbeddedStore.states`."""
        arrays = self._call("states", {"table": table})[1]
        return arrays["ids"], arrays["states"]

    def checkpoint(self) -> str:
        """Write a checkpoint into the store's data folder; its name."""
        return str(self._call("checkpoint")[0]["name"])

    def evict_expired(self) -> dict[str, int]:
        """See :meth:`~cuckooflow.embedding_store.api.Store.evict_expired`. Counts what the attempt that answered evicted."""
        evicted: dict[str, int] = self._call("evict_expired")[0]["evicted"]
        return evicted

    def stats(self) -> dict[str, object]:
        """See :meth:`~cuckooflow.embedding_store.store.EmbeddedStore.stats`."""
        stats: dict[str, object] = self._call("stats")[0]["stats"]
        return stats

    def close(self) -> None:
        """Close the connection and end the waits of calls under way. Idempotent."""
        self._closed.set()
        self._disconnect(self._connection)

    def _call(
        self, verb: str, head: Mapping[str, Any] | None = None, arrays: Mapping[str, Array] | None = None
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        check_arrays(arrays or {})
        check_size(arrays or {}, CALL_BYTES_MAX)
        deadline = time.monotonic() + self._retry_s
        pause = BACKOFF_FIRST_S
        while True:
            if self._closed.is_set():
                raise StoreUnavailable(
                    f"this client of the store at {self._address} is closed. Make another."
                )
            connection = None
            try:
                connection = self._connect()
                answer, answer_arrays = self._attempt(connection, verb, head or {}, arrays or {})
                raise_if_error(answer)
            except flight.FlightUnauthenticatedError as error:
                raise Unauthenticated(
                    f"the store at {self._address} refused this client's token. Give it the store's."
                ) from error
            except (pa.ArrowException, OSError, StoreUnavailable, StoreOverloaded) as error:
                if not isinstance(error, StoreOverloaded):
                    self._disconnect(connection)
                if time.monotonic() + pause > deadline:
                    if isinstance(error, StoreOverloaded):
                        raise
                    raise StoreUnavailable(
                        f"the store at {self._address} did not answer {verb!r} within {self._retry_s} s "
                        f"({type(error).__name__}: {error}). See whether its process runs, and whether it asks for TLS "
                        f"({'this client does' if self._security.root_certificate else 'this client does not'})."
                    ) from error
                log.warning(
                    "event=store_retry verb=%s address=%s error=%s", verb, self._address, type(error).__name__
                )
                self._closed.wait(pause)
                pause = min(2 * pause, BACKOFF_S_MAX)
                continue
            return answer, answer_arrays

    def _attempt(
        self, connection: Any, verb: str, head: Mapping[str, Any], arrays: Mapping[str, Array]
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        token = self._security.token
        headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
        options = flight.FlightCallOptions(timeout=self._call_s_max, headers=headers)
        if sum(array.nbytes for array in arrays.values()) <= GET_BYTES_MAX:
            reader = connection.do_get(flight.Ticket(to_ticket(verb, head, arrays)), options)
            answer = receive_got(reader, ANSWER_BYTES_MAX)
            end(reader)
            return answer
        writer, reader = connection.do_exchange(descriptor(verb), options)
        try:
            writer.begin(SCHEMA)
            send(writer, messages(head, arrays))
            writer.done_writing()
            return receive(reader, ANSWER_BYTES_MAX)
        finally:
            # What close() has to say was said already: by the answer, or by the error above.
            with contextlib.suppress(pa.ArrowException):
                writer.close()

    def _connect(self) -> Any:
        with self._lock:
            if self._connection is None:
                host, port = self._address.now()
                roots = self._security.root_certificate
                if roots is None:
                    location = flight.Location.for_grpc_tcp(host, port)
                    self._connection = flight.FlightClient(location, generic_options=_TRANSPORT)
                else:
                    location = flight.Location.for_grpc_tls(host, port)
                    self._connection = flight.FlightClient(
                        location, tls_root_certs=roots, generic_options=_TRANSPORT
                    )
            return self._connection

    def _disconnect(self, connection: Any) -> None:
        """Forget a connection that failed, unless another thread has replaced it already."""
        with self._lock:
            if connection is None or self._connection is not connection:
                return
            self._connection = None
        try:
            connection.close()
        except (pa.ArrowException, OSError) as error:
            log.debug("event=close_failed error=%s", error)


@overload
def connect(
    address_or_path: str | Path, retry_s: float = RETRY_S, security: ClientSecurity | None = None
) -> StoreClient: ...


@overload
def connect(
    address_or_path: Sequence[str | Path], retry_s: float = RETRY_S, security: ClientSecurity | None = None
) -> Store: ...


def connect(
    address_or_path: str | Path | Sequence[str | Path],
    retry_s: float = RETRY_S,
    security: ClientSecurity | None = None,
) -> Store:
    """A client of the store at ``host:port``, or at what an address file says; of several, shard after shard.

    Connects with the first call. ``security``: see :class:`StoreClient`.

    Raises:
        SpecError: it is neither a path nor ``host:port``, or there is none.
        InsecureListen: the host is not this machine, and TLS or the token is missing.
    """
    if isinstance(address_or_path, str | Path):
        return StoreClient(address_or_path, retry_s, security=security)
    if len(address_or_path) == 1:
        return StoreClient(address_or_path[0], retry_s, security=security)
    # It is made of this module's clients.
    from cuckooflow.embedding_store.sharded_client import ShardedClient

    return ShardedClient(address_or_path, retry_s, security=security)
