"""One of two shards answers slowly, and others change its rows meanwhile: every example counts once, seen id by id."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cuckooflow.embedding_store.api import TablePush
from cuckooflow.embedding_store.client import connect
from cuckooflow.embedding_store.shards import Ownership, Shard
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.pipelines.options import store_addresses, store_config
from tests.pipelines.commands import process
from tests.pipelines.counted_job import CountedJob, set_section
from tests.pipelines.slow_link import SlowLink
from tests.pipelines.store_shards import Shards, Wait

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.deep, pytest.mark.timeout(600)]

DELAY_S = 0.1
SLOW = Shard(1, 2)
STALENESS_MAX = 1
REFUSED = 3
STALE = 'cuckooflow_store_errors_total{error="StaleRows",verb="push"}'


class OtherTrainer:
    """Takes steps of another log, of rows that one shard alone holds.

    Args:
        films: the job.
        addresses: of its shards.
    """

    def __init__(self, films: Any, addresses: list[str]) -> None:
        ids = np.arange(1, 100, dtype=np.uint64)
        ids = ids[Ownership(store_config(films.job), SLOW).owned(ids)]
        self._push = {"linear": TablePush(ids, np.ones((len(ids), 1), np.float32))}
        self._store: Any = connect(addresses)
        self._store.open_log("others", "made-once", {0: Position(0)})
        self._at = 0

    def step(self) -> None:
        first, self._at = self._at, self._at + 1
        range_ = LogRange("others", "made-once", 0, Position(first), Position(self._at))
        self._store.push(range_, self._push, {}, 0)

    def close(self) -> None:
        self._store.close()


def test_steps_that_a_slow_shard_refuses_count_once_on_all(
    films: Any, cli: Callable[..., Any], wait_for: Wait
) -> None:
    set_section(films, "store", "{checkpoint_interval: 1h, buckets: 8, shards: 2}")
    training = f"batch_size: 64, max_delay: 500ms, counting: true, staleness_max: {STALENESS_MAX}"
    set_section(films, "training", f"{{{training}}}")
    job, shards = CountedJob(films, cli, wait_for), Shards(films, wait_for)
    with contextlib.ExitStack() as stack:
        stack.callback(shards.end)
        shards.start(*shards.all)
        addresses = [address.read_text().strip() for address in store_addresses(films.job)]
        other = OtherTrainer(films, addresses)
        stack.callback(other.close)

        def outpace() -> None:
            """While an answer is held back, more steps are taken than the rows in it may miss."""
            if shards.counted(SLOW.number, STALE) < REFUSED:
                for _ in range(STALENESS_MAX + 1):
                    other.step()

        link = SlowLink(addresses[SLOW.number], DELAY_S, outpace)
        stack.callback(link.close)
        store_addresses(films.job)[SLOW.number].write_text(link.address)
        with process("run", "train", films.spec):
            job.more()
            job.check()
        # The other shard had taken these steps, and skipped them when they came again.
        assert shards.counted(SLOW.number, STALE) >= REFUSED
        assert shards.counted(0, STALE) == 0
