"""Reads a topic through kafka-python's connections, with fetch requests of our own.

Its consumer hands out one Python object a message; here the fetched bytes are read by column instead, and a
read is one request and its answer. Fetches name the topic by its id (Kafka 3.1 and later), so a recreated
topic is an error, never other messages.

kafka-python's event loop has no thread here: it runs while a call waits.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import kafka.errors as kafka_errors
from kafka import TopicPartition
from kafka.net.selector import NetworkSelector
from kafka.protocol.consumer import FetchRequest, IsolationLevel, ListOffsetsRequest

from cuckooflow.errors import (
    LogDamaged,
    LogError,
    LogNotFound,
    LogRecreated,
    OffsetOutOfRange,
)
from cuckooflow.logs.address import KafkaAddress
from cuckooflow.logs.contract import MessageBatch
from cuckooflow.logs.kafka_client import FIND_S, Topic
from cuckooflow.logs.kafka_python_manager import ConnectionManager
from cuckooflow.logs.kafka_python_properties import connection_properties, named
from cuckooflow.logs.record_batches import decode_records

_Answer = TypeVar("_Answer")
_FetchTopic = FetchRequest.FetchTopic
_ListTopic = ListOffsetsRequest.ListOffsetsTopic

#: Between two tries, doubling from the first to the last.
_PAUSE_FIRST_S, _PAUSE_LAST_S = 0.02, 0.5
#: All partitions of one answer together.
_ANSWER_BYTES_MAX = 64 << 20
_EARLIEST, _LATEST = -2, -1
_NO_WAIT_MS = 0
_WRONG_OFFSET = kafka_errors.OffsetOutOfRangeError.errno
_CORRUPT = kafka_errors.CorruptRecordError.errno


class PythonSource:
    """Implements :class:`~cuckooflow.logs.kafka_client.KafkaSource`."""

    def __init__(self, address: KafkaAddress) -> None:
        self._address = address
        self._topic = address.topic
        self._wait_s = address.read_timeout_s
        properties = connection_properties(address)
        self._metadata_age_s = float(properties["metadata_max_age_ms"]) / 1_000
        self._net = NetworkSelector(client_id=properties["client_id"])
        self._manager = ConnectionManager(self._net, **properties)
        # A question about a topic must not make it.
        self._manager.cluster.config["allow_auto_create_topics"] = False
        self.close = weakref.finalize(self, _close, self._manager, self._net)
        try:
            self._manager.bootstrap(self._wait_s * 1_000)
            self._manager.cluster.set_topics([self._topic])
        except kafka_errors.KafkaError as error:
            self.close()
            raise named(error, address, f"within {self._wait_s:g} s", self._manager.cause) from error
        self._topic_id: Any = None
        self._looked_at = 0.0
        self.topic()
        self._topic_id = self._manager.cluster.topic_id(self._topic)

    def topic(self) -> Topic:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaSource`."""
        cluster = self._manager.cluster
        begin, pause = time.monotonic(), _PAUSE_FIRST_S
        while True:
            cause = self._refresh()
            found = cluster.partitions_for_topic(self._topic)
            if cause is None and found is not None:
                topic_id = cluster.topic_id(self._topic)
                if topic_id is None or not topic_id.int:
                    raise LogError(
                        f"expected a cluster that gives its topics ids (Kafka 2.8 and later) for {self._address}"
                    )
                return Topic(topic_id.hex, len(found))
            if cause is None and time.monotonic() - begin > min(FIND_S, self._wait_s):
                raise LogNotFound(
                    f"expected a topic {self._address}, found none; create it, or correct the name"
                )
            if time.monotonic() - begin > self._wait_s:
                raise self._named(cause)
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_LAST_S)

    def partitions(self) -> int:
        """How many, as of at most ``metadata_max_age_ms`` ago; while no broker answers, as of the last answer."""
        if time.monotonic() - self._looked_at > self._metadata_age_s:
            self._refresh()
        return len(self._manager.cluster.partitions_for_topic(self._topic) or ())

    def start(self, partition: int) -> int:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaSource`."""
        return self._bound(partition, _EARLIEST)

    def end(self, partition: int) -> int:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaSource`."""
        return self._bound(partition, _LATEST)

    def fetch(self, offsets: Mapping[int, int], max_bytes: int, wait_s: float) -> Mapping[int, MessageBatch]:
        """See :class:`~cuckooflow.logs.kafka_client.KafkaSource`."""

        def ask(pending: Mapping[int, int]) -> Any:
            return FetchRequest(
                max_wait_ms=_NO_WAIT_MS,
                min_bytes=0,
                max_bytes=min(max_bytes * len(pending), _ANSWER_BYTES_MAX),
                isolation_level=IsolationLevel.READ_COMMITTED,
                topics=[
                    _FetchTopic(
                        topic=self._topic,
                        topic_id=self._topic_id,
                        partitions=[
                            _FetchTopic.FetchPartition(
                                partition=p, fetch_offset=o, partition_max_bytes=max_bytes
                            )
                            for p, o in pending.items()
                        ],
                    )
                ],
                forgotten_topics_data=[],
            )

        def take(answer: Any) -> MessageBatch | None:
            partition = answer.partition_index
            offset = offsets[partition]
            if answer.error_code == _WRONG_OFFSET:
                raise OffsetOutOfRange(
                    f"expected an offset of {self._topic}/{partition} within {self.start(partition)} to "
                    f"{self.end(partition)}, received {offset}; older ones were deleted by retention, start past "
                    "them knowingly"
                )
            records = answer.records if answer.records is not None else b""
            aborted = [(a.producer_id, a.first_offset) for a in answer.aborted_transactions or ()]
            batch = decode_records(records, partition, offset, aborted, f"{self._topic}/{partition}")
            if not len(records) and answer.last_stable_offset > offset:
                if len(offsets) > 1:
                    return None  # others took the answer's room
                # All that was there has been deleted, by compaction for example: a hole up to the end.
                return replace(batch, next_offset=answer.last_stable_offset)
            return replace(batch, held_back=not len(records) and answer.high_watermark > offset)

        found = self._ask(offsets, ask, lambda answer: answer.responses, take, wait_s)
        return {partition: batch for partition, batch in found.items() if batch is not None}

    def _bound(self, partition: int, which: int) -> int:
        def ask(pending: Mapping[int, int]) -> Any:
            return ListOffsetsRequest(
                replica_id=-1,
                isolation_level=IsolationLevel.READ_COMMITTED,
                topics=[
                    _ListTopic(
                        name=self._topic,
                        partitions=[
                            _ListTopic.ListOffsetsPartition(
                                partition_index=p, current_leader_epoch=-1, timestamp=which
                            )
                            for p in pending
                        ],
                    )
                ],
                min_version=2,
            )

        found = self._ask(
            {partition: 0}, ask, lambda answer: answer.topics, lambda answer: int(answer.offset), self._wait_s
        )
        return found[partition]

    def _ask(
        self,
        offsets: Mapping[int, int],
        make: Callable[[Mapping[int, int]], Any],
        topics_of: Callable[[Any], Any],
        take: Callable[[Any], _Answer],
        wait_s: float,
    ) -> dict[int, _Answer]:
        """Ask the partitions' leaders until each has answered or ``wait_s`` is over.

        Raises:
            LogUnavailable: with ``wait_s`` above 0, a leader did not answer.
        """
        found: dict[int, _Answer] = {}
        pending = dict(offsets)
        begin, pause = time.monotonic(), _PAUSE_FIRST_S
        while True:
            cause: Exception | None = None
            for answer in self._round(pending, make, max(wait_s, 0.001)):
                if isinstance(answer, Exception):
                    cause = answer
                    continue
                for topic in topics_of(answer):
                    for part in topic.partitions:
                        if part.error_code not in (0, _WRONG_OFFSET):
                            cause = self._checked(part.error_code)
                        elif part.partition_index in pending:
                            found[part.partition_index] = take(part)
                            del pending[part.partition_index]
            if not pending or wait_s <= 0:
                return found
            if time.monotonic() - begin + pause > wait_s:
                raise self._named(cause)
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_LAST_S)
            self._refresh()
            if self._topic_id is not None:
                self._check_same()

    def _round(
        self, pending: Mapping[int, int], make: Callable[[Mapping[int, int]], Any], wait_s: float
    ) -> list[Any]:
        """One request to each leader; answers, or what kept them away."""
        by_leader: dict[int, dict[int, int]] = {}
        for partition, offset in pending.items():
            leader = self._manager.cluster.leader_for_partition(TopicPartition(self._topic, partition))
            if leader is None or leader == -1:
                return [kafka_errors.LeaderNotAvailableError(f"{self._topic}/{partition} has no leader")]
            by_leader.setdefault(leader, {})[partition] = offset

        async def send_all() -> list[Any]:
            futures: list[Any] = []
            for leader, part in by_leader.items():
                try:
                    futures.append(self._manager.send(make(part), leader, request_timeout_ms=wait_s * 1_000))
                except kafka_errors.KafkaError as error:
                    futures.append(error)
            answers: list[Any] = []
            for future in futures:
                try:
                    failed = isinstance(future, Exception)
                    answers.append(future if failed else await self._manager.wait_for(future, wait_s * 1_000))
                except kafka_errors.KafkaError as error:
                    answers.append(error)
            return answers

        found: list[Any] = self._net.run(send_all)
        return found

    def _refresh(self) -> Exception | None:
        """Ask for the topic's partitions and leaders; what kept the answer away."""

        async def refresh() -> None:
            update = self._manager.call_soon(self._manager.cluster.refresh_metadata)
            await self._manager.wait_for(update, self._wait_s * 1_000)

        try:
            self._net.run(refresh)
        except kafka_errors.KafkaError as error:
            return error
        self._looked_at = time.monotonic()
        return None

    def _check_same(self) -> None:
        now = self._manager.cluster.topic_id(self._topic)
        if now is not None and now.int and now != self._topic_id:
            raise LogRecreated(
                f"expected {self._address} of incarnation {self._topic_id.hex}, found {now.hex}: it was "
                "recreated; start the job anew"
            )

    def _checked(self, code: int) -> Exception:
        """The error of a partition in an answer, if it may go away.

        Raises:
            LogError: if it may not.
        """
        error = kafka_errors.for_code(code)
        if code == _CORRUPT:
            raise LogDamaged(f"expected whole messages in {self._address}, the broker found damaged ones")
        if issubclass(error, kafka_errors.AuthorizationError):
            raise self._named(error())
        return error()

    def _named(self, error: Exception | None) -> LogError:
        return named(error, self._address, f"within {self._wait_s:g} s")


def _close(manager: ConnectionManager, net: NetworkSelector) -> None:
    manager.close()
    net.close()
