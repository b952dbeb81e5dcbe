"""kill -9 of whatever training on Flink over three shards needs: every example counts once, seen id by id."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cuckooflow.models.snapshots import list_manifests
from cuckooflow.pipelines.options import store_addresses
from cuckooflow.runners.cluster import LocalCluster
from tests.pipelines.store_shards import Shards, Wait, store_section

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.fault,
    pytest.mark.deep,
    pytest.mark.timeout(1200),
]

REQUESTS = 120
#: For a job until its first rows, or again after a kill: Flink, a worker process and TensorFlow's import.
BOUND_S = 180


class Training:
    """A trainer on Flink, and the examples that go into its log."""

    def __init__(self, films: Any, cli: Callable[..., Any], flink: LocalCluster, wait_for: Wait) -> None:
        self.films, self._cli, self._flink, self._wait_for = films, cli, flink, wait_for
        self._stretch = 0

    def command(self, *words: object) -> str:
        done = self._cli(*words)
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        return str(done.stdout)

    def start(self) -> None:
        self.command(
            "run", "train", self.films.spec, "--runner", "flink", "--detach", "--cluster", self._flink.folder
        )

    def more(self) -> None:
        """Join another stretch; the examples before it come again, as after a restarted join."""
        self.films.append(
            *self.films.events(REQUESTS, seed=self._stretch + 1, first=self._stretch * REQUESTS)
        )
        self._stretch += 1
        self.command("run", "join", self.films.spec, "--stop-at-end")

    def check(self, since_s: float) -> None:
        """Every example is counted once."""
        rows = self.films.rows(self.films.job.logs.examples.path)
        once = list({(row["request_id"], row["item_id"]): row for row in rows}.values())
        expected = self.films.expected_counts(once)
        addresses = store_addresses(self.films.job)

        def counted() -> bool:
            return all(address.exists() for address in addresses) and (
                self.films.trained_counts(addresses) == expected
            )

        self._wait_for(counted, "every example counted once", BOUND_S)
        print(f"recovered_s={time.monotonic() - since_s:.1f} examples={len(once)}")

    def stop(self) -> None:
        self.command("job", "stop", "films-train", "--cluster", self._flink.folder)


@pytest.fixture
def shards(films: Any, wait_for: Wait) -> Iterator[Shards]:
    # Checkpoints are rare, so a shard that is killed comes back with next to nothing.
    store_section(films, "{checkpoint_interval: 1h, buckets: 8, shards: 3}")
    made = Shards(films, wait_for)
    yield made
    made.end()


@pytest.fixture
def training(
    films: Any, shards: Shards, cli: Callable[..., Any], flink: LocalCluster, wait_for: Wait
) -> Iterator[Training]:
    films.make_logs()
    made = Training(films, cli, flink, wait_for)
    made.more()
    shards.start(*shards.all)
    made.start()
    made.check(time.monotonic())
    yield made
    made.stop()


def test_each_of_them(training: Training, shards: Shards, flink: LocalCluster) -> None:
    print("a worker")
    os.kill(flink.worker_pids()[-1], signal.SIGKILL)
    killed_s = time.monotonic()
    training.more()
    training.check(killed_s)

    print("the TaskManager")
    os.kill(flink.pid("taskmanager"), signal.SIGKILL)
    killed_s = time.monotonic()
    training.more()
    flink.start("taskmanager")
    training.check(killed_s)

    print("one shard of three, while examples come")
    shards.kill(1)
    killed_s = time.monotonic()
    training.more()
    shards.start(1)
    training.check(killed_s)

    print("one shard, when nothing comes any more")
    shards.kill(2)
    killed_s = time.monotonic()
    shards.start(2)
    training.check(killed_s)

    print("all shards")
    shards.kill(*shards.all)
    killed_s = time.monotonic()
    training.more()
    shards.start(*shards.all)
    training.check(killed_s)
    assert list_manifests(training.films.job.path(training.films.job.snapshots.dir))[0].kind == "full"
