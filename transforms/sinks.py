"""Sinks: examples as Arrow messages, and anything smaller as JSON lines, into logs.

An element is in the log when its bundle ends: a bundle that is repeated after a failure may append
twice (the reader of examples drops repeats), but a bundle that succeeded has lost nothing. Messages leave
at once and are acknowledged together; a broker costs one wait a bundle, not one an element.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from cuckooflow.errors import MessageTooLarge, PartitionsChanged, SpecError
from cuckooflow.logs.address import KafkaAddress, LogAddress, to_address
from cuckooflow.logs.contract import LogWriter, Sent
from cuckooflow.logs.shared_writers import acquire_writer, release_writer
from cuckooflow.transforms.batch_bytes import encode_batch
from cuckooflow.transforms.dead_letters import DEAD_LETTER_SCHEMA, letters_by_reason, to_json_lines
from cuckooflow.transforms.front_ends import wall_clock_us
from cuckooflow.transforms.metrics import count

#: A message of examples past this size is split into several, between rows; default 4 MiB.
_MESSAGE_BYTES = 4 << 20
#: Appends of one bundle that may wait for their acknowledgement; a bundle in process never ends.
_SENT_MAX = 256


class WriteExamples(beam.PTransform):
    """Append ``(shard, RecordBatch)`` to an examples log, one Arrow IPC message of one shard each.

    The partition is the shard modulo the log's number of partitions, so the rows of a shard keep
    their order. That number is fixed when the log is created. Batches without rows are not written.
    Output: nothing.

    Args:
        place: of the log; a local one has the encoding ``frames``.

    Raises:
        LogNotFound, LogUnavailable: no log is there, or no broker answers; while the pipeline is built.
        PartitionsChanged: a topic has another number of partitions than its address says; also on a worker.
        SpecError: the log is one of lines.
    """

    def __init__(self, place: LogAddress | str | os.PathLike[str]) -> None:
        super().__init__()
        address = to_address(place).resolved()
        if not address.holds_any_bytes():
            raise SpecError(f"expected an examples log with the encoding frames at {address}, found lines")
        self._address = address
        self._count = examples_partitions(address)

    def expand(self, batches: Any) -> Any:
        return batches | "Append" >> beam.ParDo(_AppendExamples(self._address, self._count))


def examples_partitions(address: LogAddress, expected: int | None = None) -> int:
    """How many partitions an examples log has.

    Args:
        expected: how many it had; default as many as a topic's address says, and of a local log what it has.

    Raises:
        PartitionsChanged: it has another number.
    """
    reader = address.open_reader()
    count = len(reader.partitions())
    reader.close()
    if expected is None and isinstance(address, KafkaAddress):
        expected = address.partitions
    if expected is not None and count != expected:
        raise PartitionsChanged(
            f"expected the examples log {address} to have {expected} partitions, found {count}: a shard's "
            "rows lie in partition shard modulo that number, which is fixed when the log is created; "
            f"create a log with {count} under another name and begin the job and its store anew, or name the "
            "number that it was created with"
        )
    return count


class WriteJsonLines(beam.PTransform):
    """Append records to a log as JSON, one a message.

    Elements: a mapping is one line; a RecordBatch one line a row (dead letters as
    :func:`~cuckooflow.transforms.dead_letters.to_json_lines` writes them); of a ``(key, value)`` pair
    the value. Infinities and NaN become null. Output: nothing.

    Args:
        place: of the log.
        partition: to append to, default 0.

    Raises:
        LogNotFound, LogUnavailable: no log is there, or no broker answers; while the pipeline is built.
        SpecError: it has no such partition.
    """

    def __init__(self, place: LogAddress | str | os.PathLike[str], partition: int = 0) -> None:
        super().__init__()
        self._address = to_address(place).resolved()
        reader = self._address.open_reader()
        partitions = reader.partitions()
        reader.close()
        if partition not in partitions:
            raise SpecError(
                f"expected a partition of {list(partitions)} of {self._address}, received {partition}"
            )
        self._partition = partition

    def expand(self, records: Any) -> Any:
        return records | "Append" >> beam.ParDo(_AppendLines(self._address, self._partition))


class _Append(beam.DoFn):
    """Holds the process's writer of a log between setup and teardown, and what a bundle has sent."""

    def __init__(self, address: LogAddress) -> None:
        self._address = address
        self._writer: LogWriter | None = None
        self._sent: deque[Sent] = deque()

    def setup(self) -> None:
        self._acquired()

    def teardown(self) -> None:
        if self._writer is not None:
            self._writer = None
            release_writer(self._address)

    def start_bundle(self) -> None:
        self._sent.clear()  # of a bundle that failed: it is repeated as a whole

    def finish_bundle(self) -> None:
        while self._sent:
            self._sent.popleft().wait()

    def _acquired(self) -> LogWriter:
        if self._writer is None:
            self._writer = acquire_writer(self._address)
        return self._writer

    def _send(self, partition: int, messages: Sequence[bytes]) -> None:
        self._sent.append(self._acquired().send(partition, messages, wall_clock_us()))
        if len(self._sent) > _SENT_MAX:
            self._sent.popleft().wait()


