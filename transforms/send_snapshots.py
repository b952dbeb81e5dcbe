"""SendSnapshots: manifests of published snapshots in; the snapshots go into a log, for scorers elsewhere.

A log that does not answer holds nothing up: training and the folder go on, and what could not be sent goes out with the
next snapshot.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import apache_beam as beam
from apache_beam.metrics import Metrics

from cuckooflow.errors import LogError
from cuckooflow.logs.address import LogAddress
from cuckooflow.models.snapshot_log import SNAPSHOTS, SnapshotSender
from cuckooflow.models.snapshots import Manifest
from cuckooflow.transforms.metric_names import NAMESPACE

_log = logging.getLogger(__name__)


class SendSnapshots(beam.PTransform):
    """:class:`~cuckooflow.models.snapshots.Manifest` -> nothing.

    Args:
        folder: where the snapshots are published.
        address: of the log, see :mod:`cuckooflow.models.snapshot_log`.
    """

    def __init__(self, folder: Path, address: LogAddress) -> None:
        super().__init__()
        self._folder = folder
        self._address = address.resolved()

    def expand(self, manifests: beam.PCollection) -> beam.PCollection:
        return manifests | "Send" >> beam.ParDo(_SendFn(self._folder, self._address))


class _SendFn(beam.DoFn):
    def __init__(self, folder: Path, address: LogAddress) -> None:
        self._folder = folder
        self._address = address
        self._sent = Metrics.counter(NAMESPACE, "snapshots_sent")
        self._failed = Metrics.counter(NAMESPACE, "snapshots_send_failures")

    def process(self, manifest: Manifest) -> None:
        # Opened anew for each: one comes every few seconds, and a local log has one writer at a time.
        try:
            reader = self._address.open_reader()
            writer = self._address.open_writer([SNAPSHOTS])
            try:
                sender = SnapshotSender(self._folder, reader, writer)
                self._sent.inc(sender.send_new(time.time_ns() // 1_000))
                sender.take_requests()
            finally:
                writer.close()
                reader.close()
        except LogError as error:
            self._failed.inc()
            _log.warning(
                "snapshots=unsent log=%s newest=%d error=%s", self._address.name, manifest.sequence, error
            )
