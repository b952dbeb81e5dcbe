"""The command line: what it prints, and its exit codes 0, 1 (failed) and 2 (usage or spec error)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SPEC = Path(__file__).parent / "job.yaml"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "job.yaml"


@pytest.mark.parametrize("spec", [SPEC, EXAMPLE])
def test_validate_says_valid(cli, spec: Path) -> None:
    done = cli("validate", spec)
    assert (done.returncode, done.stderr) == (0, "")
    assert "valid: job" in done.stdout


def test_validate_answers_every_fault_and_exits_2(cli, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(
        SPEC.read_text()
        .replace("emit", "emitt")
        .replace("kind: deepfm", "kind: tree")
        .replace("window: 10m", "window: long")
    )
    done = cli("validate", wrong)
    assert done.returncode == 2
    assert "2 faults" in done.stderr
    assert "model.kind: received 'tree'" in done.stderr
    assert "labels.click.window: received 'long'" in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_shows_stages_tables_and_dims(cli) -> None:
    done = cli("plan", SPEC)
    assert done.returncode == 0
    for words in (
        "OnlineJoin",
        "NegativeSampling",
        "TrainStep",
        "EmitSnapshots",
        "_count",
        "deepfm for like",
        "10m",
    ):
        assert words in done.stdout, words
    assert not (SPEC.parent / "logs").exists()


@pytest.mark.parametrize(
    "words", [("fly",), ("run", "leap", SPEC), ("run", "join"), ("run", "join", SPEC, "--runner", "spark")]
)
def test_usage_errors_exit_2(cli, words: tuple[object, ...]) -> None:
    assert cli(*words).returncode == 2


def test_a_spec_that_is_not_there_exits_2(cli, tmp_path: Path) -> None:
    done = cli("plan", tmp_path / "none.yaml")
    assert done.returncode == 2
    assert "cannot be read" in done.stderr


def test_running_without_logs_says_which_and_exits_1(cli, films) -> None:
    done = cli("run", "join", films.spec, "--stop-at-end")
    assert done.returncode == 1
    assert "LogNotFound" in done.stderr
    assert "impressions" in done.stderr
    assert "Traceback" not in done.stderr


def test_logs_by_hand(cli, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert cli("log", "create", log, "--partitions", 2).returncode == 0
    lines = [json.dumps({"n": n}) for n in range(3)]
    done = cli("log", "append", log, "--partition", 1, stdin="\n".join(lines) + "\n")
    assert "3 messages" in done.stdout
    assert cli("log", "read", log, "--partition", 1, "--offset", 1).stdout.splitlines() == lines[1:]
    assert cli("log", "read", log).stdout == ""
    assert cli("log", "append", log, "--partition", 2, stdin="x\n").returncode == 2
    assert cli("log", "create", log).returncode == 1
