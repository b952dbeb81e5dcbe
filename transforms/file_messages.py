"""A file of events as messages: one number each, the same at every read."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cuckooflow.errors import MessageTooLarge
from cuckooflow.transforms.batch_bytes import encode_batch
from cuckooflow.transforms.files_address import FileFormat
from cuckooflow.transforms.json_lines_file import lines_of
from cuckooflow.transforms.tfrecord_file import records_of
from cuckooflow.transforms.whole_read import open_inflated, open_plain

#: Bytes of lines or records that are read at once, roughly.
_CHUNK_BYTES = 1 << 20
#: What decoders raise of a file that is damaged; a file system that fails raises ``UnansweredRead``.
DAMAGED = (pa.ArrowException, EOFError, OSError, ValueError, zlib.error, MessageTooLarge)


@dataclass(frozen=True)
class Damage:
    """From here on a file cannot be read, and why."""

    detail: str


@dataclass(frozen=True)
class FileShape:
    """How a file becomes messages.

    Attributes:
        format, value: see :class:`~cuckooflow.transforms.files_address.FilesAddress`.
        rows: of Parquet without ``value``, so many rows of a row group are one Arrow message; fewer are its last.
    """

    format: FileFormat
    value: str | None
    rows: int


def messages_of(path: str, shape: FileShape, skip: int) -> Iterator[pa.BinaryArray | Damage]:
    """The messages of a file from number ``skip`` on, in arrays of bounded size; the last may be damage.

    Raises:
        UnansweredRead: the file system failed.
    """
    try:
        if shape.format == "parquet":
            yield from _of_parquet(path, shape, skip)
            return
        with open_inflated(path) as file:
            read = lines_of(file, 0, None, _CHUNK_BYTES) if shape.format == "json" else None
            chunks = (
                (part[0] for part in read) if read else (part for part, _ in records_of(file, _CHUNK_BYTES))
            )
            for chunk in chunks:
                if skip >= len(chunk):
                    skip -= len(chunk)
                    continue
                yield pa.array(chunk[skip:], pa.binary())
                skip = 0
    except DAMAGED as error:
        yield Damage(f"expected {path} to be a whole {shape.format} file: {type(error).__name__}: {error}")


def _of_parquet(path: str, shape: FileShape, skip: int) -> Iterator[pa.BinaryArray]:
    with open_plain(path) as file, pq.ParquetFile(file, page_checksum_verification=True) as opened:
        if shape.value is not None and shape.value not in opened.schema_arrow.names:
            raise ValueError(f"no column {shape.value} among {', '.join(opened.schema_arrow.names)}")
        columns = None if shape.value is None else [shape.value]
        for group in range(opened.metadata.num_row_groups):
            rows = opened.metadata.row_group(group).num_rows
            messages = rows if shape.value is not None else -(-rows // shape.rows)
            if skip >= messages:
                skip -= messages
                continue
            batches = opened.iter_batches(batch_size=shape.rows, row_groups=[group], columns=columns)
            if shape.value is not None:
                for batch in batches:
                    values = batch.column(0).cast(pa.binary())
                    if skip < len(values):
                        yield values[skip:]
                    skip = max(0, skip - len(values))
                continue
            for piece in _pieces(batches, shape.rows):
                if skip:
                    skip -= 1
                else:
                    yield pa.array([encode_batch(piece)], pa.binary())


def _pieces(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of so many, however the reader cut them."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        while count >= rows:
            table = pa.Table.from_batches(held)
            yield _one(table.slice(0, rows))
            rest = table.slice(rows)
            held, count = rest.to_batches(), rest.num_rows
    if count:
        yield _one(pa.Table.from_batches(held))


def _one(table: pa.Table) -> pa.RecordBatch:
    return table.replace_schema_metadata(None).combine_chunks().to_batches()[0]


class FileCursor:
    """Stands at a message of a file.

    Args:
        path: of the file.
        shape: see :class:`FileShape`.
        at: number of the message that it stands at.

    Attributes:
        at: as it moves on.
        over: nothing is left.
    """

    def __init__(self, path: str, shape: FileShape, at: int) -> None:
        self.at = at
        self.over = False
        self._chunks: Any = messages_of(path, shape, at)
        self._held: pa.BinaryArray = pa.array([], pa.binary())

    def take(self, max_messages: int, max_bytes: int) -> pa.BinaryArray | Damage | None:
        """The next messages, one at least; damage, behind which nothing is; or None at the end.

        Raises:
            UnansweredRead: the file system failed. The cursor is of no use any more.
        """
        while not len(self._held) and not self.over:
            chunk = next(self._chunks, None)
            if chunk is None or isinstance(chunk, Damage):
                self.close()
                self.at += chunk is not None
                return chunk
            self._held = chunk
        if self.over:
            return None
        sizes = pc.cumulative_sum(pc.fill_null(pc.binary_length(self._held).cast(pa.int64()), 0)).to_numpy()
        count = max(1, min(max_messages, int(sizes.searchsorted(max_bytes, side="right"))))
        taken, self._held = self._held[:count], self._held[count:]
        self.at += len(taken)
        return taken

    def close(self) -> None:
        """Close the file. Idempotent."""
        self.over = True
        self._chunks.close()
