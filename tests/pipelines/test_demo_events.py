"""The demo's simulator, its two logs, and what it expects of the join."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.pipelines.demo.expected import Rules, expected_outcomes
from cuckooflow.pipelines.demo.exposures import SHOWN
from cuckooflow.pipelines.demo.feedback import ACTION_TYPES, DemoEvents, FeedbackOptions, Sent, make_events
from cuckooflow.pipelines.demo.simulator import SimulatorOptions, simulate

MINUTE_US = 60_000_000
RULES = Rules({"click": 10 * MINUTE_US, "like": 60 * MINUTE_US}, 240 * MINUTE_US, 5 * MINUTE_US)
SMALL = SimulatorOptions(requests=400, users=20, items=60, days=3)


def test_simulated_requests_show_five_films_and_one_is_clicked() -> None:
    shown = simulate(SMALL)
    assert len(shown) == SHOWN * SMALL.requests
    assert all(len(set(row)) == SHOWN for row in shown.item.reshape(-1, SHOWN).tolist())
    assert (shown.clicked.reshape(-1, SHOWN).sum(axis=1) == 1).all()
    assert 0 < shown.liked.sum() < shown.clicked.sum()


def test_simulated_preferences_drift() -> None:
    """The films that a user clicks early tell less about late clicks than about early ones."""
    options = SimulatorOptions(requests=60_000, users=20, items=60, days=100, drift=0.3, sharpness=6.0)
    shown = simulate(options)
    rate = np.zeros((3, options.users, options.items))
    for part, (first, last) in enumerate([(0, 8_000), (8_000, 16_000), (52_000, 60_000)]):
        rows = slice(first * SHOWN, last * SHOWN)
        seen, hit = np.zeros((2, options.users, options.items))
        np.add.at(seen, (shown.user[rows], shown.item[rows]), 1)
        np.add.at(hit, (shown.user[rows], shown.item[rows]), shown.clicked[rows])
        rate[part] = hit / np.maximum(seen, 1)
    near, far = (np.corrcoef(rate[0].ravel(), rate[part].ravel())[0, 1] for part in (1, 2))
    assert near > far + 0.05


def test_simulator_refuses_too_few_films() -> None:
    with pytest.raises(ValueError, match="at least 10, received 9"):
        simulate(SimulatorOptions(items=9))


def test_impressions_are_json_lines_with_every_column() -> None:
    shown = simulate(SMALL)
    events = make_events(shown)
    sent = events.impressions
    rows = [json.loads(line) for line, valid in zip(sent.lines.to_pylist(), sent.valid, strict=True) if valid]
    first = rows[0]
    assert first == {
        "request_id": "r0",
        "item_id": shown.items["item_id"][int(shown.item[0])].as_py(),
        "genres": shown.items["genres"][int(shown.item[0])].as_py(),
        "release_year": shown.items["release_year"][int(shown.item[0])].as_py(),
        "time": int(shown.time_s[0]),
        "position": 0,
        **shown.users.slice(int(shown.user[0]), 1).to_pylist()[0],
    }
    keys = Counter((row["request_id"], row["item_id"]) for row in rows)
    assert len(keys) == len(shown)
    assert sum(keys.values()) - len(keys) == round(FeedbackOptions().repeat_share * len(shown))


def test_actions_name_what_was_clicked_and_liked() -> None:
    shown = simulate(SMALL)
    events = make_events(shown, FeedbackOptions(repeat_share=0, malformed=0, unknown_type=3, never_shown=2))
    rows = [json.loads(line) for line in events.actions.lines.to_pylist()]
    by_type = Counter(row["action"] for row in rows if row["request_id"].startswith("r"))
    assert by_type == {"click": shown.clicked.sum(), "like": shown.liked.sum(), "share": 3}
    assert sum(row["request_id"].startswith("lost") for row in rows) == 2
    likes = {
        (row["request_id"], row["item_id"])
        for row in rows
        if row["action"] == "like" and row["request_id"][0] == "r"
    }
    items = shown.items["item_id"].to_pylist()
    assert likes == {(f"r{shown.request[at]}", items[shown.item[at]]) for at in np.flatnonzero(shown.liked)}


def test_both_logs_are_in_order_of_arrival_and_actions_come_after_their_time() -> None:
    events = make_events(simulate(SMALL))
    for sent in (events.impressions, events.actions):
        assert (np.diff(sent.arrival_us) >= 0).all()
        assert (sent.arrival_us[sent.valid] >= 1_000_000 * sent.time_s[sent.valid]).all()


def test_malformed_rows_are_no_valid_events() -> None:
    events = make_events(simulate(SMALL), FeedbackOptions(malformed=42))
    for sent in (events.impressions, events.actions):
        bad = [line for line, valid in zip(sent.lines.to_pylist(), sent.valid, strict=True) if not valid]
        assert len(bad) == 42
        assert not any("\n" in line for line in bad)
        for line in bad:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            time = row and row["time"]
            assert row is None or row["item_id"] is None or time in ("yesterday", 0, 4_102_444_800)


def test_every_line_has_one_outcome() -> None:
    events = make_events(simulate(SMALL))
    got = expected_outcomes(events, RULES)
    impressions = got.examples + got.impressions_waiting + got.impressions_dead + got.impressions_repeated
    assert impressions == len(events.impressions)
    assert got.used + got.late + got.unmatched + got.actions_dead + got.actions_repeated == len(
        events.actions
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), slow=st.sampled_from([0.0, 0.05, 0.5]), spread=st.sampled_from([0.5, 2.0]))
def test_expected_outcomes_are_those_of_a_plain_loop(seed: int, slow: float, spread: float) -> None:
    shown = simulate(SimulatorOptions(requests=150, users=10, items=30, days=1, seed=seed))
    options = FeedbackOptions(slow_share=slow, spread=spread, repeat_share=0.2, repeat_mean_s=1800, seed=seed)
    events = make_events(shown, options)
    got = expected_outcomes(events, RULES)
    want, clock = plain_loop(events, RULES)
    assert got.clock_us == clock
    names = ("examples", "impressions_waiting", "impressions_dead", "impressions_repeated")
    names += ("used", "late", "unmatched", "actions_dead", "actions_repeated")
    assert {name: getattr(got, name) for name in names} == {name: want[name] for name in names}


def plain_loop(events: DemoEvents, rules: Rules) -> tuple[Counter[str], int]:
    """One row at a time, over dictionaries."""
    window = max(rules.windows_us.values())
    count: Counter[str] = Counter()
    times: dict[int, int] = {}
    mark = -(1 << 62)
    for valid, key, time_us, _ in rows_of(events.impressions):
        if not valid or mark >= time_us + window:
            count["impressions_dead"] += 1
        elif key in times:
            count["impressions_repeated"] += 1
        else:
            times[key] = time_us
        if valid:
            mark = max(mark, time_us - rules.max_skew_us)
    marks = [mark]
    copies: dict[tuple[int, str, int], list[str]] = {}
    mark = -(1 << 62)
    for valid, key, time_us, kind in rows_of(events.actions):
        if not valid or kind not in rules.windows_us:
            count["actions_dead"] += 1
        elif (
            key not in times
            or not 0 <= time_us - times[key] <= rules.windows_us[kind]
            or mark >= times[key] + window + rules.late_horizon_us
        ):
            count["unmatched"] += 1
        else:
            on_time = mark < times[key] + window
            copies.setdefault((key, kind, time_us), []).append("used" if on_time else "late")
        if valid:
            mark = max(mark, time_us - rules.max_skew_us)
    marks.append(mark)
    for outcomes in copies.values():
        count["used" if "used" in outcomes else "late"] += 1
        count["actions_repeated"] += len(outcomes) - 1
    clock = min(marks)
    count["examples"] = sum(time_us + window <= clock for time_us in times.values())
    count["impressions_waiting"] = len(times) - count["examples"]
    return count, clock


def rows_of(sent: Sent) -> list[tuple[bool, int, int, str]]:
    return [
        (bool(valid), int(key), 1_000_000 * int(time), ACTION_TYPES[kind])
        for valid, key, time, kind in zip(sent.valid, sent.impression, sent.time_s, sent.action, strict=True)
    ]
