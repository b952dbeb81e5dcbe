"""``up`` with a store of two shards, one of which is killed: every example counts once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from cuckooflow.pipelines.options import store_addresses
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.pipelines.supervisor import Supervisor

TIMEOUT_S = 150
START_MS = 1_767_225_600_000
DAY_MS = 86_400_000
A_DAY_OF_REQUESTS = 21_600


@pytest.mark.slow
@pytest.mark.fault
def test_kill_9_of_a_shard_loses_and_doubles_nothing(films: Any, wait_for: Callable[..., None]) -> None:
    films.spec.write_text(films.spec.read_text().replace("buckets: 8", "buckets: 8, shards: 2"))
    films.job = load_spec(films.spec)
    films.make_logs()
    addresses = store_addresses(films.job)
    lines: list[str] = []
    with Supervisor(films.spec, films.job, lines.append, roles=("store", "join", "train")) as supervisor:
        supervisor.wait_ready(TIMEOUT_S)
        assert all(address.exists() for address in addresses)
        assert {"store-0", "store-1"} <= set(supervisor.pids())
        films.append(*films.events(300))
        films.close_windows(START_MS + DAY_MS // 2)
        wait_for(
            lambda: films.log_has_rows(films.job.logs.train_metrics.path), "training has begun", TIMEOUT_S
        )
        os.kill(supervisor.pids()["store-1"], signal.SIGKILL)
        wait_for(lambda: supervisor.restarts("store-1") == 1, "the shard was missed")
        films.append(*films.events(300, seed=2, first=A_DAY_OF_REQUESTS))
        films.close_windows(START_MS + DAY_MS + DAY_MS // 2)
        wait_for(lambda: films.labels() == films.expected, "every example", TIMEOUT_S)
        examples = list(
            {(e["request_id"], e["item_id"]): e for e in films.rows(films.job.logs.examples.path)}.values()
        )
        expected = films.expected_counts(examples)
        wait_for(addresses[1].exists, "the shard's address")
        wait_for(lambda: films.trained_counts(addresses) == expected, "every example trained once", TIMEOUT_S)
