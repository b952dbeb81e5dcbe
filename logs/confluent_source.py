"""Reads a topic through confluent-kafka's consumer.

librdkafka fetches in the background and gives one object a message; they are taken in bulk and kept by
column, a partition at a time. Whether a partition has anything at all is asked from the broker on a
connection of its own: the consumer's is busy with waiting for data. A recreated topic is noticed where the
offset is past its end, where librdkafka reports an error, and else within :data:`LOOK_S`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from cuckooflow.errors import LogRecreated, LogUnavailable, OffsetOutOfRange
from cuckooflow.logs.address import KafkaAddress
from cuckooflow.logs.confluent_admin import ConfluentAdmin
from cuckooflow.logs.confluent_properties import made, named
from cuckooflow.logs.contract import MessageBatch
from cuckooflow.logs.kafka_client import Topic

#: How old the number of partitions, and the topic's id, may be.
LOOK_S = 10.0
_TAKEN_AT_ONCE = 20_000
_WAIT_S = 0.05
#: A partition that holds so much for a reader that does not come is paused.
_KEPT_BYTES_MAX = 16 << 20
_OUT_OF_RANGE = (KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET)


@dataclass
class _Assigned:
    """A partition that the consumer reads.

    Attributes:
        next_offset: where what was kept begins, and after it what will come.
        kept: messages that wait for their reader, in order.
        eof: where the consumer said that there is nothing now.
    """

    next_offset: int
    kept: list[MessageBatch] = field(default_factory=list)
    kept_bytes: int = 0
    eof: int = -1
    paused: bool = False
    failed: KafkaError | None = None


class ConfluentSource:
    """Implements :class:`~cuckooflow.logs.kafka_client.KafkaSource`."""

    def __init__(self, address: KafkaAddress) -> None:
        self._address = address
        self._topic = address.topic
        self._admin = ConfluentAdmin(address)
        self._opened = self._admin.topic()
        self._seen = self._opened
        self._looked_at = time.monotonic()
        self._assigned: dict[int, _Assigned] = {}
        self._consumer: Any = made(
            Consumer,
            address,
            {
                "group.id": f"cuckooflow-{uuid.uuid4().hex}",  # assigned by hand, so never joined
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
            },
        )

    def topic(self) -> Topic:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaSource`."""
        self._seen = self._admin.topic()
        self._looked_at = time.monotonic()
        return self._seen

    def partitions(self) -> int:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaSource`."""
        if time.monotonic() - self._looked_at > LOOK_S:
            try:
                self._check_same()
            except LogUnavailable:
                self._looked_at = time.monotonic()
        return self._seen.partitions

    def start(self, partition: int) -> int:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaSource`."""
        return self._admin.bounds([partition], OffsetSpec.earliest())[partition]

    def end(self, partition: int) -> int:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaSource`."""
        return self._admin.ends([partition])[partition]

    def fetch(
        self,
        offsets: Mapping[int, int],
        max_bytes: int,  # noqa: ARG002
        wait_s: float,
    ) -> Mapping[int, MessageBatch]:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaSource`. What librdkafka has fetched is given whole."""
        self._check_seen()
        self._take(0.0)
        found: dict[int, MessageBatch] = {}
        for partition, offset in offsets.items():
            batch = self._kept(partition, offset)
            if batch is not None:
                found[partition] = batch
        left = [partition for partition in offsets if partition not in found]
        if not left:
            return found
        try:
            latest = self._admin.ends(left, committed=False, wait_s=wait_s)
            there = [partition for partition in left if latest[partition] > offsets[partition]]
            ends = latest if not there else latest | self._admin.ends(there, wait_s=wait_s)
        except LogUnavailable:
            if wait_s <= 0:
                return found
            raise
        for partition in left:
            offset, end = offsets[partition], ends[partition]
            if offset >= end:
                self._check_range(partition, offset, end)
                found[partition] = _empty(partition, offset, held_back=latest[partition] > offset)
            elif wait_s > 0:
                self._place(partition, offset)
                found[partition] = self._awaited(partition, offset, end, wait_s)
            else:
                self._place(partition, offset)
        return found

    def close(self) -> None:
        """Idempotent."""
        self._consumer.close()

    def _place(self, partition: int, offset: int) -> None:
        """Have the consumer read the partition from ``offset`` on."""
        now = self._assigned.get(partition)
        if now is not None and now.next_offset == offset and now.failed is None:
            if now.paused:
                self._consumer.resume([TopicPartition(self._topic, partition)])
                now.paused = False
            return
        place = TopicPartition(self._topic, partition, offset)
        if now is not None:
            self._consumer.incremental_unassign([place])
        self._consumer.incremental_assign([place])
        self._assigned[partition] = _Assigned(offset)

    def _awaited(self, partition: int, offset: int, end: int, wait_s: float) -> MessageBatch:
        """What the consumer gives within ``wait_s``, of a partition where there is something."""
        deadline = time.monotonic() + wait_s
        while True:
            batch = self._kept(partition, offset)
            if batch is not None:
                return batch
            now = self._assigned[partition]
            if now.eof >= end:  # only holes
                now.next_offset = now.eof
                return MessageBatch(partition, *_nothing(), now.eof)
            if now.failed is not None:
                self._check_same()
                if now.failed.code() in _OUT_OF_RANGE:
                    raise self._out_of_range(partition, offset)
            if time.monotonic() > deadline:
                raise named(now.failed, self._address, f"within {wait_s:g} s")
            if now.failed is not None:
                self._place(partition, offset)
            self._take(_WAIT_S)

    def _take(self, wait_s: float) -> None:
        """Take what the consumer has fetched, a piece at most."""
        if not self._assigned:
            return
        try:
            messages = self._consumer.consume(_TAKEN_AT_ONCE, wait_s)
        except KafkaException as error:
            raise named(error, self._address, f"within {wait_s:g} s") from error
        by_partition: dict[int, list[Any]] = {}
        for message in messages:
            if message.error() is None:
                by_partition.setdefault(message.partition(), []).append(message)
            else:
                self._note(message)
        for partition, found in by_partition.items():
            now = self._assigned.get(partition)
            if now is None:
                continue
            batch = _columns(partition, found)
            now.kept.append(batch)
            now.kept_bytes += batch.values.nbytes
            if now.kept_bytes > _KEPT_BYTES_MAX and not now.paused:
                self._consumer.pause([TopicPartition(self._topic, partition)])
                now.paused = True

    def _note(self, message: Any) -> None:
        """An event in the place of a message."""
        error = message.error()
        now = self._assigned.get(message.partition())
        if now is None:
            return
        if error.code() == KafkaError._PARTITION_EOF:
            now.eof = message.offset()
        else:
            now.failed = error

    def _kept(self, partition: int, offset: int) -> MessageBatch | None:
        """The messages that were kept, if they begin at ``offset``."""
        now = self._assigned.get(partition)
        if now is None or now.next_offset != offset or not now.kept:
            return None
        kept, now.kept, now.kept_bytes = now.kept, [], 0
        now.next_offset = kept[-1].next_offset
        if now.paused:
            self._consumer.resume([TopicPartition(self._topic, partition)])
            now.paused = False
        if len(kept) == 1:
            return kept[0]
        return MessageBatch(
            partition,
            np.concatenate([batch.offsets for batch in kept]),
            np.concatenate([batch.append_us for batch in kept]),
            pa.concat_arrays([batch.values for batch in kept]),
            now.next_offset,
        )

    def _check_range(self, partition: int, offset: int, end: int) -> None:
        """An offset at or past the end of what is committed: is it one of this topic's?"""
        if offset == end:
            return
        self._check_same()
        if offset > self._admin.ends([partition], committed=False)[partition]:
            raise self._out_of_range(partition, offset)

    def _out_of_range(self, partition: int, offset: int) -> OffsetOutOfRange:
        return OffsetOutOfRange(
            f"expected an offset of {self._topic}/{partition} within {self.start(partition)} to "
            f"{self.end(partition)}, received {offset}; older ones were deleted by retention, start past them "
            "knowingly"
        )

    def _check_same(self) -> None:
        self.topic()
        self._check_seen()

    def _check_seen(self) -> None:
        now = self._seen
        if now.id != self._opened.id:
            raise LogRecreated(
                f"expected {self._address} of incarnation {self._opened.id}, found {now.id}: it was recreated; "
                "start the job anew"
            )


def _columns(partition: int, messages: Sequence[Any]) -> MessageBatch:
    offsets = np.array([message.offset() for message in messages], np.int64)
    times = [message.timestamp() for message in messages]
    append_ms = np.array([-1 if kind == TIMESTAMP_NOT_AVAILABLE else ms for kind, ms in times], np.int64)
    values = pa.array([message.value() for message in messages], pa.binary())
    return MessageBatch(partition, offsets, append_ms * 1_000, values, int(offsets[-1]) + 1)


def _nothing() -> tuple[Any, Any, pa.BinaryArray]:
    return np.empty(0, np.int64), np.empty(0, np.int64), pa.array([], pa.binary())


def _empty(partition: int, offset: int, held_back: bool) -> MessageBatch:
    return MessageBatch(partition, *_nothing(), offset, held_back)
