"""The properties that kafka-python's parts are made with: cuckooflow's, and those of an address."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import kafka.errors as kafka_errors
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.net.manager import KafkaConnectionManager

from cuckooflow.errors import LogError, LogNotFound, LogUnavailable, SpecError
from cuckooflow.logs.address import KafkaAddress
from cuckooflow.logs.client_properties import for_kafka_python, resolved
from cuckooflow.logs.kafka_python_manager import REFUSALS, NetClient

#: What differs from kafka-python's own defaults.
_DEFAULTS: dict[str, Any] = {
    "client_id": "cuckooflow",
    # A broker that is back is found again within a second, not within thirty.
    "reconnect_backoff_max_ms": 1_000,
    # How soon new partitions are seen.
    "metadata_max_age_ms": 10_000,
    "receive_message_max_bytes": 256 << 20,
}
_Made = TypeVar("_Made")
_READER_ONLY = frozenset(KafkaConsumer.DEFAULT_CONFIG) - frozenset(KafkaConnectionManager.DEFAULT_CONFIG)


def connection_properties(address: KafkaAddress) -> dict[str, Any]:
    """For a connection that only reads."""
    return _chosen(address, frozenset(KafkaConnectionManager.DEFAULT_CONFIG))


def producer_properties(address: KafkaAddress) -> dict[str, Any]:
    """For a producer, without what it decides by itself."""
    return _chosen(address, frozenset(KafkaProducer.DEFAULT_CONFIG))


def admin_properties(address: KafkaAddress) -> dict[str, Any]:
    """For an admin client."""
    wait_ms = int(address.read_timeout_s * 1_000)
    return {
        "request_timeout_ms": wait_ms,
        **_chosen(address, frozenset(KafkaAdminClient.DEFAULT_CONFIG)),
        "bootstrap_timeout_ms": wait_ms,
    }


def made_or_closed(make: Callable[..., _Made], address: KafkaAddress, properties: dict[str, Any]) -> _Made:
    """Make one of kafka-python's clients; of one that cannot be made, no connection is left.

    Raises:
        LogUnavailable: no broker answers.
        LogError: it lets us not in.
        SpecError: a property has a value that it does not take.
    """
    clients: list[NetClient] = []

    def connect(**configs: Any) -> NetClient:
        clients.append(NetClient(**configs))
        return clients[-1]

    try:
        return make(**properties, kafka_client=connect)
    except Exception as error:
        for client in clients:
            client.close()
        if isinstance(error, kafka_errors.KafkaError) and not isinstance(
            error, kafka_errors.KafkaConfigurationError
        ):
            cause = clients[-1].manager.cause if clients else None
            raise named(error, address, f"within {address.read_timeout_s:g} s", cause) from error
        raise SpecError(f"expected client properties of {address} that kafka-python takes: {error}") from None


def named(
    error: Exception | None, address: KafkaAddress, bound: str, cause: Exception | None = None
) -> LogError:
    """One of kafka-python's errors as one of ours.

    Args:
        cause: why the last connection could not be made, where it is known.
    """
    if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
        return LogNotFound(f"expected a topic {address}, found none; create it, or correct the name")
    for refusal in (error, cause):
        if isinstance(refusal, REFUSALS):
            return LogError(
                f"expected to be let in to {address}, was refused: {refusal}; look at the client properties"
            )
    if error is not None and not isinstance(
        error, kafka_errors.RetriableError | kafka_errors.KafkaConnectionError
    ):
        return LogError(f"expected {address} to do what was asked, received {type(error).__name__}: {error}")
    told = cause if cause is not None else error
    return LogUnavailable(
        f"expected a broker to answer for {address} {bound}, none did "
        f"({type(told).__name__ if told is not None else 'no answer'}: {told}); is it up, and is this its address?"
    )


def _chosen(address: KafkaAddress, known: frozenset[str]) -> dict[str, Any]:
    given = for_kafka_python(resolved(address.client))
    for name in given:
        if name not in _all_known():
            why = "it has no effect here" if name in _READER_ONLY else "kafka-python knows none of this name"
            raise SpecError(f"expected no client property {name!r} for {address}: {why}")
    properties = {"bootstrap_servers": address.bootstrap, **_DEFAULTS, **given}
    return {name: value for name, value in properties.items() if name in known}


@functools.cache
def _all_known() -> frozenset[str]:
    classes = (KafkaConnectionManager, KafkaProducer, KafkaAdminClient)
    return frozenset().union(*(cls.DEFAULT_CONFIG for cls in classes)) - {"bootstrap_servers"}
