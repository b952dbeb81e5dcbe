"""Files of events as bounded inputs: Parquet, JSON lines or TFRecords, compressed or not, on any of Beam's file systems.

A file holds rows, a column a field, or messages, whose bytes are one column. Where columns say so, a row keeps the
position that it had in a log, and may lie anywhere in any file. Otherwise a file is a partition of its own, by its
number among the sorted paths, and a row's offset is its number (Parquet) or its first byte (the others).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from cuckooflow.errors import InputFileWrong, SpecError
from cuckooflow.transforms.columns import EventSchema
from cuckooflow.transforms.json_lines_file import lines_of
from cuckooflow.transforms.parse import Parsed
from cuckooflow.transforms.placed_rows import PlaceColumns, parse_lines, parse_places, parse_records
from cuckooflow.transforms.tfrecord_file import records_of
from cuckooflow.transforms.whole_read import is_compressed, open_inflated, open_plain

I64 = npt.NDArray[np.int64]

#: A range of a file, in bytes of the file at most where it can be cut.
RANGE_BYTES = 64 << 20
_BATCH_ROWS = 16_384
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True)
class FileInput:
    """Files of one log's events.

    Attributes:
        pattern: path or address, with ``*`` for any name and ``**`` for any path.
        format: ``parquet``, ``json`` (one object a line) or ``tfrecord`` (each record a message); the last two are
            compressed where the name says so: .gz, .bz2, .zst.
        layout: ``rows``: a column a field. ``messages``: each row is a message of a log, its bytes in a column.
        columns: which columns say where a row lay.
        schema: of the events.
        name: of the log, in dead letters.
        append_until_us: when everything had been appended, microseconds; where no column says when.
    """

    pattern: str
    format: Literal["parquet", "json", "tfrecord"]
    layout: Literal["rows", "messages"]
    columns: PlaceColumns
    schema: EventSchema
    name: str
    append_until_us: int | None = None

    def __post_init__(self) -> None:
        if (self.columns.append is None) == (self.append_until_us is None):
            raise SpecError(
                f"{self.pattern}: expected either a column of append times or one time for all files"
            )
        if (self.columns.partition is None) != (self.columns.offset is None):
            raise SpecError(f"{self.pattern}: expected columns of both partition and offset, or of neither")
        if self.format == "tfrecord" and (self.layout != "messages" or self.columns.names()):
            raise SpecError(
                f"{self.pattern}: expected the layout messages and no columns, as a record has none"
            )

    def listing(self) -> list[tuple[str, int]]:
        """Path and size of every file that is there now, by path.

        Raises:
            InputFileWrong: there is none.
        """
        found = FileSystems.match([self.pattern])[0].metadata_list
        if not found:
            raise InputFileWrong(f"expected files at {self.pattern}, found none; correct the path")
        return sorted((entry.path, int(entry.size_in_bytes)) for entry in found)

    def ranges(self, log: int, listing: Sequence[tuple[str, int]]) -> list[FileRange]:
        """The ranges of what was listed."""
        ranges: list[FileRange] = []
        for number, (path, size) in enumerate(listing):
            ranges += self._ranges_of(log, number, path, size)
        return ranges

    def _ranges_of(self, log: int, number: int, path: str, size: int) -> Iterator[FileRange]:
        if self.format == "tfrecord":
            yield FileRange(self, log, number, path, size, 0, -1, size)
        elif self.format == "json":
            whole = is_compressed(path)
            for at in range(0, max(1, size), max(1, size) if whole else RANGE_BYTES):
                end = size if whole else min(size, at + RANGE_BYTES)
                yield FileRange(self, log, number, path, size, at, -1 if whole else end, end - at)
        elif size <= RANGE_BYTES:
            yield FileRange(self, log, number, path, size, 0, -1, size)
        else:
            with open_plain(path) as file:
                groups = pq.ParquetFile(file).metadata.num_row_groups
            step = max(1, groups * RANGE_BYTES // size)
            for first in range(0, groups, step):
                last = min(groups, first + step)
                yield FileRange(self, log, number, path, size, first, last, size * (last - first) // groups)


@dataclass(frozen=True)
class FileRange:
    """A part of one file: row groups of Parquet, or the lines that begin in a span of bytes.

    Attributes:
        input: whose file it is.
        number, path, file_size: of the file.
        first, last: half open, row groups or bytes; -1 for the end of the file.
    """

    input: FileInput
    log: int
    number: int
    path: str
    file_size: int
    first: int
    last: int
    size: int

    @property
    def partition(self) -> int:
        """See :class:`~cuckooflow.transforms.input_ranges.InputRange`."""
        return self.number

    @property
    def ordered(self) -> bool:
        """See :class:`~cuckooflow.transforms.input_ranges.InputRange`."""
        return self.input.columns.offset is None

    def parsed(self, max_future_skew_us: int) -> Iterator[Parsed]:
        """See :meth:`~cuckooflow.transforms.input_ranges.InputRange.parsed`."""
        self._check()
        for parsed, _ in self._batches(max_future_skew_us):
            yield parsed

    def sample(self, max_future_skew_us: int) -> tuple[Parsed, float]:
        """See :meth:`~cuckooflow.transforms.input_ranges.InputRange.sample`."""
        return next(self._batches(max_future_skew_us), (self._empty(max_future_skew_us), 1.0))

    def _check(self) -> None:
        found = FileSystems.match([self.path])[0].metadata_list
        size = int(found[0].size_in_bytes) if found else -1
        if size != self.file_size:
            raise InputFileWrong(
                f"expected {self.path} of {self.file_size} bytes, as it was listed, found "
                f"{'nothing' if size < 0 else f'{size} bytes'}; begin the backfill anew with --restart"
            )

    def _batches(self, max_future_skew_us: int) -> Iterator[tuple[Parsed, float]]:
        """Parsed batches and the share of the range that each is, roughly."""
        source = self.input
        try:
            if source.format == "json":
                yield from self._line_batches(max_future_skew_us)
                return
            if source.format == "tfrecord":
                yield from self._record_batches(max_future_skew_us)
                return
            with open_plain(self.path) as file:
                opened = pq.ParquetFile(file, page_checksum_verification=True)
                meta = opened.metadata
                groups = range(self.first, meta.num_row_groups if self.last < 0 else self.last)
                at = sum(meta.row_group(g).num_rows for g in range(self.first))
                rows = sum(meta.row_group(g).num_rows for g in groups)
                for batch in opened.iter_batches(batch_size=_BATCH_ROWS, row_groups=list(groups)):
                    offsets = np.arange(at, at + batch.num_rows)
                    at += batch.num_rows
                    table = pa.Table.from_batches([batch])
                    yield (
                        parse_places(table, offsets, self.number, source, self.log, max_future_skew_us),
                        batch.num_rows / rows,
                    )
        except (pa.ArrowInvalid, EOFError, OSError) as error:
            raise InputFileWrong(
                f"expected {self.path} to be a whole {source.format} file: {error}"
            ) from error

    def _line_batches(self, max_future_skew_us: int) -> Iterator[tuple[Parsed, float]]:
        with open_inflated(self.path) as file:
            end = None if self.last < 0 else self.last
            for lines, offsets, share in lines_of(file, self.first, end, _HEAD_BYTES):
                parsed = parse_lines(lines, offsets, self.number, self.input, self.log, max_future_skew_us)
                yield parsed, min(1.0, share if end is not None else _HEAD_BYTES / max(1, 4 * self.size))

    def _record_batches(self, max_future_skew_us: int) -> Iterator[tuple[Parsed, float]]:
        with open_inflated(self.path) as file:
            for records, offsets in records_of(file, _HEAD_BYTES):
                yield (
                    parse_records(records, offsets, self.number, self.input, self.log, max_future_skew_us),
                    min(1.0, _HEAD_BYTES / max(1, self.size)),
                )

    def _empty(self, max_future_skew_us: int) -> Parsed:
        none = np.empty(0, np.int64)
        parse = parse_records if self.input.format == "tfrecord" else parse_lines
        return parse([], none, self.number, self.input, self.log, max_future_skew_us)
