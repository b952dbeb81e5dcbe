"""The demo's report: one HTML file with every plot, readable without a network."""

from __future__ import annotations

import html
import math
from datetime import UTC, datetime
from pathlib import Path

import plotly.graph_objects as go

from cuckooflow.models.progressive import LabelMetrics
from cuckooflow.pipelines.curves import Curve, total
from cuckooflow.pipelines.demo.result import FROZEN, LIVE, LR, MEAN, DemoResult
from cuckooflow.pipelines.demo.story import Told
from cuckooflow.pipelines.html_report import mark_time, plot, plot_html, table_html, time_of, write_page

#: Colours that stay apart for colour-blind readers too (Okabe and Ito, 2008).
COLOURS = {LIVE: "#0072B2", FROZEN: "#D55E00", LR: "#009E73", MEAN: "#8A8A8A"}
#: A point of a curve covers this many windows of event time, so that daily noise does not hide the trend.
SMOOTHED_WINDOWS = 7
#: With fewer examples a point says nothing.
_POINT_ROWS_MIN = 300


def write_report(path: Path, result: DemoResult) -> None:
    """Write the report. It needs nothing but this one file."""
    sections = [
        _head(result),
        _tiles(result),
        _quality(result),
        _calibration(result),
        _joins(result),
        _story(result),
        _system(result),
        _checks(result),
    ]
    write_page(path, "cuckooflow demo", sections)


# --- sections -------------------------------------------------------------------------------


def _head(result: DemoResult) -> str:
    notes = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in result.notes)
    return (
        "<h1>cuckooflow demo</h1>"
        f"<p>{html.escape(result.shown.source)}: {len(result.shown):,} impressions of "
        f"{len(result.shown.items):,} films to {len(result.shown.users):,} users, "
        f"{_day(result.shown.time_s[0])} to {_day(result.shown.time_s[-1])}, replayed in "
        f"{(result.replayed_us - result.started_us) / 1e6:.0f} s.</p>"
        f"<p><b>{html.escape(result.verdict())}</b></p>{notes}"
    )


def _tiles(result: DemoResult) -> str:
    figures = result.figures()
    middle = f"{result.freshness_p50_s():.1f} s"
    replay_s = max(1e-9, (result.replayed_us - result.started_us) / 1e6)
    tiles = [
        (f"{figures[LIVE].auc():.4f}", "AUC of the live model, second half"),
        (f"{figures[FROZEN].auc():.4f}", "AUC of the model frozen at half"),
        (middle, "freshness, median: action appended to effect served"),
        (f"{result.first_served_fraction:.1%}", "of the replay done when the scorer first served"),
        (f"{result.lines / replay_s:,.0f}", "events a second, logs to served model"),
        (f"{len(result.observed.manifests)}", "snapshots published"),
    ]
    body = "".join(f"<div class='tile'><b>{value}</b><span>{name}</span></div>" for value, name in tiles)
    return f"<div class='tiles'>{body}</div>"


def _quality(result: DemoResult) -> str:
    lines = {name: points(curve) for name, curve in result.curves.items()}
    auc = plot("AUC, predicted before learned")
    loss = plot("log loss")
    for name, line in lines.items():
        days = [time_of(start) for start, _ in line]
        if name != MEAN:
            auc.add_scatter(x=days, y=[m.auc() for _, m in line], name=name, line=_line(name))
        loss.add_scatter(x=days, y=[m.log_loss() for _, m in line], name=name, line=_line(name))
    for figure in (auc, loss):
        mark_time(figure, result.frozen_us, "frozen here")
    auc.update_yaxes(title="AUC")
    loss.update_yaxes(title="log loss")
    figures = result.figures()
    unseen = figures[MEAN].rows - figures[LIVE].rows
    table = table_html(
        ("from the half on", "AUC", "log loss", "predicted / observed", "examples"),
        [
            (name, f"{m.auc():.4f}", f"{m.log_loss():.4f}", f"{m.calibration():.3f}", f"{m.rows:,}")
            for name, m in figures.items()
        ],
    )
    return (
        "<h2>How well it predicts likes</h2>"
        "<p class='note'>Progressive validation over event time: every example is predicted before any model "
        f"learns from it. A point covers {SMOOTHED_WINDOWS} days. The running mean has no AUC curve: "
        f"it predicts the same for everything at a time. Of the live model {unseen:,} examples are missing: those "
        "whose figures the killed trainer had not written yet.</p>"
        f"<div class='card'>{plot_html(auc)}</div><div class='card'>{plot_html(loss)}</div><div class='card'>{table}</div>"
    )


