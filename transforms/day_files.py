"""Results as files by day: ``dt=YYYY-MM-DD/`` under a folder, on any file system that Beam knows.

::

    out/
      dt=2026-01-01/
        _SUCCESS                       the day's manifest (JSON); without it the day is not whole
        examples-....parquet           each file whole, its name its own for good
        late-....parquet
        unmatched-....parquet
        dead_letters-....parquet

A day is what its manifest lists. Files of a new run are brought in under names that the old run's do not
have, then the manifest is renamed over the old one, then the old files go: whoever reads by the manifest
sees the old day or the new one. Files that no manifest lists are left-overs of a run that was killed;
:func:`commit_day` removes them.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from cuckooflow.errors import DayNotWhole, SpecError
from cuckooflow.transforms.whole_files import read_whole, remove, rename, whole_file, write_whole

EXAMPLES, LATE, UNMATCHED, DEAD_LETTERS = "examples", "late", "unmatched", "dead_letters"
KINDS = (EXAMPLES, LATE, UNMATCHED, DEAD_LETTERS)
MANIFEST = "_SUCCESS"
DAY_US = 86_400_000_000
#: Rows of a Parquet row group at most, default 65,536: what a reader of a range of rows reads at least.
ROW_GROUP_ROWS = 65_536
_FORMAT = 1


@dataclass(frozen=True)
class DayFile:
    """One file of a day.

    Attributes:
        kind: of :data:`KINDS`.
        name: in the day's folder.
        rows, size: rows and bytes in it.
        partition, first, last: of rows with a place (examples; late ones of a backfill), the partition and the
            positions, as ``(offset, row)``, of its first and last row; rows of a file are in the order of positions.
            None for other kinds.
    """

    kind: str
    name: str
    rows: int
    size: int
    partition: int | None = None
    first: tuple[int, int] | None = None
    last: tuple[int, int] | None = None

    @classmethod
    def of(cls, entry: dict[str, Any]) -> DayFile:
        """From what JSON made of it."""
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in entry.items()}
        return cls(**values)


@dataclass(frozen=True)
class DayManifest:
    """What a day holds.

    Attributes:
        day: YYYY-MM-DD, UTC, of the event times of its examples' impressions and of its unmatched actions. A
            refused event has the day of the latest event time before it in its partition.
        job: name of the job.
        run: of which run; every run has another.
        log, incarnation: which log the positions of the examples belong to: the examples log that was archived, or
            one of the backfill's own.
        partitions: of that log.
        files: what is there.
        counts: rows in and what became of them.
        inputs: of a backfill, what its run has read of all inputs, also of other days, and left out.
        until_us: what a stream had given out when its clock was here; None: nothing follows.
        read: of an archive, partition (as text) -> first offset and end of what was read of the log.
        whole: of an archive, partition (as text) -> offset and row where a range begins, offset and row where it
            ends, of which every row is in some day of the folder, once its run has written all of ``days``.
        days: of an archive, those that its run writes.
    """

    day: str
    job: str
    run: str
    log: str
    incarnation: str
    partitions: int
    files: tuple[DayFile, ...]
    counts: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    until_us: int | None = None
    read: dict[str, tuple[int, int]] = field(default_factory=dict)
    whole: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    days: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> list[DayFile]:
        """The files of a kind, examples by partition and position."""
        chosen = [file for file in self.files if file.kind == kind]
        return sorted(chosen, key=lambda f: (f.partition or 0, f.first or (0, 0), f.name))

    def rows(self, kind: str) -> int:
        """Rows of a kind."""
        return sum(file.rows for file in self.files if file.kind == kind)

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, blob: bytes) -> DayManifest:
        """What :meth:`to_bytes` wrote."""
        body = json.loads(blob)
        body.pop("format")
        files = tuple(DayFile.of(entry) for entry in body.pop("files"))
        read = {name: (first, end) for name, (first, end) in body.pop("read").items()}
        whole = {name: tuple(range_) for name, range_ in body.pop("whole", {}).items()}
        days = tuple(body.pop("days", ()))
        return cls(**body, files=files, read=read, whole=whole, days=days)


def day_of(time_us: int) -> date:
    """The UTC day of an event time.

    >>> day_of(86_400_000_000).isoformat()
    '1970-01-02'
    """
    return date(1970, 1, 1) + timedelta(days=time_us // DAY_US)


def day_start_us(day: date) -> int:
    """When a UTC day begins, microseconds since the epoch."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000


def day_folder(out: str, day: date) -> str:
    """Where a day lies."""
    return posixpath.join(out, f"dt={day.isoformat()}")


def read_manifest(out: str, day: date) -> DayManifest | None:
    """A day's manifest; None where the day is not whole."""
    blob = read_whole(posixpath.join(day_folder(out, day), MANIFEST))
    return None if blob is None else DayManifest.from_bytes(blob)


def whole_days(out: str) -> list[date]:
    """The days that are whole, ascending."""
    pattern = posixpath.join(out, "dt=*", MANIFEST)
    found = FileSystems.match([pattern])[0].metadata_list
    folders = (posixpath.basename(posixpath.dirname(entry.path)) for entry in found)
    return sorted(date.fromisoformat(folder.removeprefix("dt=")) for folder in folders)


