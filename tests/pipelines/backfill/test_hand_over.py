"""Hand-over at a time: what the backfill gives and what the live join gives are one uninterrupted run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cuckooflow.transforms.balances import imbalances

pytestmark = pytest.mark.slow
KINDS = ("examples", "late", "unmatched", "dead_letters")
AT = "2022-04-28T20:15:00"


def on_the_same_logs(feed, folder: Path, **replaced: str):
    """The job in a folder of its own, reading the feed's input logs."""
    logs = {f"path: logs/{name}": f"path: {feed.job.path(Path('logs') / name)}" for name in feed.messages}
    return feed.copy_to(folder, **logs, **replaced)


@pytest.fixture(scope="module")
def handed_over(feed, backfill, tmp_path_factory) -> Path:
    """A backfill up to the hand-over; the folder of its days."""
    out = tmp_path_factory.mktemp("handed") / "days"
    at_us = int(np.datetime64(AT, "us").astype(np.int64))
    days = {"first": "2022-04-24", "until": "2022-04-29"}
    backfill(feed.spec, out, **days, hand_over_us=at_us, range_messages=2_000)
    return out


def test_backfill_and_live_join_are_one_run(feed, streamed, handed_over, day_rows, run, tmp_path) -> None:
    live = on_the_same_logs(feed, tmp_path)
    done = run("run", "join", live.spec, "--stop-at-end", "--hand-over", handed_over / "hand_over.json")
    assert done.returncode == 0, done.stderr[-4000:]
    for kind in KINDS:
        before, after = day_rows(handed_over, kind), live.log_rows(kind)
        assert before + after == streamed[kind], kind
        assert sum(before.values()) > 100
        assert sum(after.values()) > 100


def test_the_live_join_begins_near_the_hand_over_and_its_counts_balance(
    feed, handed_over, run, tmp_path
) -> None:
    starts = json.loads((handed_over / "hand_over.json").read_bytes())["starts"]
    logged = Counter[tuple[str, int]]()
    for name, messages in feed.messages.items():
        logged.update((name, p) for p in messages["partition"].to_pylist())
    assert len(starts) == len(logged) == 5
    # Windows and horizon are 7 hours, and the hand-over lies 40 hours before the end of 136.
    assert all(0.5 * logged[log, p] < offset < 0.75 * logged[log, p] for log, p, offset, _ in starts)
    live = on_the_same_logs(feed, tmp_path)
    done = run("run", "join", live.spec, "--stop-at-end", "--hand-over", handed_over / "hand_over.json")
    assert done.returncode == 0, done.stderr[-4000:]
    records = [json.loads(line) for line in live.log_rows("join_balances")]
    final = [r["counts"] for r in records if r["final"] and r["stage"] == "join"]
    assert len(final) == 4
    sums = {name: sum(counts[name] for counts in final) for name in final[0]}
    assert imbalances({"join": sums}) == []
    given = {log: sum(live.log_rows(log).values()) for log in KINDS}
    assert (sums["late"], sums["unmatched"]) == (given["late"], given["unmatched"])
    assert 0.7 * sums["examples"] < given["examples"] < sums["examples"]  # some negatives are left out


def labels_in_the_end(*parts: Counter[str]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Every impression's labels, over its example and its late ones; one of the former at most."""
    labels: dict[tuple[int, ...], tuple[int, ...]] = {}
    primaries = Counter[tuple[int, ...]]()
    for line in sum(parts, Counter()).elements():
        row = json.loads(line)
        at = (row["user_id"], row["video_id"], row["_time"])
        primaries[at] += row["_kind"] == 0
        before = labels.get(at, (0, 0))
        labels[at] = (row["label_click"] | before[0], row["label_long_view"] | before[1])
    assert max(primaries.values()) == 1
    return labels


def test_an_eager_join_goes_on_from_a_backfill(feed, streamed, handed_over, day_rows, run, tmp_path) -> None:
    """A backfill's examples are complete; a positive that is out early is not lost between the two."""
    live = on_the_same_logs(feed, tmp_path, **{"late_horizon: 6h": "late_horizon: 6h\n  emit: eager"})
    done = run("run", "join", live.spec, "--stop-at-end", "--hand-over", handed_over / "hand_over.json")
    assert done.returncode == 0, done.stderr[-4000:]
    parts = [
        rows(kind)
        for kind in ("examples", "late")
        for rows in (lambda k: day_rows(handed_over, k), live.log_rows)
    ]
    assert labels_in_the_end(*parts) == labels_in_the_end(streamed["examples"], streamed["late"])
    assert day_rows(handed_over, "unmatched") + live.log_rows("unmatched") == streamed["unmatched"]


def test_another_join_cannot_go_on(feed, handed_over, run, tmp_path) -> None:
    live = on_the_same_logs(feed, tmp_path, **{"window: 30m": "window: 31m"})
    done = run("run", "join", live.spec, "--stop-at-end", "--hand-over", handed_over / "hand_over.json")
    assert done.returncode == 2
    assert "hand over to the job spec of the backfill" in done.stderr


def test_a_hand_over_that_the_logs_do_not_reach_is_refused(feed, run, tmp_path) -> None:
    words = ("--from", "2022-04-30", "--to", "2022-05-01", "--hand-over-at", "2022-05-01", "--out", tmp_path)
    done = run("backfill", "join", feed.spec, *words)
    assert done.returncode == 1
    assert "HandOverTooEarly" in done.stderr
    assert "impressions/0" in done.stderr
    assert not list(tmp_path.glob("dt=*"))
