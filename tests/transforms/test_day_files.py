"""Days of files: whole or not there, whatever was killed; on a file system that knows no folders."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from cuckooflow.errors import DayNotWhole
from cuckooflow.transforms import day_files
from cuckooflow.transforms.day_files import (
    DayFile,
    DayFileWriter,
    DayManifest,
    commit_day,
    read_day,
    read_manifest,
    whole_days,
)
from cuckooflow.transforms.whole_files import list_files, read_whole, whole_file, write_whole
from tests.transforms.bucket import Bucket

DAY = date(2026, 1, 2)


@pytest.fixture(params=["folder", "bucket"])
def out(request, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "days")
    Bucket.objects.clear()
    return "bucket://b/days"


def rows(first: int, count: int) -> pa.RecordBatch:
    place = {
        "_partition": pa.array([1] * count, pa.int32()),
        "_offset": pa.array(range(first, first + count), pa.int64()),
        "_row": pa.array([0] * count, pa.int32()),
    }
    return pa.RecordBatch.from_pydict({"n": list(range(first, first + count)), **place})


def written(out: str, run: str, *firsts: int) -> tuple[DayManifest, str]:
    """A run's files of the day, beside it, and the manifest that is to be committed."""
    folder = f"{out}/_work/{run}"
    files = []
    for first in firsts:
        with DayFileWriter(folder, "examples", f"examples-{first}-{run}") as writer:
            writer.write(rows(first, 3))
            writer.write(rows(first + 3, 2))
        assert writer.file is not None
        files.append(writer.file)
    with DayFileWriter(folder, "late", f"late-{run}") as empty:
        empty.write(rows(0, 0))
    assert empty.file is None
    return DayManifest(
        DAY.isoformat(), "job", run, "job/backfill", "i", 2, tuple(files), {"examples": 5}
    ), folder


def test_a_committed_day_is_read_in_the_order_of_positions(out):
    manifest, folder = written(out, "a", 50, 10)
    assert read_manifest(out, DAY) is None
    commit_day(out, manifest, folder)
    assert read_manifest(out, DAY) == manifest
    assert whole_days(out) == [DAY]
    assert read_day(out, DAY)["n"].to_pylist() == [*range(10, 15), *range(50, 55)]
    first = manifest.of_kind("examples")[0]
    assert (first.partition, first.first, first.last, first.rows) == (1, (10, 0), (14, 0), 5)
    assert read_day(out, DAY, "late").num_rows == 0
    assert sorted(entry.path.rsplit("/", 1)[1] for entry in list_files(out)) == [
        "_SUCCESS",
        "examples-10-a.parquet",
        "examples-50-a.parquet",
    ]


def test_a_day_replaced_by_another_run_is_the_old_or_the_new_at_every_step(out, monkeypatch):
    """The commit is stopped before each of its steps in turn, and done again."""
    old, folder = written(out, "old", 10)
    commit_day(out, old, folder)
    steps: list[str] = []
    stop_at = 0

    class Killed(Exception):
        pass

    def before(step):
        real = getattr(day_files, step)

        def call(*args):
            if len(steps) >= stop_at:
                raise Killed
            steps.append(step)
            return real(*args)

        monkeypatch.setattr(day_files, step, call)

    for step in ("rename_into", "write_whole", "remove"):
        before(step)
    new, folder = written(out, "new", 20, 30)
    outcomes = []
    while True:
        steps.clear()
        try:
            commit_day(out, new, folder)
        except Killed:
            outcomes.append(read_day(out, DAY)["n"].to_pylist())
            stop_at += 1
            continue
        break
    assert outcomes[0] == list(range(10, 15))
    assert all(o in ([*range(10, 15)], [*range(20, 25), *range(30, 35)]) for o in outcomes)
    assert len(outcomes) >= 2
    assert read_day(out, DAY)["n"].to_pylist() == [*range(20, 25), *range(30, 35)]
    assert not any("old" in entry.path for entry in list_files(out))


def test_a_commit_whose_files_are_gone_is_refused(out):
    manifest, _ = written(out, "a", 10)
    with pytest.raises(DayNotWhole, match="in neither"):
        commit_day(out, manifest, f"{out}/elsewhere")
    assert read_manifest(out, DAY) is None


def test_a_day_that_is_not_there_or_damaged_is_refused(out):
    with pytest.raises(DayNotWhole, match="_SUCCESS"):
        read_day(out, DAY)
    manifest, folder = written(out, "a", 10)
    commit_day(out, manifest, folder)
    path = next(entry.path for entry in list_files(out) if "examples" in entry.path)
    content = read_whole(path)
    assert content is not None
    write_whole(path, content[:-1])
    with pytest.raises(DayNotWhole, match=str(len(content))):
        read_day(out, DAY)


def test_a_file_whose_writer_fails_is_not_there(out):
    with pytest.raises(RuntimeError), whole_file(f"{out}/a") as file:
        file.write(b"half")
        raise RuntimeError
    assert read_whole(f"{out}/a") is None
    assert list_files(out) == []
    write_whole(f"{out}/a", b"one")
    write_whole(f"{out}/a", b"two")
    assert read_whole(f"{out}/a") == b"two"


def test_a_manifest_comes_back_as_it_was():
    file = DayFile("examples", "e.parquet", 3, 99, 1, (7, 0), (7, 2))
    manifest = DayManifest("2026-01-02", "job", "r", "log", "i", 4, (file,), {"used": 3}, until_us=5)
    assert DayManifest.from_bytes(manifest.to_bytes()) == manifest
