"""The properties that confluent-kafka's clients are made with, and its errors as ours."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException

from cuckooflow.errors import LogError, LogNotFound, LogUnavailable, MessageTooLarge, SpecError
from cuckooflow.logs.address import KafkaAddress
from cuckooflow.logs.client_properties import resolved

_Made = TypeVar("_Made")
#: How long what librdkafka says is not said again.
_SAID_AGAIN_S = 10.0
_SAID_MAX = 256

#: What differs from librdkafka's own defaults.
_DEFAULTS: dict[str, Any] = {
    "client.id": "cuckooflow",
    "reconnect.backoff.ms": 50,
    # A broker that is back is found again within a second, not within ten.
    "reconnect.backoff.max.ms": 1_000,
    # How soon new partitions are seen.
    "topic.metadata.refresh.interval.ms": 10_000,
    # What it would say of a lost connection goes to the log, not to standard error.
    "log.connection.close": False,
}
_NOT_LET_IN = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._AUTHENTICATION,
)
_AWAY = (
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._NOENT,  # partitions without a leader, while a broker starts
    KafkaError._PURGE_QUEUE,
    KafkaError._PURGE_INFLIGHT,
    KafkaError._DESTROY,
    # What a broker says that goes away, comes back or hands its partitions over: all of Kafka's retriable codes.
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.NOT_CONTROLLER,
    KafkaError.CONCURRENT_TRANSACTIONS,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.LISTENER_NOT_FOUND,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.PREFERRED_LEADER_NOT_AVAILABLE,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    KafkaError.THROTTLING_QUOTA_EXCEEDED,
)


class OncePerWhile(logging.Filter):
    """Lets a line through once in :data:`_SAID_AGAIN_S`, with how often it was held back since.

    While a broker is away each client says so with every attempt to connect, dozens of times a second.
    """

    _VARIES = re.compile(r"#(?:consumer|producer)-\d+|\d+ms")

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """See :class:`logging.Filter`."""
        line, now_s = self._VARIES.sub("", record.getMessage()), time.monotonic()
        said_s, held_back = self._said.get(line, (-_SAID_AGAIN_S, 0))
        if now_s - said_s < _SAID_AGAIN_S:
            self._said[line] = (said_s, held_back + 1)
            return False
        if len(self._said) >= _SAID_MAX:
            self._said.clear()
        self._said[line] = (now_s, 0)
        if held_back:
            record.msg, record.args = f"{record.getMessage()} ({held_back} more like it before)", ()
        return True


_LOGGER = logging.getLogger("cuckooflow.librdkafka")
_LOGGER.addFilter(OncePerWhile())


def made(make: Callable[..., _Made], address: KafkaAddress, properties: dict[str, Any]) -> _Made:
    """Make one of confluent-kafka's clients with the address's properties, over them those given here.

    Raises:
        SpecError: a property is not known, or has a value that librdkafka does not take.
    """
    given = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in resolved(address.client).items()
    }
    wanted = {**_DEFAULTS, **given, "bootstrap.servers": address.bootstrap, **properties}
    try:
        return make(wanted, logger=_LOGGER)
    except (KafkaException, TypeError, ValueError) as error:
        reason = error.args[0].str() if isinstance(error, KafkaException) else error
        raise SpecError(f"expected client properties of {address} that librdkafka takes: {reason}") from None


def is_not_let_in(error: KafkaError) -> bool:
    """Whether the broker refused who asks."""
    return error.code() in _NOT_LET_IN


def named(error: KafkaError | KafkaException | None, address: KafkaAddress, bound: str) -> LogError:
    """One of librdkafka's errors as one of ours."""
    found = error.args[0] if isinstance(error, KafkaException) else error
    code = found.code() if found is not None else None
    text = found.str() if found is not None else "no answer"
    if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
        return LogNotFound(f"expected a topic {address}, found none; create it, or correct the name")
    if found is not None and is_not_let_in(found):
        return LogError(
            f"expected to be let in to {address}, was refused: {text}; look at the client properties"
        )
    if code == KafkaError.MSG_SIZE_TOO_LARGE:
        return MessageTooLarge(
            f"expected messages that {address} takes, its broker says that one is too large; raise the topic's "
            "max.message.bytes, or split the message"
        )
    if found is None or code in _AWAY or found.retriable():
        return LogUnavailable(
            f"expected a broker to answer for {address} {bound}, none did ({text}); is it up, and is this its address?"
        )
    return LogError(f"expected {address} to do what was asked, received {found.name()}: {text}")