class _AppendExamples(_Append):
    def __init__(self, address: LogAddress, count: int) -> None:
        super().__init__(address)
        self._count = count

    def setup(self) -> None:
        examples_partitions(self._address, self._count)
        super().setup()

    def process(self, element: tuple[int, pa.RecordBatch]) -> None:
        shard, batch = element
        if batch.num_rows:
            largest = self._acquired().max_message_bytes
            messages = example_messages(batch, min(_MESSAGE_BYTES, largest), largest)
            self._send(shard % self._count, messages)
            count({"examples_rows_written": batch.num_rows, "examples_messages_written": len(messages)})


class _AppendLines(_Append):
    def __init__(self, address: LogAddress, partition: int) -> None:
        super().__init__(address)
        self._partition = partition

    def process(self, element: Any) -> None:
        record = element[1] if isinstance(element, tuple) else element
        lines = json_lines(record, self._acquired().max_message_bytes)
        if lines:
            self._send(self._partition, lines)
        if isinstance(record, pa.RecordBatch) and record.schema.equals(DEAD_LETTER_SCHEMA):
            count(letters_by_reason(record))


def example_messages(
    batch: pa.RecordBatch, message_bytes: int = _MESSAGE_BYTES, row_bytes: int | None = None
) -> list[bytes]:
    """Rows as Arrow IPC messages, without schema metadata, split where one would be over ``message_bytes``.

    Args:
        row_bytes: a message of a single row may be as large; default four times ``message_bytes``.

    Raises:
        MessageTooLarge: a single row is over that bound.
    """
    row_bytes = 4 * message_bytes if row_bytes is None else row_bytes
    message = encode_batch(batch.replace_schema_metadata(None))
    if len(message) <= message_bytes:
        return [message]
    if batch.num_rows == 1:
        if len(message) > row_bytes:
            raise MessageTooLarge(f"expected an example of at most {row_bytes} bytes, got {len(message)}")
        return [message]
    middle = batch.num_rows // 2
    first, second = batch.slice(0, middle), batch.slice(middle)
    return example_messages(first, message_bytes, row_bytes) + example_messages(
        second, message_bytes, row_bytes
    )


def json_lines(record: Mapping[str, Any] | pa.RecordBatch, line_bytes: int | None = None) -> list[bytes]:
    """A record, or the rows of a batch, as JSON without line breaks.

    >>> json_lines({"auc": float("nan"), "rows": 3})
    [b'{"auc":null,"rows":3}']

    Args:
        line_bytes: what the log takes; of a dead letter past it the original bytes are left out, and said to
            be, since they lie at its position.
    """
    if isinstance(record, Mapping):
        return [_line(record)]
    if record.schema.equals(DEAD_LETTER_SCHEMA):
        return to_json_lines(record, line_bytes)
    return [_line(row) for row in record.to_pylist()]


def _line(record: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError):
        text = json.dumps(_plain(record), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()


def _plain(value: Any) -> Any:
    """What JSON can hold: no NaN, bytes as text or base64, numpy numbers as Python's."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, bytes):
        return value.decode() if value.isascii() else base64.b64encode(value).decode()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value
