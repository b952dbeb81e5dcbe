"""Makes and describes a topic through confluent-kafka's admin client."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType

from cuckooflow.errors import LogError, LogNotFound, LogUnavailable
from cuckooflow.logs.address import KafkaAddress
from cuckooflow.logs.confluent_properties import is_not_let_in, made, named
from cuckooflow.logs.kafka_client import FIND_S, Topic

_PAUSE_S = 0.05
#: librdkafka gives no request less.
_LEAST_S = 0.1


class ConfluentAdmin:
    """Implements :class:`~cuckooflow.logs.kafka_client.KafkaAdmin`; also tells what a source asks about."""

    def __init__(self, address: KafkaAddress) -> None:
        self._address = address
        self._refused: KafkaError | None = None
        self._client = made(AdminClient, address, {"error_cb": self._heard})

    def topic(self) -> Topic:
        """The topic as it is now.

        Raises:
            LogNotFound, LogUnavailable.
        """
        begin = time.monotonic()
        while True:
            try:
                futures = self._client.describe_topics(
                    TopicCollection([self._address.topic]), request_timeout=self._address.read_timeout_s
                )
                found = self._answer(futures[self._address.topic])
                break
            except KafkaException as error:
                failed = self._named(error)
                if not isinstance(failed, LogNotFound) or time.monotonic() - begin > FIND_S:
                    raise failed from error
            time.sleep(_PAUSE_S)
        halves = found.topic_id.get_most_significant_bits(), found.topic_id.get_least_significant_bits()
        id_ = ((halves[0] % (1 << 64)) << 64) | halves[1] % (1 << 64)
        if not id_:
            raise LogError(
                f"expected a cluster that gives its topics ids (Kafka 2.8 and later) for {self._address}"
            )
        return Topic(uuid.UUID(int=id_).hex, len(found.partitions))

    def bounds(
        self, partitions: list[int], which: Any, committed: bool = True, wait_s: float | None = None
    ) -> dict[int, int]:
        """The first (``OffsetSpec.earliest()``) or last offsets, asked for until ``wait_s``, default the
        address's ``read_timeout_s``, is over.

        Raises:
            LogUnavailable, LogNotFound.
        """
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        wanted = {TopicPartition(self._address.topic, p): which for p in partitions}
        wait_s = self._address.read_timeout_s if wait_s is None else wait_s
        deadline = time.monotonic() + wait_s
        while True:
            left_s = max(_LEAST_S, deadline - time.monotonic())
            try:
                futures = self._client.list_offsets(wanted, isolation_level=level, request_timeout=left_s)
                return {
                    place.partition: int(self._answer(future).offset) for place, future in futures.items()
                }
            except KafkaException as error:
                failed = self._named(error)
                if not isinstance(failed, LogUnavailable) or time.monotonic() + _PAUSE_S > deadline:
                    raise failed from error
            time.sleep(_PAUSE_S)

    def ends(
        self, partitions: list[int], committed: bool = True, wait_s: float | None = None
    ) -> dict[int, int]:
        """One past the last message of each; with ``committed``, that no open transaction holds back."""
        return self.bounds(partitions, OffsetSpec.latest(), committed, wait_s)

    def create(self, partitions: int, replication: int | None, config: Mapping[str, str]) -> bool:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaAdmin`."""
        copies = -1 if replication is None else replication
        topic = NewTopic(self._address.topic, partitions, copies, config=dict(config))
        wait_s = self._address.read_timeout_s
        try:
            (future,) = self._client.create_topics(
                [topic], operation_timeout=wait_s, request_timeout=wait_s
            ).values()
            self._answer(future)
        except KafkaException as error:
            found = error.args[0]
            if found.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return False
            failed = self._named(error)
            if type(failed) is LogError and not is_not_let_in(found):
                failed = LogError(
                    f"expected to create {self._address} with {partitions} partitions and {dict(config)}, was "
                    f"refused: {found.name()}: {found.str()}"
                )
            raise failed from error
        self.topic()
        return True

    def config(self) -> Mapping[str, str] | None:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaAdmin`."""
        resource = ConfigResource(ResourceType.TOPIC, self._address.topic)
        try:
            (future,) = self._client.describe_configs(
                [resource], request_timeout=self._address.read_timeout_s
            ).values()
            entries = self._answer(future)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                return None
            raise self._named(error) from error
        return {name: entry.value for name, entry in entries.items() if entry.value is not None}

    def commit(self, group: str, offsets: Mapping[int, int]) -> None:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaAdmin`."""
        places = [TopicPartition(self._address.topic, p, o) for p, o in offsets.items()]
        try:
            (future,) = self._client.alter_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(group, places)], request_timeout=self._address.read_timeout_s
            ).values()
            answers = self._answer(future).topic_partitions
        except KafkaException as error:
            raise self._named(error) from error
        refused = {place.partition: place.error.str() for place in answers if place.error is not None}
        if refused:
            raise LogError(f"expected group {group} to take offsets of {self._address}, it refused {refused}")

    def close(self) -> None:
        """Its threads and connections go with the client."""
        del self._client

    def _heard(self, error: KafkaError) -> None:
        if is_not_let_in(error):
            self._refused = error

    def _answer(self, future: Future[Any]) -> Any:
        """What the broker answers; librdkafka goes on asking one that does not let it in until the request's end."""
        self._refused = None
        while True:
            try:
                return future.result(timeout=_PAUSE_S)
            except TimeoutError:
                self._client.poll(0)  # calls back
            if self._refused is not None:
                raise KafkaException(self._refused)

    def _named(self, error: KafkaException) -> LogError:
        return named(error, self._address, f"within {self._address.read_timeout_s:g} s")