def _calibration(result: DemoResult) -> str:
    groups = plot("predicted and observed, second half")
    top = 0.0
    for name in (LIVE, FROZEN, LR):
        curve = total(result.curves[name], result.frozen_us).calibration_curve(12)
        x, y = [c[0] for c in curve], [c[1] for c in curve]
        top = max([top, *x, *y])
        groups.add_scatter(x=x, y=y, name=name, mode="lines+markers", line=_line(name))
    groups.add_scatter(
        x=[0, top],
        y=[0, top],
        name="perfect",
        mode="lines",
        line={"color": "#bbb", "dash": "dot", "width": 1},
    )
    groups.update_xaxes(title="mean predicted probability").update_yaxes(title="share that was liked")
    ratio = plot("predicted / observed over event time")
    for name in (LIVE, FROZEN, LR):
        line = points(result.curves[name])
        ratio.add_scatter(
            x=[time_of(start) for start, _ in line],
            y=[m.calibration() for _, m in line],
            name=name,
            line=_line(name),
        )
    ratio.add_hline(y=1, line={"color": "#bbb", "dash": "dot", "width": 1})
    ratio.update_yaxes(title="predicted / observed")
    return (
        "<h2>Calibration</h2><p class='note'>Half of the impressions without an action are left out of "
        "training; the kept ones count twice, so predictions stay those of the whole stream.</p>"
        f"<div class='two'><div class='card'>{plot_html(groups)}</div><div class='card'>{plot_html(ratio)}</div></div>"
    )


def _joins(result: DemoResult) -> str:
    names = ("examples", "used", "late", "unmatched")
    over_time = plot("rows joined, over the time of the run")
    for name in names:
        over_time.add_scatter(
            x=[(at - result.started_us) / 1e6 for at, _ in result.observed.joined_over_time],
            y=[joined.get(f"join.{name}", 0) for _, joined in result.observed.joined_over_time],
            name=name,
        )
    over_time.update_xaxes(title="seconds since the replay began").update_yaxes(title="rows")
    _kills(over_time, result)
    joined = result.observed.joined
    shares = plot("outcomes of actions and impressions, rows (logarithmic)")
    outcomes = [
        ("examples", "examples"),
        ("impressions_repeated", "impressions repeated"),
        ("impressions_dead", "impressions dead"),
        ("used", "actions used"),
        ("late", "actions late"),
        ("unmatched", "actions unmatched"),
        ("actions_repeated", "actions repeated"),
        ("actions_dead", "actions dead"),
    ]
    dead = result.observed.dead
    counts = joined | {f"join.{log}_dead": dead.get(log, 0) for log in ("impressions", "actions")}
    values = [counts.get(f"join.{key}", 0) for key, _ in outcomes]
    shares.add_bar(
        x=values,
        y=[label for _, label in outcomes],
        orientation="h",
        text=[f"{value:,}" for value in values],
        textposition="auto",
        marker={"color": COLOURS[LIVE]},
    )
    shares.update_xaxes(type="log", dtick=1).update_yaxes(autorange="reversed")
    return (
        "<h2>What became of every event</h2>"
        f"<div class='two'><div class='card'>{plot_html(over_time)}</div><div class='card'>{plot_html(shares)}</div></div>"
    )


def _story(result: DemoResult) -> str:
    told = result.told
    if told is None:
        return "<h2>One user</h2><p>The replay ended before this story was over.</p>"
    user = result.shown.users.slice(told.story.user, 1).to_pylist()[0]
    liked = told.liked_titles(result.shown)
    shown = ", ".join(liked[:12]) + (f" and {len(liked) - 12} more" if len(liked) > 12 else "")
    rows = [
        (
            title,
            genres,
            f"{before:.3f}",
            f"{after:.3f}",
            str(place_before),
            f"{place_after} {_moved(place_before, place_after)}",
        )
        for title, genres, before, after, place_before, place_after in told.rows(result.shown)
    ]
    table = table_html(
        (
            "film never shown to this user",
            "genres",
            "score before",
            "score after",
            "place before",
            "place after",
        ),
        rows,
        left=2,
    )
    return (
        "<h2>One user's ranking before and after</h2>"
        f"<p>User {html.escape(user['user_id'])} ({user['age']}, {html.escape(user['occupation'])}) came for the "
        f"first time and liked {len(liked)} films: {html.escape(shown)}. "
        f"The changed ranking was served <b>{told.seconds:.1f} s</b> after the last of these likes was appended "
        f"(model version {told.before.version} before, {told.after.version} after).</p>"
        f"<div class='card'>{table}</div>{_story_note(told)}"
    )


