"""Snapshots through every kind of log: what a mirror holds is what was published, blobs of several messages included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cuckooflow.embedding_store.api import Delta, TableDelta, Version
from cuckooflow.models import snapshots
from cuckooflow.models.snapshot_log import PART_BYTES, PARTITIONS, SnapshotMirror, SnapshotSender
from cuckooflow.models.snapshots import SnapshotInfo, write_snapshot

ROWS = 3 * PART_BYTES // 64


def publish(folder: Path, n: int) -> None:
    rows = ROWS if n == 1 else 100
    weights = np.random.default_rng(n).standard_normal((rows, 16)).astype(np.float32)
    table = TableDelta(np.arange(rows, dtype=np.uint64), weights, np.empty(0, np.uint64))
    base = None if n == 1 else Version("made", n - 1)
    write_snapshot(
        folder, Delta(Version("made", n), base, {"t": table}, {}, {}), SnapshotInfo(name="m", created_us=n)
    )


def test_they_arrive_as_they_were_published(new_log: Any, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    address = new_log(PARTITIONS)
    reader = address.create()
    writer = address.open_writer()
    sender = SnapshotSender(here, reader, writer)
    mirror = SnapshotMirror(there, address.open_reader())
    assert mirror.poll() == 0
    for n in (1, 2, 3):
        publish(here, n)
        assert sender.send_new(n) == 1
        taken = 0
        while not taken:  # a call of a broker's reader gives what it has
            taken = mirror.poll()
        assert taken == 1
    again = SnapshotMirror(tmp_path / "other", address.open_reader())
    while snapshots.newest_sequence(tmp_path / "other") < 3:
        again.poll()
    for folder in (there, tmp_path / "other"):
        for sequence in (1, 2, 3):
            manifest = snapshots.read_manifest(folder, sequence)
            assert manifest == snapshots.read_manifest(here, sequence)
            assert (folder / manifest.blob).read_bytes() == (here / manifest.blob).read_bytes()
    snapshots.request_full(there, "lost its way")
    mirror.ask(writer, 2_000_000)
    sender.take_requests()
    assert snapshots.full_requested(here)
    writer.close()
    reader.close()
