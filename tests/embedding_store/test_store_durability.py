"""What a killed process cannot show: that everything is on disk before a name says so, and the name as well."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cuckooflow.embedding_store import DenseConfig, StoreConfig, TableConfig, TablePush, open_store
from cuckooflow.embedding_store.checkpoint_chain import CheckpointPolicy

CONFIG = StoreConfig(
    (TableConfig("a", 3, admission=2, filter_bytes=1 << 12), TableConfig("b", 1)),
    (DenseConfig("w", (2,)),),
    buckets=8,
)


class Disk:
    """Notes in their order which files were flushed, and which names were given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushed: list[tuple[int, Path]] = []
        self.named: list[tuple[int, Path, Path]] = []
        self._at = 0
        fsync = os.fsync

        def flush(handle: int) -> None:
            fsync(handle)
            self.flushed.append((self._next(), Path(f"/proc/self/fd/{handle}").readlink()))

        monkeypatch.setattr(os, "fsync", flush)
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._naming(getattr(os, name)))

    def _naming(self, call):
        def give(source: Path, target: Path) -> None:
            call(source, target)
            self.named.append((self._next(), Path(source).absolute(), Path(target).absolute()))

        return give

    def _next(self) -> int:
        self._at += 1
        return self._at

    def check(self) -> set[str]:
        """That all was flushed under its former name before, and the folder of the new one after; the new names."""
        found = set()
        for at, source, target in self.named:
            if target.name.startswith("."):  # on its way to be removed
                continue
            before = {path for when, path in self.flushed if when < at}
            content = list(target.rglob("*")) if target.is_dir() else []
            for path in (target, *content):
                assert source / path.relative_to(target) in before, f"{path} was named before it was flushed"
            after = {path for when, path in self.flushed if when > at}
            assert target.parent in after, f"the name of {target} was not flushed"
            found.add(target.name)
        return found


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="which file a handle is of is known on Linux only"
)
def test_everything_is_flushed_before_its_name_and_the_name_too(tmp_path, monkeypatch, feeder):
    disk = Disk(monkeypatch)
    store = open_store(CONFIG, tmp_path / "data", policy=CheckpointPolicy())
    feed = feeder(store)
    assert disk.check() == {"shard.json", "store.json", "logs.json"}
    ids = np.arange(1_000, dtype=np.uint64)
    names = []
    for n in range(2):  # a full one and one that stands on it
        some = ids[: 1_000 - 900 * n]
        feed.push({t.name: TablePush(some, np.ones((len(some), t.dim), np.float32)) for t in CONFIG.tables})
        names.append(store.checkpoint())
        assert set(names) <= disk.check()
    store.close()
