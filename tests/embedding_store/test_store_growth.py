"""What a store does as its rows become many: the same for each, never once for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cuckooflow.embedding_store import EmbeddedStore, Optimizer, StoreConfig, TableConfig, TablePush
from tests.embedding_store.conftest import Feeder

CONFIG = StoreConfig((TableConfig("t", dim=2, optimizer=Optimizer("sgd")),))


def fill(feeder: Feeder, first: int, last: int, step: int) -> None:
    for at in range(first, last, step):
        ids = np.arange(at, min(last, at + step)).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        feeder.push({"t": TablePush(ids, np.ones((len(ids), 2), np.float32))})


def test_no_push_pays_for_the_size_of_the_table() -> None:
    """The index grows by a few segments of fixed size at a time; one that doubled would take 32 at once here."""
    store = EmbeddedStore(CONFIG)
    feeder = Feeder(store)
    segments, worst = 1, 0
    for at in range(0, 1_000_000, 250):
        fill(feeder, at, at + 250, 250)
        now = store.stats()["tables"]["t"]["index_segments"]
        worst, segments = max(worst, now - segments), now
    assert segments >= 50
    assert worst <= 8


def test_a_full_checkpoint_is_as_large_as_what_is_in_it(tmp_path: Path) -> None:
    """Eight times the rows are eight times the bytes; for incremental ones see test_store_incrementals.py."""
    sizes = []
    for rows in (20_000, 160_000):
        store = EmbeddedStore(CONFIG, tmp_path / str(rows))
        fill(Feeder(store), 0, rows, 5_000)
        folder = tmp_path / str(rows) / store.checkpoint()
        sizes.append(sum(file.stat().st_size for file in folder.iterdir() if file.suffix == ".rows"))
        store.close()
    assert sizes[1] == 8 * sizes[0] > 0
