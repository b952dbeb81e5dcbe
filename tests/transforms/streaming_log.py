"""An examples log of one partition, and trainers over it, for tests of streaming features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.logs.contract import Position
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.models.encoding import Encoded
from cuckooflow.models.lr import LogisticRegression
from cuckooflow.models.registry import build_model, store_config
from cuckooflow.models.spec import ModelSpec
from cuckooflow.transforms.examples_reader import ExamplesReader
from cuckooflow.transforms.ranges import RangeHeader, attach_range
from cuckooflow.transforms.trainer import Trainer
from cuckooflow.transforms.training_options import TrainingOptions
from tests.models.streaming_oracle import FEATURES, LAG_S, SECOND, rows_of

SPEC = ModelSpec(kind="lr", labels=("click",))
CONFIG = store_config(build_model(SPEC, FEATURES), counting=True, buckets=4)


class Recording(LogisticRegression):
    """A model that keeps what it is given to encode."""

    def __init__(self) -> None:
        super().__init__(SPEC, FEATURES)
        self.seen: list[pa.RecordBatch] = []

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        self.seen.append(batch)
        return super().encode(batch)


class Log:
    """An examples log of one partition with messages of these sizes.

    With ``last_at_s`` the rows of the last message have times within a minute from then on.
    """

    def __init__(
        self, folder: Path, sizes: list[int], disorder_s: int = 0, last_at_s: int | None = None
    ) -> None:
        self.path = folder / "examples"
        LocalLog.create(self.path, partitions=1, encoding="frames")
        self.rows = rows_of(np.random.default_rng(11), sum(sizes), disorder_s).drop_columns(["_offset"])
        if last_at_s is not None:
            times = self.rows.column("_time").to_numpy().copy()
            times[-sizes[-1] :] = (last_at_s + np.arange(sizes[-1]) % 60) * SECOND
            place = self.rows.schema.get_field_index("_time")
            self.rows = self.rows.set_column(place, "_time", pa.array(times))
        numbers = pa.array(np.arange(self.rows.num_rows), pa.uint64())
        at = 0
        with LocalLogWriter(self.path) as writer:
            for size in sizes:
                batch = self.rows.slice(at, size)
                for name in ("_id_hi", "_id_lo"):
                    batch = batch.append_column(name, numbers.slice(at, size))
                batch = batch.append_column("_append", batch.column("_time"))
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, batch.schema) as stream:
                    stream.write_batch(batch)
                writer.append(0, [sink.getvalue().to_pybytes()], 1)
                at += size
        self.begins = np.cumsum([0, *sizes])

    def reader(self) -> ExamplesReader:
        return ExamplesReader(LocalLog.open(self.path), dedupe_rows=100)

    def elements(self, rows: int) -> Iterator[pa.RecordBatch]:
        reader, at, polled = self.reader(), Position(0), 0
        end = Position(reader.reader.end_offset(0))
        while at < end:
            batch, header = reader.read(0, at, None, rows)
            at, polled = header.range.last, polled + SECOND
            yield attach_range(batch, RangeHeader(header.range, Position(0), polled, at == end))

    def row(self, position: Position) -> int:
        """The number of a row."""
        return int(self.begins[position.offset]) + position.row


def trainer_of(
    store: EmbeddedStore, log: Log, model: LogisticRegression | None = None, **options: Any
) -> Trainer:
    given_ = {"batch_size": 16, "lag_us": LAG_S * SECOND, "counting": True, "marks_interval_us": 0, **options}
    return Trainer(store, model or LogisticRegression(SPEC, FEATURES), log.reader, TrainingOptions(**given_))
