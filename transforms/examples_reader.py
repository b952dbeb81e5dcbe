"""Reads the examples log by position, without repeats, the same from wherever one begins.

A message is an Arrow IPC stream of rows of one shard. A row is dropped iff its identity (columns
``_id_hi``, ``_id_lo``) occurs in the preceding ``dedupe_rows`` rows of its partition, whether those
were dropped or not. That rule looks at the log alone, so every reader and every re-read agree; a
read that does not continue the one before seeds itself by reading that many rows backward.

What is to be skipped is no row for anybody: it trains nothing and no feature follows from it, whenever it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cuckooflow.errors import OffsetOutOfRange
from cuckooflow.logs.contract import LogRange, LogReader, Position
from cuckooflow.transforms.batch_bytes import decode_stream
from cuckooflow.transforms.dead_letters import (
    MALFORMED,
    MISSING_COLUMN,
    TOMBSTONE,
    WRONG_TYPE,
    Refused,
    dead_letters,
    no_dead_letters,
)
from cuckooflow.transforms.ranges import RangeHeader, attach_range
from cuckooflow.transforms.repeat_window import RepeatWindow

#: The columns that name an example: a 128-bit hash in two halves, uint64, never null.
IDENTITY_COLUMNS = ("_id_hi", "_id_lo")
_POSITION_FIELDS = (pa.field("_offset", pa.int64()), pa.field("_row", pa.int32()))
_SEED_MESSAGES_FIRST = 64
#: First and last offset, both included.
Skip = tuple[int, int]
#: Past every position.
_NO_BOUND = Position(1 << 62)


@dataclass
class _Cursor:
    """Where the last read of a partition ended, and the window that belongs there."""

    position: Position
    window: RepeatWindow
    schema: pa.Schema
    rows_per_message: float = 1.0


class _Pieces:
    """Parts of messages whose columns go together, and the (offset, row) where each begins."""

    def __init__(self) -> None:
        self.tables: list[pa.Table] = []
        self.begins: list[Position] = []
        self._schema: pa.Schema | None = None

    def add(self, table: pa.Table, offset: int, row: int) -> bool:
        """Take a part; False, and nothing taken, where a column's type contradicts an earlier part's."""
        if self._schema is None:
            self._schema = table.schema
        elif not self._schema.equals(table.schema):
            try:
                self._schema = pa.unify_schemas([self._schema, table.schema], promote_options="permissive")
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                return False
        self.tables.append(table)
        self.begins.append(Position(offset, row))
        return True


class _Undecodable(Exception):
    """A message that holds no examples: the reason and the detail of its dead letter."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class ExamplesReader:
    """Not thread-safe; make one per thread.

    Args:
        reader: of the examples log.
        dedupe_rows: D, default 1 million. Costs about 24 to 48 bytes a row and partition, and reading
            as many rows backward where a read does not continue the one before.
        skip: partition -> (first, last) offsets, both included, whose rows are left out; default none.

    Attributes:
        dead_letters: of the last :meth:`read`: messages in its range that hold no examples.
    """

    def __init__(
        self,
        reader: LogReader,
        dedupe_rows: int = 1_000_000,
        skip: Mapping[int, Sequence[Skip]] | None = None,
    ) -> None:
        self.reader = reader
        self.dedupe_rows = dedupe_rows
        self._skip = skip or {}
        self.dead_letters: pa.RecordBatch = no_dead_letters()
        self._incarnation = reader.incarnation()
        self._cursors: dict[int, _Cursor] = {}

    @property
    def log(self) -> str:
        """The log's name."""
        return self.reader.name

    @property
    def incarnation(self) -> str:
        """The log's incarnation when this reader was made."""
        return self._incarnation

    def read(
        self,
        partition: int,
        first: Position,
        last: Position | None = None,
        max_rows: int = 65_536,
        *,
        start: Position | None = None,
        polled_us: int = 0,
    ) -> tuple[pa.RecordBatch, RangeHeader]:
        """The rows from ``first`` on, up to ``last`` or to what is there, in bounded pieces.

        Args:
            partition: of the log.
            first: where to begin; give ``header.range.last`` to continue.
            last: where to end, exclusive; None for what is there now.
            max_rows: rows to look at, dropped ones included, at least one message's part.
            start, polled_us: go into the header; ``start`` is ``first`` where none is given.

        Returns:
            The rows, as the log holds them with ``_offset`` (int64) and ``_row`` (int32), and the
            header with the range that was read, which is also attached to the batch. A piece ends
            early where a column changes its type; a range that reaches ``last`` ends at ``last``
            exactly. Nothing to read gives no rows and ``range.last == first``.

        Raises:
            OffsetOutOfRange: retention has deleted a part of the range, or it lies past the end.
        """
        if max_rows < 1:
            raise ValueError(f"expected max_rows of 1 or more, received {max_rows}")
        bound = _NO_BOUND if last is None else last
        if first > bound or (last is not None and last > Position(self.reader.end_offset(partition))):
            raise self._out_of_range(partition, first, bound)
        cursor = self._cursor(partition, first)
        pieces = _Pieces()
        refused_batches: list[pa.RecordBatch] = []
        at, left, stop = first, max_rows, False
        while at < bound and left > 0 and not stop:
            ask = max(1, min(left, int(left / cursor.rows_per_message)))
            batch = self.reader.read(partition, at.offset, max_messages=ask)
            if len(batch) == 0:
                if batch.next_offset > at.offset:  # a hole
                    at = min(Position(batch.next_offset), bound)
                    continue
                if at.row:
                    raise self._out_of_range(partition, first, bound)
                break
            refused: list[Refused] = []
            for i, value in enumerate(batch.values):
                offset = int(batch.offsets[i])
                if offset >= bound.offset + (bound.row > 0):
                    at, stop = bound, True
                    break
                following = int(batch.offsets[i + 1]) if i + 1 < len(batch) else batch.next_offset
                try:
                    table = _decode(value.as_buffer())
                except _Undecodable as error:
                    refused.append(Refused(i, -1, error.reason, str(error), value.as_py()))
                    at = min(Position(following), bound)
                    continue
                begin = at.row if offset == at.offset else 0
                whole = min(bound.row, table.num_rows) if offset == bound.offset else table.num_rows
                take = max(0, min(whole - begin, left))
                if not pieces.add(table.slice(begin, take), offset, begin):
                    stop = True
                    break
                left -= take
                cut = begin + take < table.num_rows
                at = min(Position(offset, begin + take) if cut else Position(following), bound)
                if left == 0 or at == bound:
                    stop = True
                    break
            if refused:
                letters = dead_letters(self.log, partition, batch.offsets, batch.append_us, refused)
                refused_batches.append(letters)
            if pieces.tables:
                cursor.rows_per_message = max(1.0, (max_rows - left) / len(pieces.tables))
        rows, repeated = self._without_repeats(cursor, pieces)
        rows, skipped = self._without_skipped(partition, rows)
        cursor.position = at
        self.dead_letters = pa.concat_batches(refused_batches) if refused_batches else no_dead_letters()
        range_ = LogRange(self.log, self._incarnation, partition, first, at)
        header = RangeHeader(
            range_, first if start is None else start, polled_us, repeated=repeated, skipped=skipped
        )
        return attach_range(rows, header), header

    def _out_of_range(self, partition: int, first: Position, bound: Position) -> OffsetOutOfRange:
        kept = self.reader.start_offset(partition), self.reader.end_offset(partition)
        return OffsetOutOfRange(
            f"expected a range of {self.log}/{partition} within {kept[0]} to {kept[1]}, received {tuple(first)} to "
            f"{'its end' if bound == _NO_BOUND else tuple(bound)}"
        )

    def _without_repeats(self, cursor: _Cursor, pieces: _Pieces) -> tuple[pa.RecordBatch, int]:
        """The rows that are no repeats, with their positions, and how many were dropped."""
        if not pieces.tables:
            return pa.RecordBatch.from_pylist([], schema=cursor.schema), 0
        table = pa.concat_tables(pieces.tables, promote_options="permissive")
        lengths = [piece.num_rows for piece in pieces.tables]
        index = np.concatenate(
            [np.arange(row, row + n) for (_, row), n in zip(pieces.begins, lengths, strict=True)]
        )
        positions = (np.repeat([offset for offset, _ in pieces.begins], lengths), index)
        for field, column in zip(_POSITION_FIELDS, positions, strict=True):
            table = table.append_column(field, pa.array(column, field.type))
        repeats = cursor.window.push(*(table.column(name).to_numpy() for name in IDENTITY_COLUMNS))
        dropped = int(repeats.sum())
        if dropped:
            table = table.filter(pa.array(~repeats))
        cursor.schema = table.schema
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema), dropped

    def _without_skipped(self, partition: int, rows: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
        ranges = self._skip.get(partition, ())
        if not ranges or not rows.num_rows:
            return rows, 0
        offsets = rows.column("_offset").to_numpy()
        skipped = np.zeros(len(offsets), np.bool_)
        for first, last in ranges:
            skipped |= (offsets >= first) & (offsets <= last)
        return rows.filter(pa.array(~skipped)), int(skipped.sum())

    def _cursor(self, partition: int, first: Position) -> _Cursor:
        known = self._cursors.get(partition)
        if known is not None and known.position == first:
            return known
        window = RepeatWindow(self.dedupe_rows)
        parts = self._identities_before(partition, first)
        for hi, lo in parts:
            window.push(hi, lo)
        schema = known.schema if known is not None else pa.schema(_POSITION_FIELDS)
        cursor = _Cursor(first, window, schema, known.rows_per_message if known is not None else 1.0)
        self._cursors[partition] = cursor
        return cursor

    def _identities_before(
        self, partition: int, first: Position
    ) -> list[tuple[np.typing.NDArray[np.uint64], np.typing.NDArray[np.uint64]]]:
        """Identities of at least ``dedupe_rows`` rows before a position, or all there are, in order."""
        start = self.reader.start_offset(partition)
        blocks: list[list[pa.Table]] = []
        rows = 0
        if first.row > 0:
            head = _tables(self.reader, partition, first.offset, first.offset + 1)
            blocks.append([table.slice(0, first.row) for table in head])
            rows += sum(table.num_rows for table in blocks[0])
        stop, step = first.offset, _SEED_MESSAGES_FIRST
        while rows < self.dedupe_rows and stop > start:
            begin = max(start, stop - step)
            block = _tables(self.reader, partition, begin, stop)
            rows += sum(table.num_rows for table in block)
            blocks.append(block)
            stop, step = begin, step * 2
        hi_name, lo_name = IDENTITY_COLUMNS
        return [
            (
                np.concatenate([table.column(hi_name).to_numpy() for table in block]),
                np.concatenate([table.column(lo_name).to_numpy() for table in block]),
            )
            for block in reversed(blocks)
            if block
        ]


def _tables(reader: LogReader, partition: int, first: int, last: int) -> list[pa.Table]:
    """Identity columns of the decodable messages in a range of offsets."""
    found = []
    for batch in reader.read_range(partition, first, last):
        for value in batch.values:
            try:
                found.append(_decode(value.as_buffer()).select(IDENTITY_COLUMNS))
            except _Undecodable:
                continue
    return found


def _decode(buffer: pa.Buffer | None) -> pa.Table:
    """The rows of a message, without schema metadata."""
    if buffer is None:
        raise _Undecodable(TOMBSTONE, "expected an Arrow IPC stream of examples, received a tombstone")
    try:
        table = decode_stream(buffer)
        table.validate()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _Undecodable(MALFORMED, f"expected an Arrow IPC stream of examples: {error}") from None
    for name in IDENTITY_COLUMNS:
        if name not in table.schema.names:
            raise _Undecodable(MISSING_COLUMN, f"expected a column {name}, received {table.schema.names}")
        column = table.column(name)
        if column.type != pa.uint64() or column.null_count:
            raise _Undecodable(WRONG_TYPE, f"expected {name} of uint64 without nulls, received {column.type}")
    if len(set(table.schema.names)) != len(table.schema.names):
        raise _Undecodable(WRONG_TYPE, f"expected column names once, received {table.schema.names}")
    table = table.drop_columns([f.name for f in _POSITION_FIELDS if f.name in table.schema.names])
    return table.replace_schema_metadata(None)
