"""A store under test, fed ranges of one partition in order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from cuckooflow.embedding_store.api import Floats, PushAnswer, Store, TablePush
from cuckooflow.logs.contract import LogRange, Position


class Feeder:
    """Pushes to a store, one message a push, from position (0, 0) of partition 0 of the log ``examples``."""

    def __init__(self, store: Store, partitions: int = 1) -> None:
        self.store = store
        self.at = {partition: Position(0) for partition in range(partitions)}
        store.open_log("examples", "made-once", self.at)

    def range(self, partition: int = 0) -> LogRange:
        first = self.at[partition]
        return LogRange("examples", "made-once", partition, first, Position(first.offset + 1))

    def push(
        self,
        tables: Mapping[str, TablePush] | None = None,
        dense: Mapping[str, Floats] | None = None,
        partition: int = 0,
        event_time_us: int = 1,
    ) -> PushAnswer:
        answer = self.store.push(self.range(partition), tables or {}, dense or {}, event_time_us)
        self.at[partition] = self.range(partition).last
        return answer


@pytest.fixture
def feeder() -> type[Feeder]:
    return Feeder


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Seeded by the test's name, so a failure repeats; the seed is shown with it."""
    seed = int.from_bytes(request.node.name.encode(), "little") % (1 << 32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)
