"""Reads a Pub/Sub subscription by asking for messages, behind the poller's back, so that no poll waits.

Never more than ``unacknowledged_max`` messages wait for their acknowledgement, so whatever may come again after a
failure is among those remembered (:mod:`cuckooflow.logs.once_messages`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace

import google.api_core.exceptions as google_errors
import google.auth.exceptions
import grpc
from google.api_core.retry import Retry
from google.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import ReceivedMessage

from cuckooflow.errors import LogError, LogNotFound, LogUnavailable, SpecError
from cuckooflow.logs.contract import MessageBatch, Receipts
from cuckooflow.logs.once_messages import Message, OnceMessages
from cuckooflow.logs.pubsub_address import PubSubAddress

_LOGGER = logging.getLogger(__name__)

#: Messages of one request; the service gives no more.
_PULL_MESSAGES = 1_000
#: How long a request waits for a first message. Behind the poller's back, so nobody waits with it.
_PULL_S = 30.0
#: Receipts of one request; the service takes 512 KiB.
_RECEIPTS_OF_A_CALL = 1_000
#: No subscription has a shorter first lease than 10 s.
_FIRST_RENEWAL_S = 5.0
#: After so long a message that was not acknowledged is let go; it comes again and is known.
_WAIT_MAX_S = 600.0


def open_client(address: PubSubAddress) -> SubscriberClient:
    """A client of the service, or of an emulator.

    Raises:
        SpecError: there are no credentials.
    """
    endpoint = address.endpoint or os.environ.get("PUBSUB_EMULATOR_HOST")
    if endpoint is None:
        try:
            return SubscriberClient()
        except google.auth.exceptions.DefaultCredentialsError as error:
            raise SpecError(
                f"expected Google's application default credentials for {address}: {error}"
            ) from None
    channel = grpc.insecure_channel(endpoint, [("grpc.max_receive_message_length", -1)])
    return SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))


def named(error: Exception, address: PubSubAddress) -> LogError:
    """One of Google's errors as one of ours."""
    if isinstance(error, google_errors.NotFound):
        return LogNotFound(f"expected a subscription {address}, found none; create it, or correct the name")
    if isinstance(error, google_errors.PermissionDenied | google_errors.Unauthenticated):
        return LogError(f"expected to be let in to {address}, was refused: {error}")
    return LogUnavailable(f"expected {address} to answer, it did not: {error}")


def acknowledge(client: SubscriberClient, address: PubSubAddress, ids: Sequence[str]) -> None:
    """Acknowledge messages; what cannot be now comes again, and is then acknowledged."""
    try:
        for begin in range(0, len(ids), _RECEIPTS_OF_A_CALL):
            client.acknowledge(
                subscription=address.path,
                ack_ids=list(ids[begin : begin + _RECEIPTS_OF_A_CALL]),
                timeout=address.read_timeout_s,
            )
    except google_errors.GoogleAPIError as error:
        _LOGGER.warning("log=%s could not acknowledge messages=%d: %s", address.name, len(ids), error)
    WAITING.done(address, ids)


class _Waiting:
    """Messages of this process that wait for their acknowledgement, by subscription. Thread-safe."""

    def __init__(self) -> None:
        self._by_path: dict[str, dict[str, list[float]]] = {}
        self._lock = threading.Lock()

    def add(self, address: PubSubAddress, ids: Iterable[str], now: float) -> None:
        """These wait from now on."""
        with self._lock:
            waiting = self._by_path.setdefault(address.path, {})
            waiting.update((one, [now + _FIRST_RENEWAL_S, now + _WAIT_MAX_S]) for one in ids)

    def done(self, address: PubSubAddress, ids: Iterable[str]) -> None:
        """These do no more."""
        with self._lock:
            waiting = self._by_path.get(address.path, {})
            for one in ids:
                waiting.pop(one, None)

    def count(self, address: PubSubAddress) -> int:
        """How many wait."""
        with self._lock:
            return len(self._by_path.get(address.path, ()))

    def due(self, address: PubSubAddress, now: float) -> list[str]:
        """Those whose lease is to be renewed, each once; those that waited too long are let go."""
        with self._lock:
            waiting = self._by_path.get(address.path, {})
            for one in [one for one, (_, until) in waiting.items() if until <= now]:
                del waiting[one]
            found = [one for one, (at, _) in waiting.items() if at <= now]
            for one in found:
                waiting[one][0] = now + address.lease_s / 2
            return found

    def forget(self, address: PubSubAddress) -> None:
        """None waits: their reader is gone."""
        with self._lock:
            self._by_path.pop(address.path, None)


