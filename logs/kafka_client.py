"""What a Kafka client library is asked for: the seam between the logs' contract and each library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa

from cuckooflow.logs.contract import MessageBatch, Sent

#: A batch has this much more than the one message in it, at most.
BATCH_OVERHEAD_BYTES = 128
#: Of one writer's messages, so many bytes may wait for their acknowledgement; a call past that waits itself.
UNDER_WAY_BYTES_MAX = 64 << 20
#: What a topic takes where its configuration may not be read: Kafka's default.
_MESSAGE_BYTES_MAX = 1_048_588

#: A topic that was just made may not be known to every broker yet: so long it is looked for.
FIND_S = 1.0


class Topic(NamedTuple):
    """A topic as the cluster describes it.

    Attributes:
        id: its UUID, 32 hexadecimal digits; a recreated topic has another.
        partitions: how many.
    """

    id: str
    partitions: int


class KafkaSource(Protocol):
    """Reads one topic. Not thread-safe."""

    def topic(self) -> Topic:
        """As it is now.

        Raises:
            LogNotFound, LogUnavailable.
        """
        ...

    def partitions(self) -> int:
        """How many, as of a short while ago; while no broker answers, as of the last answer."""
        ...

    def start(self, partition: int) -> int:
        """The first offset kept.

        Raises:
            LogUnavailable.
        """
        ...

    def end(self, partition: int) -> int:
        """One past the last message that no open transaction holds back.

        Raises:
            LogUnavailable.
        """
        ...

    def fetch(self, offsets: Mapping[int, int], max_bytes: int, wait_s: float) -> Mapping[int, MessageBatch]:
        """What is there now from each place on, partition -> offset, about ``max_bytes`` a partition.

        Of several partitions, one may be missing in the answer: ask for it alone. With a ``wait_s`` of 0
        there is one try, and what did not answer is missing.

        Raises:
            OffsetOutOfRange, LogRecreated, LogDamaged.
            LogUnavailable: a broker did not answer within ``wait_s``.
        """
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class KafkaSink(Protocol):
    """Writes one topic, idempotently. Called by one thread at a time; what it sent may be waited for by any."""

    @property
    def partitions(self) -> int:
        """How many the topic had when it was opened."""
        ...

    @property
    def max_message_bytes(self) -> int:
        """A larger value is refused."""
        ...

    def send(self, partition: int, values: Sequence[bytes | None] | pa.BinaryArray, append_us: int) -> Sent:
        """See :meth:`cuckooflow.logs.contract.LogWriter.send`; sizes were checked."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class KafkaAdmin(Protocol):
    """Makes and describes one topic. Used for a moment, then closed."""

    def create(self, partitions: int, replication: int | None, config: Mapping[str, str]) -> bool:
        """Make the topic and wait until it can be used; False if it is there already.

        Raises:
            LogError: the cluster refused.
            LogUnavailable.
        """
        ...

    def config(self) -> Mapping[str, str] | None:
        """The topic's configuration, defaults included; None where it may not be read.

        Raises:
            LogNotFound, LogUnavailable.
        """
        ...

    def commit(self, group: str, offsets: Mapping[int, int]) -> None:
        """Set a consumer group's offsets.

        Raises:
            LogError.
        """
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


def message_bytes_max(config: Mapping[str, str] | None) -> int:
    """The largest batch that a topic takes."""
    return int((config or {}).get("max.message.bytes", _MESSAGE_BYTES_MAX))
