"""What `job status` shows of a job in trouble; of a healthy one the test on a real Flink says it."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from cuckooflow.pipelines.job_status import JobStatus, print_status

HEALTHY = {
    "source_impressions_idle_partitions": 0,
    "source_impressions_paused_partitions": 1,
    "source_impressions_timeless_partitions": 0,
    "source_impressions_unavailable_s": 0,
    "source_impressions_lag_messages": 1_234_567,
    "source_impressions_watermark_lag_ms": 90_000,
    "source_impressions_oldest_partition": 3,
    "balance_join_impressions": 10,
    "balance_join_examples": 7,
    "balance_join_impressions_waiting": 3,
    "join_ticks": 4,
    "join_tick_us": 10_000,
    "dead_letters_malformed": 2,
    "dead_letters_late_impression": 5,
}


def shown(metrics: dict[str, int] | None = None, **more: Any) -> str:
    given = {
        "id": "ab12",
        "name": "films-join",
        "state": "RUNNING",
        "parallelism": 2,
        "at_work": True,
        "uptime_s": 3_700.0,
        "restarts": 1,
        "checkpoint_age_s": 12.0,
        "checkpoint_bytes": 25_000,
        "failed_checkpoints": 2,
        "metrics": HEALTHY if metrics is None else metrics,
    }
    out = io.StringIO()
    print_status(JobStatus(**{**given, **more}), Console(file=out, width=200))
    return out.getvalue()


def test_a_job_at_work() -> None:
    text = shown()
    assert re.search(r"^impressions +1,234,567 +90 s \(partition 3\) +0 +1 +0 +-$", text, re.M)
    assert "  impressions 10 = examples 7 + waiting 3 + dead 0 + repeated 0\n" in text
    assert re.search(r"^dead letters +7$", text, re.M)
    assert re.search(r"^  late_impression +5$", text, re.M)
    assert re.search(r"^  of so long each +2.5 ms$", text, re.M)
    assert re.search(r"^  checkpoint +12 s old, 25.0 kB; 2 failed$", text, re.M)
    assert re.search(r"^  up +62 min$", text, re.M)
    assert "from before" not in text


def test_rows_that_do_not_add_up() -> None:
    assert "repeated 0  does not add up" in shown({**HEALTHY, "balance_join_examples": 6})
    assert "does not add up" not in shown()


def test_a_broker_that_is_away_and_a_lag_that_is_not_known() -> None:
    away = {**HEALTHY, "source_impressions_unavailable_s": 75}
    del away["source_impressions_lag_messages"]
    assert re.search(r"^impressions +- +90 s \(partition 3\) +0 +1 +0 +75 s$", shown(away), re.M)


@pytest.mark.parametrize(
    ("state", "said"), [("RUNNING", "RUNNING, tasks are starting"), ("RESTARTING", "RESTARTING")]
)
def test_figures_of_a_job_that_restarts_are_said_to_be_old(state: str, said: str) -> None:
    text = shown(state=state, at_work=False)
    assert re.search(rf"^  state +{said}$", text, re.M)
    assert "what follows is from before it stopped" in text


def test_a_job_that_has_told_nothing() -> None:
    text = shown({}, checkpoint_age_s=None)
    assert re.search(r"^  checkpoint +none yet; 2 failed$", text, re.M)
    assert "no metrics yet" in text