def _story_note(told: Told) -> str:
    kept = sum(a == b for a, b in zip(told.before.places(), told.after.places(), strict=True))
    return f"<p class='note'>{kept} of {len(told.before.scores)} films kept their place.</p>"


def _system(result: DemoResult) -> str:
    fresh = plot("freshness by served version")
    versions = [version for version in result.observed.served if version.freshness_s]
    x = [(version.seen_us - result.started_us) / 1e6 for version in versions]
    for name, share, dash in (("median", 0.5, "solid"), ("95 %", 0.95, "dot")):
        y = [sorted(v.freshness_s)[math.floor(share * (len(v.freshness_s) - 1))] for v in versions]
        fresh.add_scatter(x=x, y=y, name=name, line={"color": COLOURS[LIVE], "dash": dash, "width": 2})
    fresh.update_xaxes(title="seconds since the replay began").update_yaxes(title="seconds")
    size = plot("rows of the store's tables")
    names = sorted({name for look in result.observed.tables for name in look.rows})
    for name in names:
        size.add_scatter(
            x=[(look.at_us - result.started_us) / 1e6 for look in result.observed.tables],
            y=[look.rows.get(name, 0) for look in result.observed.tables],
            name=name,
            # Tables of one id each a feature have the same rows: lines of different widths stay visible.
            line={"width": 2 + 3 * (len(names) - names.index(name) - 1)},
        )
    size.update_xaxes(title="seconds since the replay began").update_yaxes(title="rows")
    for figure in (fresh, size):
        _kills(figure, result)
    last = result.observed.tables[-1] if result.observed.tables else None
    mib = f" The tables take {sum(last.bytes.values()) / 2**20:.1f} MiB." if last else ""
    return (
        "<h2>The system</h2><p class='note'>Freshness is from the append of an action to the first look at which the "
        "scorer served a model that learned from it. It includes the time that the replay is ahead of the "
        f"system, which runs as fast as it can. Dotted lines: where the demo killed a process with -9.{mib}</p>"
        f"<div class='two'><div class='card'>{plot_html(fresh)}</div><div class='card'>{plot_html(size)}</div></div>"
    )


def _checks(result: DemoResult) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(check.name)}</td><td class='left'>{html.escape(check.detail)}</td>"
        f"<td class='{'ok' if check.holds else 'bad'}'>{'holds' if check.holds else 'DOES NOT HOLD'}</td></tr>"
        for check in result.checks
    )
    return f"<h2>Checks</h2><div class='card'><table>{rows}</table></div>"


# --- parts ----------------------------------------------------------------------------------


def points(curve: Curve, windows: int = SMOOTHED_WINDOWS) -> list[tuple[int, LabelMetrics]]:
    """The curve in points of several windows each: (start of the last window, figures)."""
    starts = sorted(curve)
    line = []
    for at in range(0, len(starts), windows):
        group = starts[at : at + windows]
        whole = LabelMetrics()
        for start in group:
            whole.merge(curve[start])
        if whole.rows >= _POINT_ROWS_MIN:
            line.append((group[-1], whole))
    return line


def _line(name: str) -> dict[str, object]:
    return {"color": COLOURS[name], "width": 2}


def _kills(figure: go.Figure, result: DemoResult) -> None:
    for n, (role, at_us) in enumerate(result.killed):
        at = (at_us - result.started_us) / 1e6
        figure.add_vline(x=at, line={"color": "#b3261e", "dash": "dot", "width": 1})
        figure.add_annotation(
            x=at,
            y=1 - 0.08 * n,  # the kills are near each other: one label below the other
            yref="paper",
            text=f"{role} killed",
            showarrow=False,
            xanchor="left",
            font={"color": "#b3261e", "size": 11},
        )


def _moved(before: int, after: int) -> str:
    if before == after:
        return "(=)"
    return f"(up {before - after})" if after < before else f"(down {after - before})"


def _day(seconds: int) -> str:
    return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%d}"
