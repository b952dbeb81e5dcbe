"""kill -9 of every process that a join on Flink needs: nothing is lost, nothing doubled, every balance exact."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from cuckooflow.runners.cluster import LocalCluster
from tests.faults.live_join import BOUND_S, LiveJoin

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(600)]

Wait = Callable[..., None]


@pytest.fixture
def half(join: LiveJoin, wait_for: Wait) -> Callable[[], None]:
    """Half of a stretch is joined or waits in state, of which there is a checkpoint; gives what appends the rest."""
    first, second = join.next_stretch().halves()
    join.append(first)
    wait_for(join.has_read, "the first half is read", BOUND_S)
    job = join.rest.job(join.name).id
    before = join.rest.newest_checkpoint(job)
    done_ms = 0 if before is None else before.completed_ms

    def one_more() -> bool:
        newest = join.rest.newest_checkpoint(job)
        return newest is not None and newest.completed_ms > done_ms

    wait_for(one_more, "a checkpoint", BOUND_S)
    return lambda: join.append(second)


def test_of_the_taskmanager(join: LiveJoin, flink: LocalCluster, half: Callable[[], None]) -> None:
    os.kill(flink.pid("taskmanager"), signal.SIGKILL)
    killed_s = time.monotonic()
    half()
    flink.start("taskmanager")
    join.check(killed_s)


@pytest.mark.deep
def test_of_a_python_worker(join: LiveJoin, flink: LocalCluster, half: Callable[[], None]) -> None:
    worker = flink.worker_pids()[-1]
    os.kill(worker, signal.SIGKILL)
    killed_s = time.monotonic()
    half()
    join.check(killed_s)
    assert worker not in flink.worker_pids()
    rebuilt = join.counter("join_memory_rebuilt")
    print(f"shards_rebuilt={rebuilt}")
    assert 1 <= rebuilt <= join.job.join.num_shards  # each at most once


@pytest.mark.deep
def test_of_the_job_server(join: LiveJoin, flink: LocalCluster, half: Callable[[], None]) -> None:
    """The job does not need it: it goes on, and is looked after by command."""
    os.kill(flink.pid("jobserver"), signal.SIGKILL)
    killed_s = time.monotonic()
    half()
    join.check(killed_s)
    assert "/savepoint-" in join.command("job", "savepoint", join.name)
    assert join.name in join.command("job", "list")
    flink.start("jobserver")


@pytest.mark.deep
def test_of_the_jobmanager(join: LiveJoin, flink: LocalCluster, half: Callable[[], None]) -> None:
    job = join.rest.job(join.name).id
    os.kill(flink.pid("jobmanager"), signal.SIGKILL)
    killed_s = time.monotonic()
    half()
    flink.start("jobmanager")
    flink.up()  # the TaskManager has found it again
    assert [one for one in join.rest.jobs() if one.id == job] == []
    assert f"/{job}/chk-" in join.resume()
    join.check(killed_s)


@pytest.mark.deep
def test_of_the_broker(join: LiveJoin, flink: LocalCluster, half: Callable[[], None], wait_for: Wait) -> None:
    """It is away for 20 seconds."""
    os.kill(flink.pid("kafka"), signal.SIGKILL)
    killed_s = time.monotonic()
    wait_for(lambda: time.monotonic() - killed_s > 20, "the broker was away for 20 s")
    flink.start("kafka")
    half()
    join.check(killed_s)
