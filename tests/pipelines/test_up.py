"""``up``: processes that are killed come back, every example counts once, and feedback reaches the scores."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from cuckooflow.errors import CuckooflowError
from cuckooflow.pipelines.supervisor import Supervisor, address_files
from cuckooflow.serving.client import Predictions, ScorerClient

TIMEOUT_S = 150
START_MS = 1_767_225_600_000
DAY_MS = 86_400_000
A_DAY_OF_REQUESTS = 21_600

Wait = Callable[..., None]


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("victim", ["train", "store", "join"])
def test_kill_9_loses_and_doubles_nothing(films: Any, wait_for: Wait, lines: list[str], victim: str) -> None:
    films.make_logs()
    address, _ = address_files(films.job)
    with Supervisor(films.spec, films.job, lines.append, roles=("store", "join", "train")) as supervisor:
        supervisor.wait_ready(TIMEOUT_S)
        films.append(*films.events(300))
        films.close_windows(START_MS + DAY_MS // 2)
        wait_for(
            lambda: films.log_has_rows(films.job.logs.train_metrics.path), "training has begun", TIMEOUT_S
        )
        os.kill(supervisor.pids()[victim], signal.SIGKILL)
        wait_for(lambda: supervisor.restarts(victim) == 1, f"{victim} was missed")
        films.append(*films.events(300, seed=2, first=A_DAY_OF_REQUESTS))
        films.close_windows(START_MS + DAY_MS + DAY_MS // 2)
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
    films.make_logs()
    served_ms = START_MS + DAY_MS
    with Supervisor(films.spec, films.job) as supervisor:
        supervisor.wait_ready(TIMEOUT_S)
        url = f"http://{address_files(films.job)[1].read_text().strip()}"
        with ScorerClient(url, films.job.name) as scorer:
            films.append(*films.events(100))
            films.close_windows(START_MS + DAY_MS // 2)
            scorer.wait_ready(TIMEOUT_S)
            shown = [{"user_id": "loop", "item_id": f"i{i}", "genres": ["war"]} for i in range(3)]
            before = scorer.predict(shown, log_impressions=True, request_id="loop-1", time=served_ms)
            assert before.request_id == "loop-1"
            like = {"request_id": "loop-1", "item_id": "i1", "time": served_ms + 60_000, "action": "like"}
            films.append([], [like])
            # The scorer writes the log's last partition from now on; the others are closed as before.
            scorer.predict(shown, log_impressions=True, request_id="closing", time=served_ms + DAY_MS // 2)
            films.close_windows(served_ms + DAY_MS // 2, impression_partitions=(0,))
            wait_for(
                lambda: ("loop-1", "i1") in films.labels(),
                "the served impression became an example",
                TIMEOUT_S,
            )
            labels = films.labels()
            assert [labels["loop-1", f"i{i}"] for i in range(3)] == [(0, 0), (0, 1), (0, 0)]
            wait_for(lambda: liked_gained(scorer, shown, before), "the like changed the scores", TIMEOUT_S)
            assert scorer.predict(shown).model_version > before.model_version


def liked_gained(scorer: ScorerClient, shown: list[dict[str, Any]], before: Predictions) -> bool:
    """Whether the liked film gained on the film that was passed over."""
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
