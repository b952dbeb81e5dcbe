"""Rows of several files of one partition in the order of their positions, a bounded part of each in memory.

A file's rows are in order, files overlap: an archive has one for each day, and around midnight the rows of two days
alternate in the log. Files are opened when their first row's turn comes, and read by row group.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from cuckooflow.errors import DayNotWhole
from cuckooflow.logs.contract import Position
from cuckooflow.transforms.day_files import day_folder
from cuckooflow.transforms.day_log import PlacedFile
from cuckooflow.transforms.log_rows import rows_before

_NO_END = Position(1 << 62)


class PlacedMerge:
    """Not thread-safe.

    Args:
        out: the folder of the days.
        files: of one partition, by first position.
        begin: rows before it are left out.
    """

    def __init__(self, out: str, files: Sequence[PlacedFile], begin: Position) -> None:
        self._out = out
        self._waiting = [file for file in files if file.last >= begin]
        self._begin = begin
        self._open: list[_OpenFile] = []

    def next(self) -> pa.Table | None:
        """The next rows, with ``_offset`` and ``_row`` and all of one set of columns; None at the end.

        Raises:
            DayNotWhole: a file is gone, or of another size: its day was made anew, or it was damaged.
        """
        self._open_due()
        if not self._open:
            return None
        others = self._waiting[0].first if self._waiting else _NO_END
        bound = min([others, *(file.after for file in self._open)])
        parts = [part for file in self._open if (part := file.before(bound)).num_rows]
        try:
            rows = pa.concat_tables(parts, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            # Columns changed their type from file to file: one file's rows at a time, as far as they go.
            first, *rest = sorted(self._open, key=lambda file: file.position)
            rows = first.before(min([bound, *(file.position for file in rest)]))
            parts = [rows]
        order: npt.NDArray[np.intp] | None = None
        if len(parts) > 1:
            order = np.lexsort((rows.column("_row").to_numpy(), rows.column("_offset").to_numpy()))
            rows = rows.take(pa.array(order))
        last = Position(rows.column("_offset")[-1].as_py(), rows.column("_row")[-1].as_py() + 1)
        for file in self._open:
            file.drop_before(last)
        self._open = [file for file in self._open if not file.ended]
        return rows

    def _open_due(self) -> None:
        """Open the files that hold the next row, and pass over those without one."""
        while self._waiting:
            lowest = min((file.position for file in self._open), default=_NO_END)
            if self._waiting[0].first > lowest:
                return
            opened = _OpenFile(self._out, self._waiting.pop(0), self._begin)
            if not opened.ended:
                self._open.append(opened)


class _OpenFile:
    """A file at the row whose turn it is.

    Attributes:
        position: of that row.
        after: just after the last row that is in memory.
        ended: there is no further row.
    """

    def __init__(self, out: str, placed: PlacedFile, begin: Position) -> None:
        self._groups = _groups(out, placed, begin)
        self.ended = False
        self._take_next()
        if not self.ended:
            self.drop_before(begin)

    def before(self, bound: Position) -> pa.Table:
        """Its rows in memory before a position."""
        return self._rows.slice(0, rows_before(self._offsets, self._row, bound))

    def drop_before(self, position: Position) -> None:
        """Go on to the first row at or after a position."""
        while not self.ended and self.after <= position:
            self._take_next()
        if not self.ended:
            self._keep(rows_before(self._offsets, self._row, position))

    def _take_next(self) -> None:
        rows = next(self._groups, None)
        self.ended = rows is None
        if rows is None:
            return
        self._rows = rows
        self._offsets = rows.column("_offset").to_numpy()
        self._row = rows.column("_row").to_numpy().astype(np.int64)
        self._keep(0)
        self.after = Position(int(self._offsets[-1]), int(self._row[-1]) + 1)

    def _keep(self, first: int) -> None:
        self._rows = self._rows.slice(first)
        self._offsets, self._row = self._offsets[first:], self._row[first:]
        self.position = Position(int(self._offsets[0]), int(self._row[0]))


def _groups(out: str, placed: PlacedFile, begin: Position) -> Iterator[pa.Table]:
    """Row groups that have rows at or after a position."""
    path = posixpath.join(day_folder(out, placed.day), placed.file.name)
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as handle:
            size = handle.seek(0, 2)
            size = handle.tell() if size is None else size
            handle.seek(0)
            if size != placed.file.size:
                raise _gone(path, placed, f"{size} bytes")
            file = pq.ParquetFile(pa.PythonFile(handle, "r"))
            offset = file.schema_arrow.get_field_index("_offset")
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                statistics = group.column(_leaf(file, offset)).statistics
                if statistics is not None and statistics.has_min_max and statistics.max < begin.offset:
                    continue
                rows = file.read_row_group(number)
                if rows.num_rows:
                    yield _shifted(rows, placed.row_shift)
    except (FileNotFoundError, BeamIOError) as error:
        if FileSystems.exists(path):
            raise
        raise _gone(path, placed, "nothing") from error


def _leaf(file: pq.ParquetFile, field: int) -> int:
    """The number of a flat field's column among the leaves: those before it may be nested."""
    name = file.schema_arrow.names[field]
    paths = [file.metadata.schema.column(n).path for n in range(file.metadata.num_columns)]
    return paths.index(name)


def _shifted(rows: pa.Table, shift: int) -> pa.Table:
    rows = rows.drop_columns(["_partition"]).replace_schema_metadata(None)
    if not shift:
        return rows
    at = rows.schema.get_field_index("_row")
    moved: Any = rows.column("_row").to_numpy() + np.int32(shift)
    return rows.set_column(at, rows.schema.field(at), pa.array(moved, pa.int32()))


def _gone(path: str, placed: PlacedFile, found: str) -> DayNotWhole:
    return DayNotWhole(
        f"expected {placed.file.size} bytes at {path}, found {found}; its day was made anew, or it was damaged: make "
        "the day anew"
    )
