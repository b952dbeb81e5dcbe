"""Training taken back to an older checkpoint, without what was wrong after it; counted id by id."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from cuckooflow.embedding_store.checkpoint_files import checkpoints
from cuckooflow.errors import SpecError
from cuckooflow.logs.local_log import LocalLog
from cuckooflow.pipelines.options import store_folder
from cuckooflow.pipelines.train.skips import add_skips, parse_skip, read_skips
from tests.pipelines.test_join_and_train import store_process

pytestmark = [pytest.mark.slow, pytest.mark.deep]
Cli = Callable[..., Any]


def examples_of(films: Any, partition: int, first: int, last: int) -> list[dict[str, object]]:
    log = LocalLog.open(films.job.path(films.job.logs.examples.path))
    batches = log.read_range(partition, first, last)
    messages = [value.as_py() for batch in batches for value in batch.values]
    return [row for message in messages for part in pa.ipc.open_stream(message) for row in part.to_pylist()]


def once(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return list({(row["request_id"], row["item_id"]): row for row in rows}.values())


def test_what_is_skipped_counts_nowhere_and_the_rest_once(
    films: Any, cli: Cli, wait_for: Callable[..., None]
) -> None:
    films.make_logs()

    def train() -> None:
        with store_process(films, wait_for) as address:
            done = cli("run", "train", films.spec, "--stop-at-end")
            assert done.returncode == 0, done.stderr[-4000:]
            trained.append(films.trained_counts(address))

    def ends() -> dict[int, int]:
        log = LocalLog.open(films.job.path(films.job.logs.examples.path))
        return {partition: log.end_offset(partition) for partition in log.partitions()}

    trained: list[Any] = []
    reached = [dict.fromkeys(range(films.job.logs.examples.partitions), 0)]
    for first in (0, 80):
        films.append(*films.events(80, seed=first, first=first))
        assert cli("run", "join", films.spec, "--stop-at-end").returncode == 0
        reached.append(ends())
        train()
    names = [path.name for _, path in checkpoints(store_folder(films.job))]
    assert len(names) >= 2
    before, after = reached[1], reached[2]
    skipped = f"0:{before[0]}-{after[0] - 1}"
    with store_process(films, wait_for):
        done = cli("train", "rewind", films.spec, "--checkpoint", names[0])
        assert done.returncode == 1 and "StoreLocked" in done.stderr
    names = [path.name for _, path in checkpoints(store_folder(films.job))]

    for wrong, says in (
        (("--checkpoint", "checkpoint-00000099"), "found checkpoint-"),
        (("--checkpoint", names[0], "--skip", "7:0-1"), "expected partitions"),
        (("--checkpoint", names[0], "--skip", "0:5-1"), "PARTITION:FIRST-LAST"),
        (("--before", "2020-01-01T00:00:00"), "expected a checkpoint from before 2020-01-01"),
        ((), "one of --checkpoint and --before"),
    ):
        done = cli("train", "rewind", films.spec, *wrong)
        assert done.returncode in (1, 2) and says in done.stderr, (wrong, done.stderr)
    assert [path.name for _, path in checkpoints(store_folder(films.job))] == names

    done = cli("train", "rewind", films.spec, "--checkpoint", names[0], "--skip", skipped)
    assert done.returncode == 0, done.stderr
    assert f"{names[0]} is the newest" in done.stdout and "skipped from now on" in done.stdout
    train()
    kept = [
        row
        for partition, end in after.items()
        for row in examples_of(films, partition, 0, before[0] if partition == 0 else end)
    ]
    everything = [row for partition, end in after.items() for row in examples_of(films, partition, 0, end)]
    assert len(once(kept)) < len(once(everything))
    assert trained[1] == films.expected_counts(once(everything))
    assert trained[2] == films.expected_counts(once(kept))

    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    done = cli("train", "rewind", films.spec, "--before", now)  # the skipped ones stay so
    assert done.returncode == 0, done.stderr
    train()
    assert trained[3] == trained[2]


def test_ranges_are_kept_and_are_of_one_log(films: Any) -> None:
    assert read_skips(films.job, "one") == {}
    add_skips(films.job, "one", [parse_skip("0:3-5"), parse_skip("1:0-0")])
    add_skips(films.job, "one", [parse_skip("0:3-5"), parse_skip("0:9-9")])
    assert read_skips(films.job, "one") == {0: ((3, 5), (9, 9)), 1: ((0, 0),)}
    with pytest.raises(SpecError, match="recreated"):
        read_skips(films.job, "two")
    file = films.job.path(films.spec.parent / "skipped.json")
    file.write_text(json.dumps({"incarnation": "one"}))
    with pytest.raises(SpecError, match="mend or remove it"):
        read_skips(films.job, "one")
