"""Rows on their way from those who read them to those who join them: pieces in files.

A task writes one file of pieces, each the rows for one receiver, and beside it an index that says where each
lies. A receiver reads its pieces out of everybody's files. So no shuffle of a runner holds rows, memory is
bounded by a task on every runner, and a task whose index is there need not run again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from cuckooflow.transforms.batch_bytes import decode_batch, encode_batch
from cuckooflow.transforms.source_counts import add_counts
from cuckooflow.transforms.whole_files import read_whole, whole_file, write_whole

# --- kinds of pieces, by who receives them ----------------------------------------------------

#: Rows of one log, for a slice and shard.
IMPRESSION_ROWS, ACTION_ROWS = 0, 1
#: Keys of impressions, for the settlement of one bucket of keys; ``place`` is the bucket.
KEYS = 2
#: Verdicts over impressions, for their slice and shard.
VERDICTS = 3
#: Refused events, for the days.
LETTERS = 4
#: Rows and refused events of one block of a partition, to be put in order; ``place`` is the block.
UNORDERED_ROWS, UNORDERED_LETTERS = 5, 6

#: ``source`` is the number of the block (see :class:`Block`) that the rows come from, -1 for none; ``place``
#: and ``shard`` name the receiver; ``bytes`` are the rows' in memory.
INDEX_SCHEMA = pa.schema(
    [
        ("kind", pa.int8()),
        ("source", pa.int32()),
        ("place", pa.int64()),
        ("shard", pa.int32()),
        ("at", pa.int64()),
        ("length", pa.int64()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
    ]
)
_BLOCKS = b"cuckooflow.blocks"
_COUNTS = b"cuckooflow.counts"


@dataclass
class Block:
    """A contiguous part of one partition, read whole by one task.

    Attributes:
        log, partition: of what.
        first: where it begins; blocks of a partition are in the order of this.
        latest_us, earliest_us: event times in it; ``NO_TIME_US`` for none.
        rows, refused, repeated: what was in it; repeated rows had a position that another row has.
    """

    log: int
    partition: int
    first: int
    latest_us: int
    earliest_us: int
    rows: int = 0
    refused: int = 0
    repeated: int = 0


class PieceWriter:
    """Writes a file of pieces and its index, both whole or not at all; use it as a context manager.

    Args:
        path: of the file; the index is ``path + ".index"``.

    Attributes:
        blocks, counts: go into the index, see :class:`Catalogue`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._context = whole_file(path)
        self._file: Any = None
        self._at = 0
        self._entries: list[tuple[int, ...]] = []
        self.blocks: list[Block] = []
        self.counts: dict[str, int] = {}

    def __enter__(self) -> PieceWriter:
        self._file = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)
        if error[0] is None:
            write_whole(self._path + ".index", self._index())

    def add(self, kind: int, source: int, place: int, shard: int, rows: pa.RecordBatch) -> None:
        """Add the rows for one receiver; none for no rows."""
        if not rows.num_rows:
            return
        blob = encode_batch(rows.replace_schema_metadata(None), compressed=True)
        self._file.write(blob)
        entry = (kind, source, place, shard, self._at, len(blob), rows.num_rows, rows.nbytes)
        self._entries.append(entry)
        self._at += len(blob)

    def add_split(
        self, kind: int, source: int, places: npt.NDArray[Any], shards: npt.NDArray[Any], rows: pa.RecordBatch
    ) -> None:
        """Add rows for many receivers: (n,) place and shard of each."""
        if not rows.num_rows:
            return
        order = np.lexsort((shards, places))
        places, shards = places[order], shards[order]
        rows = rows.take(pa.array(order))
        cuts = np.flatnonzero((np.diff(places) != 0) | (np.diff(shards) != 0)) + 1
        for a, b in itertools.pairwise([0, *cuts.tolist(), len(places)]):
            self.add(kind, source, int(places[a]), int(shards[a]), rows.slice(a, b - a))

    def _index(self) -> bytes:
        columns = zip(*self._entries, strict=True) if self._entries else [[] for _ in INDEX_SCHEMA]
        blocks = json.dumps([asdict(block) for block in self.blocks], separators=(",", ":"))
        counts = json.dumps(self.counts, separators=(",", ":"))
        schema = INDEX_SCHEMA.with_metadata({_BLOCKS: blocks.encode(), _COUNTS: counts.encode()})
        arrays = [pa.array(values, f.type) for values, f in zip(columns, schema, strict=True)]
        return encode_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


