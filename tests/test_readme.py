"""Every fenced command of the README, in a fresh clone, in their order."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import IO, NamedTuple

import pytest
import yaml

from cuckooflow.pipelines.job_spec import MessagesSpec
from cuckooflow.transforms.columns import Column

ROOT = Path(__file__).resolve().parent.parent
FIRST_JOB = Path("/tmp/cuckooflow-first")  # as the README names it
#: The tests of the clone are those that run around this one; its ``make test`` runs a few.
INNER_TESTS = "tests/logs/test_contract.py"


class Block(NamedTuple):
    """A fenced block: ``sh``, ``sh up`` (a command that goes on), ``python``, ``yaml`` or ``yaml part``."""

    kind: str
    text: str


def blocks() -> list[Block]:
    fenced = re.findall(r"^```(.*?)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    return [Block(kind.strip(), text) for kind, text in fenced]


def needs_data(block: Block) -> bool:
    return "--dataset kuairand" in block.text


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "cuckooflow"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAKE", "PYTEST", "VIRTUAL_ENV"))
    }
    return {**kept, "PYTEST_ADDOPTS": INNER_TESTS}


@pytest.mark.deep
@pytest.mark.readme
@pytest.mark.timeout(1_800)
def test_every_command_of_the_readme(clone: Path, environment: dict[str, str]) -> None:
    shutil.rmtree(FIRST_JOB, ignore_errors=True)
    running: list[subprocess.Popen[str]] = []
    try:
        for kind, text in (block for block in blocks() if not needs_data(block)):
            if kind == "sh up":
                running.append(start(text, clone, environment))
            elif kind == "sh":
                done = run(["bash", "-euc", text], clone, environment)
                assert ":predict" not in text or '"predictions"' in done
            elif kind == "python":
                assert re.search(r"0\.\d", run([".venv/bin/python", "-c", text], clone, environment))
            elif kind == "yaml":  # a part of a job: valid within the README's own
                job = yaml.safe_load((FIRST_JOB / "job.yaml").read_text())
                part = yaml.safe_load(text)
                changed = {**job, **{name: {**job[name], **values} for name, values in part.items()}}
                (clone / "part.yaml").write_text(yaml.safe_dump(changed))
                assert "valid" in run([".venv/bin/cuckooflow", "validate", "part.yaml"], clone, environment)
            elif kind == "yaml part":  # of a job that is not shown whole
                part = yaml.safe_load(text)
                MessagesSpec.model_validate(part["messages"])
                for column in part["columns"]["impressions"].values():
                    Column.model_validate(column)
            else:
                pytest.fail(f"a block of a kind that nothing runs: {kind!r}")
        for process in running:
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
    finally:
        for process in running:
            process.kill()
            process.communicate()
        shutil.rmtree(FIRST_JOB, ignore_errors=True)
    assert len(running) == 1
    assert (clone / "demo-run/report.html").exists()


@pytest.mark.deep
@pytest.mark.readme
@pytest.mark.timeout(900)
def test_commands_that_need_the_real_data(
    clone: Path, environment: dict[str, str], shared_data: Path
) -> None:
    ours = [block for block in blocks() if needs_data(block)]
    assert len(ours) == 1
    run(["make", "setup"], clone, environment)
    with_data = {**environment, "CUCKOOFLOW_DATA": str(shared_data)}
    last = run(["bash", "-euc", ours[0].text], clone, with_data).splitlines()[-1]
    assert json.loads(last)["dataset"] == "kuairand"


def run(command: list[str], clone: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def start(command: str, clone: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start ``up``, and wait for the line that the README says to wait for."""
    process = subprocess.Popen(
        ["bash", "-euc", f"exec {command}"], cwd=clone, env=environment, stdout=subprocess.PIPE, text=True
    )
    out: IO[str] | None = process.stdout
    assert out is not None
    for line in out:
        if line.startswith("up: scorer answers"):
            return process
    pytest.fail(f"up ended with {process.wait()} before its scorer answered")
