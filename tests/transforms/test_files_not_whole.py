"""Files that are damaged, were changed or are gone, and a file system that fails: told, and nothing else is lost."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuckooflow.errors import (
    LogUnavailable,
    OffsetOutOfRange,
)
from cuckooflow.transforms import files_log, whole_read
from cuckooflow.transforms.files_log import offset_of
from cuckooflow.transforms.message_format import MessageFormat
from cuckooflow.transforms.poll_core import PollCore, PollOptions, PollSource
from tests.transforms.files_folder import (
    DONE,
    SCHEMA,
    WRITERS,
    Folder,
    Row,
    batches,
    event,
    lines,
    messages,
    parsed,
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def _cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def _flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [_cut, _flipped, lambda _: b"", lambda _: b"nonsense" * 9])
@pytest.mark.parametrize(
    "suffix", ["jsonl.gz", "jsonl.bz2", "jsonl.zst", "parquet", "tfrecord", "tfrecord.gz"]
)
def test_a_damaged_file_becomes_a_dead_letter_and_the_others_go_through(
    folder: Folder, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    """Rows before the damage are those of the whole file; nothing is lost without a word."""
    format_, write = WRITERS[suffix]
    rng = np.random.default_rng(1)  # what does not compress, so that damage lies within the rows
    events = [event(n, x=float(rng.random())) for n in range(4_000)]
    for name in "abc":
        write(folder.path / "in" / f"{name}.{suffix}", [{**e, "k": f"{name}{e['k']}"} for e in events])
    path = folder.path / "in" / f"b.{suffix}"
    content = damage(path.read_bytes())
    path.write_bytes(content)
    tf_example = format_ == "tfrecord"
    schema = SCHEMA.model_copy(update={"message": MessageFormat(kind="tf_example")}) if tf_example else SCHEMA
    log = folder.log(format=format_)
    found = batches(log)
    rows, letters = parsed(found, schema)
    keys = [row["k"] for row in rows]
    of_b = [k for k in keys if k.startswith("b")]
    whole = [f"bk{n}" for n in range(4_000)]
    assert [k for k in keys if not k.startswith("b")] == [f"{f}k{n}" for f in "ac" for n in range(4_000)]
    letters = [x for x in letters if x["reason"] == "unreadable_file"]
    if content == b"" and format_ == "tfrecord" and not suffix.endswith(".gz"):
        assert (of_b, letters) == ([], [])  # a file of no records is whole
        return
    (letter,) = letters
    assert str(path) in letter["detail"]
    assert letter["value"] is None
    assert log.path_at(0, letter["offset"]) == str(path)
    if damage is _cut or content == b"":
        assert of_b == whole[: len(of_b)]
    assert messages(list(log.read_range(0, 0, log.end_offset(0)))) == messages(found)
    # At its position and behind it, as for one who begins there.
    assert parsed(batches(folder.log(format=format_), offset=letter["offset"]), schema)[1] == [letter]


def test_a_range_that_ends_before_the_damage_does_not_tell_of_it(folder: Folder) -> None:
    folder.put("a.jsonl.gz", gzip.compress(lines(event(n) for n in range(3))))
    folder.put("b.jsonl.gz", b"nothing")
    folder.put("c.jsonl.gz", gzip.compress(lines([event(3)])))
    log = folder.log()
    for last, keys, reasons in (
        (offset_of(0, 2), ["k0", "k1"], []),
        (offset_of(1), ["k0", "k1", "k2"], []),
        (offset_of(1, 1), ["k0", "k1", "k2"], ["unreadable_file"]),
        (offset_of(3), ["k0", "k1", "k2", "k3"], ["unreadable_file"]),
    ):
        rows, letters = parsed(list(log.read_range(0, 0, last)))
        assert ([r["k"] for r in rows], [x["reason"] for x in letters]) == (keys, reasons)
    (whole,) = log.read_range(0, 0, offset_of(3))
    assert (whole.unreadable.keys(), whole.until(offset_of(1)).unreadable) == ({3}, {})


def test_a_file_that_was_changed_after_it_was_seen_is_not_read(folder: Folder) -> None:
    folder.put("a.jsonl", lines(event(n) for n in range(5)))
    folder.put("b.jsonl", lines(event(n) for n in range(5, 7)))
    log = folder.log()
    begun = log.read(0, 0, max_messages=2)
    folder.put("a.jsonl", lines([event(9)]))
    log.close()
    rows, letters = parsed([begun, *batches(folder.log(), offset=begun.next_offset)])
    assert [r["k"] for r in rows] == ["k0", "k1", "k5", "k6"]
    (letter,) = letters
    assert (letter["reason"], letter["offset"], letter["row"]) == ("unreadable_file", 2, -1)
    assert "it was changed" in letter["detail"]


def test_a_file_that_is_gone_before_it_is_read_stops_the_reader_by_name(folder: Folder) -> None:
    for name in "abc":
        folder.put(f"{name}.jsonl", lines([event(1, f=name)]))
    log = folder.log()
    read = log.read(0, 0, max_messages=1).next_offset
    (folder.path / "in" / "a.jsonl").unlink()
    assert len(messages(batches(log, offset=read))) == 2, "it had been read"
    assert folder.log().start_offset(0) == offset_of(1)
    missing = folder.path / "in" / "b.jsonl"
    missing.unlink()
    again = folder.log()
    with pytest.raises(OffsetOutOfRange, match=rf"expected {missing}.*put it back or"):
        again.read(0, offset_of(1))
    missing.write_bytes(b"")  # what the message says
    rows, letters = parsed(batches(again, offset=offset_of(1)))
    assert ([r["k"] for r in rows], [x["reason"] for x in letters]) == (["k1"], ["unreadable_file"])
    with pytest.raises(OffsetOutOfRange, match="lists fewer files"):
        again.read(0, offset_of(4))


def test_a_file_system_that_fails_holds_the_reader_and_loses_nothing(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that fails cannot be had here: its errors are put in where it is called."""
    for name in "ab":
        folder.put(f"{name}.jsonl", lines([event(1, f=name)]))
    log = folder.log()
    real = whole_read.FileSystems.open

    def failing(path: str, **more: Any) -> Any:
        if path.endswith("b.jsonl"):
            raise OSError("connection reset")
        return real(path, **more)

    monkeypatch.setattr(whole_read.FileSystems, "open", failing)
    first = log.read(0, 0)
    assert len(first) == 1, "what can be read is"
    for _ in range(2):
        with pytest.raises(LogUnavailable, match=r"b\.jsonl: connection reset"):
            log.read(0, first.next_offset)
    monkeypatch.undo()
    assert [json.loads(v or b"")["f"] for _, v in messages(batches(log, offset=first.next_offset))] == ["b"]


