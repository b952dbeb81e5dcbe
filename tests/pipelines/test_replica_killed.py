"""kill -9 of a replica that has half of a snapshot: a new one serves exactly what the store holds."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.embedding_store.client import connect
from cuckooflow.models.snapshots import Manifest, list_manifests
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.options import model, store_addresses
from cuckooflow.pipelines.supervisor import address_files
from cuckooflow.serving.client import ScorerClient
from tests.pipelines.commands import process
from tests.pipelines.counted_job import BOUND_S, CountedJob, set_section
from tests.pipelines.slow_blob import slow_blob
from tests.pipelines.store_shards import Shards, Wait

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.deep, pytest.mark.timeout(600)]

#: Every user with every item, so that the rows of all ids are asked for; as a request and as an examples log has them.
ASKED = [
    {"user_id": f"u{user}", "item_id": f"i{item}", "genres": [genre, "all"], "time": 1_767_225_600_000}
    for user in range(17)
    for item, genre in enumerate(["drama", "war", "comedy", "drama"] * 10)
]
AS_TRAINED = pa.record_batch(
    {
        **{name: [row[name] for row in ASKED] for name in ("user_id", "item_id", "genres")},
        "_time": pa.array([1_767_225_600_000_000] * len(ASKED), pa.int64()),
    }
)


@contextlib.contextmanager
def replica(films: Any) -> Iterator[subprocess.Popen[bytes]]:
    """``cuckooflow serve JOB``, killed at the end."""
    address_files(films.job)[1].unlink(missing_ok=True)  # a killed one's
    running = subprocess.Popen([sys.executable, "-m", "cuckooflow.pipelines.cli", "serve", str(films.spec)])
    try:
        yield running
    finally:
        running.send_signal(signal.SIGKILL)
        assert running.wait(30) == -signal.SIGKILL


@contextlib.contextmanager
def client_of(films: Any, wait_for: Wait) -> Iterator[ScorerClient]:
    address = address_files(films.job)[1]
    wait_for(address.exists, "the scorer's address", BOUND_S)
    with ScorerClient(f"http://{address.read_text().strip()}", "films") as client:
        yield client


def predicted_by(job: JobSpec, store: Any) -> Any:
    """What the store's own parameters say of these rows, by numpy."""
    encoded = model(job).encode(AS_TRAINED)
    tables, dense, _ = store.pull({name: encoded.ids.reshape(-1) for name in ("linear", "embedding")})
    places = {name: rows.reshape(*encoded.ids.shape, -1) for name, rows in tables.items()}
    linear, v = (
        np.add.reduceat(encoded.weights[..., None] * places[name], encoded.bounds[:-1], axis=1)
        for name in ("linear", "embedding")
    )
    pairs = (v.sum(1) ** 2 - (v**2).sum(1)) / 2
    z = linear.sum(1) + dense["linear/bias"] + pairs @ dense["fm/weights"]
    return 1 / (1 + np.exp(-z[:, 0]))


def test_it_is_killed_in_the_full_one_and_in_a_delta(
    films: Any, cli: Callable[..., Any], wait_for: Wait
) -> None:
    set_section(films, "model", "{kind: fm, labels: [like], dim: 4, init_stddev: 0.1}")
    job, shards = CountedJob(films, cli, wait_for), Shards(films, wait_for)
    folder = films.job.path(films.job.snapshots.dir)

    def published() -> list[Manifest]:
        """All snapshots, once they hold all that the store does."""
        marks = {partition: min(of) for partition, of in store.marks("examples").items()}

        def whole() -> bool:
            newest = list_manifests(folder)[-1:]
            return bool(newest) and newest[0].marks["examples"] == marks

        wait_for(whole, "a snapshot of all that was trained", BOUND_S)
        return list_manifests(folder)

    with contextlib.ExitStack() as stack:
        stack.callback(shards.end)
        shards.start(*shards.all)
        store: Any = connect(store_addresses(films.job)[0])
        stack.callback(store.close)
        stack.enter_context(process("run", "train", films.spec))
        job.more()
        job.check()
        full, *_, delta = published()
        assert (full.kind, delta.kind) == ("full", "delta")

        with slow_blob(folder, full, wait_for) as give_half, replica(films):
            give_half()
        with slow_blob(folder, delta, wait_for) as give_half, replica(films):
            give_half()
            with client_of(films, wait_for) as client:  # it answers meanwhile
                assert client.predict(ASKED).model_version == delta.sequence - 1

        with replica(films), client_of(films, wait_for) as client:
            job.more()  # the training goes on
            job.check()
            newest = published()[-1]
            assert newest.sequence > delta.sequence
            reached = client.wait_ready(BOUND_S, newest.sequence)
            applied = [snapshot["sequence"] for snapshot in client.snapshots()]
            assert applied[: reached - full.sequence + 1] == list(range(full.sequence, reached + 1))
            served = np.array(client.predict(ASKED).values)
        np.testing.assert_allclose(served, predicted_by(films.job, store), atol=1e-6)
        assert len(np.unique(served)) > len(ASKED) // 2
