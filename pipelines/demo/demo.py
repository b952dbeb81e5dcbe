"""The demo: two event logs through the whole system, some of it killed on the way, and what came out checked."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cuckooflow.errors import DatasetUnavailable, DemoFailed
from cuckooflow.models.registry import build_model
from cuckooflow.pipelines.curves import Curve, curve_of_records
from cuckooflow.pipelines.demo import checks, evaluate
from cuckooflow.pipelines.demo.dataset import fetch_movielens, load_movielens
from cuckooflow.pipelines.demo.expected import Rules, expected_outcomes
from cuckooflow.pipelines.demo.exposures import Exposures
from cuckooflow.pipelines.demo.feedback import make_events
from cuckooflow.pipelines.demo.job import LABEL, write_job
from cuckooflow.pipelines.demo.live_run import KILLS, SETTLE_S, LiveOutcome, LiveRun
from cuckooflow.pipelines.demo.report import write_report
from cuckooflow.pipelines.demo.result import FROZEN, LIVE, LR, MEAN, DemoResult
from cuckooflow.pipelines.demo.simulator import simulate
from cuckooflow.pipelines.examples_log import read_examples
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.spec_file import load_spec

CACHE = Path(".cache/datasets")
#: In a folder, says that a demo made it and the next one may empty it.
MARKER = ".cuckooflow-demo"


def run_demo(dataset: str, folder: Path) -> int:
    """Run the demo; everything it writes lies in ``folder``.

    Args:
        dataset: ``movielens``, or ``simulator``, which is taken as well where the data cannot be had.
        folder: emptied first if an earlier demo made it.

    Returns:
        The exit code: 0 if everything held that is checked in the end, else 1.

    Raises:
        DemoFailed: the folder is not a demo's, or the system did not follow the replay.
    """
    started_s = time.monotonic()
    console = Console(soft_wrap=True, highlight=False)
    _make_empty(folder)
    shown, notes = _exposures(dataset, console)
    events = make_events(shown)
    spec_file = write_job(folder)
    job = load_spec(spec_file)
    rules = _rules(job)
    expected = expected_outcomes(events, rules)
    console.print(
        f"{shown.source}\n{len(events.impressions):,} impressions and {len(events.actions):,} actions; "
        f"everything of this run is in {folder}/, its job in {spec_file}"
    )
    run = LiveRun(spec_file, job, shown, events, expected, rules.window_us, console)
    outcome = run.run()
    console.print(
        "evaluating the frozen model, logistic regression and the running mean on the same examples"
    )
    with _native_stderr_to(folder / "evaluation.log"):
        curves, counting = _evaluate(job, outcome)
    lines = {"impressions": len(events.impressions), "actions": len(events.actions)}
    result = DemoResult(
        shown=shown,
        observed=outcome.observed,
        curves=curves,
        frozen_us=outcome.frozen_us,
        told=outcome.told,
        checks=(
            *checks.check_balances(outcome.observed, lines),
            checks.check_outcomes(outcome.observed, expected),
            counting,
            checks.check_first_served(outcome.first_served_fraction),
            checks.check_came_back([role for role, _ in KILLS], outcome.restarts),
            checks.check_settled(outcome.settled, SETTLE_S),
        ),
        first_served_fraction=outcome.first_served_fraction,
        killed=outcome.killed,
        started_us=outcome.started_us,
        replayed_us=outcome.replayed_us,
        lines=sum(lines.values()),
        notes=tuple(notes),
    )
    return _finish(result, folder / "report.html", started_s, console)


def _make_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise DemoFailed(
                f"expected an empty folder or one of an earlier demo, {folder} holds other files; name another "
                "one with --dir"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("The next cuckooflow demo empties this folder.\n")


def _exposures(dataset: str, console: Console) -> tuple[Exposures, list[str]]:
    """What is replayed, and what the reader of the report must know about it."""
    if dataset == "movielens":
        try:
            shown = load_movielens(fetch_movielens(CACHE))
        except DatasetUnavailable as error:
            note = (
                f"MovieLens-100K is not to be had here ({error}), so the SIMULATOR is used: nothing is real."
            )
            console.print(f"[bold yellow]{note}[/bold yellow]")
            return simulate(), [note]
        return shown, [
            "The ratings are real; who saw which films beside the rated one is simulated (drawn from what others "
            "rated that day). A rating is a click, one of 4 or 5 stars a like as well; their delays are simulated."
        ]
    return simulate(), ["Everything here is simulated, with preferences that drift from day to day."]


def _rules(job: JobSpec) -> Rules:
    return Rules(
        windows_us={label.action: label.window for label in job.labels.values()},
        late_horizon_us=job.join.late_horizon,
        max_skew_us=job.join.max_skew,
    )


def _evaluate(job: JobSpec, outcome: LiveOutcome) -> tuple[dict[str, Curve], checks.Check]:
    """Everyone's curve on the same examples, and the count of them against the store's."""
    examples = list(read_examples(job))
    curves = {
        LIVE: curve_of_records(outcome.observed.records, LABEL),
        FROZEN: evaluate.frozen_curve(job, examples, outcome.frozen, LABEL),
        LR: evaluate.lr_curve(job, examples, LABEL),
        MEAN: evaluate.mean_curve(job, examples, LABEL),
    }
    counted = evaluate.count_features(build_model(job.model, job.features), examples)
    return curves, checks.check_counting(counted, outcome.counts)


@contextlib.contextmanager
def _native_stderr_to(path: Path) -> Iterator[None]:
    """Everything written to the process's standard error goes to a file: TensorFlow's start-up lines."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 2)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _finish(result: DemoResult, report: Path, started_s: float, console: Console) -> int:
    write_report(report, result)
    _print_summary(result, report, console)
    holds = {check.name: check.holds for check in result.checks}
    figures = result.figures()
    line = {
        "first_served_fraction": round(result.first_served_fraction, 4),
        "balance_ok": all(holds[name] for name in checks.BALANCES),
        "counting_equal": holds[checks.COUNTING],
        "auc": _rounded(figures[LIVE].auc()),
        "frozen_auc": _rounded(figures[FROZEN].auc()),
        "freshness_p50_s": _rounded(result.freshness_p50_s()),
        "seconds": round(time.monotonic() - started_s, 1),
    }
    print(json.dumps(line), flush=True)
    return 0 if all(holds.values()) else 1