def test_while_no_listing_is_had_nobody_is_told_that_nothing_is_there(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a partition would count as idle, and the clock would pass what waits in the folder."""
    log = folder.log(list_every="5s")
    real = files_log.FileSystems.match

    def failing(_: list[str]) -> Any:
        raise OSError("503")

    monkeypatch.setattr(files_log.FileSystems, "match", failing)
    folder.put("a.jsonl", lines([event(1)]))
    for tick_s in (4.9, 0.2, 0.1, 4.0, 1.0):
        folder.tick_s += tick_s
        if folder.tick_s < 5:
            assert log.read(0, 0).next_offset == 0, "the last look is not so long ago"
            continue
        for ask in (lambda: log.read(0, 0), lambda: log.end_offset(0)):
            with pytest.raises(LogUnavailable, match="503"):
                ask()
    monkeypatch.setattr(files_log.FileSystems, "match", real)
    folder.later()
    assert len(log.read(0, 0)) == 1


def test_a_replay_at_a_chosen_speed_keeps_what_is_unreadable_in_its_place(folder: Folder) -> None:
    folder.put("a.jsonl.gz", gzip.compress(lines(event(n) for n in range(5))))
    folder.put("b.jsonl.gz", b"nothing")
    folder.put("c.jsonl.gz", gzip.compress(lines(event(n) for n in range(5, 9))))
    (folder.path / "none").mkdir()
    sources = [PollSource(folder.log(), SCHEMA), PollSource(folder.log("none"), DONE)]
    core = PollCore(*sources, PollOptions(replay_speed=1.0, max_skew_us=0))
    rows: list[int] = []
    letters: list[Row] = []
    for s in range(12):
        polled = core.poll(s * 1_000_000)
        rows.append(polled.rows)
        letters += [letter for batch in polled.dead for letter in batch.to_pylist()]
    assert rows == [1] * 9 + [0] * 3
    assert [(x["reason"], x["offset"]) for x in letters] == [("unreadable_file", offset_of(1))]