def read_day(out: str, day: date, kind: str = EXAMPLES) -> pa.Table:
    """All rows of a kind of a day, in memory; examples by partition and position.

    Raises:
        DayNotWhole: there is no such day, or a file of it is gone.
    """
    manifest = read_manifest(out, day)
    if manifest is None:
        raise DayNotWhole(f"expected {MANIFEST} in {day_folder(out, day)}, found none; make the day first")
    tables = [read_file(out, day, file) for file in manifest.of_kind(kind)]
    return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def read_file(out: str, day: date, file: DayFile) -> pa.Table:
    """All rows of one file of a day.

    Raises:
        DayNotWhole: it is gone or of another size: another run replaced the day just now, or it was damaged.
    """
    path = posixpath.join(day_folder(out, day), file.name)
    blob = read_whole(path)
    if blob is None or len(blob) != file.size:
        found = "nothing" if blob is None else f"{len(blob)} bytes"
        raise DayNotWhole(
            f"expected {file.size} bytes at {path}, found {found}; read the manifest again, or make the day anew"
        )
    return pq.read_table(pa.BufferReader(blob))


class DayFileWriter:
    """Writes the rows of one kind into one Parquet file; without rows there is no file.

    Use it as a context manager; :attr:`file` says what was written, None for nothing.

    Args:
        folder: where to, not yet the day's.
        kind, name: see :class:`DayFile`; ``name`` without the suffix.
    """

    def __init__(self, folder: str, kind: str, name: str) -> None:
        self._path = posixpath.join(folder, f"{name}.parquet")
        self._kind = kind
        self._context: Any = None
        self._stream: Any = None
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0
        self._ends: list[tuple[int, tuple[int, int]]] = []
        self.file: DayFile | None = None

    def __enter__(self) -> DayFileWriter:
        return self

    def write(self, rows: pa.RecordBatch) -> None:
        """Add rows; those with a place in the order of positions and of one partition."""
        if not rows.num_rows:
            return
        if self._writer is None:
            self._context = whole_file(self._path)
            self._stream = self._context.__enter__()
            self._writer = pq.ParquetWriter(self._stream, rows.schema, compression="zstd")
        self._writer.write_table(pa.Table.from_batches([rows]), row_group_size=ROW_GROUP_ROWS)
        self._rows += rows.num_rows
        if self._kind in (EXAMPLES, LATE) and "_row" in rows.schema.names:
            for at in (0, rows.num_rows - 1):
                place = [int(rows.column(n)[at].as_py()) for n in ("_partition", "_offset", "_row")]
                self._ends.append((place[0], (place[1], place[2])))

    def __exit__(self, *error: Any) -> None:
        if self._writer is None:
            return
        if error[0] is None:
            self._writer.close()
            size = int(self._stream.tell())
            ends = (self._ends[0][0], self._ends[0][1], self._ends[-1][1]) if self._ends else (None,) * 3
            self.file = DayFile(self._kind, posixpath.basename(self._path), self._rows, size, *ends)
        self._context.__exit__(*error)


def commit_day(out: str, manifest: DayManifest, written: str) -> None:
    """Make a day what the manifest says. Done again after a kill anywhere in it, it comes to the same.

    Args:
        manifest: its files lie in ``written``, or in the day's folder already.
        written: folder of the new files.

    Raises:
        SpecError: the day there is of another log.
        DayNotWhole: a file is in neither place.
    """
    day = date.fromisoformat(manifest.day)
    before = read_manifest(out, day)
    if before is not None and before.log != manifest.log:
        raise SpecError(
            f"expected days of {manifest.log} in {out}, found one of {before.log}; name another folder"
        )
    folder = day_folder(out, day)
    for file in manifest.files:
        source, target = (posixpath.join(where, file.name) for where in (written, folder))
        if FileSystems.exists(source):
            rename_into(source, target)
        elif not FileSystems.exists(target):
            raise DayNotWhole(
                f"expected {file.name} in {written} or {folder}, found it in neither; start anew"
            )
    write_whole(posixpath.join(folder, MANIFEST), manifest.to_bytes())
    keep = {MANIFEST, *(file.name for file in manifest.files)}
    remove_others(folder, keep)


def rename_into(source: str, target: str) -> None:
    """Move a file into a folder that may not be there yet."""
    folder = posixpath.dirname(target)
    if not FileSystems.exists(folder):
        try:
            FileSystems.mkdirs(folder)
        except OSError:
            if not FileSystems.exists(folder):
                raise
    rename(source, target)


def remove_others(folder: str, keep: Iterable[str]) -> None:
    """Delete all files of a folder but some, half-written ones included."""
    names = set(keep)
    for entry in FileSystems.match([posixpath.join(folder, "**")])[0].metadata_list:
        if posixpath.basename(entry.path) not in names:
            remove(entry.path)


def days_between(first: date, until: date) -> Sequence[date]:
    """The days from ``first`` up to, not including, ``until``."""
    return [first + timedelta(days=n) for n in range((until - first).days)]
