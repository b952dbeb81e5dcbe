"""Files as a log: each event once, at a position that stays; plain lists, duckdb and a backfill are the oracle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.errors import (
    LogNotFound,
)
from cuckooflow.logs.contract import FilesReader
from cuckooflow.transforms.batch_bytes import decode_batch
from cuckooflow.transforms.files_address import FilesAddress
from cuckooflow.transforms.files_log import offset_of
from cuckooflow.transforms.in_band import IMPRESSIONS
from cuckooflow.transforms.input_files import FileInput
from cuckooflow.transforms.message_format import MessageFormat
from cuckooflow.transforms.placed_rows import PlaceColumns
from cuckooflow.transforms.poll_core import PollCore, PollOptions, PollSource
from tests.transforms.files_folder import (
    DONE,
    HOUR_US,
    SCHEMA,
    WRITERS,
    Folder,
    Row,
    batches,
    event,
    lines,
    messages,
    parsed,
    put,
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


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
    (folder.path / "acts").mkdir()

    def core(state: bytes | None) -> PollCore:
        sources = [
            PollSource(folder.log("in/*"), SCHEMA),
            PollSource(folder.log("acts/*", partitions=2), DONE),
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


def test_lag_is_told_in_files(folder: Folder) -> None:
    for n in range(4):
        folder.put(f"{n}.jsonl", lines(event(10 * n + i) for i in range(3)))
    sources = [PollSource(folder.log(manifest="m"), SCHEMA), PollSource(folder.log("in", manifest="n"), DONE)]
    options = PollOptions(figures_interval_us=0, max_messages=4, max_lead_us=10**12)
    core = PollCore(*sources, options)
    told = [core.poll(n).figures for n in range(8)]
    lags = [figures["source_impressions_lag_files"] for figures in told]
    assert lags[0] in (3, 4)
    assert lags == sorted(lags, reverse=True)
    assert lags[-1] == 0
    assert not any("lag_messages" in name for figures in told for name in figures)
    assert all(figures["source_actions_lag_files"] >= 0 for figures in told)
