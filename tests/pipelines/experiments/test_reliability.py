"""One shard of several thrown back: what replay gives back, and what is lost without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuckooflow.errors import NoExamples, SpecError
from cuckooflow.pipelines.experiment_commands import reliability_command
from cuckooflow.pipelines.experiments.outcome import Outcome
from cuckooflow.pipelines.experiments.reliability import (
    REPLAY_OFF,
    REPLAY_ON,
    UNDISTURBED,
    Loss,
    reliability,
)
from cuckooflow.pipelines.experiments.sync_interval import EVERY_STEP, sync_interval
from cuckooflow.pipelines.spec_file import load_spec
from tests.pipelines.experiments.drifting import (
    BATCH,
    HOUR_US,
    STREAMING,
    drifting,
    learner,
    timeline,
    write_examples,
    write_job,
)


def found(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """Variant -> its figures for the label and its facts."""
    results = outcome.to_json("drift")["results"]
    return {each["restored"]: {**each, **each["labels"]["click"]} for each in results}


@pytest.mark.parametrize("features", [None, STREAMING], ids=["ids", "streaming"])
def test_without_replay_something_is_lost_and_with_it_nothing(features: Any) -> None:
    trained = learner() if features is None else learner(features=features)
    rows = drifting(4_000)
    loss = Loss(shards=3, shard=0, back_us=48 * HOUR_US, next_us=24 * HOUR_US)
    outcome = reliability(timeline(rows), trained, loss, 0.6)
    by_name = found(outcome)
    assert list(by_name) == [UNDISTURBED, REPLAY_OFF, REPLAY_ON]
    undisturbed, off, on = by_name.values()
    times = rows["_time"].to_numpy()
    lost = int(0.6 * 4_000) // BATCH * BATCH
    behind = lost - int(np.searchsorted(times, times[lost] - 48 * HOUR_US)) // BATCH * BATCH
    assert [(each["rows_missing"], each["rows_again"]) for each in by_name.values()] == [
        (0, 0),
        (behind, 0),
        (0, behind),
    ]
    wanted = -(-int(np.searchsorted(times, times[lost] + 24 * HOUR_US) - lost) // BATCH) * BATCH
    assert {each["rows"] for each in by_name.values()} == {wanted}
    # What is made again is made with newer parameters of the other shards, so it is near, and not the same.
    more_off, more_on = (each["log_loss"] - undisturbed["log_loss"] for each in (off, on))
    assert more_off > 0.03 and abs(more_on) < more_off / 4
    assert off["auc_lost"] > 0.02 and abs(on["auc_lost"]) < off["auc_lost"] / 4


def test_undisturbed_shards_learn_as_one_store_does() -> None:
    rows = drifting(1_600)
    loss = Loss(shards=2, shard=0, back_us=10 * HOUR_US, next_us=10_000 * HOUR_US)
    sharded = found(reliability(timeline(rows), learner(), loss, 0.5))[UNDISTURBED]
    whole = sync_interval(timeline(rows), learner(), [], 0.5).to_json("drift")["results"]
    (alone,) = [each["labels"]["click"] for each in whole if each["interval"] == EVERY_STEP]
    for figure in ("auc", "log_loss", "calibration"):
        assert sharded[figure] == pytest.approx(alone[figure], abs=1e-5)


def test_a_checkpoint_from_before_all_examples_is_refused() -> None:
    loss = Loss(shards=2, shard=0, back_us=10_000 * HOUR_US, next_us=HOUR_US)
    with pytest.raises(NoExamples, match=r"10000 h before the loss.*other --hours"):
        reliability(timeline(drifting(500)), learner(), loss, 0.5)
    with pytest.raises(NoExamples, match="after a checkpoint"):
        reliability(timeline(drifting(500)), learner(), Loss(2, 0, 1, HOUR_US), 0.5)


@pytest.mark.deep
@pytest.mark.slow
def test_the_command_tells_what_was_lost(tmp_path: Path, cli: Callable[..., Any]) -> None:
    spec = write_job(tmp_path)
    write_examples(load_spec(spec), drifting(1_000))
    words = ("--shards", 2, "--shard", 1, "--hours", 40, "--next", 12.5, "--out", tmp_path, "--json")
    done = cli("experiment", "reliability", spec, *words)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["shards"], told["shard"], told["back_s"]) == (2, 1, 144_000)
    assert [each["restored"] for each in told["results"]] == [UNDISTURBED, REPLAY_OFF, REPLAY_ON]
    assert (tmp_path / "reliability.html").exists()
    assert not list(Path(tmp_path).glob("shard-*"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shard": 3}, "--shard from 0 to 2"),
        ({"hours": 0.0}, "--hours above 0"),
        ({"next_hours": float("nan")}, "--next above 0"),
        ({"shards": 65}, "1 to 64 shards"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        reliability_command(write_job(tmp_path), **options)
