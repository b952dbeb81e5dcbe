"""Days as files read by position: order, pieces, holes, files that are made anew, against a plain list."""

from __future__ import annotations

import dataclasses
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.errors import DayNotWhole, FilesGap, OffsetOutOfRange, WrongIncarnation
from cuckooflow.logs.contract import Position
from cuckooflow.transforms import day_files
from cuckooflow.transforms.day_files import DayFileWriter, DayManifest, commit_day, read_manifest
from cuckooflow.transforms.day_log import LATE_ROW, DayLog, day_range, look
from cuckooflow.transforms.day_reader import DayReader
from cuckooflow.transforms.ranges import read_range_header
from cuckooflow.transforms.read_days import DaysOptions, DaysPoller

DAYS = [date(2026, 1, n) for n in (1, 2, 3)]
SEED = 5
ROWS = 3_000
END = (ROWS // 3, 0)


def log_rows(rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """(offset, row, day) of a partition: three rows a message, days that overlap."""
    days = np.clip(np.floor(np.arange(ROWS) / ROWS * 3 + rng.normal(0, 0.2, ROWS)), 0, 2)
    return [(n // 3, n % 3, int(day)) for n, day in enumerate(days)]


def batch_of(rows: list[tuple[int, int, int]], extra: pa.Array | None = None) -> pa.RecordBatch:
    columns = {
        "value": pa.array([3 * offset + row for offset, row, _ in rows], pa.int64()),
        "_partition": pa.array([0] * len(rows), pa.int32()),
        "_offset": pa.array([offset for offset, _, _ in rows], pa.int64()),
        "_row": pa.array([row for _, row, _ in rows], pa.int32()),
    }
    return pa.record_batch(columns if extra is None else {"extra": extra, **columns})


def write_days(
    out: Path,
    rows: list[tuple[int, int, int]],
    run: str = "r1",
    extras: tuple[pa.Array | None, ...] = (None,) * 3,
) -> None:
    """An archive of one partition, whole."""
    for number, day in enumerate(DAYS):
        mine = [row for row in rows if row[2] == number]
        extra = extras[number]
        with DayFileWriter(str(out / "w"), "examples", f"examples-{number}-{run}") as writer:
            writer.write(batch_of(mine, None if extra is None else extra.take([0] * len(mine))))
        assert writer.file is not None
        manifest = DayManifest(
            day.isoformat(), "job", run, "examples", "made", 1, (writer.file,), read={"0": (0, END[0])},
            whole={"0": (0, 0, *END)}, days=tuple(d.isoformat() for d in DAYS),
        )  # fmt: skip
        commit_day(str(out), manifest, str(out / "w"))


def days_of(out: Path) -> DayLog:
    found = look(str(out), 4, late=True)
    assert found is not None
    return found


def read_all(reader: DayReader, first: Position, last: Position, max_rows: int) -> list[int]:
    values: list[int] = []
    while first < last:
        batch, header = reader.read(0, first, last, max_rows)
        assert read_range_header(batch) == header
        assert header.range.first == first < header.range.last <= last
        assert batch.num_rows <= max_rows
        values += batch.column("value").to_pylist() if batch.num_rows else []
        first = header.range.last
    return values


def test_rows_come_in_the_order_of_the_log_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(day_files, "ROW_GROUP_ROWS", 64)
    rng = np.random.default_rng(SEED)
    write_days(tmp_path, log_rows(rng))
    days = days_of(tmp_path)
    assert days.starts() == {0: Position(0)} and days.end(0, Position(7, 1)) == Position(*END)
    reader = DayReader(lambda: days_of(tmp_path))
    assert read_all(reader, Position(0), Position(*END), 97) == list(range(ROWS))
    for _ in range(20):
        low, high = sorted(rng.integers(0, ROWS, 2).tolist())
        first, last = Position(low // 3, low % 3), Position(high // 3, high % 3)
        assert read_all(reader, first, last, int(rng.integers(1, 500))) == list(range(low, high)), SEED
    with pytest.raises(OffsetOutOfRange, match="days that are missing"):
        reader.read(0, Position(END[0] + 1), Position(END[0] + 2))


@pytest.mark.parametrize("follow", [False, True])
def test_the_range_that_reaches_the_end_says_so(tmp_path: Path, follow: bool) -> None:
    write_days(tmp_path, log_rows(np.random.default_rng(SEED)))
    options = DaysOptions(
        starts={0: Position(0)}, follow=follow, done=lambda days: max(days.runs) == DAYS[-1], max_rows=700
    )
    poller = DaysPoller(lambda: days_of(tmp_path), options)
    headers, values = [], []
    while not poller.ended:
        (element,) = poller.poll(0).elements
        headers.append(read_range_header(element[1]))
        values += element[1].column("value").to_pylist() if element[1].num_rows else []
        poller = DaysPoller(lambda: days_of(tmp_path), options, poller.state())
    assert values == list(range(ROWS))
    assert [header.end for header in headers] == [False] * (len(headers) - 1) + [True]
    assert headers[-1].range.last == Position(*END) > headers[-1].range.first


def test_columns_that_change_their_type_are_no_end(tmp_path: Path) -> None:
    rows = log_rows(np.random.default_rng(SEED))
    write_days(tmp_path, rows, extras=(pa.array([1]), pa.array(["x"]), None))
    reader = DayReader(lambda: days_of(tmp_path))
    assert read_all(reader, Position(0), Position(*END), 10_000) == list(range(ROWS))


def test_a_day_that_is_made_anew_meanwhile_is_found_again(tmp_path: Path) -> None:
    rows = log_rows(np.random.default_rng(SEED))
    write_days(tmp_path, rows)
    reader = DayReader(lambda: days_of(tmp_path))
    values = read_all(reader, Position(0), Position(500), 100)
    write_days(tmp_path, rows, run="r2")
    values += read_all(reader, Position(500), Position(*END), 100)
    assert values == list(range(ROWS))
    (tmp_path / f"dt={DAYS[2]}" / "examples-2-r2.parquet").unlink()
    with pytest.raises(DayNotWhole, match="make the day anew"):
        read_all(DayReader(lambda: days_of(tmp_path)), Position(0), Position(*END), 100)


def test_a_run_that_did_not_end_says_nothing(tmp_path: Path) -> None:
    rows = log_rows(np.random.default_rng(SEED))
    write_days(tmp_path, rows)
    manifest = read_manifest(str(tmp_path), DAYS[0])
    assert manifest is not None
    # A further run read more of the log, and was killed after its first day.
    more = dataclasses.replace(
        manifest, run="r2", read={"0": (0, END[0] + 50)}, whole={"0": (0, 0, END[0] + 50, 0)}
    )
    commit_day(str(tmp_path), more, str(tmp_path / "w"))
    assert days_of(tmp_path).ranges == {0: ((Position(0), Position(*END)),)}
    for path in tmp_path.glob("dt=2026-01-0[23]"):
        path.rename(tmp_path / f"away-{path.name}")
    with pytest.raises(FilesGap, match="archive again"):
        days_of(tmp_path)


def test_until_a_day_is_until_its_first_row(tmp_path: Path) -> None:
    rows = log_rows(np.random.default_rng(SEED))
    write_days(tmp_path, rows)
    first = min(row for row in rows if row[2] >= 1)
    assert days_of(tmp_path).until(DAYS[1], 4).end(0, Position(0)) == Position(*first[:2])
    assert days_of(tmp_path).until(date(2026, 1, 4), 4).end(0, Position(0)) == Position(*END)


def test_days_of_a_backfill_are_ranges_of_time_and_bring_late_rows_behind(tmp_path: Path) -> None:
    begin = day_range(DAYS[0], 4)[0].offset
    for number, day in enumerate((DAYS[0], DAYS[2])):
        offset = day_range(day, 4)[0].offset + 8
        files = []
        for kind in ("examples", "late"):
            with DayFileWriter(str(tmp_path / "w"), kind, f"{kind}-{number}") as writer:
                writer.write(batch_of([(offset, 0, 0), (offset, 1, 0)]))
            files.append(writer.file)
        manifest = DayManifest(day.isoformat(), "job", f"r{number}", "job/backfill", "i", 2, tuple(files))
        commit_day(str(tmp_path), manifest, str(tmp_path / "w"))
    days = days_of(tmp_path)
    assert (days.log, days.incarnation, days.of_backfill) == ("job/backfill", "days", True)
    assert days.ranges[0] == days.ranges[1] == (day_range(DAYS[0], 4), day_range(DAYS[2], 4))
    reader = DayReader(lambda: days_of(tmp_path))
    batch, header = reader.read(0, Position(begin))
    late, _ = reader.read(0, header.range.last)
    assert [b.column("_row").to_pylist() for b in (batch, late)] == [[0, 1], [LATE_ROW, LATE_ROW + 1]]
    without = look(str(tmp_path), 4, late=False)
    assert without is not None and len(without.files[0]) == 2
    manifest = read_manifest(str(tmp_path), DAYS[2])
    assert manifest is not None
    other = dataclasses.replace(manifest, log="other", day="2026-01-09", files=())
    commit_day(str(tmp_path), other, str(tmp_path / "w"))
    with pytest.raises(WrongIncarnation, match="a folder of its own"):
        days_of(tmp_path)
