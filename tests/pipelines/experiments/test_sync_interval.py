"""Serving copies of different ages beside one pass: known outcomes, and an oracle that trains anew for each copy."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from rich.console import Console
from sklearn.metrics import log_loss, roc_auc_score

from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.errors import FullDeltaNeeded, NoExamples
from cuckooflow.models.base import distinct
from cuckooflow.models.registry import build_model, predict_batch, store_config
from cuckooflow.models.spec import ModelSpec, OptimizerSpec
from cuckooflow.pipelines.curves import curve_of_records, total
from cuckooflow.pipelines.experiments.learner import Learner
from cuckooflow.pipelines.experiments.one_pass import one_pass
from cuckooflow.pipelines.experiments.outcome import Outcome
from cuckooflow.pipelines.experiments.serving_copy import ServingCopy
from cuckooflow.pipelines.experiments.sync_interval import EVERY_STEP, FROZEN, Interval, sync_interval
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.transforms.training_rows import TrainingRows
from tests.pipelines.experiments.drifting import (
    BATCH,
    DAY_US,
    HOUR_US,
    STREAMING,
    drifting,
    learner,
    timeline,
    write_examples,
    write_job,
)

#: Of a thousand rows the histogram's AUC is so near the exact one; log loss is exact.
AUC_STEP = 5e-4


def found(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """Variant -> its figures for the label and its facts."""
    results = outcome.to_json("drift")["results"]
    return {each["interval"]: {**each, **each["labels"]["click"]} for each in results}


def exact(rows: pa.Table, probabilities: npt.NDArray[Any], first: int) -> tuple[float, float]:
    labels = rows["label_click"].to_numpy()[first:]
    p = probabilities[first:].astype(np.float64)
    return float(roc_auc_score(labels, p)), float(log_loss(labels, p))


def test_older_parameters_predict_a_drifting_target_worse() -> None:
    wanted = [Interval("2d", 2 * DAY_US), Interval("12h", 12 * HOUR_US), Interval("1h", HOUR_US)]
    by_name = found(sync_interval(timeline(), learner(), wanted, 0.5))
    assert list(by_name) == [FROZEN, "2d", "12h", "1h", EVERY_STEP]
    auc = [each["auc"] for each in by_name.values()]
    loss = [each["log_loss"] for each in by_name.values()]
    # More than half a turn of the items' worth: who froze is wrong in the end, and who follows loses little.
    assert auc[0] < 0.5 < 0.8 < auc[-1]
    assert all(newer > older for older, newer in itertools.pairwise(auc))
    assert all(newer < older for older, newer in itertools.pairwise(loss))
    assert by_name["2d"]["auc_lost"] == pytest.approx(auc[-1] - auc[1])
    assert [each["copies"] for each in by_name.values()][:3] == [1, 3, 11]
    assert {each["rows"] for each in by_name.values()} == {3_000}


@pytest.mark.parametrize("features", [None, STREAMING], ids=["ids", "streaming"])
def test_a_copy_before_every_step_is_the_plain_pass(features: Any) -> None:
    rows = drifting(2_000)
    trained = learner() if features is None else learner(features=features)
    by_name = found(sync_interval(timeline(rows), trained, [Interval("0s", 0)], 0.4))
    model = build_model(trained.spec, trained.features)
    outs = one_pass(
        timeline(rows), trained, model, EmbeddedStore(store_config(model)), predictions=True, element_rows=500
    )
    table = pa.Table.from_batches([batch for out in outs for batch in out.predictions])
    assert table["_offset"].to_pylist() == list(range(2_000))
    auc, loss = exact(rows, table["p_click"].to_numpy(), 800)
    for name in ("0s", EVERY_STEP):
        assert by_name[name]["auc"] == pytest.approx(auc, abs=AUC_STEP)
        assert by_name[name]["log_loss"] == pytest.approx(loss, abs=1e-6)
    assert by_name["0s"]["log_loss"] == pytest.approx(by_name[EVERY_STEP]["log_loss"], abs=1e-7)
    assert by_name["0s"]["copies"] == -(-2_000 // BATCH) - 800 // BATCH
    assert by_name[FROZEN]["auc"] < auc - 0.01


@pytest.mark.parametrize(("kind", "phases"), [("lr", 1), ("lr", 2), ("deepfm", 1)])
def test_each_copy_is_the_model_that_training_had_made_by_then(kind: Any, phases: int) -> None:
    rows, first, every_us = drifting(1_500), 700, 3 * DAY_US
    spec = ModelSpec(kind=kind, labels=("click",), hidden=() if kind == "lr" else (8,))
    trained = learner(spec)
    by_name = found(
        sync_interval(timeline(rows), trained, [Interval("3d", every_us)], first / 1_500, phases=phases)
    )
    times = rows["_time"].to_numpy()
    figures, copies = [], 0
    for passed_us in (every_us * phase // phases for phase in range(phases)):
        probabilities = np.zeros(len(times))
        period = np.maximum(0, (times - times[first] + passed_us) // every_us)
        for number in range(int(period[-1]) + 1):
            moment = times[first] + max(0, number * every_us - passed_us)
            steps = int(np.searchsorted(times, moment, side="left")) // BATCH  # that were full by then
            here = np.flatnonzero((period == number) & (np.arange(len(times)) >= first))
            past, asked = rows.slice(0, steps * BATCH), rows.take(pa.array(here))
            probabilities[here] = trained_on(past, trained, asked)
            copies += 1
        figures.append(exact(rows, probabilities, first))
    auc, loss = np.mean(figures, axis=0)
    assert by_name["3d"]["auc"] == pytest.approx(auc, abs=AUC_STEP)
    assert by_name["3d"]["log_loss"] == pytest.approx(loss, abs=1e-5)
    assert by_name["3d"]["copies"] == copies >= 2
    assert by_name["3d"]["rows"] == 800


def trained_on(past: pa.Table, trained: Learner, asked: pa.Table) -> npt.NDArray[Any]:
    """What a model that learned these rows alone, in a store of its own, predicts."""
    model = build_model(trained.spec, trained.features)
    store = EmbeddedStore(store_config(model))
    list(one_pass(timeline(past), trained, model, store))
    (batch,) = asked.combine_chunks().to_batches()
    return predict_batch(model, batch, store.pull)["click"]


def test_a_copy_whose_delta_was_forgotten_is_made_whole() -> None:
    trained = learner()
    model = build_model(trained.spec, trained.features)
    store = EmbeddedStore(dataclasses.replace(store_config(model), delta_backlog_max=10))
    copy = ServingCopy("late", model, store, own_features=False)
    rows: list[TrainingRows] = []
    for made, _ in enumerate(
        one_pass(timeline(drifting(640)), trained, model, store, seen(rows), element_rows=BATCH)
    ):
        if made in (3, 15):
            copy.sync()
    lookup = distinct(rows[-1].encoded)
    wanted = model.predict(rows[-1].encoded, lookup, *store.pull(model.wanted(lookup))[:2])
    assert not np.allclose(copy.predict(rows[-1], lookup), wanted, atol=1e-4)
    with pytest.raises(FullDeltaNeeded):
        store.delta("late")
    copy.sync()
    np.testing.assert_array_equal(copy.predict(rows[-1], lookup), wanted)
    assert copy.syncs == 3


def seen(rows: list[TrainingRows]) -> Callable[[TrainingRows, Any], None]:
    """Keeps the rows of each step."""
    return lambda step, _: rows.append(step)


def test_streaming_features_can_be_as_old_as_the_copy() -> None:
    wanted = [Interval("1d", DAY_US)]
    fresh, stale = (
        found(sync_interval(timeline(), learner(features=STREAMING), wanted, 0.5, own_features=own))
        for own in (False, True)
    )
    # What a rate means does not change, so a frozen model loses little while it is told the items' rates.
    assert fresh[FROZEN]["auc"] > fresh[EVERY_STEP]["auc"] - 0.01
    assert stale[FROZEN]["auc"] + 0.05 < stale["1d"]["auc"] < fresh["1d"]["auc"] - 0.02
    assert stale[EVERY_STEP]["log_loss"] == pytest.approx(fresh[EVERY_STEP]["log_loss"], abs=1e-6)


def test_the_table_on_the_terminal_has_a_line_for_each_interval() -> None:
    outcome = sync_interval(timeline(drifting(1_000)), learner(), [Interval("1d", DAY_US)], 0.25)
    text = io.StringIO()
    outcome.print(Console(file=text, width=200))
    lines = text.getvalue().splitlines()
    assert "750 rows scored" in lines[0] and "after 250 rows" in lines[0]
    assert lines[1].split("  ")[0] == "interval" and "copies" in lines[1]
    shown = [line for line in lines if line.startswith((FROZEN, "1d", EVERY_STEP))]
    assert len(shown) == 3
    assert all(
        f"{each['auc']:.4f}" in line for line, each in zip(shown, found(outcome).values(), strict=True)
    )


@pytest.mark.slow
def test_the_command_writes_table_and_plots(tmp_path: Path, cli: Callable[..., Any]) -> None:
    spec = write_job(tmp_path)
    write_examples(load_spec(spec), drifting(1_200))
    words = ("--intervals", "6h, 2d", "--warm-up", "0.25", "--json", "--out", tmp_path / "out")
    done = cli("experiment", "sync-interval", spec, *words)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [each["interval"] for each in told["results"]] == [FROZEN, "2d", "6h", EVERY_STEP]
    assert (told["experiment"], told["job"], told["scored_rows"]) == ("sync-interval", "drift", 900)
    assert json.loads((tmp_path / "out" / "sync-interval.json").read_text()) == told
    page = (tmp_path / "out" / "sync-interval.html").read_text()
    assert page.count('class="plotly-graph-div"') == 2
    assert f"{told['results'][1]['labels']['click']['auc']:.4f}" in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--intervals", "1h,soon"), "a duration is a number and a unit"),
        (("--intervals", "1h,1h"), "different values in --intervals"),
        (("--intervals", "frozen"), "a duration"),
        (("--intervals", "1h,2h,3h,4h,5h,6h,7h,8h"), "at most 7 values"),
        (("--out", "/dev/null/out"), "expected a folder for --out"),
        (("--warm-up", "1"), "expected --warm-up from 0 up to"),
        (("--from", "2026-01-02", "--to", "2026-01-02"), "--from before --to"),
    ],
)
def test_wrong_options_are_named(
    tmp_path: Path, words: tuple[str, ...], says: str, cli: Callable[..., Any]
) -> None:
    done = cli("experiment", "sync-interval", write_job(tmp_path), *words)
    assert done.returncode == 2
    assert says in done.stderr


@pytest.mark.parametrize("correction", ["log_odds", "weight"])
def test_figures_of_sampled_negatives_are_those_that_the_trainer_tells(correction: Any) -> None:
    rows = drifting(1_500)
    kept = (rows["label_click"].to_numpy() == 1) | (np.arange(1_500) % 2 == 0)
    rows = rows.filter(pa.array(kept))
    rows = rows.append_column("_rate", pa.array(np.full(rows.num_rows, 0.5, np.float32)))
    trained = dataclasses.replace(learner(), correction=correction)
    by_name = found(sync_interval(timeline(rows), trained, [Interval("0s", 0)], 0.0))
    model = build_model(trained.spec, trained.features)
    outs = one_pass(timeline(rows), trained, model, EmbeddedStore(store_config(model)))
    told = total(curve_of_records([record for out in outs for record in out.metrics], "click"))
    for name in ("0s", EVERY_STEP):
        assert by_name[name]["rows"] == told.rows == rows.num_rows
        assert by_name[name]["auc"] == pytest.approx(told.auc(), abs=1e-5)
        assert by_name[name]["log_loss"] == pytest.approx(told.log_loss(), abs=1e-6)
        assert by_name[name]["calibration"] == pytest.approx(told.calibration(), abs=1e-5)
    # Half of the negatives are kept, and count twice.
    assert told.weight == pytest.approx(1_500, rel=0.05)


def test_what_cannot_be_told_is_none() -> None:
    rows = drifting(400)
    positive = pa.array(np.ones(400, np.uint8))
    rows = rows.set_column(rows.column_names.index("label_click"), "label_click", positive)
    outcome = sync_interval(timeline(rows), learner(), [], 0.5)
    told = json.loads(json.dumps(outcome.to_json("drift"), allow_nan=False))
    figures = told["results"][0]["labels"]["click"]
    assert (figures["auc"], figures["auc_lost"], figures["rows"]) == (None, None, 200)
    assert figures["log_loss"] > 0


def test_rows_that_cannot_be_trained_are_told() -> None:
    rows = drifting(400)
    lists = rows.set_column(rows.column_names.index("user"), "user", pa.array([["a"]] * 400))
    with pytest.raises(NoExamples, match=r"400 could not be trained: feature 'user'.*list"):
        sync_interval(timeline(lists), learner(), [], 0.5)
    unknown = rows.set_column(
        rows.column_names.index("label_click"), "label_click", pa.nulls(400, pa.uint8())
    )
    with pytest.raises(NoExamples, match="whose labels are known"):
        sync_interval(timeline(unknown), learner(), [], 0.5)


def test_steps_that_are_not_finite_are_counted_and_not_scored() -> None:
    spec = ModelSpec(kind="lr", labels=("click",), dense=OptimizerSpec(kind="sgd", learning_rate=1e38))
    outcome = sync_interval(timeline(drifting(400)), learner(spec), [], 0.0)
    told = outcome.to_json("drift")
    assert 0 < told["refused_rows"] < 400
    assert {each["labels"]["click"]["rows"] for each in told["results"]} == {400 - told["refused_rows"]}
