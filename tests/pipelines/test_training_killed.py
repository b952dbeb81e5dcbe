"""kill -9 of whatever training on Flink over three shards needs: every example counts once, seen id by id."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cuckooflow.models.snapshots import list_manifests
from cuckooflow.runners.cluster import LocalCluster
from cuckooflow.transforms.metric_names import TRAINING_METRICS
from tests.pipelines.counted_job import CountedJob, set_section
from tests.pipelines.store_shards import Shards, Wait

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.fault,
    pytest.mark.deep,
    pytest.mark.timeout(1200),
]


@pytest.fixture
def shards(films: Any, wait_for: Wait) -> Iterator[Shards]:
    # Checkpoints are rare, so a shard that is killed comes back with next to nothing.
    set_section(films, "store", "{checkpoint_interval: 1h, buckets: 8, shards: 3}")
    made = Shards(films, wait_for)
    yield made
    made.end()


@pytest.fixture
def job(
    films: Any, shards: Shards, cli: Callable[..., Any], flink: LocalCluster, wait_for: Wait
) -> Iterator[CountedJob]:
    """Its trainer runs on Flink."""
    made = CountedJob(films, cli, wait_for)
    made.more()
    shards.start(*shards.all)
    on_flink = ("--cluster", flink.folder)
    made.command("run", "train", films.spec, "--runner", "flink", "--detach", *on_flink)
    made.check()
    yield made
    made.command("job", "stop", "films-train", *on_flink)


def test_each_of_them(job: CountedJob, shards: Shards, flink: LocalCluster) -> None:
    print("a worker")
    os.kill(flink.worker_pids()[-1], signal.SIGKILL)
    job.more()
    job.check()

    print("the TaskManager")
    os.kill(flink.pid("taskmanager"), signal.SIGKILL)
    job.more()
    flink.start("taskmanager")
    job.check()

    print("one shard of three, while examples come")
    shards.kill(1)
    job.more()
    shards.start(1)
    job.check()

    print("one shard, when nothing comes any more")
    shards.kill(2)
    shards.start(2)
    job.check()

    print("all shards")
    shards.kill(*shards.all)
    job.more()
    shards.start(*shards.all)
    job.check()
    metrics = json.loads(job.command("job", "status", "films-train", "--json", "--cluster", flink.folder))[
        "metrics"
    ]
    assert {metric.name for metric in TRAINING_METRICS} <= metrics.keys()
    assert metrics["training_steps"] > 0 and metrics["training_steps_stale"] == 0
    assert list_manifests(job.films.job.path(job.films.job.snapshots.dir))[0].kind == "full"