def _print_summary(result: DemoResult, report: Path, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("from the half on", "AUC", "log loss", "predicted / observed"):
        table.add_column(column, justify="left" if column.startswith("from") else "right")
    for name, figures in result.figures().items():
        table.add_row(
            name, f"{figures.auc():.4f}", f"{figures.log_loss():.4f}", f"{figures.calibration():.3f}"
        )
    console.print()
    console.print(table)
    console.print(f"\n{result.verdict()}\n")
    if result.told is not None:
        _print_story(result, console)
    for check in result.checks:
        verdict = "[green]holds[/green]" if check.holds else "[bold red]DOES NOT HOLD[/bold red]"
        console.print(f"{verdict}  {check.name}: {check.detail}")
    median, high = result.freshness_p50_s(), result.freshness_s(0.95)
    console.print(f"freshness, action appended to effect served: median {median:.1f} s, 95 % {high:.1f} s")
    console.print(f"report: {report}")


def _print_story(result: DemoResult, console: Console) -> None:
    told = result.told
    assert told is not None
    user = result.shown.users.slice(told.story.user, 1).to_pylist()[0]
    liked = told.liked_titles(result.shown)
    console.print(
        f"user {user['user_id']} came for the first time and liked {len(liked)} films ({', '.join(liked[:4])}...); "
        f"{told.seconds:.1f} s later the scorer ranked {len(told.before.scores)} other films anew:"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("film", "before", "after", "place"):
        table.add_column(column)
    for title, _, before, after, place_before, place_after in told.rows(result.shown):
        table.add_row(title, f"{before:.3f}", f"{after:.3f}", f"{place_before} -> {place_after}")
    console.print(table)
    console.print()


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
