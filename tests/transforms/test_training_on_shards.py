"""Trainer and publisher over a store of three shards, each restored from older checkpoints on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.embedding_store.address import write_address
from cuckooflow.embedding_store.client import connect
from cuckooflow.embedding_store.hashing import hash_column
from cuckooflow.embedding_store.read_store import ReadStore
from cuckooflow.embedding_store.server import StoreServer
from cuckooflow.embedding_store.sharded_client import ShardedClient
from cuckooflow.embedding_store.shards import Shard
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.logs.contract import Position
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import COUNT_TABLE, build_model, store_config
from cuckooflow.models.snapshots import read_snapshot, stands_on
from cuckooflow.models.spec import ModelSpec
from cuckooflow.transforms.batch_bytes import encode_batch
from cuckooflow.transforms.examples_reader import ExamplesReader
from cuckooflow.transforms.ranges import RangeHeader, attach_range
from cuckooflow.transforms.snapshot_publisher import SnapshotOptions, SnapshotPublisher
from cuckooflow.transforms.trainer import Trainer
from cuckooflow.transforms.training_options import TrainingOptions
from cuckooflow.transforms.training_output import Tick

SPEC = ModelSpec(kind="lr", labels=("like",))
FEATURES = (FeatureSpec(name="user"),)
MODEL = build_model(SPEC, FEATURES)
CONFIG = store_config(MODEL, True, 16)
SHARDS = 3
MESSAGES, ROWS = 30, 12
SECOND = 1_000_000


class Processes:
    """The shards, each of which can be thrown back to its last checkpoint, on another port."""

    def __init__(self, folder: Path) -> None:
        self._folders = [folder / str(i) for i in range(SHARDS)]
        self._stores: list[EmbeddedStore | None] = [None] * SHARDS
        self._servers: list[StoreServer | None] = [None] * SHARDS
        for i in range(SHARDS):
            self._start(i, open_store(CONFIG, self._folders[i], Shard(i, SHARDS)))

    def connect(self) -> ShardedClient:
        client = connect([folder / "address" for folder in self._folders], retry_s=30)
        assert isinstance(client, ShardedClient)
        return client

    def checkpoint(self, i: int) -> None:
        store = self._stores[i]
        assert store is not None
        store.checkpoint()

    def throw_back(self, i: int) -> None:
        self._stop(i)
        self._start(i, EmbeddedStore.restore(self._folders[i]))

    def stop(self) -> None:
        for i in range(SHARDS):
            self._stop(i)

    def _start(self, i: int, store: EmbeddedStore) -> None:
        server = StoreServer(store, "127.0.0.1:0")
        self._stores[i], self._servers[i] = store, server
        write_address(self._folders[i] / "address", server.host, server.port)

    def _stop(self, i: int) -> None:
        store, server = self._stores[i], self._servers[i]
        assert store is not None and server is not None
        server.shutdown()
        store.close()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    found = Processes(tmp_path / "shards")
    yield found
    found.stop()


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "examples"
    LocalLog.create(path, partitions=1, encoding="frames")
    with LocalLogWriter(path) as writer:
        for message in range(MESSAGES):
            numbers = range(message * ROWS, (message + 1) * ROWS)
            batch = pa.record_batch(
                {
                    "user": [f"u{n % 50}" for n in numbers],
                    "label_like": pa.array([n % 3 == 0 for n in numbers], pa.bool_()).cast(pa.uint8()),
                    "_time": pa.array([n * SECOND for n in numbers], pa.int64()),
                    "_append": pa.array([n * 10 for n in numbers], pa.int64()),
                    "_id_hi": pa.array(numbers, pa.uint64()),
                    "_id_lo": pa.array(numbers, pa.uint64()),
                }
            )
            writer.append(0, [encode_batch(batch)], 1)
    return path


def reader(path: Path) -> ExamplesReader:
    return ExamplesReader(LocalLog.open(path), dedupe_rows=1000)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
def test_every_example_counts_once_on_every_shard(
    processes: Processes, examples: Path, overlap: bool, rng: np.random.Generator
) -> None:
    client = processes.connect()
    options = TrainingOptions(batch_size=17, counting=True, marks_interval_us=0, overlap=overlap)
    trainer = Trainer(client, MODEL, lambda: reader(examples), options)
    source, at, polled_us, back = reader(examples), Position(0), 0, 0
    while at < Position(MESSAGES):
        batch, header = source.read(0, at, None, 20)
        at, polled_us = header.range.last, polled_us + SECOND
        end = at >= Position(MESSAGES)
        element = attach_range(batch, RangeHeader(header.range, Position(0), polled_us, end, header.repeated))
        trainer.accept(element)
        event, i = rng.integers(0, 3), int(rng.integers(0, SHARDS))
        if event == 0:
            processes.checkpoint(i)
        elif event == 1:
            processes.throw_back(i)
            back += 1
    processes.throw_back(1)
    trainer.finish(10**9)
    trainer.close()
    assert back > 2
    assert client.marks("examples") == {0: (Position(MESSAGES),)}
    users = hash_column(pa.array([f"u{n % 50}" for n in range(MESSAGES * ROWS)])) & np.uint64((1 << 52) - 1)
    expected = Counter(users.tolist())
    ids = np.array(sorted(expected), np.uint64)
    counts = client.lookup({COUNT_TABLE: ids})[COUNT_TABLE][:, 0]
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == expected
    client.close()


def test_snapshots_of_shards_follow_each_other_and_a_restored_one_makes_a_full_one(
    processes: Processes, examples: Path, tmp_path: Path
) -> None:
    client = processes.connect()
    trainer = Trainer(client, MODEL, lambda: reader(examples), TrainingOptions(batch_size=17, counting=True))
    folder = tmp_path / "snapshots"
    options = SnapshotOptions(folder, "films", SPEC, FEATURES, interval_us=1, full_interval_us=1 << 62)
    publisher = SnapshotPublisher(client, options)
    replica = ReadStore(CONFIG.tables)
    kinds = []

    def publish(at: int) -> None:
        source = reader(examples)
        batch, header = source.read(0, Position(at), Position(at + 1), 1000)
        end = RangeHeader(header.range, Position(0), at * SECOND, True, header.repeated)
        trainer.accept(attach_range(batch, end))
        tick = Tick("examples", 0, Position(at), at * SECOND, at * SECOND, ROWS, 1.0, ())
        manifest = publisher.tick(tick)
        assert manifest is not None
        kinds.append(manifest.kind)
        assert stands_on(manifest, replica.version)
        replica.apply(read_snapshot(folder, manifest))
        assert replica.version == manifest.version
        ids = hash_column(pa.array([f"u{n}" for n in range(50)])) & np.uint64((1 << 52) - 1)
        for table, rows in client.lookup({table.name: ids for table in CONFIG.tables}).items():
            np.testing.assert_array_equal(replica.lookup({table: ids})[table], rows)

    for at in range(4):
        publish(at)
    processes.checkpoint(2)
    processes.throw_back(2)
    for at in range(4, 7):
        publish(at)
    # Whoever publishes after this process was made anew begins with a full one.
    again = processes.connect()
    publisher = SnapshotPublisher(again, options)
    for at in range(7, 9):
        publish(at)
    assert kinds == ["full", "delta", "delta", "delta", "full", "delta", "delta", "full", "delta"]
    trainer.close()
    client.close()
    again.close()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Seeded by the test's name, so a failure repeats; the seed is shown with it."""
    seed = int.from_bytes(request.node.name.encode(), "little") % (1 << 32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)
