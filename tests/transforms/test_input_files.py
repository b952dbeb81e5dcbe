"""Files as bounded inputs: every row once, whatever the cuts; what is refused; what was changed meanwhile."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cuckooflow.errors import InputFileWrong, SpecError
from cuckooflow.logs.contract import MessageBatch
from cuckooflow.transforms import input_files
from cuckooflow.transforms.batch_bytes import decode_batch, encode_batch
from cuckooflow.transforms.dead_letters import original_value, to_json_lines
from cuckooflow.transforms.in_band import IMPRESSIONS
from cuckooflow.transforms.input_files import FileInput
from cuckooflow.transforms.json_lines_file import lines_of
from cuckooflow.transforms.message_format import MessageFormat
from cuckooflow.transforms.parse import parse_messages
from cuckooflow.transforms.placed_rows import PlaceColumns
from tests.transforms.files_folder import HOUR_US, SCHEMA

PLACED = PlaceColumns("p", "o", None, "a", "v")


def event(n: int, **more) -> dict:
    return {"k": f"k{n}", "x": n / 2, "t": 1_000 + n, **more}


def files(tmp_path: Path, pattern: str, **more) -> FileInput:
    values = {
        "format": "json" if "json" in pattern else "parquet",
        "layout": "rows",
        "columns": PlaceColumns(),
        "append_until_us": 10**13,
        "schema": SCHEMA,
        **more,
    }
    return FileInput(str(tmp_path / pattern), name="shown", **values)


def read(source: FileInput) -> tuple[list[dict], list[dict]]:
    """All rows and letters, range by range."""
    rows: list[dict] = []
    letters: list[dict] = []
    for range_ in source.ranges(IMPRESSIONS, source.listing()):
        for parsed in range_.parsed(HOUR_US):
            rows += parsed.rows.to_pylist()
            letters += parsed.dead.to_pylist()
    return rows, letters


@given(
    st.lists(st.binary(max_size=5).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b""))),
    st.integers(1, 9),
    st.integers(1, 20),
)
def test_every_line_is_read_once_whatever_the_cuts(lines, cut, batch):
    blob = b"".join(line + b"\n" for line in lines)
    found: list[tuple[int, bytes]] = []
    for first in range(0, max(1, len(blob)), cut):
        for part, starts, _ in lines_of(io.BytesIO(blob), first, first + cut, batch):
            found += zip(starts.tolist(), part, strict=True)
    starts = np.cumsum([0, *(len(line) + 1 for line in lines)])[:-1].tolist() if lines else []
    assert found == list(zip(starts, lines, strict=True))
    whole = [line for part, _, _ in lines_of(io.BytesIO(blob), 0, None, batch) for line in part]
    assert whole == lines
    without_end = [line for part, _, _ in lines_of(io.BytesIO(blob[:-1]), 0, None, batch) for line in part]
    assert without_end == (lines if not lines or lines[-1] else lines[:-1])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.bz2"])
def test_json_lines_in_the_order_of_their_file(tmp_path, monkeypatch, name):
    monkeypatch.setattr(input_files, "RANGE_BYTES", 1_000)
    lines = [json.dumps(event(n)) for n in range(200)] + ["null", '{"k": "late"}', ""]
    opened = {"gz": gzip.open, "bz2": bz2.open}.get(name.rsplit(".", 1)[1], open)
    with opened(tmp_path / name, "wt") as file:
        file.write("\n".join(lines))
    source = files(tmp_path, "*.jsonl*")
    assert len(source.ranges(IMPRESSIONS, source.listing())) == (8 if name == "a.jsonl" else 1)
    rows, letters = read(source)
    assert [row["k"] for row in rows] == [f"k{n}" for n in range(200)]
    offsets = [row["_offset"] for row in rows]
    assert offsets == np.cumsum([0, *(len(line) + 1 for line in lines)])[:200].tolist()
    assert [(x["reason"], x["value"]) for x in letters] == [
        ("not_an_object", b"null"),
        ("missing_column", b'{"k": "late"}'),
    ]


@pytest.mark.parametrize(("name", "compression"), [("a.tfrecord", ""), ("a.tfrecord.gz", "GZIP")])
def test_tfrecords_of_examples_in_the_order_of_their_file(tmp_path, name, compression):
    """Written by TensorFlow itself."""
    import tensorflow as tf

    def example(n: int) -> bytes:
        features = {
            "k": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"k%d" % n])),
            "x": tf.train.Feature(float_list=tf.train.FloatList(value=[n / 2])),
            "t": tf.train.Feature(int64_list=tf.train.Int64List(value=[1_000 + n])),
        }
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()

    records = [example(n) for n in range(300)]
    records.insert(100, b"\xff\xff")
    with tf.io.TFRecordWriter(str(tmp_path / name), compression) as writer:
        for record in records:
            writer.write(record)
    schema = SCHEMA.model_copy(update={"message": MessageFormat(kind="tf_example")})
    source = files(tmp_path, "*.tfrecord*", format="tfrecord", layout="messages", schema=schema)
    rows, letters = read(source)
    assert [(row["k"], row["x"]) for row in rows] == [(f"k{n}", n / 2) for n in range(300)]
    starts = np.cumsum([0, *(len(record) + 16 for record in records)]).tolist()
    assert [row["_offset"] for row in rows] == starts[:100] + starts[101:301]
    (letter,) = letters
    assert (letter["offset"], letter["value"]) == (starts[100], b"\xff\xff")


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:20] + b"!" + b[21:], lambda b: b[:5]])
def test_a_tfrecord_file_that_is_not_whole_is_refused(tmp_path, damage):
    import tensorflow as tf

    path = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for n in range(3):
            writer.write(json.dumps(event(n)).encode())
    source = files(tmp_path, "a.tfrecord", format="tfrecord", layout="messages")
    rows, letters = read(source)
    assert ([row["k"] for row in rows], letters) == (["k0", "k1", "k2"], [])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputFileWrong, match=r"a\.tfrecord"):
        read(source)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zstandard.ZstdCompressor().compress])
def test_compressed_lines_that_are_cut_off_are_refused(tmp_path, pack):
    """Also where the cut leaves whole lines alone: a shorter file would be taken for the whole one."""
    suffix = {gzip.compress: "gz", bz2.compress: "bz2"}.get(pack, "zst")
    whole = pack(b"".join(json.dumps(event(n, x=hash(str(n)) / 7)).encode() + b"\n" for n in range(500)))
    path = tmp_path / f"a.jsonl.{suffix}"
    source = files(tmp_path, f"a.jsonl.{suffix}")
    path.write_bytes(whole + whole)  # two streams in one file are one
    assert len(read(source)[0]) == 1_000
    for end in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(InputFileWrong, match=r"a\.jsonl"):
            read(source)


def test_a_tfrecord_has_no_columns(tmp_path):
    with pytest.raises(SpecError, match="layout messages"):
        files(tmp_path, "a.tfrecord", format="tfrecord")


def test_parquet_rows_in_the_order_of_their_file(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "RANGE_BYTES", 2_000)
    table = pa.Table.from_pylist([event(n) for n in range(500)] + [event(500, x=float("nan"))])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    pq.write_table(table.slice(0, 7), tmp_path / "b.parquet")
    source = files(tmp_path, "*.parquet")
    assert len(source.ranges(IMPRESSIONS, source.listing())) > 3
    rows, letters = read(source)
    assert [(r["_partition"], r["_offset"], r["k"]) for r in rows] == [
        *((0, n, f"k{n}") for n in range(500)),
        *((1, n, f"k{n}") for n in range(7)),
    ]
    assert [(x["partition"], x["offset"], x["row"], x["reason"]) for x in letters] == [
        (0, 500, 0, "not_finite")
    ]
    refused = decode_batch(letters[0]["value"]).to_pylist()[0]
    assert (refused["k"], refused["t"]) == ("k500", 1500)


def test_messages_are_parsed_as_in_their_log(tmp_path):
    """Text and Arrow messages of several partitions, shuffled, against the parser of a log's messages."""
    several = encode_batch(pa.RecordBatch.from_pylist([event(n) for n in (7, 8)]))
    bad = encode_batch(pa.RecordBatch.from_pylist([event(9), event(10, x=float("inf"))]))
    values = [json.dumps(event(1)).encode(), None, b"{", several, bad, b'{"k": 5, "t": 3}', b"  "]
    table = pa.table(
        {
            "p": pa.array([3] * len(values), pa.int64()),
            "o": pa.array(range(100, 100 + len(values)), pa.int64()),
            "a": pa.array([10**13] * len(values), pa.timestamp("us")),
            "v": pa.array(values, pa.binary()),
        }
    )
    order = np.random.default_rng(4).permutation(len(values))
    pq.write_table(table.take(pa.array(order)), tmp_path / "m.parquet")
    source = files(tmp_path, "m.parquet", layout="messages", columns=PLACED, append_until_us=None)
    rows, letters = read(source)
    batch = MessageBatch(
        3, np.arange(100, 100 + len(values)), np.full(len(values), 10**13), table["v"].combine_chunks(), 107
    )
    of_log = parse_messages(batch, IMPRESSIONS, "shown", SCHEMA, HOUR_US)
    place = ("_offset", "_row")
    assert sorted(rows, key=lambda r: [r[n] for n in place]) == of_log.rows.to_pylist()
    assert sorted(letters, key=lambda r: (r["offset"], r["row"])) == of_log.dead.to_pylist()


