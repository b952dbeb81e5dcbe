"""A scorer that shares no folder with the trainer: it follows a log of snapshots."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cuckooflow.embedding_store.api import Version
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


@contextmanager
def scorer(sending: Sending, folder: Path) -> Iterator[tuple[ScorerClient, str]]:
    """One that follows the log into a folder; a client, and the url of its metrics."""
    options = ServeOptions("movies", folder, "127.0.0.1:0", mirror_of=sending.address, poll_interval_s=0.02)
    server = ScorerServer(options)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with ScorerClient(f"http://{server.address}", "movies") as client:
            yield client, f"http://{server.address}/metrics"
    finally:
        server.stop()
        thread.join()


def check(client: ScorerClient, publisher: Any, sequence: int) -> None:
    client.wait_ready(60.0, sequence)
    users = ("ann", "bob")
    expected = [publisher.expected(sequence, user) for user in users]
    assert client.predict([{"user_id": user} for user in users]).values == pytest.approx(expected, abs=1e-6)


def test_it_follows_through_restarts_and_a_lost_folder(
    sending: Sending, tmp_path: Path, wait_for: Callable[..., Any]
) -> None:
    publisher, mine = sending.publisher, tmp_path / "mine"
    publisher.set(bias=0.5, ann=1.0)
    publisher.publish()
    with scorer(sending, mine) as (client, metrics):  # before there is a log
        wait_for(lambda: b"snapshot_log_failures_total 0" not in scrape(metrics), "a failure told")
        sending.create()
        sending.send(1)
        check(client, publisher, 1)
        publisher.set(bob=-2.0)
        publisher.publish()
        sending.send(2)
        check(client, publisher, 2)
    publisher.set(ann=3.0)
    publisher.publish()
    sending.send(3)
    with scorer(sending, mine) as (client, _):
        check(client, publisher, 3)
    assert snapshots.sequences(mine) == [1, 2, 3]
    shutil.rmtree(mine)  # a new machine
    with scorer(sending, mine) as (client, _):
        check(client, publisher, 3)


def test_a_replica_that_lost_its_way_gets_a_full_one(
    sending: Sending, tmp_path: Path, wait_for: Callable[..., Any]
) -> None:
    publisher = sending.publisher
    sending.create()
    publisher.set(bias=0.1)
    publisher.publish()
    publisher.publish()
    sending.send(1)
    with scorer(sending, tmp_path / "mine") as (client, _):
        client.wait_ready(60.0, 2)
        publisher.restore()
        publisher.acked = Version("other", 7)
        publisher.publish()  # a delta that stands on nothing that was ever sent
        sending.send(10_000_000)

        def asked() -> bool:
            sending.send(10_000_000)
            return snapshots.full_requested(publisher.folder)

        wait_for(asked, "the request for a full snapshot to come through")
        publisher.publish(full=True)
        sending.send(20_000_000)
        client.wait_ready(60.0, 4)


def scrape(metrics: str) -> bytes:
    return httpx.get(metrics, trust_env=False).raise_for_status().content
