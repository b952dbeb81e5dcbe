"""A folder of event files as its writers fill it, and what a log of them gives."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from cuckooflow.logs.contract import MessageBatch
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.files_address import FilesAddress
from cuckooflow.transforms.files_log import FilesLog
from cuckooflow.transforms.in_band import IMPRESSIONS
from cuckooflow.transforms.parse import parse_messages

SCHEMA = EventSchema(
    columns={
        "k": Column(type="string"),
        "x": Column(type="float64", required=False),
        "t": Column(type="time", unit="s"),
    },
    time="t",
    key=("k",),
)
#: The same events as actions.
DONE = EventSchema(
    columns={**SCHEMA.columns, "what": Column(type="string")}, time="t", key=("k",), action_type="what"
)
HOUR_US = 3_600_000_000
Row = dict[str, Any]


def event(n: int, **more: Any) -> Row:
    return {"k": f"k{n}", "x": n / 2, "t": 1_000 + n, **more}


def lines(rows: Iterable[Row]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def put(path: Path, content: bytes) -> Path:
    """A whole file: its name comes last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    beside.write_bytes(content)
    beside.rename(path)
    return path


class Folder:
    """Files and a manifest; ``log()`` opens another reader of them, as a worker that is started again does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "in").mkdir()
        self.tick_s = 0.0

    def log(self, pattern: str = "in/*", format: str = "json", **more: Any) -> FilesLog:
        address = FilesAddress(path=pattern, format=format, **more).resolved_in(str(self.path))
        return FilesLog(address, tick_s=lambda: self.tick_s)

    def put(self, name: str, content: bytes) -> Path:
        return put(self.path / "in" / name, content)

    def later(self) -> None:
        """New files are looked for again."""
        self.tick_s += 3_600


def batches(log: FilesLog, partition: int = 0, offset: int = 0, **bounds: int) -> list[MessageBatch]:
    """What reads give one after the other until nothing comes."""
    found = []
    while True:
        batch = log.read(partition, offset, **bounds)
        if batch.next_offset == offset:
            return found
        offset = batch.next_offset
        found.append(batch)


def messages(found: Sequence[MessageBatch]) -> list[tuple[int, bytes | None]]:
    return [
        (int(offset), value.as_py())
        for batch in found
        for offset, value in zip(batch.offsets, batch.values, strict=True)
    ]


def parsed(found: Sequence[MessageBatch], schema: EventSchema = SCHEMA) -> tuple[list[Row], list[Row]]:
    both = [parse_messages(batch, IMPRESSIONS, "shown", schema, HOUR_US) for batch in found]
    return [row for part in both for row in part.rows.to_pylist()], [
        row for part in both for row in part.dead.to_pylist()
    ]


def _tfrecord(path: Path, rows: Sequence[Row]) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path), "GZIP" if path.suffix == ".gz" else "") as writer:
        for row in rows:
            features = {
                "k": tf.train.Feature(bytes_list=tf.train.BytesList(value=[row["k"].encode()])),
                "x": tf.train.Feature(float_list=tf.train.FloatList(value=[row["x"]])),
                "t": tf.train.Feature(int64_list=tf.train.Int64List(value=[row["t"]])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def _parquet(path: Path, rows: Sequence[Row]) -> None:
    table = pa.Table.from_pylist(list(rows))
    pq.write_table(table, path, row_group_size=1_500, write_page_checksum=True)


def _packed(pack: Callable[[bytes], bytes]) -> Callable[[Path, Sequence[Row]], None]:
    return lambda path, rows: put(path, pack(lines(rows))) and None


WRITERS: dict[str, tuple[str, Callable[[Path, Sequence[Row]], None]]] = {
    "jsonl": ("json", _packed(bytes)),
    "jsonl.gz": ("json", _packed(gzip.compress)),
    "jsonl.bz2": ("json", _packed(bz2.compress)),
    "jsonl.zst": ("json", _packed(zstandard.ZstdCompressor().compress)),
    "parquet": ("parquet", _parquet),
    "tfrecord": ("tfrecord", _tfrecord),
    "tfrecord.gz": ("tfrecord", _tfrecord),
}