WAITING = _Waiting()


class _Pull:
    """One request for messages, in a thread that keeps no process alive.

    Attributes:
        done: set once ``messages`` or ``error`` is the answer.
    """

    def __init__(self, client: SubscriberClient, address: PubSubAddress, most: int) -> None:
        self.done = threading.Event()
        self.messages: Sequence[ReceivedMessage] = ()
        self.error: Exception | None = None
        ask = (client, address.path, most)
        threading.Thread(target=self._run, args=ask, name="pubsub", daemon=True).start()

    def _run(self, client: SubscriberClient, path: str, most: int) -> None:
        try:
            answer = client.pull(subscription=path, max_messages=most, timeout=_PULL_S, retry=None)
            self.messages = answer.received_messages
        except google_errors.DeadlineExceeded:
            pass  # nothing came
        except Exception as error:
            self.error = error
        self.done.set()


class PubSubReader(OnceMessages):
    """A subscription, asked again and again. Not thread-safe.

    Raises:
        LogNotFound, LogUnavailable, SpecError: as :meth:`PubSubAddress.open_reader`.
    """

    def __init__(self, address: PubSubAddress) -> None:
        super().__init__(address)
        WAITING.forget(address)
        self._client = open_client(address)
        self._finalizer = weakref.finalize(self, self._client.transport.close)
        self._pull: _Pull | None = None
        try:
            self._client.get_subscription(
                subscription=address.path,
                timeout=address.read_timeout_s,
                retry=Retry(timeout=address.read_timeout_s),
            )
        except google_errors.PermissionDenied:
            pass  # who may read need not be allowed to look
        except google_errors.GoogleAPIError as error:
            self.close()
            raise named(error, address) from error

    def read(
        self, partition: int, offset: int, max_messages: int = 65_536, max_bytes: int = 16 << 20
    ) -> MessageBatch:
        """See :meth:`OnceMessages.read`."""
        self._receive()
        return super().read(partition, offset, max_messages, max_bytes)

    def keep(self) -> None:
        """Renew the leases that are due."""
        due = WAITING.due(self.address, time.monotonic())
        try:
            for begin in range(0, len(due), _RECEIPTS_OF_A_CALL):
                self._client.modify_ack_deadline(
                    subscription=self.address.path,
                    ack_ids=due[begin : begin + _RECEIPTS_OF_A_CALL],
                    ack_deadline_seconds=self.address.lease_s,
                    timeout=self.address.read_timeout_s,
                )
        except google_errors.GoogleAPIError as error:
            _LOGGER.warning("log=%s could not renew leases of messages=%d: %s", self.name, len(due), error)

    def receipts(self) -> Receipts:
        """See :class:`~cuckooflow.logs.contract.OnceReader`."""
        return replace(super().receipts(), waiting=WAITING.count(self.address))

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._finalizer()

    def _receive(self) -> None:
        """Take what the last request has brought, and make the next."""
        if self._pull is not None and self._pull.done.is_set():
            pull, self._pull = self._pull, None
            if pull.error is not None:
                raise named(pull.error, self.address) from pull.error
            WAITING.add(self.address, (one.ack_id for one in pull.messages), time.monotonic())
            self.give([_message(one) for one in pull.messages])
        room = self.address.unacknowledged_max - WAITING.count(self.address)
        if self._pull is None and len(self._here) < _PULL_MESSAGES and room > 0:
            self._pull = _Pull(self._client, self.address, min(_PULL_MESSAGES, room))


def _message(received: ReceivedMessage) -> Message:
    message = received.message
    publish_us = int(message.publish_time.timestamp_pb().ToMicroseconds())
    return Message(message.message_id, publish_us, message.data, received.ack_id)