def test_lines_without_a_place_are_refused_with_where_they_lie_in_their_file(tmp_path):
    place = {"p": 2, "o": 5, "a": 10**13}
    good, nowhere = json.dumps({**event(1), **place}), json.dumps(event(2))
    wrong = json.dumps({**event(3), **place, "o": "5"})
    lines = [good, nowhere, "{", wrong, "[]"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    source = files(tmp_path, "*.jsonl", columns=PlaceColumns("p", "o", None, "a"), append_until_us=None)
    rows, letters = read(source)
    assert [(r["k"], r["_partition"], r["_offset"]) for r in rows] == [("k1", 2, 5)]
    starts = np.cumsum([0, *(len(line) + 1 for line in lines)]).tolist()
    found = {(x["partition"], x["offset"], x["reason"]) for x in letters}
    assert found == {
        (-1, starts[1], "missing_column"),
        (-1, starts[2], "malformed"),
        (-1, starts[3], "wrong_type"),
        (-1, starts[4], "not_an_object"),
    }


def test_json_messages_hold_text_or_base64(tmp_path):
    arrow = encode_batch(pa.RecordBatch.from_pylist([event(1)]))
    batch = parse_messages(
        MessageBatch(0, np.arange(2), np.zeros(2, np.int64), pa.array([b"\xff\xfe", b"nul"], pa.binary()), 2),
        IMPRESSIONS,
        "shown",
        SCHEMA,
    )
    # What a dead letter's line says of its bytes is read back here.
    lines = [json.loads(line) for line in to_json_lines(batch.dead)]
    lines.append(
        {"offset": 3, "partition": 0, "append": 10**13, "value_base64": base64.b64encode(arrow).decode()}
    )
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = PlaceColumns("partition", "offset", None, "append", "value")
    source = files(tmp_path, "*.jsonl", layout="messages", columns=columns, append_until_us=None)
    rows, letters = read(source)
    assert [r["k"] for r in rows] == ["k1"]
    assert [x["value"] for x in letters] == [b"\xff\xfe", b"nul"]
    assert [original_value(line) for line in to_json_lines(batch.dead)] == [b"\xff\xfe", b"nul"]


def test_the_row_in_its_message_is_kept(tmp_path):
    table = pa.Table.from_pylist([event(n, p=0, o=7, r=n, a=10**13) for n in (4, 2)])
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    for pattern in ("*.parquet", "*.jsonl"):
        source = files(tmp_path, pattern, columns=PlaceColumns("p", "o", "r", "a"), append_until_us=None)
        assert [(r["_offset"], r["_row"]) for r in read(source)[0]] == [(7, 4), (7, 2)]


def test_what_is_not_as_the_spec_says_is_refused_by_name(tmp_path):
    with pytest.raises(InputFileWrong, match="found none"):
        files(tmp_path, "*.parquet").listing()
    with pytest.raises(SpecError, match="append"):
        files(tmp_path, "*.parquet", append_until_us=None)
    with pytest.raises(SpecError, match="both"):
        files(tmp_path, "*.parquet", columns=PlaceColumns(partition="p"))
    pq.write_table(pa.Table.from_pylist([event(1, p=1, o="x", a=1)]), tmp_path / "a.parquet")
    for columns, words in (
        (PlaceColumns("p", "q", None, "a"), "q"),
        (PlaceColumns("p", "o", None, "a"), "integers"),
    ):
        with pytest.raises(InputFileWrong, match=words):
            read(files(tmp_path, "a.parquet", columns=columns, append_until_us=None))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputFileWrong, match="whole parquet"):
        read(files(tmp_path, "b.parquet"))


def test_a_file_that_changed_since_it_was_listed_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(event(1)) + "\n")
    source = files(tmp_path, "*.jsonl")
    (range_,) = source.ranges(IMPRESSIONS, source.listing())
    path.write_text("")
    with pytest.raises(InputFileWrong, match="as it was listed"):
        list(range_.parsed(HOUR_US))
