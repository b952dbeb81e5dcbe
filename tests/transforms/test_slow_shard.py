"""Several trainers push to two shards at once, one of which takes half a second for each answer."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.embedding_store.api import Ids, Pulled, PushAnswer
from cuckooflow.embedding_store.client import connect
from cuckooflow.embedding_store.hashing import hash_column
from cuckooflow.embedding_store.server import StoreServer
from cuckooflow.embedding_store.shards import Shard
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.logs.contract import Position
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import COUNT_TABLE, build_model, store_config
from cuckooflow.models.spec import ModelSpec
from cuckooflow.transforms.batch_bytes import encode_batch
from cuckooflow.transforms.examples_reader import ExamplesReader
from cuckooflow.transforms.ranges import RangeHeader, attach_range
from cuckooflow.transforms.trainer import Trainer
from cuckooflow.transforms.training_options import TrainingOptions

pytestmark = pytest.mark.slow

MODEL = build_model(ModelSpec(kind="lr", labels=("like",)), (FeatureSpec(name="user"),))
CONFIG = store_config(MODEL, True, 16)
SHARDS, TRAINERS, STEPS, ROWS = 2, 3, 4, 16
DELAY_S = 0.5


class SlowStore(EmbeddedStore):
    """Rows are half a second old when they arrive, and a push arrives half a second late."""

    def pull(self, ids: Mapping[str, Ids]) -> Pulled:
        pulled = super().pull(ids)
        time.sleep(DELAY_S)
        return pulled

    def push(self, *args: Any) -> PushAnswer:
        time.sleep(DELAY_S)
        return super().push(*args)


@pytest.fixture
def addresses() -> Iterator[list[str]]:
    stores = [EmbeddedStore(CONFIG, shard=Shard(0, SHARDS)), SlowStore(CONFIG, shard=Shard(1, SHARDS))]
    servers = [StoreServer(store, "127.0.0.1:0") for store in stores]
    yield [f"127.0.0.1:{server.port}" for server in servers]
    for server in servers:
        server.shutdown()


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "examples"
    LocalLog.create(path, partitions=TRAINERS, encoding="frames")
    with LocalLogWriter(path) as writer:
        for partition in range(TRAINERS):
            numbers = range(partition * STEPS * ROWS, (partition + 1) * STEPS * ROWS)
            batch = pa.record_batch(
                {
                    "user": [f"u{n % 20}" for n in numbers],
                    "label_like": pa.array([n % 3 == 0 for n in numbers], pa.bool_()).cast(pa.uint8()),
                    "_time": pa.array(numbers, pa.int64()),
                    "_append": pa.array(numbers, pa.int64()),
                    "_id_hi": pa.array(numbers, pa.uint64()),
                    "_id_lo": pa.array(numbers, pa.uint64()),
                }
            )
            writer.append(partition, [encode_batch(batch)], 1)
    return path


@pytest.mark.parametrize(("most", "overlap"), [(None, False), (1, False), (2, True)])
def test_staleness_is_measured_and_bounded(
    addresses: list[str], examples: Path, most: int | None, overlap: bool
) -> None:
    told: list[int] = []
    together = threading.Barrier(TRAINERS)

    def reader() -> ExamplesReader:
        return ExamplesReader(LocalLog.open(examples), dedupe_rows=1000)

    def train(partition: int) -> Counter[str]:
        client: Any = connect(addresses)
        push = client.push

        def noted(*args: Any) -> PushAnswer:
            answer: PushAnswer = push(*args)
            told.append(answer.staleness)
            return answer

        client.push = noted
        options = TrainingOptions(batch_size=ROWS, counting=True, staleness_max=most, overlap=overlap)
        trainer = Trainer(client, MODEL, reader, options)
        batch, header = reader().read(partition, Position(0), None, 1_000)
        element = attach_range(batch, RangeHeader(header.range, Position(0), 0, True, header.repeated))
        together.wait(60)
        counted = trainer.accept(element).counted
        trainer.close()
        client.close()
        return counted

    with ThreadPoolExecutor(TRAINERS) as pool:
        counted = sum(pool.map(train, range(TRAINERS)), Counter())
    steps, stale = counted["training_steps"], counted["training_steps_stale"]
    print(f"steps={steps} stale={stale} staleness={counted['training_staleness_pushes']} told={told}")
    assert steps == TRAINERS * STEPS == len(told)
    assert counted["training_staleness_pushes"] == sum(told)
    if most is None:
        assert stale == 0 and max(told) > 1
    else:
        assert stale > 0 and max(told) <= most
    client: Any = connect(addresses)
    assert client.marks("examples") == {partition: (Position(1),) for partition in range(TRAINERS)}
    users = hash_column(pa.array([f"u{n % 20}" for n in range(TRAINERS * STEPS * ROWS)])) & np.uint64(
        (1 << 52) - 1
    )
    expected = Counter(users.tolist())
    ids = np.array(sorted(expected), np.uint64)
    counts = client.lookup({COUNT_TABLE: ids})[COUNT_TABLE][:, 0]
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == expected
    client.close()
