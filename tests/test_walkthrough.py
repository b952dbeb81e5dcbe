"""Every command of docs/walkthrough.md, in a folder of its own, in their order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuckooflow.runners.cluster import LocalCluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.fault,
    pytest.mark.deep,
    pytest.mark.timeout(600),
]

ROOT = Path(__file__).resolve().parent.parent
IMPRESSIONS = 20_000
#: One block; the longest starts the job, or waits for its restart.
BLOCK_TIMEOUT_S = 240


def blocks() -> list[str]:
    fenced = re.findall(r"^```(.*?)\n(.*?)^```$", (ROOT / "docs" / "walkthrough.md").read_text(), re.M | re.S)
    assert {kind for kind, _ in fenced} == {"sh"}
    return [text for _, text in fenced]


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """What the page takes from a checkout; a cluster that a failed step left there is ended."""
    missing = [name for name in ("java", "mvn") if shutil.which(name) is None]
    if missing:
        pytest.skip(
            f"no local cluster here: {' and '.join(missing)} not on the PATH; install Java 17 and Maven"
        )
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    yield tmp_path
    LocalCluster(tmp_path / "cluster-run").down()


def test_every_command_of_the_walkthrough(checkout: Path, shared_data: Path) -> None:
    here = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
        "CUCKOOFLOW_DATA": str(shared_data),
        "COLUMNS": "200",
    }
    said = []
    for block in blocks():
        begin_s = time.monotonic()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BLOCK_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        print(f"{time.monotonic() - begin_s:5.1f} s  {block.splitlines()[0]}", flush=True)
        said.append(done.stdout)

    before, after = (text for text in said if re.search(r"^  restarts ", text, re.M))
    assert re.search(r"^  restarts +0$", before, re.M)
    assert not re.search(r"^  restarts +0$", after, re.M)
    assert re.search(rf"^  impressions {IMPRESSIONS:,} = examples [\d,]+ \+ waiting", after, re.M)
    assert "does not add up" not in before + after
    compared = next(re.search(r"^same rows: ([\d,]+)$", text, re.M) for text in said if "same rows: " in text)
    assert compared is not None
    # All but those that wait for their windows, and the repeats and reused keys in the data.
    assert 0.9 * IMPRESSIONS < int(compared[1].replace(",", "")) < IMPRESSIONS
