"""The soak: its slope is a line's, and a short run joins all that it feeds, balances included, and tells its figures."""

from __future__ import annotations

import json

import pytest

from benchmarks import soak
from cuckooflow.runners.cluster import LocalCluster


def test_the_slope_is_of_the_last_two_thirds_in_percent_of_their_mean() -> None:
    times = [float(s) for s in range(0, 601, 5)]
    filling_then_flat = [min(s, 200.0) + 1_000 for s in times]
    assert soak.slope_percent_a_minute(times, filling_then_flat) == 0
    two_percent = [1_000 + 20 * (s - 400) / 60 for s in times]  # of the mean, which is at 400 s
    assert soak.slope_percent_a_minute(times, two_percent) == pytest.approx(2, abs=0.01)
    assert soak.slope_percent_a_minute(times, [-v for v in two_percent]) == pytest.approx(2, abs=0.01)
    assert soak.slope_percent_a_minute(times, [0.0 for _ in times]) == 0


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.deep
@pytest.mark.timeout(400)
def test_a_short_soak_joins_all_that_it_feeds(
    flink: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    soak.main(["--minutes", "0.6", "--rate", "2000", "--cluster", str(flink.folder)])
    lines = capsys.readouterr().out.strip().splitlines()
    found = json.loads(lines[-1])
    assert found["samples"] >= 5
    assert found["events_per_s"] == pytest.approx(2_000, rel=0.1)
    assert 200 << 20 < found["last_taskmanager_bytes"] < 2 << 30
    assert 200 << 20 < found["last_workers_bytes"] < 4 << 30
    assert found["last_checkpoint_bytes"] > 100_000
    # What arrives in a window waits, and little more.
    assert 2_000 < found["last_waiting"] < 60_000
    assert {name for name in found if name.endswith("_percent_a_minute")} == {
        f"{name}_percent_a_minute"
        for name in (
            *("memory", "taskmanager_memory", "workers_memory"),
            *("checkpoint", "checkpoint_data", "waiting", "hot"),
        )
    }
