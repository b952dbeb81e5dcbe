"""Hashed tables beside a collisionless one: known outcomes, and an oracle that merges the ids in the data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.models.registry import build_model
from cuckooflow.pipelines.experiments.collisions import COLLISIONLESS, Size, collisions, sharing
from cuckooflow.pipelines.experiments.hashed import hashed_ids
from cuckooflow.pipelines.experiments.outcome import Outcome
from cuckooflow.pipelines.spec_file import load_spec
from tests.pipelines.experiments.drifting import (
    ITEM,
    LR,
    USER,
    drifting,
    learner,
    timeline,
    write_examples,
    write_job,
)

HUGE = Size("huge", rows=1 << 52)
ITEMS, USERS = 20, 40


def found(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """Variant -> its figures for the label and its facts."""
    results = outcome.to_json("drift")["results"]
    return {each["table"]: {**each, **each["labels"]["click"]} for each in results}


def test_fewer_rows_predict_worse_and_many_as_well() -> None:
    sizes = [HUGE, Size("1/2", share=0.5), Size("1/6", share=1 / 6), Size("1", rows=1)]
    by_name = found(collisions(timeline(drifting(3_000)), learner(), sizes, 0.5))
    assert list(by_name) == [COLLISIONLESS, "huge", "1/2", "1/6", "1"]
    whole, huge, half, sixth, one = by_name.values()
    assert [each["table_rows"] for each in by_name.values()] == [60, 1 << 52, 30, 10, 1]
    for figure in ("auc", "log_loss"):
        assert huge[figure] == pytest.approx(whole[figure], abs=1e-6)
    assert whole["auc"] > half["auc"] + 0.02 and half["auc"] > sixth["auc"] + 0.02
    assert sixth["auc"] > one["auc"] and one["auc"] < 0.6
    assert [each["ids_that_share"] for each in (whole, huge, one)] == [0, 0, 1]
    assert 0 < half["ids_that_share"] < sixth["ids_that_share"] <= 1


def test_a_hashed_table_is_one_of_merged_ids() -> None:
    rows, size = drifting(1_500), 7
    (batch,) = rows.combine_chunks().to_batches()
    place = hashed_ids(build_model(LR, [ITEM]).encode(batch).ids, size)[:, 0]
    assert len(np.unique(place)) <= size < len(np.unique(rows["item"]))
    merged = rows.set_column(rows.column_names.index("item"), "item", pa.array(place.astype(np.int64)))
    hashed = found(collisions(timeline(rows), learner(features=(ITEM,)), [Size("7", rows=size)], 0.5))
    oracle = found(collisions(timeline(merged), learner(features=(ITEM,)), [], 0.5))
    for figure in ("auc", "log_loss", "calibration"):
        assert hashed["7"][figure] == pytest.approx(oracle[COLLISIONLESS][figure], abs=1e-6)


def test_ids_that_share_are_counted_as_a_plain_counter_does() -> None:
    ids = np.arange(500, dtype=np.uint64) * np.uint64(1 << 52)  # nothing but the feature tells them apart
    rows = hashed_ids(ids, 400).tolist()
    counts = Counter(rows)
    assert 150 < len(counts) < 400 and max(rows) < 400
    assert sharing(ids, 400) == sum(counts[row] > 1 for row in rows) / len(rows)


def test_a_hashed_table_has_no_admission() -> None:
    strict = [feature.model_copy(update={"admission": 250}) for feature in (USER, ITEM)]
    trained = learner(LR.model_copy(update={"admission": 250}), tuple(strict))
    by_name = found(collisions(timeline(drifting(1_200)), trained, [HUGE], 0.5))
    assert by_name[COLLISIONLESS]["table_rows"] == 0
    assert by_name["huge"]["auc"] > by_name[COLLISIONLESS]["auc"] + 0.05


@pytest.mark.deep
@pytest.mark.slow
def test_the_command_takes_numbers_and_shares(tmp_path: Path, cli: Callable[..., Any]) -> None:
    spec = write_job(tmp_path)
    write_examples(load_spec(spec), drifting(800))
    done = cli("experiment", "collisions", spec, "--sizes", "1/4,3", "--json", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ids"] == ITEMS + USERS
    assert [(each["table"], each["table_rows"]) for each in told["results"]] == [
        (COLLISIONLESS, 60),
        ("1/4", 15),
        ("3", 3),
    ]
    assert (tmp_path / "collisions.html").stat().st_size > 100_000


@pytest.mark.parametrize("sizes", ["0", "1/0", "2/3", "many", "-4", "1,1", "99999999999999999999"])
def test_wrong_sizes_are_named(tmp_path: Path, sizes: str) -> None:
    from cuckooflow.errors import SpecError
    from cuckooflow.pipelines.experiment_commands import collisions_command

    with pytest.raises(SpecError, match="--sizes"):
        collisions_command(write_job(tmp_path), sizes=sizes)
