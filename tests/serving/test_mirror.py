"""A scorer that shares no folder with the trainer: it follows a log of snapshots."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cuckooflow.logs.address import LocalAddress
from cuckooflow.logs.local_log import LocalLogWriter
from cuckooflow.models import snapshots
from cuckooflow.models.snapshot_log import PARTITIONS, SNAPSHOTS, SnapshotSender
from cuckooflow.serving.client import ScorerClient
from cuckooflow.serving.serve import ScorerServer, ServeOptions


class Sending:
    """A publisher, and a log into which goes what it publishes."""

    def __init__(self, publisher: Any, place: Path) -> None:
        self.publisher = publisher
        self.address = LocalAddress(place, PARTITIONS)

    def create(self) -> None:
        self.address.create().close()

    def send(self, now_us: int) -> None:
        reader, writer = self.address.open_reader(), LocalLogWriter(self.address.path, [SNAPSHOTS])
        try:
            sender = SnapshotSender(self.publisher.folder, reader, writer, part_bytes=300)
            sender.send_new(now_us)
            sender.take_requests()
        finally:
            writer.close()
            reader.close()


@pytest.fixture
def sending(publisher: Any, tmp_path: Path) -> Sending:
    return Sending(publisher, tmp_path / "log")


def serve(sending: Sending, folder: Path) -> tuple[ScorerServer, threading.Thread]:
    options = ServeOptions("movies", folder, "127.0.0.1:0", mirror_of=sending.address, poll_interval_s=0.02)
    server = ScorerServer(options)
    thread = threading.Thread(target=server.run)
    thread.start()
    return server, thread


def test_it_follows_through_restarts_and_a_lost_folder(
    sending: Sending, tmp_path: Path, wait_for: Callable[..., Any]
) -> None:
    publisher, mine = sending.publisher, tmp_path / "mine"
    publisher.set(bias=0.5, ann=1.0)
    publisher.publish()
    row = [{"user_id": "ann"}, {"user_id": "bob"}]

    def check(client: ScorerClient, sequence: int) -> None:
        client.wait_ready(60.0, sequence)
        expected = [publisher.expected(sequence, user) for user in ("ann", "bob")]
        assert client.predict(row).values == pytest.approx(expected, abs=1e-6)

    server, thread = serve(sending, mine)  # before there is a log
    try:
        with ScorerClient(f"http://{server.address}", "movies") as client:
            wait_for(lambda: b"snapshot_log_failures_total 0" not in scrape(client), "a failure told")
            sending.create()
            sending.send(1)
            check(client, 1)
            publisher.set(bob=-2.0)
            publisher.publish()
            sending.send(2)
            check(client, 2)
    finally:
        server.stop()
        thread.join()
    publisher.set(ann=3.0)
    publisher.publish()
    sending.send(3)
    server, thread = serve(sending, mine)
    try:
        with ScorerClient(f"http://{server.address}", "movies") as client:
            check(client, 3)
    finally:
        server.stop()
        thread.join()
    assert snapshots.sequences(mine) == [1, 2, 3]
    shutil.rmtree(mine)  # a new machine
    server, thread = serve(sending, mine)
    try:
        with ScorerClient(f"http://{server.address}", "movies") as client:
            check(client, 3)
    finally:
        server.stop()
        thread.join()


def test_a_replica_that_lost_its_way_gets_a_full_one(
    sending: Sending, tmp_path: Path, wait_for: Callable[..., Any]
) -> None:
    publisher, mine = sending.publisher, tmp_path / "mine"
    sending.create()
    publisher.set(bias=0.1)
    publisher.publish()
    publisher.publish()
    sending.send(1)
    server, thread = serve(sending, mine)
    try:
        with ScorerClient(f"http://{server.address}", "movies") as client:
            client.wait_ready(60.0, 2)
            publisher.restore()
            publisher.acked = publisher.n and type(snapshots.read_manifest(publisher.folder, 2).version)(
                "other", 7
            )
            publisher.publish()  # a delta that stands on nothing that was ever sent
            sending.send(10_000_000)

            def asked() -> bool:
                sending.send(10_000_000)
                return snapshots.full_requested(publisher.folder)

            wait_for(asked, "the request for a full snapshot to come through")
            publisher.publish(full=True)
            sending.send(20_000_000)
            client.wait_ready(60.0, 4)
    finally:
        server.stop()
        thread.join()


def scrape(client: ScorerClient) -> bytes:
    return bytes(client._http.get("/metrics").content)
