"""The Kafka broker of the local cluster: it holds messages, comes back where it was, and `down` ends it alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from cuckooflow.errors import PartFailed, SpecError
from cuckooflow.runners.cluster import LocalCluster

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, kafka: str) -> Iterator[LocalCluster]:
    """A broker of this module alone, which its tests may kill."""
    del kafka  # asked for its skip: no Java, no Maven
    cluster = LocalCluster(tmp_path_factory.mktemp("own"))
    yield cluster
    cluster.down()


def produce(address: str, topic: str, values: list[bytes]) -> None:
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.create_topics([NewTopic(topic, 1, 1)])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=address)
    for value in values:
        producer.send(topic, value)
    producer.flush(30)
    producer.close()


def consume(address: str, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(
        topic, bootstrap_servers=address, auto_offset_reset="earliest", consumer_timeout_ms=30_000
    )
    values = [message.value for _, message in zip(range(count), consumer, strict=False)]
    consumer.close()
    return values


def state(cluster: LocalCluster) -> str:
    return next(part.state for part in cluster.status() if part.name == "kafka")


def kill_9(cluster: LocalCluster) -> None:
    pid = cluster.pid("kafka")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_shared_broker_takes_and_gives_messages(kafka: str) -> None:
    produce(kafka, "taken-and-given", [b"one", b"two"])
    assert consume(kafka, "taken-and-given", 2) == [b"one", b"two"]


def test_up_again_starts_nothing(own: LocalCluster) -> None:
    first = own.up(["kafka"])
    pid = own.pid("kafka")
    assert own.up(["kafka"]) == first
    assert own.pid("kafka") == pid


def test_a_killed_broker_is_seen_and_comes_back_with_its_messages(own: LocalCluster) -> None:
    address = own.up(["kafka"]).kafka
    assert address is not None
    produce(address, "kept", [b"before"])
    kill_9(own)
    assert state(own) == "dead"
    with pytest.raises(PartFailed, match=r"kafka.*kafka.log"):
        own.pid("kafka")
    own.start("kafka")
    assert own.addresses().kafka == address
    assert consume(address, "kept", 1) == [b"before"]


def test_another_object_for_the_folder_sees_and_ends_the_broker(own: LocalCluster) -> None:
    own.up(["kafka"])
    folder = own.status()[0].log.parent.parent
    code = f"from pathlib import Path; from cuckooflow.runners.cluster import LocalCluster; LocalCluster(Path({str(folder)!r}))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}.down()"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert state(own) == "down"
    assert own.addresses().kafka is None
    own.down()  # there is nothing left to end


def test_down_leaves_a_process_alone_that_got_the_pid(own: LocalCluster) -> None:
    """The pid of a part that ended may be given to any program: here a sleep that the cluster never started."""
    own.up(["kafka"])
    kill_9(own)
    pid_file = own.status()[0].log.parent.parent / "pids" / "kafka.pid"
    foreign = subprocess.Popen(["sleep", "600"])
    try:
        _, token = pid_file.read_text().split()
        pid_file.write_text(f"{foreign.pid}\n{token}\n")
        assert state(own) == "dead"
        own.down()
        assert foreign.poll() is None
        assert state(own) == "down"
    finally:
        foreign.kill()
        foreign.wait()


def test_an_unknown_part_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"kafka.*received zookeeper"):
        LocalCluster(tmp_path).up(["zookeeper"])
