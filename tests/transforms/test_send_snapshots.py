"""Snapshots into a log from a pipeline: a log that is away holds nothing up, and loses nothing."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from cuckooflow.embedding_store.api import Delta, TableDelta, Version
from cuckooflow.logs.address import LocalAddress
from cuckooflow.logs.local_log import LocalLogWriter
from cuckooflow.models import snapshots
from cuckooflow.models.snapshot_log import PARTITIONS, SNAPSHOTS, SnapshotMirror
from cuckooflow.models.snapshots import Manifest, SnapshotInfo, write_snapshot
from cuckooflow.transforms.send_snapshots import SendSnapshots


def publish(folder: Path, n: int) -> Manifest:
    table = TableDelta(np.array([n], np.uint64), np.ones((1, 2), np.float32), np.empty(0, np.uint64))
    base = None if n == 1 else Version("made", n - 1)
    return write_snapshot(
        folder, Delta(Version("made", n), base, {"t": table}, {}, {}), SnapshotInfo(name="m", created_us=n)
    )


def run(folder: Path, address: LocalAddress, manifest: Manifest) -> dict[str, int]:
    pipeline = beam.Pipeline(runner=FnApiRunner())
    pipeline | beam.Create([manifest]) | SendSnapshots(folder, address)
    found = pipeline.run()
    counters = found.metrics().query(MetricsFilter().with_namespace("cuckooflow"))["counters"]
    return {counter.key.metric.name: counter.committed for counter in counters}


def test_what_could_not_be_sent_goes_out_with_the_next(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    address = LocalAddress(tmp_path / "log", PARTITIONS)
    log = address.create()
    other = LocalLogWriter(tmp_path / "log", [SNAPSHOTS])
    counted = run(here, address, publish(here, 1))
    assert counted["snapshots_send_failures"] == 1
    assert log.end_offset(SNAPSHOTS) == 0
    other.close()
    assert run(here, address, publish(here, 2))["snapshots_sent"] == 2
    assert run(here, address, publish(here, 3))["snapshots_sent"] == 1
    SnapshotMirror(there, log).poll()
    assert snapshots.sequences(there) == [1, 2, 3]
    snapshots.read_snapshot(there, snapshots.read_manifest(there, 3))
