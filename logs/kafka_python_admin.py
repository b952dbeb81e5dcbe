"""Makes and describes a topic through kafka-python's admin client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kafka.errors as kafka_errors
from kafka import OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from cuckooflow.errors import LogError, LogUnavailable
from cuckooflow.logs.address import KafkaAddress
from cuckooflow.logs.kafka_python_manager import NetClient
from cuckooflow.logs.kafka_python_properties import admin_properties, made_or_closed, named


def answers(bootstrap: str, timeout_ms: int) -> bool:
    """Whether a broker without security says that it is up."""
    clients: list[NetClient] = []

    def connect(**configs: Any) -> NetClient:
        clients.append(NetClient(**configs))
        return clients[-1]

    waits = {"request_timeout_ms": timeout_ms, "bootstrap_timeout_ms": timeout_ms}
    try:
        admin = KafkaAdminClient(bootstrap_servers=bootstrap, kafka_client=connect, **waits)
    except kafka_errors.KafkaError:
        for client in clients:
            client.close()
        return False
    try:
        return bool(admin.describe_cluster()["brokers"])
    except kafka_errors.KafkaError:
        return False
    finally:
        admin.close()


class PythonAdmin:
    """Implements :class:`~cuckooflow.logs.kafka_client.KafkaAdmin`."""

    def __init__(self, address: KafkaAddress) -> None:
        self._address = address
        self._client = made_or_closed(KafkaAdminClient, address, admin_properties(address))

    def create(self, partitions: int, replication: int | None, config: Mapping[str, str]) -> bool:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaAdmin`."""
        topic = self._address.topic
        wanted = {
            "num_partitions": partitions,
            "replication_factor": -1 if replication is None else replication,
            "configs": dict(config),
        }
        try:
            answer = self._client.create_topics({topic: wanted}, raise_errors=False)["topics"][0]
            if answer["error_code"] == kafka_errors.TopicAlreadyExistsError.errno:
                return False
            if answer["error_code"]:
                error = kafka_errors.for_code(answer["error_code"])
                raise LogError(
                    f"expected to create {self._address} with {partitions} partitions and {dict(config)}, was "
                    f"refused: {error.__name__}: {answer.get('error_message')}"
                )
            self._client.wait_for_topics([topic], timeout_ms=self._address.read_timeout_s * 1_000)
        except kafka_errors.KafkaError as error:
            raise self._named(error) from error
        return True

    def config(self) -> Mapping[str, str] | None:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaAdmin`."""
        resource = ConfigResource(ConfigResourceType.TOPIC, self._address.topic)
        try:
            found = self._client.describe_configs([resource], config_filter="all")
        except kafka_errors.KafkaError as error:
            raise self._named(error) from error
        entries: dict[str, Any] = found.get("topic", {}).get(self._address.topic, {})
        return {name: entry["value"] for name, entry in entries.items() if entry["value"] is not None} or None

    def commit(self, group: str, offsets: Mapping[int, int]) -> None:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaAdmin`."""
        wanted = {
            TopicPartition(self._address.topic, p): OffsetAndMetadata(o, "", -1) for p, o in offsets.items()
        }
        try:
            answers = self._client.alter_group_offsets(group, wanted)
        except kafka_errors.KafkaError as error:
            raise self._named(error) from error
        refused = {place.partition: kind.__name__ for place, kind in answers.items() if kind.errno}
        if refused:
            raise LogUnavailable(
                f"expected group {group} to take offsets of {self._address}, it refused {refused}"
            )

    def close(self) -> None:
        """Idempotent."""
        self._client.close()

    def _named(self, error: Exception) -> LogError:
        return named(error, self._address, f"within {self._address.read_timeout_s:g} s")
