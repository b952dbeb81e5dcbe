"""Backfill against stream, row for row, on KuaiRand: from logs, and from files whose rows lie anywhere."""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cuckooflow.pipelines.backfill import estimate

pytestmark = pytest.mark.slow


def joined_letters(rows: Counter[str], parsed: bool) -> Counter[str]:
    """Dead letters of the join, or those of events that were refused before it."""
    joined = ("late_impression", "key_reused", "unknown_action")
    return Counter({line: n for line, n in rows.items() if (json.loads(line)["reason"] in joined) != parsed})


def test_from_the_same_logs(feed, streamed, backfill, day_rows, expected, tmp_path) -> None:
    out = tmp_path / "days"
    backfill(feed.spec, out)
    for kind in ("examples", "late", "unmatched"):
        assert day_rows(out, kind) == expected(kind), kind
        assert len(expected(kind)) > 300
    found = day_rows(out, "dead_letters")
    assert joined_letters(found, parsed=False) == expected("dead_letters")
    assert len(expected("dead_letters")) > 300
    assert joined_letters(found, parsed=True) <= joined_letters(streamed["dead_letters"], parsed=True)


def in_pieces(table: pa.Table, files: int, seed: int) -> list[pa.Table]:
    """The rows in any order, in so many files."""
    order = np.random.default_rng(seed).permutation(len(table))
    return [table.take(pa.array(part)) for part in np.array_split(order, files)]


def write_messages_parquet(folder: Path, messages: pa.Table, seed: int) -> str:
    for number, part in enumerate(in_pieces(messages, 5, seed)):
        pq.write_table(part, folder / f"m-{number}.parquet", row_group_size=3_000)
    places = "partition: partition, offset: offset, append: append_us"
    return f"{{files: '{folder}/*.parquet', format: parquet, layout: messages, {places}}}"


def write_messages_json(folder: Path, messages: pa.Table, seed: int) -> str:
    for number, part in enumerate(in_pieces(messages, 4, seed)):
        rows = part.to_pylist()
        for row in rows:
            value = row.pop("value")
            row |= (
                {"value": value.decode()}
                if number % 2
                else {"value_base64": base64.b64encode(value).decode()}
            )
        with gzip.open(folder / f"m-{number}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    places = "partition: partition, offset: offset, append: append_us"
    return f"{{files: '{folder}/**.gz', format: json, layout: messages, {places}}}"


def good_rows(messages: pa.Table) -> pa.Table:
    """Messages that are events, a column a field, with their places."""
    rows = []
    for row in messages.to_pylist():
        value = row.pop("value")
        if value[:1] == b"{" and b'"x"' not in value and value[-1:] == b"}":
            rows.append({**json.loads(value), **row})
    return pa.Table.from_pylist(rows)


def write_rows_parquet(folder: Path, messages: pa.Table, seed: int) -> str:
    for number, part in enumerate(in_pieces(good_rows(messages), 3, seed)):
        pq.write_table(part, folder / f"r-{number}.parquet", row_group_size=5_000)
    places = "partition: partition, offset: offset, append: append_us"
    return f"{{files: '{folder}/*.parquet', format: parquet, {places}}}"


def write_rows_json(folder: Path, messages: pa.Table, seed: int) -> str:
    for number, part in enumerate(in_pieces(good_rows(messages), 3, seed)):
        with (folder / f"r-{number}.jsonl").open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in part.to_pylist())
    places = "partition: partition, offset: offset, append: append_us"
    return f"{{files: '{folder}/*.jsonl', format: json, {places}}}"


WRITERS = {
    "messages-parquet": write_messages_parquet,
    "messages-json-gz": write_messages_json,
    "rows-parquet": write_rows_parquet,
    "rows-json": write_rows_json,
}


#: The others run with the faults.
_FAST = ("messages-json-gz", "rows-parquet")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in _FAST else pytest.mark.deep) for kind in WRITERS]
)
def test_from_files_with_files_and_rows_shuffled(
    feed, streamed, backfill, day_rows, expected, tmp_path, monkeypatch, kind
) -> None:
    """No log is there any more: everything comes from files, in many blocks, and slices are joined in parts."""
    monkeypatch.setattr(estimate, "_BLOCK_ROWS", 3_000)
    monkeypatch.setattr(estimate, "_SLICE_MINUTES", (720,))
    moved = feed.copy_to(tmp_path / "job")
    lines = ["backfill:"]
    for seed, (log, messages) in enumerate(feed.messages.items()):
        folder = tmp_path / log
        folder.mkdir()
        lines.append(f"  {log}: {WRITERS[kind](folder, messages, seed)}")
    moved.spec.write_text(moved.spec.read_text() + "\n".join(lines) + "\n")
    out = tmp_path / "days"
    backfill(moved.spec, out, slice_bytes=1 << 17)
    for rows in ("examples", "late", "unmatched"):
        assert day_rows(out, rows) == expected(rows), rows
    found = day_rows(out, "dead_letters")
    assert joined_letters(found, parsed=False) == expected("dead_letters")
    refused = joined_letters(found, parsed=True)
    if kind.startswith("messages"):  # the same letters, original bytes and positions included
        assert refused <= joined_letters(streamed["dead_letters"], parsed=True)
        assert sum(refused.values()) > 300
    else:
        assert not refused
