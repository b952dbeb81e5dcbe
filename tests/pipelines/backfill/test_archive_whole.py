"""Up to which position an archive is whole, against a plain list of the log's rows; and logs that begin after it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.logs.contract import Position
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.pipelines.backfill.archive import archive_examples
from cuckooflow.pipelines.supervisor import Supervisor
from cuckooflow.transforms.batch_bytes import encode_batch
from cuckooflow.transforms.day_files import day_start_us, read_day, whole_days
from cuckooflow.transforms.day_log import look

DAYS = [date(2026, 1, 1) + timedelta(days=n) for n in range(4)]
SEED = 9
MESSAGES = 60


def fill(films: Any) -> list[tuple[Position, int]]:
    """An examples log of one partition in small segments, of days that overlap; (position, day) of its rows."""
    rng = np.random.default_rng(SEED)
    path = films.job.path(films.job.logs.examples.path)
    LocalLog.create(path, 2, "frames")
    rows: list[tuple[Position, int]] = []
    with LocalLogWriter(path, segment_bytes=8_000) as writer:
        for n in range(MESSAGES):
            days = np.clip(np.floor(n / MESSAGES * 4 + rng.normal(0, 0.2, 3)), 0, 3).astype(int).tolist()
            rows += [(Position(n, row), day) for row, day in enumerate(days)]
            batch = pa.record_batch(
                {
                    "user_id": [f"u{k}" for k in range(3)],
                    "item_id": [f"i{n}"] * 3,
                    "label_like": pa.array([n % 2] * 3, pa.uint8()),
                    "_time": pa.array([day_start_us(DAYS[day]) + n for day in days], pa.int64()),
                    "_append": pa.array([n] * 3, pa.int64()),
                    "_kind": pa.array([0] * 3, pa.int8()),
                    "_id_hi": pa.array([n] * 3, pa.uint64()),
                    "_id_lo": pa.array(range(3), pa.uint64()),
                }
            )
            writer.append(0, [encode_batch(batch)], n)
    return rows


def archive(films: Any, out: Path, first: int | None = None, until: int | None = None) -> str:
    told: list[str] = []
    days = [None if n is None else DAYS[n] for n in (first, until)]
    archive_examples(films.job, str(out), *days, True, told.append)
    return "\n".join(told)


def ranges(films: Any, out: Path) -> tuple[tuple[Position, Position], ...]:
    found = look(str(out), films.job.join.num_shards, False)
    assert found is not None
    return found.ranges[0]


def places(out: Path) -> set[tuple[int, int]]:
    rows = [row for day in whole_days(str(out)) for row in read_day(str(out), day).to_pylist()]
    return {(row["_offset"], row["_row"]) for row in rows}


def test_what_is_whole_ends_before_the_first_row_that_is_not_there(films: Any, tmp_path: Path) -> None:
    rows = fill(films)
    out = tmp_path / "days"
    archive(films, out, until=2)
    assert ranges(films, out) == ((Position(0), min(at for at, day in rows if day >= 2)),)
    archive(films, out)
    assert ranges(films, out) == ((Position(0), Position(MESSAGES)),)
    assert places(out) == {tuple(at) for at, _ in rows}

    later = tmp_path / "later"
    archive(films, later, first=2)  # rows of earlier days are in no file
    last = max(at for at, day in rows if day < 2)
    assert ranges(films, later) == ((Position(last.offset, last.row + 1), Position(MESSAGES)),)
    archive(films, later, until=2)
    assert ranges(films, later)[0][0] == Position(0)


def drop_first_segments(films: Any, keep_from: int) -> int:
    """Delete segments as retention does; the first offset that is kept."""
    path = films.job.path(films.job.logs.examples.path)
    folder = path / "0"
    bases = sorted({int(file.name.split(".")[0]) for file in folder.iterdir() if file.name[0].isdigit()})
    for base, following in itertools.pairwise(bases):
        if following <= keep_from:
            for file in folder.glob(f"{base:020d}.*"):
                file.unlink()
    return LocalLog.open(path).start_offset(0)


def test_a_day_that_the_log_has_lost_a_part_of_stays_whole(films: Any, tmp_path: Path) -> None:
    rows = fill(films)
    out = tmp_path / "days"
    archive(films, out, until=2)
    before = places(out)
    kept_from = drop_first_segments(films, MESSAGES // 4)
    assert 0 < kept_from <= MESSAGES // 4
    told = archive(films, out)
    assert "kept: the log has deleted rows" in told
    assert places(out) == {tuple(at) for at, _ in rows} > before
    assert ranges(films, out) == ((Position(0), Position(MESSAGES)),)


@pytest.mark.slow
@pytest.mark.deep
def test_files_that_end_before_the_log_begins_are_refused(
    films: Any, cli: Callable[..., Any], tmp_path: Path
) -> None:
    fill(films)
    out = tmp_path / "days"
    archive(films, out, until=1)
    end = ranges(films, out)[0][1]
    kept_from = drop_first_segments(films, MESSAGES)
    assert kept_from > end.offset
    with Supervisor(films.spec, films.job, roles=("store",)) as store:
        store.wait_ready()
        done = cli("backfill", "train", films.spec, out)
    assert done.returncode == 1 and "FilesGap" in done.stderr, done.stderr
    assert f"up to {kept_from} at least" in done.stderr and str(tuple(end)) in done.stderr
