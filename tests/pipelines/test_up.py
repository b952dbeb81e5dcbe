"""``up``: processes that are killed come back, every example counts once, and feedback reaches the scores."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from cuckooflow.errors import CuckooflowError
from cuckooflow.pipelines.supervisor import Supervisor, address_files
from cuckooflow.serving.client import Predictions, ScorerClient

TIMEOUT_S = 150

Wait = Callable[..., None]


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("victim", ["train", "store", "join"])
def test_kill_9_loses_and_doubles_nothing(films: Any, wait_for: Wait, lines: list[str], victim: str) -> None:
    films.make_logs()
    address, _ = address_files(films.job)
    with Supervisor(films.spec, films.job, lines.append, roles=("store", "join", "train")) as supervisor:
        supervisor.wait_ready(TIMEOUT_S)
        films.append(*films.events(300))
        wait_for(
            lambda: films.log_has_rows(films.job.logs.train_metrics.path), "training has begun", TIMEOUT_S
        )
        os.kill(supervisor.pids()[victim], signal.SIGKILL)
        wait_for(lambda: supervisor.restarts(victim) == 1, f"{victim} was missed")
        films.append(*films.events(300, seed=2, first=300))
        wait_for(lambda: films.labels() == films.expected, "every example", TIMEOUT_S)
        examples = list(
            {(e["request_id"], e["item_id"]): e for e in films.rows(films.job.logs.examples.path)}.values()
        )
        expected = films.expected_counts(examples)
        wait_for(address.exists, "the store's address")
        wait_for(lambda: films.trained_counts(address) == expected, "every example trained once", TIMEOUT_S)
    assert any(victim in line and "SIGKILL" in line for line in lines)


@pytest.mark.slow
def test_round_the_loop(films: Any, wait_for: Wait) -> None:
    """Scored -> shown -> liked -> example -> changed score."""
    text = films.spec.read_text()
    for old, new in (
        ("30m}", "4s}"),
        ("10m}", "2s}"),
        ("late_horizon: 1h", "late_horizon: 1m"),
        ("max_skew: 10s", "max_skew: 1s"),
    ):
        assert old in text
        text = text.replace(old, new)
    films.reload(text)
    films.make_logs()
    with Supervisor(films.spec, films.job) as supervisor:
        supervisor.wait_ready(TIMEOUT_S)
        url = f"http://{address_files(films.job)[1].read_text().strip()}"
        with ScorerClient(url, films.job.name) as scorer:
            films.append(*films.events(100))
            scorer.wait_ready(TIMEOUT_S)
            shown = [{"user_id": "loop", "item_id": f"i{i}", "genres": ["war"]} for i in range(3)]
            before = scorer.predict(shown, log_impressions=True, request_id="loop-1")
            assert before.request_id == "loop-1"
            now_ms = time.time_ns() // 1_000_000
            like = {"request_id": "loop-1", "item_id": "i1", "time": now_ms, "action": "like"}
            films.append([], [like])
            wait_for(
                lambda: ("loop-1", "i1") in films.labels(),
                "the served impression became an example",
                TIMEOUT_S,
            )
            labels = films.labels()
            assert [labels["loop-1", f"i{i}"] for i in range(3)] == [(0, 0), (0, 1), (0, 0)]
            wait_for(lambda: changed(scorer, shown, before), "the like changed the scores", TIMEOUT_S)
            after = scorer.predict(shown)
            assert after.model_version > before.model_version
            assert after.values[1] - before.values[1] > after.values[0] - before.values[0]


def changed(scorer: ScorerClient, shown: list[dict[str, Any]], before: Predictions) -> bool:
    """Whether the scores moved, and the liked film gained on the film that was passed over."""
    after = scorer.predict(shown)
    return after.values[1] - before.values[1] > after.values[0] - before.values[0]


def test_a_process_that_never_works_stops_the_whole(films: Any, wait_for: Wait, lines: list[str]) -> None:
    films.make_logs()
    films.spec.write_text("name: 1\n")  # the children read it again and refuse it
    with Supervisor(films.spec, films.job, lines.append, roles=("join",)) as supervisor:
        wait_for(lambda: any("not started again" in line for line in lines), "it gives up")
        with pytest.raises(CuckooflowError, match=r"join ended \(exit code 2\).*join.log"):
            supervisor.check()
    assert "name: received 1" in supervisor.log_file("join").read_text()
