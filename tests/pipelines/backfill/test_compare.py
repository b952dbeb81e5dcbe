"""`backfill compare`: a stream's examples against a backfill's days, alike and with three rows changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cuckooflow.logs.local_log import LocalLogWriter
from cuckooflow.pipelines.spec_file import load_spec

pytestmark = pytest.mark.slow
REQUESTS = 150
#: The same in every log: it is part of an example.
APPENDED_US = 2 * 10**15
DAYS = ("--from", "2026-01-01", "--to", "2026-01-02")


@pytest.fixture
def joined(films: Any, cli: Callable[..., Any]) -> Callable[..., Any]:
    """Runs the films join over some events to their end, in a folder of its own; the job's spec."""

    def run(folder: Path, impressions: list[Any], actions: list[Any]) -> Path:
        folder.mkdir()
        spec = folder / "job.yaml"
        spec.write_text(films.spec.read_text())
        copy = type(films)(spec, load_spec(spec))
        copy.make_logs()
        for log, rows in ((copy.job.logs.impressions, impressions), (copy.job.logs.actions, actions)):
            with LocalLogWriter(copy.job.path(log.path), [0]) as writer:
                writer.append(0, [json.dumps(row).encode() for row in rows], APPENDED_US)
        for partition in range(1, copy.job.logs.impressions.partitions):
            with LocalLogWriter(copy.job.path(copy.job.logs.impressions.path), [partition]) as writer:
                writer.seal()
        done = cli("run", "join", spec, "--stop-at-end")
        assert done.returncode == 0, done.stderr[-4000:]
        return spec

    return run


@pytest.mark.deep
def test_the_same_rows_and_what_differs(
    films: Any, joined: Callable[..., Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    impressions, actions = films.events(REQUESTS)
    spec, days = joined(tmp_path / "a", impressions, actions), tmp_path / "days"
    done = cli("backfill", "join", spec, *DAYS, "--out", days)
    assert done.returncode == 0, done.stderr[-4000:]
    done = cli("backfill", "compare", spec, "--out", days)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"same rows: {len(impressions):,}"

    labels = dict(films.expected)
    changed = next(key for key, (click, _) in labels.items() if click)
    fewer = [a for a in actions if (a["request_id"], a["item_id"]) != changed]
    left_out = next(i for i in impressions if labels[i["request_id"], i["item_id"]] == (0, 0))
    added = {**impressions[-1], "item_id": "i99"}
    without = [i for i in impressions if i is not left_out]
    other = joined(tmp_path / "b", [*without, added], fewer)
    done = cli("backfill", "compare", other, "--out", days)
    assert done.returncode == 1
    assert "only in the stream 1, only in the backfill 1, different 1; 0 not compared" in done.stdout
    said = done.stdout.splitlines()
    (stream_alone,) = (line for line in said if line.startswith("  only in the stream: "))
    (backfill_alone,) = (line for line in said if line.startswith("  only in the backfill: "))
    assert "'item_id': 'i99'" in stream_alone
    assert f"'request_id': '{left_out['request_id']}', 'item_id': '{left_out['item_id']}'" in backfill_alone
    differing = [line for line in said if line.startswith("  different in ")]
    assert len(differing) == 2  # as the stream has it, and as the backfill has it
    assert all(re.match(r"  different in .*label_click", line) for line in differing)
    assert all(f"'request_id': '{changed[0]}', 'item_id': '{changed[1]}'" in line for line in differing)


def test_a_folder_without_days(films: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    films.make_logs()
    done = cli("backfill", "compare", films.spec, "--out", tmp_path)
    assert done.returncode == 1
    assert "expected whole days" in done.stderr
