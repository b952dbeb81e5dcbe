"""The demo's report, checks and screen, on a made-up run."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cuckooflow.models.progressive import LabelMetrics
from cuckooflow.pipelines.curves import Curve, curve_of_records, total
from cuckooflow.pipelines.demo import checks
from cuckooflow.pipelines.demo.expected import Outcomes
from cuckooflow.pipelines.demo.exposures import Exposures
from cuckooflow.pipelines.demo.feedback import make_events
from cuckooflow.pipelines.demo.progress import Observed, ServedVersion, TableSize
from cuckooflow.pipelines.demo.report import points, write_report
from cuckooflow.pipelines.demo.result import FROZEN, LIVE, LR, MEAN, DemoResult
from cuckooflow.pipelines.demo.simulator import SimulatorOptions, simulate
from cuckooflow.pipelines.demo.story import Ranking, Story, Told, choose_story, instances
from cuckooflow.pipelines.demo.watch import Watch, figures_line

DAY_US = 86_400_000_000
START_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000


def made_curve(skill: float, days: range, seed: int) -> Curve:
    rng = np.random.default_rng(seed)
    curve = {}
    for day in days:
        labels = rng.random(400) < 0.12
        logit = -2 + skill * labels + rng.normal(size=400)
        curve[day * DAY_US] = LabelMetrics()
        curve[day * DAY_US].add(1 / (1 + np.exp(-logit)), labels)
    return curve


def made_shown() -> Exposures:
    return simulate(SimulatorOptions(requests=3_000, users=60, items=80, days=40))


def made_result() -> DemoResult:
    shown = made_shown()
    observed = Observed(
        joined={"join.examples": 990, "join.used": 100, "join.late": 4, "join.unmatched": 3},
        joined_over_time=[
            (START_US + t * 1_000_000, {"join.examples": 20 * t, "join.used": 2 * t}) for t in range(50)
        ],
        served=[
            ServedVersion(n, START_US + n * 1_000_000, n * DAY_US, (1.0 + n % 3, 2.5)) for n in range(1, 50)
        ],
        tables=[
            TableSize(
                START_US + t * 1_000_000, {"embedding": 100 * t, "linear": 100 * t}, {"embedding": 9_000}
            )
            for t in range(50)
        ],
    )
    story = Story(3, 0, 0, liked_rows=(), liked=(1, 2, 3), candidates=(4, 5, 6))
    told = Told(story, Ranking(7, START_US, (0.3, 0.2, 0.1)), Ranking(9, START_US, (0.1, 0.2, 0.4)), 2.4)
    return DemoResult(
        shown=shown,
        observed=observed,
        curves={
            LIVE: made_curve(1.4, range(40), 1),
            FROZEN: made_curve(0.9, range(20, 40), 2),
            LR: made_curve(1.0, range(40), 3),
            MEAN: made_curve(0.0, range(40), 4),
        },
        frozen_us=20 * DAY_US,
        told=told,
        checks=(checks.Check("a balance <b>", True, "1 = 1"), checks.Check("another", False, "1 = 2")),
        first_served_fraction=0.07,
        killed=(("store", START_US + 20_000_000), ("train", START_US + 30_000_000)),
        started_us=START_US,
        replayed_us=START_US + 50_000_000,
        lines=20_000,
        notes=("Nothing here is real.",),
    )


def test_report_is_one_file_with_every_plot_and_no_link_to_fetch(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, made_result())
    page = path.read_text(encoding="utf-8")
    assert page.count("Plotly.newPlot(") == 8
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    for words in (
        "Calibration",
        "What became of every event",
        "One user",
        "freshness",
        "Nothing here is real.",
    ):
        assert words in page
    assert "a balance &lt;b&gt;" in page
    assert "DOES NOT HOLD" in page


def test_report_says_plainly_who_is_better() -> None:
    result = made_result()
    assert "live model beats logistic regression" in result.verdict()
    swapped = dataclasses.replace(
        result, curves={**result.curves, LIVE: result.curves[LR], LR: result.curves[LIVE]}
    )
    assert "live model does NOT beat logistic regression" in swapped.verdict()


def test_figures_compare_only_what_came_after_the_freeze() -> None:
    result = made_result()
    later = LabelMetrics()
    for start, figures in result.curves[LIVE].items():
        if start >= 20 * DAY_US:
            later.merge(figures)
    assert result.figures()[LIVE].auc() == later.auc()
    assert total(result.curves[LIVE]).rows == 40 * 400


def test_points_put_windows_together_and_leave_thin_ones_out() -> None:
    curve = made_curve(1.0, range(8), 1)
    assert [(start // DAY_US, m.rows) for start, m in points(curve, windows=3)] == [
        (2, 1200),
        (5, 1200),
        (7, 800),
    ]
    thin = LabelMetrics()
    thin.add(np.array([0.5]), np.array([1]))
    assert points({0: thin}) == []


def test_records_add_up_to_a_curve() -> None:
    curve = made_curve(1.0, range(2), 1)
    base = {"kind": "progressive", "label": "like", "window_start_us": 0}
    records = [{**base, **figures.to_json()} for figures in curve.values()]
    records += [{**base, "label": "click", **curve[0].to_json()}, {"kind": "other"}]
    made = curve_of_records(records, "like")
    assert list(made) == [0]
    assert made[0].auc() == total(curve).auc()


# --- checks ---------------------------------------------------------------------------------

JOINED = {
    "join.examples": 90,
    "join.impressions_waiting": 5,
    "join.impressions_repeated": 3,
    "join.used": 30,
    "join.late": 2,
    "join.actions_waiting": 1,
    "join.unmatched": 4,
    "join.actions_repeated": 1,
    "sampling.examples": 90,
    "sampling.kept": 60,
    "sampling.sampled_out": 30,
}
LINES = {"impressions": 100, "actions": 40}
DEAD = {"impressions": 2, "actions": 2}


def test_balances_hold_and_say_their_figures() -> None:
    found = checks.check_balances(Observed(joined=JOINED, dead=DEAD), LINES)
    assert [check.holds for check in found] == [True, True, True]
    assert found[0].detail == "impressions in 100 = examples 90 + waiting 5 + repeated 3 + dead 2"


@pytest.mark.parametrize("lost", sorted(JOINED))
def test_any_lost_row_breaks_a_balance(lost: str) -> None:
    found = checks.check_balances(Observed(joined={**JOINED, lost: JOINED[lost] - 1}, dead=DEAD), LINES)
    assert not all(check.holds for check in found)


def test_nothing_at_all_is_no_balance() -> None:
    found = checks.check_balances(Observed(), {"impressions": 0, "actions": 0})
    assert not any(check.holds for check in found)


def test_outcomes_allow_only_for_what_is_open() -> None:
    expected = Outcomes(
        0, 90, 5, 2, 3, used=31, late=2, unmatched=4, actions_dead=2, actions_repeated=1, open={"used": 1}
    )
    assert checks.check_outcomes(Observed(joined=JOINED, dead=DEAD), expected).holds
    wrong = dataclasses.replace(expected, used=32)
    assert (
        "used: expected 31 to 32, found 30"
        in checks.check_outcomes(Observed(joined=JOINED, dead=DEAD), wrong).detail
    )
    wrong = dataclasses.replace(expected, examples=91)
    assert not checks.check_outcomes(Observed(joined=JOINED, dead=DEAD), wrong).holds


def test_counting_is_equality() -> None:
    ids = np.array([0, 5, 2**64 - 1], np.uint64)
    counts = np.array([3, 1, 2])
    stored = np.array([2, 3, 1], np.float32)
    order = np.array([2**64 - 1, 0, 5], np.uint64)
    assert checks.check_counting((ids, counts), (order, stored)).holds
    twice = checks.check_counting((ids, counts), (order, np.array([2, 4, 1], np.float32)))
    assert not twice.holds
    assert twice.detail == "1 of 3 feature ids: expected 6 occurrences in all, found 7"
    missing = checks.check_counting((ids, counts), (order[:2], stored[:2]))
    assert not missing.holds
    assert "1 are missing" in missing.detail
    none = np.empty(0, np.uint64)
    assert not checks.check_counting((none, np.empty(0, np.int64)), (none, np.empty(0, np.float32))).holds


# --- story and screen -----------------------------------------------------------------------


def test_story_is_of_a_newcomer_and_ranks_films_never_shown_to_that_user() -> None:
    shown = made_shown()
    story = choose_story(shown, make_events(shown), HOUR_US)
    own = shown.user == story.user
    assert 0.78 <= np.flatnonzero(own)[0] / len(shown) < 0.93
    assert story.first_us == 1_000_000 * shown.time_s[own].min()
    assert story.first_us < story.last_like_us
    assert set(story.liked) <= set(shown.item[own & shown.liked].tolist())
    assert len(story.liked_keys(shown)) == len(story.liked) > 1
    assert not set(story.candidates) & set(shown.item[own].tolist())
    asked = instances(shown, story)
    assert len(asked) == len(story.candidates)
    assert asked[0]["user_id"] == shown.users["user_id"][story.user].as_py()
    assert "title" not in asked[0]


def test_a_replay_without_newcomers_is_refused() -> None:
    shown = made_shown()
    with pytest.raises(ValueError, match="expected a newcomer"):
        choose_story(dataclasses.replace(shown, user=np.zeros_like(shown.user)), make_events(shown), HOUR_US)


def test_places_are_by_score() -> None:
    assert Ranking(1, 0, (0.1, 0.9, 0.5)).places() == [3, 1, 2]


def test_watch_prints_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with Watch(Console(file=out, force_terminal=False, width=400)) as watch:
        watch.show(0.25, made_result().observed)
        watch.say("something happened")
    assert "replay  25%" in out.getvalue()
    assert "examples 990" in out.getvalue()
    assert "something happened" in out.getvalue()


def test_watch_shows_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    with Watch(Console(file=out, force_terminal=True, width=120)) as watch:
        watch.show(0.25, made_result().observed)
    assert "25%" in out.getvalue()
    assert "freshness" in out.getvalue()


def test_figures_of_a_run_that_just_began_are_zeros() -> None:
    assert dict(figures_line(Observed()))["examples"] == "0"
