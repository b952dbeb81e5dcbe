"""A broker that is killed and comes back, or does not, under a reader and a writer."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cuckooflow.errors import LogUnavailable
from cuckooflow.logs.address import KafkaAddress
from cuckooflow.runners.cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.fault, pytest.mark.deep]
LIBRARIES = ("kafka-python", "confluent-kafka")
NOW_US = 1_767_225_600_123_000


@pytest.fixture(scope="module")
def cluster(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:  # noqa: ARG001
    """A broker of this module's own: it is killed. Where there is none to be had, ``kafka`` says why."""
    cluster = LocalCluster(tmp_path_factory.mktemp("killed"))
    cluster.up(["kafka"])
    yield cluster
    cluster.down()


@pytest.fixture
def kill(cluster: LocalCluster, wait_for) -> Callable[[], None]:
    def kill_and_wait() -> None:
        os.kill(cluster.pid("kafka"), signal.SIGKILL)
        wait_for(lambda: cluster.status()[0].state == "dead", "the end of a killed broker", 30)

    return kill_and_wait


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_killed_broker_costs_time_and_no_message(cluster: LocalCluster, kill, library: str) -> None:
    address = KafkaAddress(
        bootstrap=cluster.addresses().kafka or "",
        topic=f"killed-{library}",
        library=library,
        read_timeout_s=2,
    )
    reader, writer = address.create_missing(), address.open_writer()
    acknowledged: list[int] = []
    found: list[bytes] = []
    stop = threading.Event()

    def append() -> None:
        while not stop.is_set():
            first = writer.append(
                0, [b"%d" % n for n in range(len(acknowledged) * 3, len(acknowledged) * 3 + 3)], NOW_US
            )
            acknowledged.append(first)
            stop.wait(0.01)

    thread = threading.Thread(target=append)
    thread.start()
    at, unavailable = 0, 0
    killed_at = back_at = None
    begin = time.monotonic()
    try:
        while time.monotonic() - begin < 120:
            try:
                batch = reader.read(0, at)
                found += batch.values.to_pylist()
                at = batch.next_offset
            except LogUnavailable:
                unavailable += 1
            if killed_at is None and len(found) > 60:
                kill()
                killed_at = len(found)
            elif killed_at is not None and back_at is None and unavailable:
                cluster.start("kafka")
                back_at = time.monotonic()
            elif back_at is not None and len(found) > killed_at + 60:
                break
            time.sleep(0.01)
    finally:
        stop.set()
        thread.join(150)
    assert not thread.is_alive() and back_at is not None
    print(f"library={library} read_again_after_s={time.monotonic() - back_at:.1f}")
    while len(batch := reader.read(0, at)):
        found += batch.values.to_pylist()
        at = batch.next_offset
    # Kafka 4.1 without a replica may take the batch that was under way when it was killed a second time: it
    # rebuilds what it knew of a producer from its log, and sometimes without the last batch.
    twice = [at for at in range(3, len(found), 3) if found[at : at + 3] == found[at - 3 : at]]
    print(f"batches_taken_twice={len(twice)}")
    assert len(twice) <= 1
    once = [value for at, value in enumerate(found) if at // 3 * 3 not in twice]
    assert once == [b"%d" % n for n in range(len(acknowledged) * 3)]
    assert set(acknowledged) <= set(range(0, len(found), 3)) and acknowledged == sorted(set(acknowledged))
    writer.close()
    reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_broker_that_stays_away_is_named_within_the_bounds(
    cluster: LocalCluster, kill, library: str
) -> None:
    address = KafkaAddress(
        bootstrap=cluster.addresses().kafka or "",
        topic=f"away-{library}",
        library=library,
        read_timeout_s=1,
        write_timeout_s=3,
    )
    reader, writer = address.create_missing(), address.open_writer()
    writer.append(0, [b"before"], NOW_US)
    assert len(reader.read(0, 0)) == 1
    kill()
    begin = time.monotonic()
    with pytest.raises(LogUnavailable, match="within 1 s"):
        reader.read(0, 1)
    read_s = time.monotonic() - begin
    with pytest.raises(LogUnavailable, match="within 3 s"):
        writer.append(0, [b"never"], NOW_US)
    print(f"library={library} read_s={read_s:.1f} append_s={time.monotonic() - begin - read_s:.1f}")
    assert list(reader.partitions()) == [0]  # as it was last seen
    cluster.start("kafka")
    deadline = time.monotonic() + 60
    while True:
        try:
            after = writer.append(0, [b"after"], NOW_US)
            break
        except LogUnavailable:
            assert time.monotonic() < deadline
    while True:
        try:
            values = reader.read(0, after).values.to_pylist()
            break
        except LogUnavailable:
            assert time.monotonic() < deadline
    assert values[0] == b"after"
    writer.close()
    reader.close()
