"""A Kafka topic as a log: the contract of :mod:`cuckooflow.logs.contract` over either client library.

* The incarnation is the topic's id, so a recreated topic is another log.
* Only committed messages are seen. Offsets have holes: transaction markers, aborted transactions, what
  compaction took. A position never depends on how many messages lie between two offsets.
* What a fetch brought beyond what a read asked for is kept for the next read at that place; a partition
  holds at most one fetch.
* Append times are the record's, in milliseconds: the broker's where the topic has
  ``message.timestamp.type=LogAppendTime``, else what the writer said.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from cuckooflow.errors import LogError, LogRecreated, LogUnavailable, MessageTooLarge, OffsetOutOfRange
from cuckooflow.logs.address import KafkaAddress
from cuckooflow.logs.contract import MessageBatch, Sent
from cuckooflow.logs.kafka_client import KafkaAdmin, KafkaSink, KafkaSource
from cuckooflow.logs.kafka_libraries import open_admin, open_sink, open_source

_LOGGER = logging.getLogger(__name__)

#: Fetches of one read that may find only holes.
_HOLES_MAX = 64
#: Of a partition whose messages were not seen yet, the first fetch asks for no more.
_FIRST_BYTES = 1 << 20
#: The smallest fetch; less would cost a round trip for little.
_LEAST_BYTES = 1 << 16


class KafkaLogReader:
    """Reads a topic. Implements :class:`~cuckooflow.logs.contract.LogReader`, and prefetching and reports.

    Not thread-safe. Its connections close with :meth:`close`, or when it is no longer used.

    Raises:
        LogNotFound: no such topic.
        LogUnavailable: no broker answers.
        SpecError: a client property is wrong, or the library is not installed.
    """

    def __init__(self, address: KafkaAddress) -> None:
        self.address = address
        self._source: KafkaSource = open_source(address)
        self._admin: KafkaAdmin | None = None
        # Partition -> where the next read must begin for it, and what was fetched there.
        self._held: dict[int, tuple[int, MessageBatch]] = {}
        self._message_bytes: dict[int, float] = {}

    @property
    def name(self) -> str:
        """The topic."""
        return self.address.topic

    def incarnation(self) -> str:
        """The topic's id, asked anew each time."""
        return self._source.topic().id

    def partitions(self) -> Sequence[int]:
        """All partitions; one that was added to the topic is seen within ``metadata_max_age_ms``, 10 s."""
        return range(self._source.partitions())

    def start_offset(self, partition: int) -> int:
        """The first offset that retention has kept."""
        self._check(partition)
        return self._source.start(partition)

    def end_offset(self, partition: int) -> int:
        """One past the last message that no open transaction holds back."""
        self._check(partition)
        return self._source.end(partition)

    def sealed(self, partition: int) -> bool:  # noqa: ARG002
        """Never: a topic can always be appended to."""
        return False

    def read(
        self, partition: int, offset: int, max_messages: int = 65_536, max_bytes: int = 16 << 20
    ) -> MessageBatch:
        """See :meth:`cuckooflow.logs.contract.LogReader.read`. Messages of an open transaction and what
        follows them are not there yet; an offset among them is in range."""
        if max_messages < 1 or max_bytes < 1:
            raise LogError(
                f"expected bounds of at least 1, received {max_messages} messages, {max_bytes} bytes"
            )
        self._check(partition)
        held = self._held.pop(partition, None)
        if held is not None and held[0] == offset:
            return self._split(held[1], max_messages, max_bytes)
        return self._split(self._fetched(partition, offset, max_messages, max_bytes), max_messages, max_bytes)

    def read_range(self, partition: int, first: int, last: int) -> Iterator[MessageBatch]:
        """See :meth:`cuckooflow.logs.contract.LogReader.read_range`."""
        start, end = self.start_offset(partition), self.end_offset(partition)
        if not start <= first <= last <= end:
            raise OffsetOutOfRange(
                f"expected a range of {self.name}/{partition} within {start} to {end}, "
                f"received {first} to {last}"
            )
        while first < last:
            batch = self.read(partition, first, max_messages=min(65_536, last - first))
            if batch.next_offset == first:
                raise LogUnavailable(
                    f"expected {self.name}/{partition} to reach {last}, its leader has nothing after {first}; "
                    "was it elected while it was behind?"
                )
            batch = batch.until(last)
            yield batch
            first = batch.next_offset

    def prefetch(self, offsets: Mapping[int, int], max_bytes: int = 16 << 20) -> None:
        """See :class:`~cuckooflow.logs.contract.PrefetchingReader`."""
        wanted = {p: o for p, o in offsets.items() if p not in self._held or self._held[p][0] != o}
        if not wanted:
            return
        try:
            found = self._source.fetch(wanted, self._ask_bytes(None, max_bytes, wanted), 0.0)
        except (LogUnavailable, LogRecreated, OffsetOutOfRange):
            return  # the read of that partition finds the same, and says so
        for partition, batch in found.items():
            self._note_size(batch)
            self._held[partition] = (wanted[partition], batch)

    def report(self, offsets: Mapping[int, int]) -> None:
        """See :class:`~cuckooflow.logs.contract.ReportingReader`."""
        if self.address.group is None or not offsets:
            return
        try:
            if self._admin is None:
                self._admin = open_admin(self.address)
            self._admin.commit(self.address.group, offsets)
        except LogError as error:
            _LOGGER.warning(
                "log=%s group=%s could not report progress: %s", self.name, self.address.group, error
            )
            self._drop_admin()

    def config(self) -> Mapping[str, str] | None:
        """The topic's configuration, defaults included; None where it may not be read.

        Raises:
            LogUnavailable: no broker answers.
        """
        admin = open_admin(self.address)
        try:
            return admin.config()
        finally:
            admin.close()

    def retention_us(self) -> int | None:
        """See :class:`~cuckooflow.logs.contract.RetainingReader`: the topic's ``retention.ms``."""
        config = self.config()
        if config is None or "delete" not in config.get("cleanup.policy", "delete"):
            return None
        kept_ms = int(config.get("retention.ms", -1))
        return None if kept_ms < 0 else kept_ms * 1_000

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._source.close()
        self._drop_admin()

    def _drop_admin(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def _check(self, partition: int) -> None:
        count = self._source.partitions()
        if not 0 <= partition < count:
            raise LogError(f"expected a partition of {self.name} below {count}, received {partition}")

    def _note_size(self, batch: MessageBatch) -> None:
        if len(batch):
            self._message_bytes[batch.partition] = max(1.0, batch.values.nbytes / len(batch))

    def _fetched(self, partition: int, offset: int, max_messages: int, max_bytes: int) -> MessageBatch:
        """The messages from ``offset`` on, past holes."""
        at = offset
        for _ in range(_HOLES_MAX):
            ask = self._ask_bytes(max_messages, max_bytes, (partition,))
            batch = self._source.fetch({partition: at}, ask, self.address.read_timeout_s)[partition]
            if len(batch) or batch.next_offset == at:
                break
            at = batch.next_offset
        self._note_size(batch)
        return batch

    def _ask_bytes(
        self, max_messages: int | None, max_bytes: int, partitions: Sequence[int] | Mapping[int, int]
    ) -> int:
        """Bytes to fetch: what was asked for, by the size of the messages seen so far, with some room."""
        known = [self._message_bytes[p] for p in partitions if p in self._message_bytes]
        if not known:
            return min(max_bytes, _FIRST_BYTES)
        if max_messages is None:
            return max_bytes
        return min(max_bytes, max(_LEAST_BYTES, int(1.25 * max_messages * max(known))))

    def _split(self, batch: MessageBatch, max_messages: int, max_bytes: int) -> MessageBatch:
        """As much of it as was asked for; the rest is kept."""
        keep = min(len(batch), max_messages)
        if batch.values.nbytes > max_bytes:
            ends = np.cumsum(_lengths(batch.values))
            keep = min(keep, max(1, int(np.searchsorted(ends, max_bytes, side="right"))))
        if keep == len(batch):
            return batch
        batch, rest = _cut(batch, keep)
        self._held[batch.partition] = (batch.next_offset, rest)
        return batch


class KafkaLogWriter:
    """Appends to a topic, as an idempotent producer: a message that is resent is written once.

    Implements :class:`~cuckooflow.logs.contract.LogWriter`. Thread-safe. A topic takes many writers: none is
    locked out.

    Raises:
        LogNotFound, LogUnavailable, SpecError: as :class:`KafkaLogReader`.
    """

    def __init__(self, address: KafkaAddress) -> None:
        self.address = address
        self._sink: KafkaSink | None = open_sink(address)
        self._partitions = self._sink.partitions
        self.max_message_bytes = self._sink.max_message_bytes
        self._lock = threading.Lock()

    def __enter__(self) -> KafkaLogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The topic."""
        return self.address.topic

    def send(self, partition: int, values: Sequence[bytes | None] | pa.BinaryArray, append_us: int) -> Sent:
        """See :meth:`cuckooflow.logs.contract.LogWriter.send`."""
        messages = values.to_pylist() if isinstance(values, pa.Array | pa.ChunkedArray) else values
        longest = max((len(value) for value in messages if value is not None), default=0)
        if longest > self.max_message_bytes:
            raise MessageTooLarge(
                f"expected messages of at most {self.max_message_bytes} bytes for {self.address}, received "
                f"{longest}; raise the topic's max.message.bytes, or split the message"
            )
        with self._lock:
            if self._sink is None:
                raise LogError(f"expected an open writer of {self.address}, it was closed")
            if not 0 <= partition < self._partitions:
                raise LogError(
                    f"expected a partition of {self.name} below {self._partitions}, received {partition}"
                )
            return self._sink.send(partition, messages, append_us)

    def append(self, partition: int, values: Sequence[bytes | None] | pa.BinaryArray, append_us: int) -> int:
        """See :meth:`cuckooflow.logs.contract.LogWriter.append`."""
        return self.send(partition, values, append_us).wait()

    def close(self) -> None:
        """Close the connections, after what is under way. Idempotent."""
        with self._lock:
            if self._sink is not None:
                self._sink.close()
                self._sink = None


def create_topic(address: KafkaAddress) -> bool:
    """Make the topic of an address; False where it is there already.

    Raises:
        LogError: the cluster refused.
        LogUnavailable: no broker answers.
    """
    admin = open_admin(address)
    try:
        return admin.create(address.partitions, address.replication, address.config)
    finally:
        admin.close()


def _cut(batch: MessageBatch, keep: int) -> tuple[MessageBatch, MessageBatch]:
    """The first ``keep`` messages, and the others."""
    between = int(batch.offsets[keep])
    p, o, a, v = batch.partition, batch.offsets, batch.append_us, batch.values
    head = MessageBatch(p, o[:keep], a[:keep], v[:keep], between)
    return head, MessageBatch(p, o[keep:], a[keep:], v[keep:], batch.next_offset)


def _lengths(values: pa.BinaryArray) -> np.typing.NDArray[np.int32]:
    """(n,) bytes of each value."""
    offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
    return np.diff(offsets)
