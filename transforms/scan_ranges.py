"""First pass of a backfill: every range of the inputs is read once, and its rows are laid out for who needs them.

A range is read without knowing what was before it: a row's ``_wm`` is then the latest event time before it in
its block, or ``NO_TIME_US``; :func:`with_watermarks` makes watermarks of them when all blocks are known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.transforms.dead_letters import DEAD_LETTER_SCHEMA
from cuckooflow.transforms.in_band import IMPRESSIONS, NO_TIME_US
from cuckooflow.transforms.input_ranges import InputRange
from cuckooflow.transforms.pieces import (
    ACTION_ROWS,
    IMPRESSION_ROWS,
    KEYS,
    LETTERS,
    UNORDERED_LETTERS,
    UNORDERED_ROWS,
    Block,
    PieceWriter,
)
from cuckooflow.transforms.prefix_watermarks import latest_before, watermarks
from cuckooflow.transforms.source_counts import add_counts, parsed_counts

I64 = npt.NDArray[np.int64]

#: Refused events with the latest event time before their message, as ``_wm``.
LETTER_SCHEMA = pa.schema([*DEAD_LETTER_SCHEMA, pa.field("_wm", pa.int64())])
#: What a settlement of keys needs of an impression, beside the key's columns.
KEY_COLUMNS = ("_hash", "_time", "_wm", "_partition", "_offset", "_row")


@dataclass(frozen=True)
class ScanOptions:
    """How rows are laid out.

    Attributes:
        max_future_skew_us: an event time further past its append time is refused.
        num_shards: of the join key's hash.
        slice_us: event time of a slice; slice ``n`` begins at ``n * slice_us``. Costs memory.
        impressions_us, actions_us: event times, half open, whose rows are kept.
        keys_until_us: keys of impressions before this are settled.
        key: columns of the join key.
        key_buckets: keys are settled in so many parts. More parts need less memory each, and more files.
        block_offsets: how many offsets make a block of an input without order. Costs memory.
        flush_bytes: rows are written out when so many were read, default 64 MiB. Costs memory.
    """

    max_future_skew_us: int
    num_shards: int
    slice_us: int
    impressions_us: tuple[int, int]
    actions_us: tuple[int, int]
    keys_until_us: int
    key: tuple[str, ...]
    key_buckets: int
    block_offsets: int
    flush_bytes: int = 64 << 20


def scan_range(range_: InputRange, options: ScanOptions, writer: PieceWriter) -> None:
    """Read a range and write its pieces."""
    layout = RowLayout(range_.log, options, writer)
    if range_.ordered:
        layout.begin(range_.partition, range_.first)
    held: list[tuple[pa.RecordBatch, pa.RecordBatch]] = []
    held_bytes = 0
    for parsed in range_.parsed(options.max_future_skew_us):
        add_counts(writer.counts, parsed_counts(range_.log, parsed))
        held.append((parsed.rows, parsed.dead))
        held_bytes += parsed.rows.nbytes + parsed.dead.nbytes
        if held_bytes >= options.flush_bytes:
            _flush(layout, held, range_.ordered)
            held, held_bytes = [], 0
    _flush(layout, held, range_.ordered)


def _flush(layout: RowLayout, held: list[tuple[pa.RecordBatch, pa.RecordBatch]], ordered: bool) -> None:
    if not held:
        return
    rows = pa.concat_batches([rows for rows, _ in held])
    letters = pa.concat_batches([dead for _, dead in held])
    if ordered:
        layout.add(rows, letters)
    else:
        layout.add_unordered(rows, letters)


class RowLayout:
    """Writes rows and refused events of one log as pieces for their receivers."""

    def __init__(self, log: int, options: ScanOptions, writer: PieceWriter) -> None:
        self._log = log
        self._options = options
        self._writer = writer

    def begin(self, partition: int, first: int) -> Block:
        """Begin a block; what is added belongs to it."""
        block = Block(self._log, partition, first, NO_TIME_US, NO_TIME_US)
        self._writer.blocks.append(block)
        return block

    def add(self, rows: pa.RecordBatch, letters: pa.RecordBatch) -> None:
        """Add what follows in the block, in the order of positions."""
        source = len(self._writer.blocks) - 1
        block = self._writer.blocks[source]
        times = rows.column("_time").to_numpy()
        latest = latest_before(times, block.latest_us)
        rows = rows.set_column(rows.schema.get_field_index("_wm"), "_wm", pa.array(latest))
        self._add_letters(source, rows, letters, block.latest_us)
        block.rows += rows.num_rows
        block.refused += letters.num_rows
        if not len(times):
            return
        block.latest_us = max(block.latest_us, int(times.max()))
        earliest = int(times.min())
        block.earliest_us = earliest if block.earliest_us == NO_TIME_US else min(block.earliest_us, earliest)
        self._add_rows(source, rows, times)

    def _add_letters(
        self, source: int, rows: pa.RecordBatch, letters: pa.RecordBatch, before_us: int
    ) -> None:
        if not letters.num_rows:
            return
        at = np.searchsorted(rows.column("_offset").to_numpy(), letters.column("offset").to_numpy())
        times = rows.column("_time").to_numpy()
        latest = np.concatenate(([before_us], np.maximum.accumulate(np.maximum(times, before_us))))[at]
        self._writer.add(
            LETTERS, source, 0, 0, letters.append_column(LETTER_SCHEMA.field("_wm"), pa.array(latest))
        )

    def _add_rows(self, source: int, rows: pa.RecordBatch, times: I64) -> None:
        o = self._options
        hashes = rows.column("_hash").to_numpy()
        shown = self._log == IMPRESSIONS
        if shown:
            asked = times < o.keys_until_us
            keys = rows.select(list(dict.fromkeys([*KEY_COLUMNS, *o.key])))
            places = (hashes // np.uint64(o.num_shards) % np.uint64(o.key_buckets)).astype(np.int64)
            self._split(KEYS, source, keys, places, np.zeros(len(places), np.int64), asked)
        low, high = o.impressions_us if shown else o.actions_us
        kept = (times >= low) & (times < high)
        shards = (hashes % np.uint64(o.num_shards)).astype(np.int64)
        kind = IMPRESSION_ROWS if shown else ACTION_ROWS
        self._split(kind, source, rows, times // o.slice_us, shards, kept)

    def _split(
        self,
        kind: int,
        source: int,
        rows: pa.RecordBatch,
        places: I64,
        shards: I64,
        kept: npt.NDArray[np.bool_],
    ) -> None:
        if not kept.all():
            rows, places, shards = rows.filter(pa.array(kept)), places[kept], shards[kept]
        self._writer.add_split(kind, source, places, shards, rows)

    def add_unordered(self, rows: pa.RecordBatch, letters: pa.RecordBatch) -> None:
        """Add rows and refused events of any place, for those who put their blocks in order."""
        for kind, batch, prefix in ((UNORDERED_ROWS, rows, "_"), (UNORDERED_LETTERS, letters, "")):
            blocks = batch.column(f"{prefix}offset").to_numpy() // self._options.block_offsets
            places = block_place(self._log, blocks)
            shards = batch.column(f"{prefix}partition").to_numpy()
            self._writer.add_split(kind, -1, places, shards, batch)


def block_place(log: int, blocks: I64) -> I64:
    """The receiver's ``place`` of blocks of a log; its ``shard`` is the partition."""
    return blocks * 2 + log


def with_watermarks(rows: pa.RecordBatch, before_us: int, max_skew_us: int) -> pa.RecordBatch:
    """Rows of a piece with their ``_wm``, given the latest event time before their block."""
    latest = np.maximum(rows.column("_wm").to_numpy(), before_us)
    at = rows.schema.get_field_index("_wm")
    return rows.set_column(at, rows.schema.field(at), pa.array(watermarks(latest, max_skew_us)))
