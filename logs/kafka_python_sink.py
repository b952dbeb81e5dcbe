"""Writes a topic through kafka-python's idempotent producer."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Any

import kafka.errors as kafka_errors
from kafka import KafkaProducer

from cuckooflow.errors import LogError, MessageTooLarge
from cuckooflow.logs.address import KafkaAddress
from cuckooflow.logs.contract import Sent
from cuckooflow.logs.kafka_client import BATCH_OVERHEAD_BYTES, UNDER_WAY_BYTES_MAX, message_bytes_max
from cuckooflow.logs.kafka_python_admin import PythonAdmin
from cuckooflow.logs.kafka_python_properties import made_or_closed, named, producer_properties
from cuckooflow.logs.kafka_python_source import PythonSource

_BATCH_BYTES = 1 << 20
_LINGER_MS = 5
#: A tombstone needs a key here: kafka-python sends no message that has neither key nor value.
_TOMBSTONE_KEY = b""


class PythonSink:
    """Implements :class:`~cuckooflow.logs.kafka_client.KafkaSink`."""

    def __init__(self, address: KafkaAddress) -> None:
        self._address = address
        source = PythonSource(address)
        self.partitions = source.topic().partitions
        source.close()
        properties = producer_properties(address)
        largest = properties.get("max_request_size")
        if largest is None:
            admin = PythonAdmin(address)
            largest = message_bytes_max(admin.config())
            admin.close()
        self.max_message_bytes = int(largest) - BATCH_OVERHEAD_BYTES
        wait_ms = int(address.write_timeout_s * 1_000)
        self._properties: dict[str, Any] = {
            "linger_ms": _LINGER_MS,
            "batch_size": min(_BATCH_BYTES, int(largest)),
            "request_timeout_ms": min(30_000, max(1, wait_ms - _LINGER_MS - 1)),
            "delivery_timeout_ms": wait_ms,
            "max_block_ms": wait_ms,
            "bootstrap_timeout_ms": wait_ms,
            "metrics_enabled": False,
            **properties,
            "max_request_size": int(largest),
            "enable_idempotence": True,
            "acks": "all",
            "allow_auto_create_topics": False,
        }
        self._producer: KafkaProducer | None = None
        self._under_way: deque[_Sent] = deque()
        self._under_way_bytes = 0

    def send(self, partition: int, values: Sequence[bytes | None], append_us: int) -> Sent:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaSink`."""
        if self._producer is None:
            self._producer = made_or_closed(KafkaProducer, self._address, self._properties)
        producer, topic, append_ms = self._producer, self._address.topic, append_us // 1_000
        try:
            futures = [
                producer.send(
                    topic,
                    value,
                    partition=partition,
                    timestamp_ms=append_ms,
                    key=_TOMBSTONE_KEY if value is None else None,
                )
                for value in values
            ]
        except kafka_errors.KafkaError as error:
            self.discard(producer)
            raise self.named(error) from error
        sent = _Sent(self, producer, futures, sum(len(value) for value in values if value is not None))
        self._under_way.append(sent)
        self._under_way_bytes += sent.bytes
        self._bound()
        return sent

    def close(self) -> None:
        """Idempotent. What is under way is waited for, but its failures are for whom it belongs to."""
        if self._producer is not None:
            with contextlib.suppress(kafka_errors.KafkaError):
                self._producer.close(self._address.write_timeout_s)
            self._producer = None

    def discard(self, producer: KafkaProducer) -> None:
        """Give a producer up after a failure; the next send makes a new one. What it still has under way fails."""
        if self._producer is producer:
            self._producer = None
        with contextlib.suppress(kafka_errors.KafkaError):
            producer.close(0)

    def named(self, error: Exception) -> LogError:
        """One of kafka-python's errors as one of ours."""
        if isinstance(error, kafka_errors.MessageSizeTooLargeError | kafka_errors.RecordListTooLargeError):
            return MessageTooLarge(
                f"expected messages that {self._address} takes, its broker says that one is too large; raise the "
                "topic's max.message.bytes, or split the message"
            )
        return named(error, self._address, f"within {self._address.write_timeout_s:g} s")

    def _bound(self) -> None:
        """Wait for the oldest while too much is under way. A failure is told to whom it belongs to."""
        while self._under_way and (self._under_way_bytes > UNDER_WAY_BYTES_MAX or self._under_way[0].done()):
            oldest = self._under_way.popleft()
            if not oldest.done():
                oldest.flush()
            self._under_way_bytes -= oldest.bytes


class _Sent:
    """Implements :class:`~cuckooflow.logs.contract.Sent`."""

    def __init__(self, sink: PythonSink, producer: KafkaProducer, futures: list[Any], bytes_: int) -> None:
        self._sink = sink
        self._producer = producer
        self._futures = futures
        self.bytes = bytes_

    def done(self) -> bool:
        """Whether all have an outcome. Those of one partition come in order."""
        return not self._futures or bool(self._futures[-1].is_done)

    def flush(self) -> None:
        """Wait for the outcomes, at most as long as a message may be under way."""
        with contextlib.suppress(kafka_errors.KafkaTimeoutError):
            self._producer.flush(self._sink._address.write_timeout_s + _LINGER_MS / 1_000)

    def wait(self) -> int:
        """The first message's offset; -1 of none."""
        if not self._futures:
            return -1
        if not self.done():
            self.flush()
        try:
            first = int(self._futures[0].get(0).offset)
            for future in self._futures:
                if not future.is_done or future.exception is not None:
                    future.get(0)
        except kafka_errors.KafkaError as error:
            self._sink.discard(self._producer)
            raise self._sink.named(error) from error
        return first
