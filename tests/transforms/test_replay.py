"""Replay at a chosen speed, by a clock that the test holds; and the balances of a source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cuckooflow.errors import SpecError
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.transforms.balances import imbalances, totals
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.message_format import MessageFormat
from cuckooflow.transforms.poll_core import PollCore, Polled, PollOptions, PollSource

KEY = {"k": Column(type="string"), "t": Column(type="time", unit="s")}
SHOWN = EventSchema(columns=KEY, time="t", key=("k",))
DONE = EventSchema(
    columns={**KEY, "what": Column(type="string")},
    time="t",
    key=("k",),
    action_type="what",
    message=MessageFormat(only=("click",)),
)
BASE_S = 1_000_000
WALL_US = 1_700_000_000_000_000


def event(t: int, what: str = "click") -> bytes:
    return json.dumps({"k": f"k{t}", "t": BASE_S + t, "what": what}).encode()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Impressions at 0, 10, ... 990 s in two partitions, the second from 500 s on; actions at 5, 15, ... 995 s."""
    LocalLog.create(tmp_path / "shown", 2)
    LocalLog.create(tmp_path / "done", 1)
    with LocalLogWriter(tmp_path / "shown") as writer:
        writer.append(0, [b"junk", *(event(t) for t in range(0, 500, 10)), b"junk"], 10**15)
        writer.append(1, [event(t) for t in range(500, 1_000, 10)], 10**15)
    with LocalLogWriter(tmp_path / "done") as writer:
        writer.append(0, [event(t, "click" if t % 4 else "scroll") for t in range(4, 1_000, 10)], 10**15)
    return tmp_path


def core(logs: Path, state: bytes | None = None, **options: Any) -> PollCore:
    given = {"num_shards": 2, "max_skew_us": 0, "stop_at_end": True, **options}
    return PollCore(
        PollSource(LocalLog.open(logs / "shown"), SHOWN),
        PollSource(LocalLog.open(logs / "done"), DONE),
        PollOptions(**given),
        state,
    )


def times(polled: Polled) -> list[int]:
    """Event times of what came out, seconds since the first."""
    found = [t for _, batch in polled.elements for t in batch.column("_time").to_pylist()]
    return sorted(t // 1_000_000 - BASE_S for t in found)


def expected(first: int, last: int) -> list[int]:
    """Event times of wanted rows with ``first <= t <= last``."""
    shown = [t for t in range(0, 1_000, 10) if first <= t <= last]
    return sorted(shown + [t for t in range(4, 1_000, 10) if first <= t <= last and t % 4])


def test_rows_come_when_their_event_time_has(logs: Path) -> None:
    paced = core(logs, replay_speed=60.0)
    assert times(paced.poll(WALL_US)) == [0]
    assert times(paced.poll(WALL_US)) == []
    assert not paced.poll(WALL_US + 50_000).progressed
    assert times(paced.poll(WALL_US + 1_000_000)) == expected(1, 60)
    assert times(paced.poll(WALL_US + 1_500_000)) == expected(61, 90)
    assert times(paced.poll(WALL_US + 10_000_000)) == expected(91, 600)
    assert times(paced.poll(WALL_US + 3_600_000_000)) == expected(601, 999)
    assert times(paced.poll(WALL_US + 3_600_000_001)) == []
    assert paced.ended


@pytest.mark.parametrize("speed", [0.5, 7.0, 1_000_000.0])
def test_at_any_speed_everything_comes_once_and_in_time(logs: Path, speed: float) -> None:
    paced = core(logs, replay_speed=speed, max_messages=7)
    seen: list[int] = []
    wall_us = WALL_US
    for _ in range(100_000):
        found = times(paced.poll(wall_us))
        assert all(t <= (wall_us - WALL_US) / 1e6 * speed + 1e-6 for t in found)
        seen += found
        if paced.ended:
            break
        wall_us += 250_000
    assert sorted(seen) == expected(0, 999)


def test_a_restart_goes_on_where_it_was_and_makes_up_no_time(logs: Path) -> None:
    first = core(logs, replay_speed=60.0)
    seen = times(first.poll(WALL_US)) + times(first.poll(WALL_US + 1_000_000))
    assert seen == expected(0, 60)
    later_us = WALL_US + 86_400_000_000
    again = core(logs, first.state(), replay_speed=60.0)
    # Time begins at the next event, whose turn it then is.
    first_s = expected(61, 999)[0]
    assert times(again.poll(later_us)) == [first_s]
    assert times(again.poll(later_us + 1_000_000)) == expected(first_s + 1, first_s + 60)


def test_a_replay_of_what_happens_now_is_refused() -> None:
    for wrong in (
        {"replay_speed": 60.0, "live": True},
        {"replay_speed": 0.0},
        {"replay_speed": float("nan")},
    ):
        with pytest.raises(SpecError, match="replay_speed"):
            PollOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("speed", [None, 60.0])
def test_what_was_read_adds_up_over_restarts(logs: Path, speed: float | None) -> None:
    options: dict[str, Any] = {"max_messages": 9, "replay_speed": speed, "balance_interval_us": 0}
    poller = core(logs, **options)
    records: list[dict[str, Any]] = []
    wall_us = WALL_US
    for turn in range(10_000):
        records += poller.poll(wall_us).balances
        if poller.ended:
            break
        wall_us += 100_000
        if turn % 5 == 0:
            poller = core(logs, poller.state(), **options)
    sums = totals(records)
    assert imbalances(sums) == []
    others = sum(1 for t in range(4, 1_000, 10) if t % 4 == 0)
    assert sums["source"] == {
        "impressions_messages": 102,
        "impressions_read": 102,
        "impressions_rows": 100,
        "impressions_refused": 2,
        "impressions_of_other_types": 0,
        "impressions_messages_without_items": 0,
        "actions_messages": 100,
        "actions_read": 100,
        "actions_rows": 100 - others,
        "actions_refused": 0,
        "actions_of_other_types": others,
        "actions_messages_without_items": 0,
    }
    assert [r["final"] for r in records] == [False] * (len(records) - 1) + [True]


def test_counts_are_reported_now_and_then(logs: Path) -> None:
    poller = core(logs, max_messages=9, balance_interval_us=1_000_000)
    reported = [len(poller.poll(WALL_US + n * 100_000).balances) for n in range(15)]
    assert reported[0] == 1 and sum(reported) == 2
