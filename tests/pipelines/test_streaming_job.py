"""A job with streaming features whose store and trainer are killed: counters and lists hold each example once."""

from __future__ import annotations

import os
import signal
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.embedding_store.client import connect
from cuckooflow.embedding_store.hashing import hash_column
from cuckooflow.logs.contract import Position
from cuckooflow.pipelines.options import training_options
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.pipelines.supervisor import Supervisor, address_files
from cuckooflow.transforms.examples_reader import ExamplesReader

TIMEOUT_S = 150
START_MS = 1_767_225_600_000
DAY_MS = 86_400_000
A_DAY_OF_REQUESTS = 21_600
USERS = [f"u{n}" for n in range(17)]
LISTED = 64
STREAMING = """  - {name: shown, kind: count, by: [user_id]}
  - {name: likes, kind: rate, by: [user_id], label: like, half_life: 36500d}
  - {name: liked, kind: recent, by: [user_id], column: item_id, label: like, max_length: 64}
model:"""

Held = tuple[list[float], list[float], list[list[int]]]


def held(addresses: Any) -> Held:
    """Of each user: examples, how many were liked, and which items: what the tables say."""
    store = connect(addresses)
    try:
        keys = hash_column(pa.array(USERS))
        rows = store.lookup_at({"counter/user_id": keys, "recent/liked": keys})
    finally:
        store.close()
    sums = rows.counters["counter/user_id"].sums
    lists = [sorted(v for v in values if v) for values in rows.recents["recent/liked"].values.tolist()]
    return sums[:, 0].tolist(), np.round(sums[:, 1], 1).tolist(), lists


def expected(films: Any) -> Held:
    """The same from the examples log: of each partition the rows that a next one would see."""
    reader = ExamplesReader(films.job.address(films.job.logs.examples).open_reader())
    lag_us = training_options(films.job).lag_us
    shown: Counter[str] = Counter()
    liked: dict[str, list[str]] = defaultdict(list)
    for partition in reader.reader.partitions():
        rows = reader.read(partition, Position(0), None, 1_000_000)[0].to_pylist()
        clocks = np.maximum.accumulate([row["_time"] for row in rows])
        for row, clock in zip(rows, clocks.tolist(), strict=True):
            if clock <= clocks[-1] - lag_us:
                shown[row["user_id"]] += 1
                if row["label_like"]:
                    liked[row["user_id"]].append(row["item_id"])
    assert max(map(len, liked.values())) <= LISTED
    lists = [sorted(hash_column(pa.array(liked[user], pa.string())).tolist()) for user in USERS]
    return [float(shown[u]) for u in USERS], [float(len(liked[u])) for u in USERS], lists


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.deep
def test_kill_9_leaves_counters_and_lists_exact(films: Any, wait_for: Callable[..., None]) -> None:
    films.spec.write_text(films.spec.read_text().replace("model:", STREAMING, 1))
    films.job = load_spec(films.spec)
    films.make_logs()
    address, _ = address_files(films.job)
    with Supervisor(films.spec, films.job, lambda _: None, roles=("store", "join", "train")) as supervisor:
        supervisor.wait_ready(TIMEOUT_S)
        films.append(*films.events(300))
        films.close_windows(START_MS + DAY_MS // 2)
        wait_for(
            lambda: films.log_has_rows(films.job.logs.train_metrics.path), "training has begun", TIMEOUT_S
        )
        os.kill(supervisor.pids()["store"], signal.SIGKILL)
        wait_for(lambda: supervisor.restarts("store") == 1, "the store was missed")
        films.append(*films.events(300, seed=2, first=A_DAY_OF_REQUESTS))
        films.close_windows(START_MS + DAY_MS + DAY_MS // 2)
        os.kill(supervisor.pids()["train"], signal.SIGKILL)
        wait_for(lambda: supervisor.restarts("train") == 1, "the trainer was missed")
        wait_for(lambda: films.labels() == films.expected, "every example", TIMEOUT_S)
        wait_for(address.exists, "the store's address")
        wanted = expected(films)
        assert sum(wanted[0]) >= 1_200 and sum(wanted[1]) > 100
        wait_for(lambda: held(address) == wanted, "every example in the tables once", TIMEOUT_S)
