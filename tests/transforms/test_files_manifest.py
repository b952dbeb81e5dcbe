"""The list of files that were seen: its order stays, whoever adds to it and wherever it lies."""

from __future__ import annotations

import fcntl
import gzip
import json
from pathlib import Path

import pytest

from cuckooflow.errors import (
    LogRecreated,
    LogUnavailable,
    SpecError,
    TooManyFiles,
)
from cuckooflow.transforms import files_manifest
from cuckooflow.transforms.files_address import FilesAddress
from cuckooflow.transforms.files_log import FilesLog
from cuckooflow.transforms.poll_core import PollCore, PollOptions, PollSource
from tests.transforms.bucket import Bucket
from tests.transforms.files_folder import (
    DONE,
    SCHEMA,
    Folder,
    batches,
    event,
    lines,
    messages,
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_manifest_holds_its_order_in_segments(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_manifest, "_SEGMENT_ENTRIES", 3)
    order: list[str] = []
    log = folder.log(manifest="m")
    other = folder.log(manifest="m")
    for n, wave in enumerate(("zy", "dcb", "a", "", "xwvutsr")):
        for name in wave:
            folder.put(f"{name}.jsonl", lines([event(1, f=name)]))
        order += sorted(wave)
        folder.later()
        looking = (log, other)[n % 2]  # either adds what is new, and takes up what the other has added
        assert [json.loads(v or b"")["f"] for _, v in messages(batches(looking))] == order
    assert log.incarnation() == folder.log(manifest="m").incarnation()
    names = sorted(path.name for path in (folder.path / "m").glob("*.jsonl"))
    assert [name[9:17] for name in names] == ["00000003"] * 4 + ["00000001"]


def test_files_and_manifest_in_a_bucket(folder: Folder) -> None:
    """That knows no folders, does not rename over what is there, and tells no times."""
    Bucket.objects.clear()

    def log(us: int) -> FilesLog:
        place = FilesAddress(path="bucket://b/in/**.jsonl.gz", format="json", manifest="bucket://b/m")
        return FilesLog(place.resolved_in("/"), clock_us=lambda: us, tick_s=lambda: folder.tick_s)

    def put_object(name: str) -> None:
        Bucket.objects[f"bucket://b/in/{name}.jsonl.gz"] = gzip.compress(lines([event(1, f=name)]))

    seen = log(5)
    assert batches(seen) == []
    for n, names in enumerate((["z", "d/y"], ["a"], ["d/b", "c", "_d/no"])):
        for name in names:
            put_object(name)
        folder.later()
        looking = seen if n != 1 else log(6)
        looking.end_offset(0)
    found = batches(log(9))
    assert [json.loads(v or b"")["f"] for _, v in messages(found)] == ["d/y", "z", "a", "c", "d/b"]
    assert [us for batch in found for us in batch.append_us] == [5, 5, 6, 5, 5]
    assert sum(name.startswith("bucket://b/m/") for name in Bucket.objects) == 2


@pytest.mark.parametrize("left", ["00000000-00000001.jsonl", ".00000000-00000003.jsonl.0f.tmp"])
def test_what_a_killed_writer_of_the_manifest_left_changes_nothing(folder: Folder, left: str) -> None:
    """Before it gave the segment its name, or before it deleted the shorter one."""
    folder.put("b.jsonl", lines([event(1, f="b")]))
    log = folder.log(manifest="m")
    before = (folder.path / "m" / "00000000-00000001.jsonl").read_bytes()
    folder.put("a.jsonl", lines([event(1, f="a")]))
    folder.later()
    log.end_offset(0)
    (folder.path / "m" / left).write_bytes(before if left[0] == "0" else before[:9])
    folder.put("0.jsonl", lines([event(1, f="0")]))
    folder.later()
    for reader in (log, folder.log(manifest="m")):
        assert "".join(json.loads(v or b"")["f"] for _, v in messages(batches(reader))) == "ba0"


def test_a_manifest_that_another_process_holds_is_waited_for_within_a_bound(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.log(manifest="m")
    monkeypatch.setattr(files_manifest, "LOCK_WAIT_S", 0.05)
    with (folder.path / "m" / ".lock").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(LogUnavailable, match="is a second job reading these files"):
            folder.log(manifest="m")
    folder.log(manifest="m")


def test_a_manifest_is_not_taken_for_another(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.put("a.jsonl", lines([event(1)]))
    log = folder.log(manifest="m")
    for change in ({"partitions": 2}, {"format": "tfrecord"}):
        with pytest.raises(SpecError, match="fixed for its life"):
            folder.log(**{"manifest": "m", **change})
    (segment,) = (folder.path / "m").glob("*.jsonl")
    segment.unlink()
    folder.put("b.jsonl", lines([event(2)]))
    folder.later()
    with pytest.raises(LogRecreated, match="with its first 1 files"):
        log.end_offset(0)
    monkeypatch.setattr(files_manifest, "FILES_MAX", 1)
    with pytest.raises(TooManyFiles, match="at most 1 files"):
        folder.log(manifest="other")


def test_a_job_whose_manifest_is_gone_does_not_go_on(folder: Folder) -> None:
    folder.put("a.jsonl", lines([event(1)]))

    def core(state: bytes | None) -> PollCore:
        sources = [
            PollSource(folder.log(manifest="m"), SCHEMA),
            PollSource(folder.log("in", manifest="n"), DONE),
        ]
        return PollCore(*sources, PollOptions(), state)

    first = core(None)
    first.poll(0)
    for path in (folder.path / "m").iterdir():
        path.unlink()
    with pytest.raises(LogRecreated.__base__, match="it was recreated"):  # type: ignore[arg-type]
        core(first.state())
