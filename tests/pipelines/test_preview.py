"""``preview`` shows what the join would write, and leaves the job's folder as it was."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from cuckooflow.logs.local_log import LocalLogWriter

REQUESTS = 50


@pytest.mark.slow
def test_preview_shows_the_examples_of_the_first_rows(films: Any, cli: Any) -> None:
    films.make_logs()
    films.append(*films.events(REQUESTS))
    with LocalLogWriter(films.job.path(films.job.logs.impressions.path)) as writer:
        writer.append(1, [b"nonsense"], time.time_ns() // 1_000)
    before = everything(films.job.dir)
    done = cli("preview", films.spec, "--rows", 1000)
    assert done.returncode == 0, done.stderr
    shown = {
        (row[1], row[2]): (int(row[-2]), int(row[-1]))
        for row in (line.split() for line in done.stdout.splitlines())
        if len(row) > 4 and re.fullmatch(r"r\d+", row[1])
    }
    assert shown == films.expected
    assert "malformed" in done.stdout
    assert f"{len(films.expected)} examples" in done.stdout
    assert "1 dead letters" in done.stdout
    assert everything(films.job.dir) == before


@pytest.mark.slow
def test_rows_are_of_all_partitions_together(films: Any, cli: Any) -> None:
    films.make_logs()
    films.append(*films.events(REQUESTS))
    done = cli("preview", films.spec, "--rows", 9)
    assert done.returncode == 0, done.stderr
    assert "9 examples" in done.stdout


def test_without_logs_it_says_which_are_missing(films: Any, cli: Any) -> None:
    done = cli("preview", films.spec)
    assert done.returncode == 1
    assert "impressions" in done.stderr


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
