"""Files as a log: each event once, at a position that stays; what is not whole; plain lists are the oracle."""

from __future__ import annotations

import bz2
import fcntl
import gzip
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.errors import (
    LogNotFound,
    LogRecreated,
    LogUnavailable,
    OffsetOutOfRange,
    SpecError,
    TooManyFiles,
)
from cuckooflow.logs.contract import FilesReader, MessageBatch
from cuckooflow.transforms import files_log, files_manifest, whole_read
from cuckooflow.transforms.batch_bytes import decode_batch
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.files_address import FilesAddress
from cuckooflow.transforms.files_log import FilesLog, offset_of
from cuckooflow.transforms.in_band import ACTIONS, IMPRESSIONS
from cuckooflow.transforms.input_files import FileInput
from cuckooflow.transforms.message_format import MessageFormat
from cuckooflow.transforms.parse import parse_messages
from cuckooflow.transforms.placed_rows import PlaceColumns
from cuckooflow.transforms.poll_core import PollCore, PollOptions, PollSource
from tests.transforms.bucket import Bucket

SCHEMA = EventSchema(
    columns={
        "k": Column(type="string"),
        "x": Column(type="float64", required=False),
        "t": Column(type="time", unit="s"),
    },
    time="t",
    key=("k",),
)
HOUR_US = 3_600_000_000
Row = dict[str, Any]


def event(n: int, **more: Any) -> Row:
    return {"k": f"k{n}", "x": n / 2, "t": 1_000 + n, **more}


def lines(rows: Iterable[Row]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def put(path: Path, content: bytes) -> Path:
    """A whole file: its name comes last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    beside.write_bytes(content)
    beside.rename(path)
    return path


class Folder:
    """Files and a manifest; ``log()`` opens another reader of them, as a worker that is started again does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "in").mkdir()
        self.tick_s = 0.0

    def log(self, pattern: str = "in/*", format: str = "json", **more: Any) -> FilesLog:
        address = FilesAddress(path=pattern, format=format, **more).resolved_in(str(self.path))
        return FilesLog(address, tick_s=lambda: self.tick_s)

    def put(self, name: str, content: bytes) -> Path:
        return put(self.path / "in" / name, content)

    def later(self) -> None:
        """New files are looked for again."""
        self.tick_s += 3_600


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def batches(log: FilesLog, partition: int = 0, offset: int = 0, **bounds: int) -> list[MessageBatch]:
    """What reads give one after the other until nothing comes."""
    found = []
    while True:
        batch = log.read(partition, offset, **bounds)
        if batch.next_offset == offset:
            return found
        offset = batch.next_offset
        found.append(batch)


def messages(found: Sequence[MessageBatch]) -> list[tuple[int, bytes | None]]:
    return [
        (int(offset), value.as_py())
        for batch in found
        for offset, value in zip(batch.offsets, batch.values, strict=True)
    ]


def parsed(found: Sequence[MessageBatch], schema: EventSchema = SCHEMA) -> tuple[list[Row], list[Row]]:
    both = [parse_messages(batch, IMPRESSIONS, "shown", schema, HOUR_US) for batch in found]
    return [row for part in both for row in part.rows.to_pylist()], [
        row for part in both for row in part.dead.to_pylist()
    ]


# --- the same rows as a backfill of the files ------------------------------------------------


