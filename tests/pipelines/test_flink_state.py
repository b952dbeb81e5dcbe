"""What a job on Flink goes on from, by the folders that Flink leaves; Flink's own are in test_join_on_flink.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cuckooflow.errors import NothingToResume
from cuckooflow.pipelines.flink_state import Submission, newest_state, note

FIRST, SECOND = "a" * 32, "b" * 32


def state(folder: Path, at_s: int, whole: bool = True) -> Path:
    folder.mkdir(parents=True)
    if whole:
        (folder / "_metadata").touch()
        os.utime(folder / "_metadata", (at_s, at_s))
    return folder


def submitted(
    films: Any, folder: Path, job_id: str, resumed_from: str | None = None, pipeline: str = "join"
) -> None:
    note(
        films.job,
        Submission(
            pipeline=pipeline,
            job_id=job_id,
            job_name="films-join",
            rest="http://127.0.0.1:1",
            checkpoints=f"file://{folder}/checkpoints",
            savepoints=f"file://{folder}/savepoints",
            resumed_from=resumed_from,
        ),
    )


def test_never_submitted(films: Any) -> None:
    with pytest.raises(NothingToResume, match=r"submission of join in .*flink-jobs.jsonl, found none"):
        newest_state(films.job, "join")


def test_begun_anew_without_a_checkpoint(films: Any, tmp_path: Path) -> None:
    submitted(films, tmp_path, FIRST)
    state(tmp_path / "checkpoints" / FIRST / "chk-1", 1_000, whole=False)
    with pytest.raises(NothingToResume, match=f"job {FIRST} began anew and has no completed checkpoint"):
        newest_state(films.job, "join")


def test_the_newest_whole_checkpoint_of_the_last_submission(films: Any, tmp_path: Path) -> None:
    submitted(films, tmp_path, FIRST)
    state(tmp_path / "checkpoints" / FIRST / "chk-9", 9_000)
    submitted(films, tmp_path, SECOND, resumed_from="elsewhere")
    assert newest_state(films.job, "join") == "elsewhere"  # it has none of its own yet
    state(tmp_path / "checkpoints" / SECOND / "chk-10", 3_000)
    state(tmp_path / "checkpoints" / SECOND / "chk-9", 2_000)
    state(tmp_path / "checkpoints" / SECOND / "chk-11", 4_000, whole=False)
    assert newest_state(films.job, "join") == f"{tmp_path}/checkpoints/{SECOND}/chk-10"


def test_a_savepoint_counts_if_it_is_newer(films: Any, tmp_path: Path) -> None:
    submitted(films, tmp_path, FIRST)
    state(tmp_path / "checkpoints" / FIRST / "chk-3", 3_000)
    savepoint = state(tmp_path / "savepoints" / f"savepoint-{FIRST[:6]}-0123", 4_000)
    state(tmp_path / "savepoints" / f"savepoint-{SECOND[:6]}-0123", 5_000)  # of another job
    assert newest_state(films.job, "join") == str(savepoint)
    state(tmp_path / "checkpoints" / FIRST / "chk-4", 6_000)
    assert newest_state(films.job, "join").endswith("/chk-4")


def test_the_other_pipeline_is_another_job(films: Any, tmp_path: Path) -> None:
    submitted(films, tmp_path, FIRST, pipeline="train")
    state(tmp_path / "checkpoints" / FIRST / "chk-3", 3_000)
    with pytest.raises(NothingToResume):
        newest_state(films.job, "join")
    assert newest_state(films.job, "train").endswith("/chk-3")
