"""A store of plain dictionaries, an examples log, and trainers from the one into the other.

The store has a mark for each bucket, so that single buckets can be set back.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cuckooflow.embedding_store.api import Ids, Pulled, PushAnswer, ReadAt, StoreConfig, TablePush
from cuckooflow.embedding_store.hashing import hash_column
from cuckooflow.errors import MarkMismatch, StaleRows, StoreUnavailable
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import COUNT_TABLE, build_model, store_config
from cuckooflow.models.spec import ModelSpec
from cuckooflow.transforms.batch_bytes import encode_batch
from cuckooflow.transforms.examples_reader import ExamplesReader
from cuckooflow.transforms.ranges import RangeHeader, attach_range
from cuckooflow.transforms.trainer import Trainer
from cuckooflow.transforms.training_options import TrainingOptions

MODEL = build_model(
    ModelSpec(kind="lr", labels=("like",)), [FeatureSpec(name="user"), FeatureSpec(name="item")]
)
BUCKETS = 4
SECOND = 1_000_000


class PlainStore:
    """The store's verbs over dictionaries, as far as a trainer uses them. Thread-safe where it changes."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self.logs: dict[tuple[str, int], list[Position]] = {}
        self.starts: dict[tuple[str, int], Position] = {}
        self.rows: list[dict[str, Counter[int]]] = [{} for _ in range(BUCKETS)]
        self.poisoned: set[int] = set()
        self.fail_after: int | None = None
        self.pushed: list[LogRange] = []
        self.lock = threading.Lock()
        self.clock = 0

    def open_log(self, log: str, _incarnation: str, starts: Mapping[int, Position]) -> None:
        for partition, start in starts.items():
            self.starts.setdefault((log, partition), start)
            self.logs.setdefault((log, partition), [start] * BUCKETS)

    def marks(self, log: str) -> dict[int, tuple[Position, ...]]:
        return {p: tuple(sorted(set(marks))) for (name, p), marks in self.logs.items() if name == log}

    def pull(self, ids: Mapping[str, Ids]) -> Pulled:
        dims = {t.name: t.dim for t in self.config.tables}
        rows = {name: np.zeros((len(values), dims[name]), np.float32) for name, values in ids.items()}
        for name, values in ids.items():
            rows[name][[int(i) in self.poisoned for i in values]] = np.nan
        return Pulled(rows, {d.name: np.zeros(d.shape, np.float32) for d in self.config.dense}, (self.clock,))

    def push(
        self,
        range_: LogRange,
        tables: Mapping[str, TablePush],
        _dense: Mapping[str, Any],
        _time_us: int,
        read: ReadAt | None = None,
    ) -> PushAnswer:
        with self.lock:
            return self._push(range_, tables, read)

    def _push(self, range_: LogRange, tables: Mapping[str, TablePush], read: ReadAt | None) -> PushAnswer:
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                self.fail_after = None
                raise StoreUnavailable("gone")
        marks = self.logs[range_.log, range_.partition]
        other = sorted({m for m in marks if m != range_.first and m < range_.last})
        if other:
            raise MarkMismatch("cut", other)
        taking = [b for b, mark in enumerate(marks) if mark == range_.first and mark < range_.last]
        missed = 0 if read is None or not taking else self.clock - read.clock[0]
        if read is not None and read.staleness_max is not None and missed > read.staleness_max:
            raise StaleRows("stale")
        for name, push in tables.items():
            for id_, gradient in zip(push.ids.tolist(), push.gradients[:, 0].tolist(), strict=True):
                if id_ % BUCKETS in taking and name == COUNT_TABLE:
                    self.rows[id_ % BUCKETS].setdefault(name, Counter())[id_] -= round(gradient)
        for b in taking:
            marks[b] = range_.last
        self.pushed.append(range_)
        self.clock += 1
        return PushAnswer(len(taking), BUCKETS - len(taking), missed)

    def counts(self) -> Counter[int]:
        total: Counter[int] = Counter()
        for bucket in self.rows:
            total.update(bucket.get(COUNT_TABLE, Counter()))
        return total

    def checkpoint(self) -> Any:
        with self.lock:
            return copy.deepcopy((self.logs, self.rows))

    def restore(self, checkpoint: Any, buckets: range = range(BUCKETS)) -> None:
        logs, rows = copy.deepcopy(checkpoint)
        with self.lock:
            for b in buckets:
                self.rows[b] = rows[b]
                for key, start in self.starts.items():
                    self.logs[key][b] = logs[key][b] if key in logs else start


class Examples:
    """An examples log of one partition: ``sizes`` rows a message, every fifth row a repeat."""

    def __init__(self, folder: Path, sizes: list[int]) -> None:
        self.path = folder / "examples"
        LocalLog.create(self.path, partitions=1, encoding="frames")
        self.users: list[str] = []
        n = 0
        with LocalLogWriter(self.path) as writer:
            for size in sizes:
                ids = [i - 1 if i % 5 == 4 else i for i in range(n, n + size)]
                kept = [i for k, i in enumerate(range(n, n + size)) if i % 5 != 4]
                self.users += [f"u{i % 7}" for i in kept]
                writer.append(0, [_message(ids)], 1)
                n += size
            writer.append(0, [b"not arrow"], 1)

    def reader(self) -> ExamplesReader:
        return ExamplesReader(LocalLog.open(self.path), dedupe_rows=1000)

    def elements(self, rows: int, end: bool = True) -> Iterator[pa.RecordBatch]:
        reader, at, polled = self.reader(), Position(0), 0
        while True:
            batch, header = reader.read(0, at, None, rows)
            at, polled = header.range.last, polled + SECOND
            done = at == Position(reader.reader.end_offset(0))
            yield attach_range(
                batch, RangeHeader(header.range, Position(0), polled, done and end, header.repeated)
            )
            if done:
                return

    def expected(self) -> Counter[int]:
        """How often each feature id must have been counted."""
        users = hash_column(pa.array(self.users)) & np.uint64((1 << 52) - 1)
        counts = Counter(int(i) for i in users)
        counts[1 << 52 | int(hash_column(pa.array(["it"]))[0]) & ((1 << 52) - 1)] = len(self.users)
        return counts


def _message(numbers: list[int]) -> bytes:
    batch = pa.record_batch(
        {
            "user": [f"u{n % 7}" for n in numbers],
            "item": ["it"] * len(numbers),
            "label_like": pa.array([n % 3 == 0 for n in numbers], pa.bool_()).cast(pa.uint8()),
            "_time": pa.array([n * SECOND for n in numbers], pa.int64()),
            "_append": pa.array([n * 10 for n in numbers], pa.int64()),
            "_id_hi": pa.array(numbers, pa.uint64()),
            "_id_lo": pa.array(numbers, pa.uint64()),
        }
    )
    return encode_batch(batch)


def new_store() -> PlainStore:
    return PlainStore(store_config(MODEL, counting=True))


def new_trainer(store: PlainStore, examples: Examples | None, **options: Any) -> Trainer:
    made = TrainingOptions(**{"batch_size": 8, "counting": True, "marks_interval_us": 0, **options})
    return Trainer(store, MODEL, examples.reader if examples else None, made, predictions=True)  # type: ignore[arg-type]