def _tfrecord(path: Path, rows: Sequence[Row]) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path), "GZIP" if path.suffix == ".gz" else "") as writer:
        for row in rows:
            features = {
                "k": tf.train.Feature(bytes_list=tf.train.BytesList(value=[row["k"].encode()])),
                "x": tf.train.Feature(float_list=tf.train.FloatList(value=[row["x"]])),
                "t": tf.train.Feature(int64_list=tf.train.Int64List(value=[row["t"]])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def _parquet(path: Path, rows: Sequence[Row]) -> None:
    table = pa.Table.from_pylist(list(rows))
    pq.write_table(table, path, row_group_size=1_500, write_page_checksum=True)


def _packed(pack: Callable[[bytes], bytes]) -> Callable[[Path, Sequence[Row]], None]:
    return lambda path, rows: put(path, pack(lines(rows))) and None


WRITERS: dict[str, tuple[str, Callable[[Path, Sequence[Row]], None]]] = {
    "jsonl": ("json", _packed(bytes)),
    "jsonl.gz": ("json", _packed(gzip.compress)),
    "jsonl.bz2": ("json", _packed(bz2.compress)),
    "jsonl.zst": ("json", _packed(zstandard.ZstdCompressor().compress)),
    "parquet": ("parquet", _parquet),
    "tfrecord": ("tfrecord", _tfrecord),
    "tfrecord.gz": ("tfrecord", _tfrecord),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_rows_are_those_of_a_backfill_of_the_same_files(folder: Folder, suffix: str) -> None:
    format_, write = WRITERS[suffix]
    events = [event(n) for n in range(5_000)]
    if format_ == "json":
        events[77] = event(77, x="no number")
    parts = {"a": events[:3_000], "b": [], "c": events[3_000:3_001], "d": events[3_001:]}
    for name, rows in parts.items():
        if rows or format_ != "parquet":
            write(folder.path / "in" / f"{name}.{suffix}", rows)
    tf_example = format_ == "tfrecord"
    schema = SCHEMA.model_copy(update={"message": MessageFormat(kind="tf_example")}) if tf_example else SCHEMA
    source = FileInput(
        str(folder.path / "in" / f"*.{suffix}"),
        format_,  # type: ignore[arg-type]
        "messages" if tf_example else "rows",
        PlaceColumns(),
        schema,
        "shown",
        append_until_us=10**13,
    )
    expected: list[list[Row]] = [[], []]
    for range_ in source.ranges(IMPRESSIONS, source.listing()):
        for part in range_.parsed(HOUR_US):
            expected[0] += part.rows.to_pylist()
            expected[1] += part.dead.to_pylist()
    rows, letters = parsed(batches(folder.log(format=format_), max_messages=700), schema)
    places = {"_partition", "_offset", "_row", "_append", "_wm"}
    assert [{n: v for n, v in r.items() if n not in places} for r in rows] == [
        {n: v for n, v in r.items() if n not in places} for r in expected[0]
    ]
    assert [(x["reason"], x["value"]) for x in letters] == [(x["reason"], x["value"]) for x in expected[1]]
    assert [r["k"] for r in rows] == [e["k"] for e in events if not isinstance(e["x"], str)]


def test_parquet_rows_are_those_that_duckdb_reads_whatever_the_row_groups(folder: Folder) -> None:
    table = pa.Table.from_pylist([event(n) for n in range(6_000)])
    for name, size in (("a", 100), ("b", 1_024), ("c", 6_000)):
        pq.write_table(table, folder.path / "in" / f"{name}.parquet", row_group_size=size)
    log = folder.log(format="parquet")
    for name in ("a", "b", "c"):
        known = duckdb.sql(f"select k, x from '{folder.path}/in/{name}.parquet' order by t").fetchall()
        at = offset_of("abc".index(name))
        of_file = list(log.read_range(0, at, at + offset_of(1)))
        assert [(r["k"], r["x"]) for r in parsed(of_file)[0]] == known
    assert [sum(map(len, log.read_range(0, offset_of(n), offset_of(n + 1)))) for n in range(3)] == [60, 6, 6]


def test_a_column_of_messages_is_read_as_such(folder: Folder) -> None:
    values = [json.dumps(event(n)).encode() for n in range(3_000)]
    pq.write_table(
        pa.table({"v": values, "more": range(3_000)}), folder.path / "in" / "a.parquet", row_group_size=999
    )
    log = folder.log(format="parquet", value="v")
    assert messages(batches(log, max_messages=11)) == list(enumerate(values))
    assert (
        messages(batches(folder.log(format="parquet", value="v"), offset=1_234))
        == list(enumerate(values))[1_234:]
    )
    with pytest.raises(ValueError, match="value only with the format parquet"):
        FilesAddress(path="in", format="json", value="v")


# --- positions -------------------------------------------------------------------------------

_names = st.lists(st.text("abcxyz", min_size=1, max_size=3), max_size=6, unique=True)


@settings(max_examples=60)
@given(
    waves=st.lists(st.tuples(_names, st.integers(0, 5)), min_size=1, max_size=4),
    partitions=st.integers(1, 3),
    bounds=st.tuples(st.integers(1, 7), st.integers(1, 300)),
    data=st.data(),
)
def test_positions_stay_whenever_files_come_and_readers_begin(
    tmp_path_factory: pytest.TempPathFactory,
    waves: list[tuple[list[str], int]],
    partitions: int,
    bounds: tuple[int, int],
    data: st.DataObject,
) -> None:
    """What was given at a position is given there by any later reader, and what comes later lies behind it."""
    folder = Folder(tmp_path_factory.mktemp("files"))
    known: dict[int, list[tuple[int, bytes | None]]] = {p: [] for p in range(partitions)}
    put_in: list[bytes] = []
    log = folder.log(partitions=partitions)
    for wave, (names, count) in enumerate(waves):
        for name in names:
            rows = [json.dumps(event(n, w=wave, f=name)).encode() for n in range(count)]
            put_in += rows
            # A later wave's names sort before and between those of earlier ones.
            folder.put(f"{name}-{9 - wave}.jsonl", b"\n".join(rows))
        folder.later()
        if data.draw(st.booleans(), label="reader begins anew"):
            log.close()
            log = folder.log(partitions=partitions)
        for partition, before in known.items():
            end = log.end_offset(partition)
            whole = messages(list(log.read_range(partition, 0, end)))
            assert whole[: len(before)] == before
            known[partition] = whole
            start = data.draw(st.sampled_from([0, *(o + 1 for o, _ in whole)]), label="start")
            limits = {"max_messages": bounds[0], "max_bytes": bounds[1]}
            assert messages(batches(log, partition, start, **limits)) == [m for m in whole if m[0] >= start]
            some = data.draw(st.sampled_from([0, *(o for o, _ in whole)]), label="first")
            last = data.draw(st.sampled_from([end, *(o for o, _ in whole if o >= some)]), label="last")
            part = messages(list(log.read_range(partition, some, last)))
            assert part == [m for m in whole if some <= m[0] < last]
    assert sorted(v for found in known.values() for _, v in found if v is not None) == sorted(put_in)


def test_a_poller_that_is_started_again_goes_on_where_it_stood(folder: Folder) -> None:
    """Elements after each state are those of the poller that was never stopped, with files that come meanwhile."""
    done = EventSchema(
        columns={**SCHEMA.columns, "what": Column(type="string")}, time="t", key=("k",), action_type="what"
    )
    (folder.path / "acts").mkdir()

    def core(state: bytes | None) -> PollCore:
        sources = [
            PollSource(folder.log("in/*"), SCHEMA),
            PollSource(folder.log("acts/*", partitions=2), done),
        ]
        return PollCore(*sources, PollOptions(num_shards=2, max_messages=13, max_skew_us=0), state)

    def rows(polled: Any) -> list[tuple[Any, ...]]:
        names = ("_log", "_partition", "_offset", "_row", "_time", "_wm", "k")
        return sorted(
            tuple(row[n] for n in names) for _, batch in polled.elements for row in batch.to_pylist()
        )

    def fill(wave: int) -> None:
        for n in range(3):
            of_file = [event(100 * wave + 10 * n + i) for i in range(10)]
            folder.put(f"{9 - wave}-{n}.jsonl", lines(of_file))
            put(
                folder.path / "acts" / f"{n}-{wave}.jsonl", lines({**row, "what": "click"} for row in of_file)
            )
        folder.later()

    fill(0)
    going, seen, states = core(None), [], [core(None).state()]
    now_us = 0
    for wave in range(1, 5):
        for _ in range(12):
            now_us += 1_000_000
            seen.append(rows(going.poll(now_us)))
            states.append(going.state())
        if wave < 4:
            fill(wave)
    everything = [row for found in seen for row in found]
    assert len(everything) == 2 * 4 * 30
    for at in range(0, len(states), 5):
        again, found = core(states[at]), []
        for n in range(25):
            found += rows(again.poll(n * 1_000_000))
        assert sorted(found) == sorted(row for part in seen[at:] for row in part), at


# --- which files, and when -------------------------------------------------------------------


def test_a_file_that_is_being_written_is_left_alone_until_it_has_its_name(folder: Folder) -> None:
    log = folder.log("in")
    parts = lines(event(n) for n in range(9))
    half = folder.path / "in" / "_half.jsonl"
    half.write_bytes(parts[:50])
    for name in (".hidden", "_temporary/0/a.jsonl", ".staging/a.jsonl"):
        (folder.path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / "in" / name).write_bytes(parts)
    folder.later()
    assert batches(log) == []
    half.write_bytes(parts)
    half.rename(folder.path / "in" / "whole.jsonl")
    folder.put("_day=2026-01-01/b.jsonl", parts)
    folder.later()
    assert len(messages(batches(log))) == 18


def test_new_files_are_looked_for_now_and_then_and_only_at_the_end(folder: Folder) -> None:
    folder.put("b.jsonl", lines([event(1)]))
    log = folder.log(list_every="5s")
    folder.put("a.jsonl", lines([event(2)]))
    folder.tick_s += 4.9
    assert log.end_offset(0) == offset_of(1)
    folder.tick_s += 0.2
    assert log.read(0, 0).next_offset == offset_of(1), "there is something to read: not the time to look"
    assert [path.rpartition("/")[2] for path in (log.path_at(0, 0), log.path_at(0, offset_of(0, 5)))] == [
        "b.jsonl"
    ] * 2
    assert log.end_offset(0) == offset_of(2)
    assert log.path_at(0, offset_of(1)).endswith("in/a.jsonl")
    assert isinstance(log, FilesReader)
    assert [log.files_left(0, at) for at in (0, offset_of(0, 1), offset_of(1), offset_of(2))] == [2, 2, 1, 0]


def test_a_backlog_is_read_in_the_order_of_names_or_of_times(folder: Folder) -> None:
    for name, at in (("c", 1_000), ("a", 3_000), ("b", 2_000)):
        os.utime(folder.put(f"{name}.jsonl", lines([event(1, f=name)])), (at, at))
    by_name = folder.log(manifest="m1")
    by_time = folder.log(manifest="m2", order="modified")
    for log, expected in ((by_name, "abc"), (by_time, "cba")):
        assert "".join(json.loads(v or b"")["f"] for _, v in messages(batches(log))) == expected
    assert by_name.read(0, 0).append_us.tolist() == [3_000_000_000, 2_000_000_000, 1_000_000_000]


def test_a_folder_or_a_pattern(folder: Folder) -> None:
    put(folder.path / "in" / "dt=1" / "hour=2" / "a.jsonl", lines([event(1)]))
    put(folder.path / "in" / "b.jsonl", lines([event(2)]))
    counts = {p: len(messages(batches(folder.log(p)))) for p in ("in", "in/*", "in/**", "in/dt=*/**.jsonl")}
    assert counts == {"in": 2, "in/*": 1, "in/**": 2, "in/dt=*/**.jsonl": 1}
    with pytest.raises(LogNotFound, match="no-such"):
        folder.log("no-such/*.jsonl")


# --- what is not whole -----------------------------------------------------------------------


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
    done = EventSchema(
        columns={**SCHEMA.columns, "what": Column(type="string")}, time="t", key=("k",), action_type="what"
    )
    (folder.path / "none").mkdir()
    sources = [PollSource(folder.log(), SCHEMA), PollSource(folder.log("none"), done)]
    core = PollCore(*sources, PollOptions(replay_speed=1.0, max_skew_us=0))
    rows: list[int] = []
    letters: list[Row] = []
    for s in range(12):
        polled = core.poll(s * 1_000_000)
        rows.append(polled.rows)
        letters += [letter for batch in polled.dead for letter in batch.to_pylist()]
    assert rows == [1] * 9 + [0] * 3
    assert [(x["reason"], x["offset"]) for x in letters] == [("unreadable_file", offset_of(1))]


def test_arrow_rows_of_a_parquet_file_are_refused_one_by_one(folder: Folder) -> None:
    pq.write_table(
        pa.Table.from_pylist([event(n, x=float("nan") if n == 1_030 else 0.5) for n in range(1_040)]),
        folder.path / "in" / "a.parquet",
    )
    rows, letters = parsed(batches(folder.log(format="parquet")))
    assert [r["k"] for r in rows] == [f"k{n}" for n in range(1_040) if n != 1_030]
    (letter,) = letters
    assert (letter["offset"], letter["row"], letter["reason"]) == (1, 6, "not_finite")
    assert decode_batch(letter["value"]).to_pylist()[0]["k"] == "k1030"


# --- the manifest ----------------------------------------------------------------------------


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
    done = EventSchema(
        columns={**SCHEMA.columns, "what": Column(type="string")}, time="t", key=("k",), action_type="what"
    )

    def core(state: bytes | None) -> PollCore:
        sources = [
            PollSource(folder.log(manifest="m"), SCHEMA),
            PollSource(folder.log("in", manifest="n"), done),
        ]
        return PollCore(*sources, PollOptions(), state)

    first = core(None)
    first.poll(0)
    for path in (folder.path / "m").iterdir():
        path.unlink()
    with pytest.raises(LogRecreated.__base__, match="it was recreated"):  # type: ignore[arg-type]
        core(first.state())


def test_lag_is_told_in_files(folder: Folder) -> None:
    for n in range(4):
        folder.put(f"{n}.jsonl", lines(event(10 * n + i) for i in range(3)))
    done = EventSchema(
        columns={**SCHEMA.columns, "what": Column(type="string")}, time="t", key=("k",), action_type="what"
    )
    sources = [PollSource(folder.log(manifest="m"), SCHEMA), PollSource(folder.log("in", manifest="n"), done)]
    options = PollOptions(figures_interval_us=0, max_messages=4, max_lead_us=10**12)
    core = PollCore(*sources, options)
    told = [core.poll(n).figures for n in range(8)]
    lags = [figures["source_impressions_lag_files"] for figures in told]
    assert lags[0] in (3, 4)
    assert lags == sorted(lags, reverse=True)
    assert lags[-1] == 0
    assert not any("lag_messages" in name for figures in told for name in figures)
    assert all(figures["source_actions_lag_files"] >= 0 for figures in told)
    assert ACTIONS != IMPRESSIONS
    assert files_log.offset_of(1) == 1 << 32
