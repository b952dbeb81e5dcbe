"""Sinks: examples as Arrow messages, and anything smaller as JSON lines, into local logs.

An element is in the log when its ``process`` call returns, so before its bundle ends: a bundle that
is repeated after a failure may append twice (the reader of examples drops repeats), but a bundle
that succeeded has lost nothing.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa

from cuckooflow.errors import MessageTooLarge, SpecError
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.logs.shared_writers import acquire_writer, release_writer
from cuckooflow.transforms.batch_bytes import encode_batch
from cuckooflow.transforms.dead_letters import DEAD_LETTER_SCHEMA, to_json_lines
from cuckooflow.transforms.front_ends import wall_clock_us

#: A message of examples past this size is split into several, between rows; default 4 MiB.
_MESSAGE_BYTES = 4 << 20


class WriteExamples(beam.PTransform):
    """Append ``(shard, RecordBatch)`` to an examples log, one Arrow IPC message of one shard each.

    The partition is the shard modulo the log's number of partitions, so the rows of a shard keep
    their order. Batches without rows are not written. Output: nothing.

    Args:
        path: of the log, with the encoding ``frames``.

    Raises:
        LogNotFound: no log is there; while the pipeline is built.
        SpecError: the log is one of lines.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        encoding = LocalLog.open(path).encoding
        if encoding != "frames":
            raise SpecError(f"expected an examples log with the encoding frames at {path}, found {encoding}")
        self._path = Path(path).resolve()

    def expand(self, batches: Any) -> Any:
        return batches | "Append" >> beam.ParDo(_AppendExamples(self._path))


class WriteJsonLines(beam.PTransform):
    """Append records to a log of lines as JSON, one a line.

    Elements: a mapping is one line; a RecordBatch one line a row (dead letters as
    :func:`~cuckooflow.transforms.dead_letters.to_json_lines` writes them); of a ``(key, value)`` pair
    the value. Infinities and NaN become null. Output: nothing.

    Args:
        path: of the log.
        partition: to append to, default 0.

    Raises:
        LogNotFound: no log is there; while the pipeline is built.
        SpecError: it has no such partition.
    """

    def __init__(self, path: str | Path, partition: int = 0) -> None:
        super().__init__()
        partitions = LocalLog.open(path).partitions()
        if partition not in partitions:
            raise SpecError(f"expected a partition of {list(partitions)} of {path}, received {partition}")
        self._path = Path(path).resolve()
        self._partition = partition

    def expand(self, records: Any) -> Any:
        return records | "Append" >> beam.ParDo(_AppendLines(self._path, self._partition))


class _Append(beam.DoFn):
    """Holds the process's writer of a log between setup and teardown."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: LocalLogWriter | None = None

    def setup(self) -> None:
        self._acquired()

    def teardown(self) -> None:
        if self._writer is not None:
            self._writer = None
            release_writer(self._path)

    def _acquired(self) -> LocalLogWriter:
        if self._writer is None:
            self._writer = acquire_writer(self._path)
        return self._writer


class _AppendExamples(_Append):
    def setup(self) -> None:
        super().setup()
        self._count = len(LocalLog.open(self._path).partitions())

    def process(self, element: tuple[int, pa.RecordBatch]) -> None:
        shard, batch = element
        if batch.num_rows:
            messages = example_messages(batch)
            self._acquired().append(shard % self._count, messages, wall_clock_us())


class _AppendLines(_Append):
    def __init__(self, path: Path, partition: int) -> None:
        super().__init__(path)
        self._partition = partition

    def process(self, element: Any) -> None:
        lines = json_lines(element[1] if isinstance(element, tuple) else element)
        if lines:
            self._acquired().append(self._partition, lines, wall_clock_us())


def example_messages(batch: pa.RecordBatch, message_bytes: int = _MESSAGE_BYTES) -> list[bytes]:
    """Rows as Arrow IPC messages, without schema metadata, split where one would be over ``message_bytes``.

    Raises:
        MessageTooLarge: a single row is over four times that bound.
    """
    message = encode_batch(batch.replace_schema_metadata(None))
    if len(message) <= message_bytes:
        return [message]
    if batch.num_rows == 1:
        if len(message) > 4 * message_bytes:
            raise MessageTooLarge(
                f"expected an example of at most {4 * message_bytes} bytes, got {len(message)}"
            )
        return [message]
    middle = batch.num_rows // 2
    first, second = batch.slice(0, middle), batch.slice(middle)
    return example_messages(first, message_bytes) + example_messages(second, message_bytes)


def json_lines(record: Mapping[str, Any] | pa.RecordBatch) -> list[bytes]:
    """A record, or the rows of a batch, as JSON without line breaks.

    >>> json_lines({"auc": float("nan"), "rows": 3})
    [b'{"auc":null,"rows":3}']
    """
    if isinstance(record, Mapping):
        return [_line(record)]
    if record.schema.equals(DEAD_LETTER_SCHEMA):
        return to_json_lines(record)
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
