"""The README as a new user follows it: a fresh clone, every fenced command in its order."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FIRST = Path("/tmp/cuckooflow-first")
SCORER = "http://127.0.0.1:8501/v1/models/first"

#: The inner ``make test`` leaves out what this run of the tests does anyway.
INNER_TESTS = "-m 'not slow and not prism and not fault and not readme' -q"


def blocks() -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(
        r"^```(\w*[^\n]*)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "cuckooflow"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    shutil.rmtree(FIRST, ignore_errors=True)
    yield folder
    shutil.rmtree(FIRST, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.readme
@pytest.mark.timeout(1500)
def test_every_command_of_the_readme(clone: Path, shared_data_env: dict[str, str]) -> None:
    env = {**os.environ, **shared_data_env, "PYTEST_ADDOPTS": INNER_TESTS}
    up: subprocess.Popen[bytes] | None = None
    try:
        for language, text in blocks():
            if language == "sh up":
                up = subprocess.Popen(["bash", "-euc", text], cwd=clone, env=env, start_new_session=True)
                wait_for_scorer(up)
            elif language.startswith("python"):
                run([clone / ".venv/bin/python", "-c", text], clone, env)
            elif language.startswith("sh"):
                run(["bash", "-euc", text], clone, env)
    finally:
        if up is not None:
            os.killpg(up.pid, signal.SIGTERM)
            assert up.wait(120) in (0, -signal.SIGTERM)
    assert (clone / "demo-run/report.html").stat().st_size > 10_000


def run(words: list[object], folder: Path, env: dict[str, str]) -> None:
    done = subprocess.run(
        [*map(str, words)], cwd=folder, env=env, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def wait_for_scorer(up: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert up.poll() is None, "up ended"
        try:
            with urllib.request.urlopen(SCORER, timeout=5) as answer:
                if b'"AVAILABLE"' in answer.read():
                    return
        except OSError:
            pass
        assert time.monotonic() < deadline, "the scorer served no snapshot"
        time.sleep(0.2)
