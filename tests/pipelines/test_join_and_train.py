"""Both pipelines over real logs and a real store process, in process and on Prism, with one outcome."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cuckooflow.logs.local_log import LocalLogWriter
from cuckooflow.models.snapshots import list_manifests, newest_sequence
from cuckooflow.pipelines.supervisor import address_files
from cuckooflow.serving.client import ScorerClient

REQUESTS = 400
START_MS = 1_767_225_600_000


@contextmanager
def store_process(films, wait_for) -> Iterator[Path]:
    address = films.job.path(films.job.store.data) / "address"
    process = subprocess.Popen(
        [sys.executable, "-m", "cuckooflow.pipelines.cli", "store", "serve", str(films.spec)]
    )
    try:
        wait_for(address.exists, "the store's address")
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["direct", pytest.param("prism", marks=pytest.mark.prism)])
def test_join_then_train(films, cli, wait_for, runner: str, request: pytest.FixtureRequest) -> None:
    if runner == "prism":
        request.getfixturevalue("prism")
    impressions, actions = films.events(REQUESTS)
    films.make_logs()
    films.append(impressions, actions)
    with LocalLogWriter(films.job.path(films.job.logs.impressions.path)) as writer:
        writer.append(
            0,
            [b'{"request_id": "r0"', b"null", json.dumps({**impressions[0], "time": 0}).encode()],
            2 * 10**15,
        )

    done = cli("run", "join", films.spec, "--runner", runner, "--stop-at-end")
    assert done.returncode == 0, done.stderr[-4000:]
    assert films.labels() == films.expected
    examples = films.rows(films.job.logs.examples.path)
    dead = films.rows(films.job.logs.dead_letters.path)
    assert len(examples) == len(films.expected)
    assert len(dead) == 3
    assert len({d["reason"] for d in dead}) == 3

    with store_process(films, wait_for) as address:
        done = cli("run", "train", films.spec, "--runner", runner, "--stop-at-end")
        assert done.returncode == 0, done.stderr[-4000:]
        assert films.trained_counts(address) == films.expected_counts(examples)
    manifests = list_manifests(films.job.path(films.job.snapshots.dir))
    assert manifests[0].kind == "full"
    assert sum(m["rows"] for m in films.rows(films.job.logs.train_metrics.path)) >= 0


@pytest.mark.deep
@pytest.mark.slow
def test_both_pipelines_run_again_change_nothing(films, cli, wait_for: Callable[..., None]) -> None:
    """A second run of join repeats its examples; the reader drops them. A second run of train finds nothing."""
    impressions, actions = films.events(REQUESTS // 4)
    films.make_logs()
    films.append(impressions, actions)
    for _ in range(2):
        assert cli("run", "join", films.spec, "--stop-at-end").returncode == 0
    repeated = films.rows(films.job.logs.examples.path)
    once = films.labels()
    assert once == films.expected
    assert len(repeated) == 2 * len(once)
    examples = list({(e["request_id"], e["item_id"]): e for e in repeated}.values())
    with store_process(films, wait_for) as address:
        for _ in range(2):
            done = cli("run", "train", films.spec, "--stop-at-end")
            assert done.returncode == 0, done.stderr[-4000:]
            assert films.trained_counts(address) == films.expected_counts(examples)


@pytest.mark.deep
@pytest.mark.slow
def test_a_late_positive_is_trained_where_the_job_says_so(films, cli, wait_for) -> None:
    films.spec.write_text(films.spec.read_text().replace("counting: true", "counting: true, late: take_back"))
    impressions, actions = films.events(50)
    films.make_logs()
    films.append(impressions, actions)
    films.close_windows(START_MS + 60 * 60_000)
    missed = next(i for i in impressions if films.expected[i["request_id"], i["item_id"]] == (0, 0))
    like = {"request_id": missed["request_id"], "item_id": missed["item_id"], "action": "like"}
    films.append([], [{**like, "time": int(str(missed["time"])) + 60_000}])

    done = cli("run", "join", films.spec, "--stop-at-end")
    assert done.returncode == 0, done.stderr[-4000:]
    examples = films.rows(films.job.logs.examples.path)
    (late,) = [example for example in examples if example["_kind"] == 1]
    assert {name: late[name] for name in missed if name != "time"} == {
        n: missed[n] for n in missed if n != "time"
    }
    assert (late["label_click"], late["label_like"], late["_negative_kept"]) == (0, 1, True)
    assert len(examples) == len(films.expected) + 2 + 1  # those that closed the windows, and the late one
    assert not films.log_has_rows(films.job.logs.late.path)
    with store_process(films, wait_for) as address:
        done = cli("run", "train", films.spec, "--stop-at-end")
        assert done.returncode == 0, done.stderr[-4000:]
        assert films.trained_counts(address) == films.expected_counts(examples)


@pytest.mark.slow
def test_empty_logs_give_empty_results(films, cli) -> None:
    films.make_logs()
    done = cli("run", "join", films.spec, "--stop-at-end")
    assert done.returncode == 0, done.stderr[-4000:]
    assert films.rows(films.job.logs.examples.path) == []
    assert films.rows(films.job.logs.dead_letters.path) == []


@pytest.mark.deep
@pytest.mark.slow
def test_a_scorer_without_the_trainer_s_folder_serves_from_the_log_of_snapshots(films, cli, wait_for) -> None:
    text = films.spec.read_text()
    assert "snapshots: {" in text and "serving: {" in text
    text = text.replace("snapshots: {", "snapshots: {log: {path: logs/snapshots}, dense_interval: 1h, ")
    films.spec.write_text(text)
    films.make_logs()
    films.append(*films.events(REQUESTS))
    assert cli("run", "join", films.spec, "--stop-at-end").returncode == 0
    with store_process(films, wait_for):
        done = cli("run", "train", films.spec, "--stop-at-end")
        assert done.returncode == 0, done.stderr[-4000:]
    published = films.job.path(films.job.snapshots.dir)
    newest = newest_sequence(published)
    assert newest >= 1

    scorers = films.spec.with_name("scorers.yaml")
    scorers.write_text(text.replace("serving: {", "serving: {mirror: mine, "))
    published.rename(published.with_name("elsewhere"))
    serving = subprocess.Popen([sys.executable, "-m", "cuckooflow.pipelines.cli", "serve", str(scorers)])
    try:
        wait_for(
            lambda: (films.job.dir / "mine").is_dir() and newest_sequence(films.job.dir / "mine") == newest,
            "all of them",
        )
        wait_for(address_files(films.job)[1].exists, "the scorer's address")
        url = f"http://{address_files(films.job)[1].read_text().strip()}"
        with ScorerClient(url, films.job.name) as client:
            assert client.wait_ready(60.0, newest) == newest
    finally:
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(60) == 0
