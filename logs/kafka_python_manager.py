"""kafka-python's connection manager, with mends of what version 3.0.12 does with connections that end.

* That a broker does not let a client in is said at once. The original tries again until its time is over, and
  then says only that nobody answered.
* What a broker said before it hung up is read: the original throws away what comes together with the end of the
  connection, which a refusal does on a busy machine.
* A connection that fails or is closed leaves no socket behind: the original leaves those of a refused
  connection, of a failed TLS handshake, and of one that had something left to write to the collector.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
from collections.abc import Iterator
from typing import Any

import kafka.errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.connection import KafkaConnection
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslBytesRequest

#: What trying again does not mend.
REFUSALS = (
    kafka_errors.AuthorizationError,
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
)
_BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE


class _Transport(KafkaTCPTransport):
    def _sock_recv(self) -> tuple[bytes, Exception | None]:
        received, error = super()._sock_recv()
        return received, None if received else error  # the next read finds the end again

    def close_now(self) -> None:
        """Close without what was left to write."""
        self._write_buffer.clear()
        self.close()


class _TlsTransport(_Transport, KafkaSSLTransport):
    pass


class ConnectionManager(KafkaConnectionManager):
    """See the module.

    Attributes:
        cause: why the last connection could not be made; None: none has failed since the manager was made.
    """

    def __init__(self, net: NetworkSelector, **configs: Any) -> None:
        self.cause: Exception | None = None
        super().__init__(net, **configs)

    def get_connection(self, node_id: Any, *args: Any, **options: Any) -> KafkaConnection:
        """As the original; until it has bootstrapped, a refusal is raised by the next try.

        Raises:
            SaslAuthenticationFailedError, AuthorizationError, UnsupportedSaslMechanismError: not let in.
        """
        if isinstance(self.cause, REFUSALS) and not self.bootstrapped:
            raise self.cause
        connection = super().get_connection(node_id, *args, **options)
        connection.init_future.add_errback(self._note)
        return connection

    def close(self, node_id: Any = None, timeout_ms: float | None = None) -> None:
        """As the original; nothing is left to be written later."""
        for connection in list(self._conns.values()) if node_id is None else ():
            if connection.transport is not None:
                connection.transport.close_now()
        super().close(node_id, timeout_ms)

    def _note(self, cause: Exception) -> None:
        self.cause = cause

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> _Transport:
        with self._closed_on_failure() as sockets:
            connected = await self._connected(sockets, node, timeout_at)
            if self.ssl_enabled:
                options = {name: value for name, value in self.config.items() if name.startswith("ssl_")}
                transport: _Transport = _TlsTransport(self._net, connected, host=node.host, **options)
            else:
                transport = _Transport(self._net, connected, host=node.host)
        try:
            await transport.handshake()
        except BaseException as error:
            transport.close()
            if isinstance(error, Exception):
                raise kafka_errors.KafkaConnectionError(f"Handshake failed: {error}") from error
            raise
        return transport

    async def _connected(self, sockets: KafkaNetSocket, node: Any, timeout_at: float | None) -> socket.socket:
        """A socket that is connected to the first of the node's addresses that answers."""
        cause: Exception = kafka_errors.KafkaConnectionError("DNS Resolution failure")
        for place in sockets.dns_lookup(node.host, node.port):
            try:
                connected: socket.socket = await sockets.connect(
                    self._net, place, self.config["socket_options"], timeout_at=timeout_at
                )
                return connected
            except kafka_errors.KafkaTimeoutError:
                raise kafka_errors.KafkaConnectionError("Connection timed out") from None
            except (OSError, kafka_errors.KafkaConnectionError) as error:
                cause = kafka_errors.KafkaConnectionError(f"unable to connect: {error}")
        raise cause

    @contextlib.contextmanager
    def _closed_on_failure(self) -> Iterator[KafkaNetSocket]:
        """A maker of sockets. Behind the block only the last is open, and after a failure none."""
        sockets = KafkaNetSocket(self.config["proxy_url"])
        made: list[socket.socket] = []
        make = sockets.socket

        def remembered(*args: Any) -> socket.socket:
            made.append(make(*args))
            return made[-1]

        sockets.socket = remembered
        keep = 0
        try:
            yield sockets
            keep = 1
        finally:
            for one in made[: len(made) - keep]:
                self._net.unregister_event(one, _BOTH)
                one.close()


class NetClient(KafkaNetClient):
    """What kafka-python's producer and admin client connect through, with a :class:`ConnectionManager`."""

    def __init__(self, **configs: Any) -> None:
        net = NetworkSelector(**configs)
        self.manager = ConnectionManager(net, **configs)
        super().__init__(net=net, manager=self.manager)


class _NoSecrets(logging.Filter):
    """Keeps what a client says to be let in out of the library's DEBUG lines, where it stands in plain bytes."""

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args if isinstance(record.args, tuple) else ()
        said = any(isinstance(arg, SaslAuthenticateRequest | SaslBytesRequest) for arg in args)
        return not said and not any(isinstance(arg, bytes | bytearray) for arg in args)


for _name in ("kafka.net.connection", "kafka.protocol.parser"):
    logging.getLogger(_name).addFilter(_NoSecrets())
