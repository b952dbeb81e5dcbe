"""The plan of a backfill against what one then takes."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest

from cuckooflow.pipelines.backfill.plan import estimate
from cuckooflow.pipelines.backfill.request import BackfillRequest
from cuckooflow.transforms.day_files import read_manifest, whole_days

pytestmark = pytest.mark.slow


def test_rows_and_disk_are_near_what_a_backfill_takes(feed, backfill, tmp_path: Path) -> None:
    request = BackfillRequest(date(2022, 4, 25), date(2022, 4, 30), "")
    found = estimate(feed.job, request)
    out = tmp_path / "days"
    backfill(feed.spec, out)
    manifests = [read_manifest(str(out), day) for day in whole_days(str(out))]
    counts = {name: sum(m.counts[name] for m in manifests) for name in ("impressions", "actions")}
    logged = {name: len(messages) for name, messages in feed.messages.items()}
    for log, name in enumerate(("impressions", "actions")):
        assert found.read[log] == pytest.approx(logged[name], rel=0.1)
        assert found.joined[log] == pytest.approx(counts[name], rel=0.15)
    size = sum(file.size for manifest in manifests for file in manifest.of_kind("examples"))
    assert size / 2 < found.out_disk < size * 2
    assert found.seconds > 0
    assert found.slices == 5


def test_smaller_memory_makes_smaller_slices(feed) -> None:
    days = (date(2022, 4, 25), date(2022, 4, 30))
    large, small = (estimate(feed.job, BackfillRequest(*days, "", slice_bytes=1 << b)) for b in (28, 18))
    assert large.slice_us > small.slice_us
    assert small.slice_bytes < 1 << 18


def test_the_command_prints_it_and_writes_nothing(feed, run) -> None:
    before = sorted(feed.spec.parent.rglob("*"))
    done = run("backfill", "plan", feed.spec, "--from", "2022-04-25", "--to", "2022-04-30")
    assert done.returncode == 0, done.stderr
    for words in ("rows to read", "time of one core", "disk while it runs", "disk of the examples"):
        assert words in done.stdout
    assert re.search(r"impressions +9\d,\d\d\d rows to read", done.stdout)
    assert sorted(feed.spec.parent.rglob("*")) == before
    refused = run("backfill", "plan", feed.spec, "--from", "2022-04-30", "--to", "2022-04-25")
    assert refused.returncode == 2
