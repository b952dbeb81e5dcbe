"""Writes a topic through confluent-kafka's idempotent producer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from cuckooflow.logs.address import KafkaAddress
from cuckooflow.logs.confluent_admin import ConfluentAdmin
from cuckooflow.logs.confluent_properties import made, named
from cuckooflow.logs.contract import Sent
from cuckooflow.logs.kafka_client import BATCH_OVERHEAD_BYTES, UNDER_WAY_BYTES_MAX, message_bytes_max

#: Handed to librdkafka at once; its own queue is never full, because what is under way is bounded here.
_PIECE_BYTES = 16 << 20
_QUEUE_MESSAGES_MAX = 10_000_000
_QUEUE_KBYTES_MAX = 2_097_151
_SERVE_S = 0.1
_TOMBSTONE_KEY = b""


class ConfluentSink:
    """Implements :class:`~cuckooflow.logs.kafka_client.KafkaSink`."""

    def __init__(self, address: KafkaAddress) -> None:
        self._address = address
        admin = ConfluentAdmin(address)
        self.partitions = admin.topic().partitions
        largest = address.client.get("message.max.bytes")
        if largest is None:
            largest = message_bytes_max(admin.config())
        admin.close()
        self.max_message_bytes = int(largest) - BATCH_OVERHEAD_BYTES
        self._properties: dict[str, Any] = {
            "message.max.bytes": int(largest),
            "enable.idempotence": True,
            "acks": "all",
            "queue.buffering.max.messages": _QUEUE_MESSAGES_MAX,
            "queue.buffering.max.kbytes": _QUEUE_KBYTES_MAX,
        }
        if not {"delivery.timeout.ms", "message.timeout.ms"} & set(address.client):
            self._properties["delivery.timeout.ms"] = int(address.write_timeout_s * 1_000)
        self._producer: Producer | None = None
        self._under_way: deque[_Piece] = deque()
        self._under_way_bytes = 0

    def send(self, partition: int, values: Sequence[bytes | None], append_us: int) -> Sent:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaSink`."""
        if self._producer is None:
            self._producer = made(Producer, self._address, self._properties)
        sent = _Sent(self, self._producer, [])
        append_ms = append_us // 1_000
        piece: list[bytes | None] = []
        bytes_ = 0
        for value in values:
            piece.append(value)
            bytes_ += 0 if value is None else len(value)
            if bytes_ > _PIECE_BYTES:
                self._hand_over(sent, partition, piece, bytes_, append_ms)
                piece, bytes_ = [], 0
        self._hand_over(sent, partition, piece, bytes_, append_ms)
        return sent

    def close(self) -> None:
        """Idempotent. What is under way is waited for, but its failures are for whom it belongs to."""
        if self._producer is not None:
            self._producer.flush(self._address.write_timeout_s)
            self._producer = None

    def discard(self, producer: Producer) -> None:
        """Give a producer up after a failure; the next send makes a new one. What it still has under way fails."""
        if self._producer is producer:
            self._producer = None
        producer.purge()
        producer.flush(_SERVE_S)

    def named(self, error: KafkaError | KafkaException) -> Exception:
        """One of librdkafka's errors as one of ours."""
        return named(error, self._address, f"within {self._address.write_timeout_s:g} s")

    def _hand_over(
        self, sent: _Sent, partition: int, values: list[bytes | None], bytes_: int, append_ms: int
    ) -> None:
        if not values:
            return
        producer, topic = sent.producer, self._address.topic
        piece = _Piece(producer, len(values), bytes_)
        produce, delivered = producer.produce, piece.delivered
        try:
            for value in values:
                key = _TOMBSTONE_KEY if value is None else None
                produce(topic, value, key, partition, on_delivery=delivered, timestamp=append_ms)
        except KafkaException as error:
            self.discard(producer)
            raise self.named(error) from error
        sent.pieces.append(piece)
        self._under_way.append(piece)
        self._under_way_bytes += bytes_
        producer.poll(0)
        while self._under_way and (self._under_way_bytes > UNDER_WAY_BYTES_MAX or self._under_way[0].done()):
            oldest = self._under_way[0]
            if oldest.done():
                self._under_way.popleft()
                self._under_way_bytes -= oldest.bytes
            else:
                oldest.producer.poll(_SERVE_S)


class _Piece:
    """Messages handed over together. Outcomes may come in any thread."""

    def __init__(self, producer: Producer, count: int, bytes_: int) -> None:
        self.producer = producer
        self.bytes = bytes_
        self.first = -1
        self._count = count
        self._outcomes: list[KafkaError | None] = []

    def delivered(self, error: KafkaError | None, message: Any) -> None:
        """A message has an outcome; those of one partition come in order."""
        if error is None and self.first < 0:
            self.first = message.offset()
        self._outcomes.append(error)

    def done(self) -> bool:
        """Whether all have an outcome."""
        return len(self._outcomes) == self._count

    def failure(self) -> KafkaError | None:
        """One of the errors."""
        return next((error for error in self._outcomes if error is not None), None)


class _Sent:
    """Implements :class:`~cuckooflow.logs.contract.Sent`."""

    def __init__(self, sink: ConfluentSink, producer: Producer, pieces: list[_Piece]) -> None:
        self._sink = sink
        self.producer = producer
        self.pieces = pieces

    def wait(self) -> int:
        """The first message's offset; -1 of none."""
        while not all(
            piece.done() for piece in self.pieces
        ):  # each has an outcome within delivery.timeout.ms
            self.producer.flush(_SERVE_S)
        for piece in self.pieces:
            error = piece.failure()
            if error is not None:
                if error.code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    self._sink.discard(self.producer)
                raise self._sink.named(error)
        return self.pieces[0].first if self.pieces else -1
