"""The units of work of a backfill: each reads its own files, writes its own files, and may run anywhere, twice.

In this order: :class:`ScanTask` for each range of the inputs, :class:`OrderTask` for each block of those without
order, :class:`SettleTask` for each part of the keys; then, day by day, :class:`SliceTask` for each slice and
shard, and :class:`LettersTask`. A task is done when its ``done`` file is there.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.transforms.closed_impressions import fit
from cuckooflow.transforms.day_files import DEAD_LETTERS, EXAMPLES, LATE, UNMATCHED, DayFile, DayFileWriter
from cuckooflow.transforms.dead_letters import DEAD_LETTER_SCHEMA
from cuckooflow.transforms.in_band import IMPRESSIONS, LOG_NAMES, NO_TIME_US, ROW_COLUMNS
from cuckooflow.transforms.input_ranges import InputRange
from cuckooflow.transforms.join_outputs import ExamplesSchema
from cuckooflow.transforms.join_rows import ACCEPTED
from cuckooflow.transforms.key_settlement import settle_impressions
from cuckooflow.transforms.negative_sampling import sample_examples, sample_late
from cuckooflow.transforms.pieces import (
    ACTION_ROWS,
    IMPRESSION_ROWS,
    UNORDERED_LETTERS,
    UNORDERED_ROWS,
    VERDICTS,
    Pieces,
    PieceWriter,
    concatenated,
)
from cuckooflow.transforms.scan_ranges import KEY_COLUMNS, RowLayout, ScanOptions, scan_range, with_watermarks
from cuckooflow.transforms.slice_join import join_slice
from cuckooflow.transforms.source_counts import add_counts
from cuckooflow.transforms.whole_files import write_whole

#: A refused impression: where it lies, when it was, and why it is refused.
VERDICT_SCHEMA = pa.schema(
    [
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
        ("_row", pa.int32()),
        ("_time", pa.int64()),
        ("verdict", pa.int8()),
    ]
)
#: Columns that say where a backfilled example lies in the log that the backfill is.
PLACE_COLUMNS = (
    pa.field("_partition", pa.int32()),
    pa.field("_offset", pa.int64()),
    pa.field("_row", pa.int32()),
)


@dataclass(frozen=True)
class BackfillOptions:
    """What all tasks of a backfill agree on.

    Attributes:
        schema: columns and options of the join; ``emit`` is complete.
        scan: how rows are laid out.
        max_skew_us: how far a partition's watermark stays behind its latest event.
        rate, seed: of the negatives that are kept.
        partitions: of the log that the backfilled examples are.
        clock_us: what a stream has given out when its clock is here.
        slice_bytes: rows of a slice in memory at once, default 256 MiB; a slice with more is joined in parts of
            its keys, each of which reads the slice's pieces again.
    """

    schema: ExamplesSchema
    scan: ScanOptions
    max_skew_us: int
    rate: float
    seed: int
    partitions: int
    clock_us: int
    slice_bytes: int = 256 << 20


class Task(Protocol):
    """Work that may be done twice, with one outcome."""

    @property
    def done(self) -> str:
        """The file that is there once it is done."""
        ...

    def run(self, options: BackfillOptions) -> None:
        """Do it."""
        ...


@dataclass(frozen=True)
class ScanTask:
    """Read a range of an input and lay its rows out."""

    path: str
    range: InputRange

    @property
    def done(self) -> str:
        """See :class:`Task`."""
        return self.path + ".index"

    def run(self, options: BackfillOptions) -> None:
        """Write the pieces of the range."""
        with PieceWriter(self.path) as writer:
            scan_range(self.range, options.scan, writer)


@dataclass(frozen=True)
class UnorderedBlock:
    """Rows and refused events of one block of a partition, in pieces of any order."""

    log: int
    partition: int
    first: int
    pieces: Pieces


@dataclass(frozen=True)
class OrderTask:
    """Put blocks in the order of positions, one after the other, and lay their rows out."""

    path: str
    blocks: tuple[UnorderedBlock, ...]

    @property
    def done(self) -> str:
        """See :class:`Task`."""
        return self.path + ".index"

    def run(self, options: BackfillOptions) -> None:
        """Write the pieces of the blocks; a position that comes twice is taken once, and counted."""
        with PieceWriter(self.path) as writer:
            for block in self.blocks:
                layout = RowLayout(block.log, options.scan, writer)
                entry = layout.begin(block.partition, block.first)
                schema = options.schema.impressions if block.log == IMPRESSIONS else options.schema.actions
                shape = pa.schema([*schema, *ROW_COLUMNS])
                rows, again = _in_order(block.pieces.of_kind(UNORDERED_ROWS), shape, "_")
                refused = block.pieces.of_kind(UNORDERED_LETTERS)
                letters, refused_again = _in_order(refused, DEAD_LETTER_SCHEMA, "")
                entry.repeated = again + refused_again
                add_counts(writer.counts, {f"{LOG_NAMES[block.log]}_positions_repeated": entry.repeated})
                layout.add(rows, letters)


def _in_order(pieces: Pieces, schema: pa.Schema, prefix: str) -> tuple[pa.RecordBatch, int]:
    """Rows by position, each position once, and how many were left out."""
    rows = concatenated((batch for batch, _ in pieces.read()), schema)
    places = [rows.column(prefix + name).to_numpy() for name in ("row", "offset")]
    order = np.lexsort(places)
    row, offset = (column[order] for column in places)
    first = np.ones(len(order), np.bool_)
    first[1:] = (np.diff(row) != 0) | (np.diff(offset) != 0)
    return rows.take(pa.array(order[first])), len(order) - int(first.sum())


@dataclass(frozen=True)
class SettleTask:
    """Settle the keys of one bucket."""

    path: str
    pieces: Pieces

    @property
    def done(self) -> str:
        """See :class:`Task`."""
        return self.path + ".index"

    def run(self, options: BackfillOptions) -> None:
        """Write the verdicts over the impressions that are refused, for their slices and shards."""
        scan = options.scan
        with PieceWriter(self.path) as writer:
            parts = [
                with_watermarks(rows, before, options.max_skew_us) for rows, before in self.pieces.read()
            ]
            if not parts:
                return
            rows = pa.concat_batches(parts)
            verdicts = settle_impressions(rows.select(_key_names(options)), options.schema.options)
            refused = verdicts != ACCEPTED
            rows = rows.filter(pa.array(refused))
            places = rows.column("_time").to_numpy() // scan.slice_us
            shards = (rows.column("_hash").to_numpy() % np.uint64(scan.num_shards)).astype(np.int64)
            columns = [
                *(rows.column(n) for n in VERDICT_SCHEMA.names[:-1]),
                pa.array(verdicts[refused], pa.int8()),
            ]
            answer = pa.RecordBatch.from_arrays(columns, schema=VERDICT_SCHEMA)
            writer.add_split(VERDICTS, -1, places, shards, answer)


def _key_names(options: BackfillOptions) -> list[str]:
    return list(dict.fromkeys([*KEY_COLUMNS, *options.scan.key]))


@dataclass(frozen=True)
class SliceTask:
    """Join one slice of one shard.

    Attributes:
        folder: where the day's new files are written.
        run: of the files' names.
        number, shard: the slice begins at ``number * slice_us``.
        pieces: rows and verdicts of the slice and of what is near it.
    """

    folder: str
    run_name: str
    number: int
    shard: int
    pieces: Pieces

    @property
    def done(self) -> str:
        """See :class:`Task`; it lists the files and counts."""
        return posixpath.join(self.folder, f"slice-{self.number}-{self.shard}.json")

    def run(self, options: BackfillOptions) -> None:
        """Write the slice's files."""
        stem = f"{self.number * options.scan.slice_us // 1_000_000}-s{self.shard:05}-{self.run_name}"
        writers = {
            kind: DayFileWriter(self.folder, kind, f"{kind}-{stem}")
            for kind in (EXAMPLES, LATE, UNMATCHED, DEAD_LETTERS)
        }
        counts: dict[str, int] = {}
        rows = {EXAMPLES: 0, LATE: 0}
        parts = max(1, -(-int(self.pieces.bytes.sum()) // options.slice_bytes))
        with writers[EXAMPLES], writers[LATE], writers[UNMATCHED], writers[DEAD_LETTERS]:
            for part in range(parts):
                self._join(options, part, parts, writers, rows, counts)
        files = [writer.file for writer in writers.values() if writer.file is not None]
        write_done(self.done, files, counts)

    def _join(
        self,
        options: BackfillOptions,
        part: int,
        parts: int,
        writers: dict[str, DayFileWriter],
        rows: dict[str, int],
        counts: dict[str, int],
    ) -> None:
        """Join the keys of one part, and write what comes of them."""
        schema = options.schema
        slice_us = options.scan.slice_us
        start_us, end_us = self.number * slice_us, (self.number + 1) * slice_us
        window_us = schema.options.window_us

        def read(kind: int, columns: pa.Schema, last_us: int) -> pa.RecordBatch:
            schema_ = pa.schema([*columns, *ROW_COLUMNS])
            found = []
            for batch, before_us in self.pieces.of_kind(kind).read():
                batch = with_watermarks(batch, before_us, options.max_skew_us)
                times = batch.column("_time").to_numpy()
                mask = (times >= start_us - window_us) & (times <= last_us)
                if parts > 1:
                    keys = batch.column("_hash").to_numpy() // np.uint64(options.scan.num_shards)
                    mask &= keys % np.uint64(parts) == part
                found.append(fit(batch.filter(pa.array(mask)), schema_))
            return concatenated(found, schema_)

        impressions = read(IMPRESSION_ROWS, schema.impressions, end_us - 1)
        actions = read(ACTION_ROWS, schema.actions, end_us + window_us)
        verdicts = verdicts_of(impressions, self.pieces.of_kind(VERDICTS))
        out = join_slice(schema, impressions, actions, verdicts, start_us, end_us, options.clock_us)
        examples = sample_examples(out.examples, options.rate, options.seed)
        late = sample_late(out.late, options.rate, options.seed)
        for kind, batch in ((EXAMPLES, examples), (LATE, late)):
            writers[kind].write(self._placed(batch, rows[kind], options))
            rows[kind] += batch.num_rows
        writers[UNMATCHED].write(out.unmatched)
        writers[DEAD_LETTERS].write(out.dead)
        found = {
            **out.counts.to_dict(),
            "impressions_waiting": out.impressions_waiting,
            "actions_waiting": out.actions_waiting,
            "kept": examples.num_rows,
            "sampled_out": out.examples.num_rows - examples.num_rows,
        }
        for name, count in found.items():
            counts[name] = counts.get(name, 0) + count

    def _placed(self, batch: pa.RecordBatch, first: int, options: BackfillOptions) -> pa.RecordBatch:
        """Rows with where they lie: a slice of a shard is one message, in the order of time, then of shards."""
        start_s = self.number * options.scan.slice_us // 1_000_000
        n = batch.num_rows
        values = (
            np.full(n, self.shard % options.partitions, np.int32),
            np.full(n, start_s * options.scan.num_shards + self.shard, np.int64),
            np.arange(first, first + n, dtype=np.int32),
        )
        for column, value in zip(PLACE_COLUMNS, values, strict=True):
            batch = batch.append_column(column, pa.array(value, column.type))
        return batch


def verdicts_of(impressions: pa.RecordBatch, pieces: Pieces) -> npt.NDArray[np.int8]:
    """(n,) verdicts over impressions; those that no piece names are accepted."""
    verdicts = np.full(impressions.num_rows, ACCEPTED, np.int8)
    found = concatenated((rows for rows, _ in pieces.read()), VERDICT_SCHEMA)
    if not found.num_rows:
        return verdicts
    names = VERDICT_SCHEMA.names[:3]
    refused = dict(
        zip(
            zip(*(found.column(n).to_pylist() for n in names), strict=True),
            found.column("verdict").to_pylist(),
            strict=True,
        )
    )
    # Few impressions are refused: those whose offset one of them has are looked up one by one.
    near = np.flatnonzero(
        np.isin(impressions.column("_offset").to_numpy(), found.column("_offset").to_numpy())
    )
    places = impressions.select(names).take(pa.array(near))
    for at, place in zip(
        near.tolist(), zip(*(c.to_pylist() for c in places.columns), strict=True), strict=True
    ):
        verdicts[at] = refused.get(place, ACCEPTED)
    return verdicts


@dataclass(frozen=True)
class LettersTask:
    """Write the refused events of a day.

    Attributes:
        folder, run_name: as of :class:`SliceTask`.
        start_us, end_us: the day, half open.
        pieces: of refused events, at least all of the day.
        first_us: for each piece, the first event time of its partition: the day of what is refused before.
    """

    folder: str
    run_name: str
    start_us: int
    end_us: int
    pieces: Pieces
    first_us: npt.NDArray[np.int64]

    @property
    def done(self) -> str:
        """See :class:`Task`."""
        return posixpath.join(self.folder, "letters.json")

    def run(self, options: BackfillOptions) -> None:
        """Write the file."""
        count = 0
        with DayFileWriter(self.folder, DEAD_LETTERS, f"{DEAD_LETTERS}-events-{self.run_name}") as writer:
            for (letters, before_us), first_us in zip(
                self.pieces.read(), self.first_us.tolist(), strict=True
            ):
                latest = np.maximum(letters.column("_wm").to_numpy(), before_us)
                arrived = with_watermarks(letters, before_us, options.max_skew_us).column("_wm").to_numpy()
                times = np.where(latest == NO_TIME_US, first_us, latest)
                mine = (times >= self.start_us) & (times < self.end_us) & (arrived < options.clock_us)
                chosen = letters.select(DEAD_LETTER_SCHEMA.names).filter(pa.array(mine))
                count += chosen.num_rows
                writer.write(chosen)
        write_done(self.done, [] if writer.file is None else [writer.file], {"events_refused": count})


def write_done(path: str, files: list[DayFile], counts: dict[str, int]) -> None:
    """Say that a task is done, and what it wrote."""
    write_whole(path, json.dumps({"files": [asdict(f) for f in files], "counts": counts}).encode())


def read_done(blobs: Iterator[bytes]) -> tuple[list[DayFile], dict[str, int]]:
    """Files and summed counts of what :func:`write_done` wrote."""
    files: list[DayFile] = []
    counts: dict[str, int] = {}
    for blob in blobs:
        body = json.loads(blob)
        files += [DayFile.of(entry) for entry in body["files"]]
        for name, count in body["counts"].items():
            counts[name] = counts.get(name, 0) + count
    return files, counts
