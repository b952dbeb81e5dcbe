"""The examples log as files by day: every row once, at its position, by day of event time; closed days only."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.errors import SpecError
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.pipelines.backfill.archive import archive_examples
from cuckooflow.transforms.batch_bytes import encode_batch
from cuckooflow.transforms.day_files import read_day, read_manifest, whole_days

pytestmark = pytest.mark.slow
DAYS = [date(2022, 4, 24 + n) for n in range(7)]


@pytest.fixture
def logged(feed, tmp_path: Path):
    """The job with a copy of the stream's output logs."""
    job = feed.copy_to(tmp_path / "job")
    for name in ("examples", "join_balances"):
        shutil.copytree(feed.job.path(getattr(feed.job.logs, name).path), job.job.path(Path("logs") / name))
    return job


def of_log(path: Path) -> Counter[str]:
    """Every row of an examples log with its position, by the Arrow library alone."""
    reader = LocalLog.open(path)
    rows: Counter[str] = Counter()
    for partition in reader.partitions():
        for batch in reader.read_range(partition, 0, reader.end_offset(partition)):
            for offset, value in zip(batch.offsets.tolist(), batch.values, strict=True):
                table = pa.ipc.open_stream(value.as_buffer()).read_all()
                for row, entry in enumerate(table.to_pylist()):
                    rows[repr((partition, offset, row, sorted(entry.items())))] += 1
    return rows


def of_days(out: Path) -> Counter[str]:
    rows: Counter[str] = Counter()
    for day in whole_days(str(out)):
        for entry in read_day(str(out), day).to_pylist():
            place = tuple(entry.pop(name) for name in ("_partition", "_offset", "_row"))
            assert str(np.datetime64(entry["_time"], "us"))[:10] == day.isoformat()
            rows[repr((*place, sorted(entry.items())))] += 1
    return rows


def archive(
    job, out: Path, first: date | None = None, until: date | None = None, open_days: bool = False
) -> str:
    told: list[str] = []
    archive_examples(job.job, str(out), first, until, open_days, told.append)
    return "\n".join(told)


def test_every_row_is_there_once_with_its_position(logged, tmp_path) -> None:
    out = tmp_path / "days"
    archive(logged, out)
    assert whole_days(str(out)) == DAYS
    log = logged.job.path(logged.job.logs.examples.path)
    assert of_days(out) == of_log(log)
    reader = LocalLog.open(log)
    for day in DAYS:
        manifest = read_manifest(str(out), day)
        assert (manifest.log, manifest.incarnation) == ("examples", reader.incarnation())
        assert manifest.read == {str(p): (0, reader.end_offset(p)) for p in (0, 1)}
        positions = [(r["_partition"], r["_offset"], r["_row"]) for r in read_day(str(out), day).to_pylist()]
        assert positions == sorted(positions)


def test_repeats_are_left_out_and_a_change_of_columns_is_kept(logged, tmp_path) -> None:
    log = logged.job.path(logged.job.logs.examples.path)
    before = of_log(log)
    reader = LocalLog.open(log)
    repeated = [v.as_py() for v in reader.read(0, 0).values]
    first = pa.ipc.open_stream(repeated[0]).read_all().slice(0, 1)
    changed = first.set_column(first.schema.get_field_index("_id_lo"), "_id_lo", pa.array([7], pa.uint64()))
    changed = changed.append_column("added", pa.array(["x"]))
    offset = reader.end_offset(0) + len(repeated)
    with LocalLogWriter(log) as writer:
        writer.append(0, repeated, 1)
        writer.append(0, [encode_batch(changed.combine_chunks().to_batches()[0])], 1)
    out = tmp_path / "days"
    archive(logged, out)
    found = of_days(out)
    extra = [json.dumps(place) for place in found if repr((0, offset, 0))[:-1] in place]
    assert len(extra) == 1
    assert sum(found.values()) == sum(before.values()) + 1
    day = date.fromisoformat(str(np.datetime64(first["_time"][0].as_py(), "us"))[:10])
    assert read_day(str(out), day)["added"].to_pylist().count("x") == 1


def test_days_that_may_get_more_are_left_for_later(logged, tmp_path) -> None:
    balances = logged.job.path(logged.job.logs.join_balances.path)
    shutil.rmtree(balances)
    LocalLog.create(balances)
    out = tmp_path / "days"
    assert "rows_of_open_days=" in archive(logged, out)
    assert whole_days(str(out)) == []
    clock_us = int(np.datetime64("2022-04-28T00:30", "us").astype(np.int64))  # a window past the 27th

    def tell_clocks(*clocks: int) -> None:
        with LocalLogWriter(balances) as writer:
            records = [
                {"stage": "join", "shard": shard, "clock_us": clock, "counts": {}, "final": False}
                for shard, clock in enumerate(clocks)
            ]
            writer.append(0, [json.dumps(record).encode() for record in records], 1)

    tell_clocks(clock_us, clock_us, clock_us)
    archive(logged, out)
    assert whole_days(str(out)) == []  # one shard was not heard
    tell_clocks(clock_us, clock_us, clock_us, clock_us - 1)
    archive(logged, out)
    assert whole_days(str(out)) == DAYS[:3]
    tell_clocks(clock_us, clock_us, clock_us, clock_us)
    archive(logged, out)
    assert whole_days(str(out)) == DAYS[:4]
    archive(logged, out, first=DAYS[5], open_days=True)
    assert whole_days(str(out)) == DAYS[:4] + DAYS[5:]


def test_days_of_two_logs_do_not_mix(logged, feed, backfill, run, tmp_path) -> None:
    out = tmp_path / "days"
    done = run("backfill", "archive", logged.spec, "--out", out, "--from", DAYS[1], "--to", DAYS[2])
    assert done.returncode == 0, done.stderr
    assert whole_days(str(out)) == DAYS[1:2]
    assert {path.name for path in out.iterdir()} == {".lock", f"dt={DAYS[1]}"}
    before = read_manifest(str(out), DAYS[1])
    with pytest.raises(SpecError, match="another folder"):
        backfill(feed.spec, out, first=DAYS[1].isoformat(), until=DAYS[2].isoformat())
    assert read_manifest(str(out), DAYS[1]) == before
