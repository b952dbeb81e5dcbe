"""The story is told when the served marks have passed the user's examples, not before."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cuckooflow.logs.contract import Position
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.pipelines.demo.telling import LikedExamples


def message(*keys: tuple[str, str]) -> bytes:
    columns = {
        "request_id": [request for request, _ in keys],
        "item_id": [item for _, item in keys],
        "_id_hi": pa.array(range(len(keys)), pa.uint64()),
        "_id_lo": pa.array(range(len(keys)), pa.uint64()),
    }
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    LocalLog.create(tmp_path / "examples", partitions=2, encoding="frames")
    append(tmp_path / "examples", 0, message(("r1", "i1")))  # from before: another user's
    return tmp_path / "examples"


def append(path: Path, partition: int, value: bytes) -> None:
    with LocalLogWriter(path, [partition]) as writer:
        writer.append(partition, [value], 1)


def test_examples_are_found_as_they_come_and_learned_once_the_marks_pass_them(log: Path) -> None:
    liked = LikedExamples(str(log), {("r1", "i1"), ("r2", "i2")})
    liked.look()
    assert not liked.complete
    append(log, 0, message(("r9", "i1"), ("r1", "i2"), ("r1", "i1"), ("r9", "i9")))
    liked.look()
    assert not liked.complete
    append(log, 1, message(("r2", "i2")))
    liked.look()
    assert liked.complete
    assert liked.ends == {0: Position(1, 2), 1: Position(0, 0)}
    assert not liked.learned({0: Position(1, 2), 1: Position(1)})
    assert not liked.learned({0: Position(2)})
    assert liked.learned({0: Position(1, 3), 1: Position(1)})
