"""A changed model, trained beside the live one on the same log from the live one's tables, then swapped in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from cuckooflow.embedding_store.client import connect
from cuckooflow.models.base import predict_batch
from cuckooflow.models.snapshots import list_manifests
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.options import model, store_addresses
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.pipelines.supervisor import Supervisor
from cuckooflow.serving.replica import Replica

pytestmark = [pytest.mark.slow, pytest.mark.deep]
ROWS = pa.record_batch(
    {
        "user_id": [f"u{n}" for n in range(17)],
        "item_id": [f"i{n % 40}" for n in range(17)],
        "genres": [["drama", "all"]] * 17,
        "_time": pa.array([1_767_225_600_000_000] * 17, pa.int64()),
    }
)


def changed_spec(films: Any, snapshots: str) -> Path:
    """The changed job in a folder of its own, over the live job's logs."""
    body = yaml.safe_load(films.spec.read_text())
    live = films.spec.parent
    for log in body["logs"].values():
        log["path"] = str(live / log["path"])
    body["model"] |= {"kind": "dcn", "hidden": [16, 4]}
    body["features"].insert(0, {"name": "pair", "columns": ["user_id", "genre"]})
    body["columns"]["impressions"]["genre"] = {"type": "string", "required": False}
    body["snapshots"]["dir"] = snapshots
    spec = live / "changed" / "job.yaml"
    spec.parent.mkdir(exist_ok=True)
    spec.write_text(yaml.safe_dump(body))
    return spec


def predicted_by(job: JobSpec) -> Any:
    client = connect(store_addresses(job))
    try:
        return predict_batch(model(job), ROWS, client.pull)["like"]
    finally:
        client.close()


def served(replica: Replica) -> Any:
    held = replica.served()
    return predict_batch(held.model, ROWS, lambda ids: held.store.pull(ids)[:2])["like"]


def test_the_new_model_learns_beside_the_live_one_and_takes_its_place(
    films: Any, cli: Callable[..., Any]
) -> None:
    def run(*words: object) -> Any:
        done = cli(*words)
        assert done.returncode == 0, done.stderr[-4000:]
        return done

    def once() -> list[dict[str, object]]:
        rows = films.rows(films.job.logs.examples.path)
        return list({(row["request_id"], row["item_id"]): row for row in rows}.values())

    films.make_logs()
    films.append(*films.events(80))
    run("run", "join", films.spec, "--stop-at-end")
    live_folder = films.job.path(films.job.snapshots.dir)
    replica = Replica(live_folder, lambda: time.time_ns() // 1_000, relist_polls=1)
    spec = changed_spec(films, "snapshots")
    with Supervisor(films.spec, films.job, roles=("store",)) as live:
        live.wait_ready()
        run("run", "train", films.spec, "--stop-at-end")
        replica.poll()
        np.testing.assert_allclose(served(replica), predicted_by(films.job), rtol=1e-5)

        client = connect(store_addresses(films.job))
        client.checkpoint()
        client.close()
        done = run("train", "warm-start", spec, "--from", films.spec, "--json")  # the live store goes on
        parts = {(part["kind"], part["name"]): part for part in json.loads(done.stdout)["parts"]}
        assert parts["feature", "pair"]["state"] == parts["dense", "cross/0/kernel"]["state"] == "new"
        assert parts["table", "embedding"]["state"] == parts["log", "examples"]["state"] == "kept"
        job = load_spec(spec)
        with Supervisor(spec, job, roles=("store",)) as beside:
            beside.wait_ready()
            films.append(*films.events(80, seed=2, first=80))
            run("run", "join", films.spec, "--stop-at-end")
            for each in (films.spec, spec):
                run("run", "train", each, "--stop-at-end")
            expected = films.expected_counts(once())
            assert films.trained_counts(store_addresses(films.job)) == expected
            counts = films.trained_counts(store_addresses(job))  # slot 0 is the new feature's
            assert [counts[1], counts[2]] == [expected[0], expected[1]]
            assert sum(counts[0]) == len(once()) - 80 * 4
            replica.poll()
            assert replica.served().model.spec.kind == "deepfm"
            assert {m.kind for m in list_manifests(job.path(job.snapshots.dir))} >= {"full"}

            spec = changed_spec(films, str(live_folder))  # the live trainer has stopped: swap
            number = replica.served().manifest.sequence
            films.append(*films.events(20, seed=3, first=160))
            run("run", "join", films.spec, "--stop-at-end")
            run("run", "train", spec, "--stop-at-end")
            first = list_manifests(live_folder, after=number)[0]
            assert first.kind == "full"
            replica.poll()
            assert replica.served().model.spec.kind == "dcn"
            np.testing.assert_allclose(served(replica), predicted_by(job), rtol=1e-5)
