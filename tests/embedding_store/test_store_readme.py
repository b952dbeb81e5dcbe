"""The folder's README, run in an empty environment that holds only the built wheel and what it requires."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cuckooflow.pipelines.store_commands import app

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")


def blocks() -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "embedding_store/README.md").read_text(), re.M | re.S
    )


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_every_command_by_hand_is_one() -> None:
    """Its name, its options, and how many words it takes."""
    (shell,) = re.findall(
        r"^```sh\n(.*?)^```$", (ROOT / "embedding_store/README.md").read_text(), re.M | re.S
    )
    commands = typer.main.get_group(app)
    lines = [shlex.split(line)[2:] for line in shell.splitlines() if line.startswith("cuckooflow store ")]
    assert {words[0] for words in lines} == set(commands.commands)
    for name, *words in lines:
        commands.commands[name].make_context(name, words)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel alone."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ("--wheel", "--no-build-isolation", "-p", sys.executable)
    run(UV, "build", "-q", *build, "-o", folder, ROOT, cwd=folder)
    run(UV, "venv", "-q", "-p", sys.executable, folder / "venv", cwd=folder)
    python = folder / "venv/bin/python"
    (wheel,) = folder.glob("*.whl")
    run(UV, "pip", "install", "-q", "-p", python, wheel, cwd=folder)
    return python


@pytest.mark.deep
@pytest.mark.slow
def test_every_block_runs_with_only_the_wheel(python: Path, tmp_path: Path) -> None:
    for heavy in ("apache_beam", "tensorflow"):
        absent = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({heavy!r}) is not None)"
        run(python, "-c", absent, cwd=tmp_path)
    assert blocks()
    for block in blocks():
        run(python, "-c", block, cwd=tmp_path)


@pytest.mark.deep
@pytest.mark.slow
def test_a_pipeline_without_its_packages_says_what_to_install(python: Path, tmp_path: Path) -> None:
    job = ROOT / "examples/job.yaml"
    command = [str(python.with_name("cuckooflow")), "run", "join", str(job)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "cuckooflow[pipelines]" in done.stderr