@dataclass
class Catalogue:
    """The pieces of many files.

    Attributes:
        files: names of the files.
        pieces: the columns of :data:`INDEX_SCHEMA` as numpy arrays, and ``file``, an index into ``files``;
            ``source`` is an index into ``blocks``.
        blocks: of all files.
        counts: of all files together: what was read, and what became of it.
    """

    files: list[str]
    pieces: dict[str, npt.NDArray[Any]]
    blocks: list[Block]
    counts: dict[str, int]

    @staticmethod
    def load(files: Sequence[str]) -> Catalogue:
        """Read the indexes of files that are all there."""
        blocks: list[Block] = []
        parts: list[dict[str, npt.NDArray[Any]]] = []
        counts: dict[str, int] = {}
        for number, path in enumerate(files):
            blob = read_whole(path + ".index")
            assert blob is not None, f"{path} was not written"
            batch = decode_batch(blob)
            part = {name: batch.column(name).to_numpy() for name in INDEX_SCHEMA.names}
            part["file"] = np.full(batch.num_rows, number, np.int32)
            part["source"] = np.where(part["source"] < 0, -1, part["source"] + len(blocks))
            blocks += [Block(**entry) for entry in json.loads(batch.schema.metadata[_BLOCKS])]
            add_counts(counts, json.loads(batch.schema.metadata.get(_COUNTS, b"{}")))
            parts.append(part)
        names = [*INDEX_SCHEMA.names, "file"]
        empty = {name: np.empty(0, np.int64) for name in names}
        pieces = {name: np.concatenate([part[name] for part in parts or [empty]]) for name in names}
        return Catalogue(list(files), pieces, blocks, counts)

    def where(self, mask: npt.NDArray[np.bool_], latest_us: npt.NDArray[np.int64] | None = None) -> Pieces:
        """Those of the pieces that a mask, (n,), marks; see :meth:`at`."""
        return self.at(np.flatnonzero(mask), latest_us)

    def at(self, chosen: npt.NDArray[Any], latest_us: npt.NDArray[np.int64] | None = None) -> Pieces:
        """Some of the pieces, by file and place in it.

        Args:
            chosen: their numbers.
            latest_us: for each block, the latest event time before it (see
                :func:`~cuckooflow.transforms.prefix_watermarks.latest_before_blocks`).
        """
        chosen = chosen[np.lexsort((self.pieces["at"][chosen], self.pieces["file"][chosen]))]
        p = {name: values[chosen] for name, values in self.pieces.items()}
        used = np.unique(p["file"])
        files = tuple(self.files[i] for i in used.tolist())
        before = np.zeros(len(chosen), np.int64) if latest_us is None else latest_us[p["source"]]
        at = np.searchsorted(used, p["file"])
        return Pieces(files, at, p["kind"], p["at"], p["length"], p["bytes"], before)


@dataclass(frozen=True)
class Pieces:
    """Pieces for one receiver: where each lies, what kind it is, and what was before its block.

    Attributes:
        files: of pieces.
        file: (n,) index into ``files``, ascending.
        kind, at, length, bytes: (n,) as in :data:`INDEX_SCHEMA`.
        before_us: (n,) the latest event time before the piece's block.
    """

    files: tuple[str, ...]
    file: npt.NDArray[Any]
    kind: npt.NDArray[Any]
    at: npt.NDArray[Any]
    length: npt.NDArray[Any]
    bytes: npt.NDArray[Any]
    before_us: npt.NDArray[Any]

    def of_kind(self, *kinds: int) -> Pieces:
        """Those of some kinds."""
        mask = np.isin(self.kind, kinds)
        columns = (self.file, self.kind, self.at, self.length, self.bytes, self.before_us)
        return Pieces(self.files, *(column[mask] for column in columns))

    def with_more(self, other: Pieces) -> Pieces:
        """These and others."""
        mine = (self.file, self.kind, self.at, self.length, self.bytes, self.before_us)
        theirs = (
            other.file + len(self.files),
            other.kind,
            other.at,
            other.length,
            other.bytes,
            other.before_us,
        )
        both = (np.concatenate(pair) for pair in zip(mine, theirs, strict=True))
        return Pieces(self.files + other.files, *both)

    def read(self) -> Iterator[tuple[pa.RecordBatch, int]]:
        """(rows, latest event time before their block), piece by piece; each file is opened once."""
        entries = zip(*(c.tolist() for c in (self.file, self.at, self.length, self.before_us)), strict=True)
        for number, group in itertools.groupby(entries, key=lambda entry: entry[0]):
            path = self.files[number]
            with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
                for _, at, length, before_us in group:
                    file.seek(at)
                    yield decode_batch(file.read(length)), before_us


def concatenated(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """One batch of all rows; ``schema`` for none."""
    none = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)
    return pa.concat_batches([none, *batches])
