"""Parsing: every kind of bad message is a dead letter with its reason, and the good ones beside it pass."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.embedding_store.hashing import hash_rows
from cuckooflow.logs.contract import MessageBatch
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.dead_letters import (
    DEAD_LETTER_SCHEMA,
    PARSE_REASONS,
    original_value,
    to_json_lines,
)
from cuckooflow.transforms.in_band import ACTIONS, NO_TIME_US, ROW_COLUMNS
from cuckooflow.transforms.parse import Parsed, parse_messages

NOW_US = 1_700_000_000_000_000
SCHEMA = EventSchema(
    columns={
        "k": Column(type="string"),
        "n": Column(type="int64"),
        "u": Column(type="uint64", required=False),
        "f": Column(type="float64", required=False),
        "g": Column(type="float32", required=False),
        "b": Column(type="bool", required=False),
        "tags": Column(type="list<string>", required=False),
        "ids": Column(type="list<int64>", required=False),
        "at": Column(type="time", unit="iso", zone="Europe/Zurich", required=False),
        "t": Column(type="time", unit="s"),
    },
    time="t",
    key=("k", "n"),
)
STRICT = SCHEMA.model_copy(update={"unknown_columns": "dead_letter"})


def batch_of(messages: list[bytes | None], first: int = 100) -> MessageBatch:
    return MessageBatch(
        partition=3,
        offsets=np.arange(first, first + len(messages), dtype=np.int64),
        append_us=np.full(len(messages), NOW_US, np.int64),
        values=pa.array(messages, pa.binary()),
        next_offset=first + len(messages),
    )


def parse(messages: list[bytes | None], schema: EventSchema = SCHEMA) -> Parsed:
    return parse_messages(batch_of(messages), ACTIONS, "clicks", schema)


def good(i: int, **more: Any) -> bytes:
    return json.dumps({"k": f"k{i}", "n": i, "t": 1_699_999_000, **more}).encode()


def stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


#: Each refused as this, whatever lies beside it.
BAD: list[tuple[bytes | None, str]] = [
    (None, "tombstone"),
    (b"", "empty"),
    (b" \r\n\t ", "empty"),
    (b"null", "not_an_object"),
    (b"[1]", "not_an_object"),
    (b'"{}"', "not_an_object"),
    (b"17", "not_an_object"),
    (b"hello", "malformed"),
    (b"\xef\xbb\xbf{}", "malformed"),
    (b"{", "malformed"),
    (b'{"k":"a","n":1,"t":1', "malformed"),
    (b'{"k":"a","n":1,"t":1,}', "malformed"),
    (b'{"k":"}', "malformed"),
    (b'{"k":{}', "malformed"),
    (b'{"n":01}', "malformed"),
    (b'{"k":"\xff","n":1,"t":1}', "malformed"),
    (b'{"k":"\\ud800","n":1,"t":1}', "malformed"),
    (b'{"k":"a","k":"b","n":1,"t":1}', "malformed"),
    (b'{"k":"a\x00","n":1,"t":1}', "malformed"),
    (good(1) + b"x}", "malformed"),
    (b'{"n":' + b"[" * 100_000 + b"}", "malformed"),
    (good(1)[:-1] + b',"z":' + b"[" * 300_000 + b"]" * 300_000 + b"}", "malformed"),
    (good(1)[:-1] + b',"z":' + b'{"a":' * 300_000 + b"1" + b"}" * 300_000 + b"}", "malformed"),
    (good(1) + good(2), "several_objects"),
    (good(1) + b"\n" + good(2), "several_objects"),
    (b"{}", "missing_column"),
    (b'{"k":null,"n":1,"t":1}', "missing_column"),
    (b'{"k":"a","n":1}', "missing_column"),
    (good(1, k=5), "wrong_type"),
    (good(1, n="5"), "wrong_type"),
    (good(1, n=5.5), "wrong_type"),
    (good(1, n=True), "wrong_type"),
    (good(1, n={}), "wrong_type"),
    (good(1, b=1), "wrong_type"),
    (good(1, f="x"), "wrong_type"),
    (good(1, tags="x"), "wrong_type"),
    (good(1, tags=[1]), "wrong_type"),
    (good(1, tags=["a", None]), "wrong_type"),
    (good(1, tags=[["a"]]), "wrong_type"),
    (good(1, ids=["1"]), "wrong_type"),
    (good(1, ids=[1.5]), "wrong_type"),
    (good(1, at=5), "wrong_type"),
    (good(1, t="now"), "wrong_type"),
    (good(1, n=1 << 63), "out_of_range"),
    (good(1, n=-(1 << 63) - 1), "out_of_range"),
    (good(1, n=10**40), "out_of_range"),
    (good(1, u=-1), "out_of_range"),
    (good(1, u=1 << 64), "out_of_range"),
    (good(1, ids=[1, 1 << 63]), "out_of_range"),
    (good(1, f=float("nan")), "not_finite"),
    (good(1, f=float("-inf")), "not_finite"),
    (good(1)[:-1] + b',"f":1e400}', "not_finite"),
    (good(1, g=1e39), "not_finite"),
    (good(1, t=0), "bad_time"),
    (good(1, t=-5), "bad_time"),
    (good(1, t=1e300), "bad_time"),
    (good(1, at="yesterday"), "bad_time"),
    (good(1, at="1969-12-31"), "bad_time"),
    (good(1, t=1_700_000_000 + 365 * 86_400), "future_time"),
    (good(1, t=1_700_000_000 + 3_601), "future_time"),
]
GOOD: list[bytes] = [
    good(1),
    b" \t" + good(2) + b" \r",
    json.dumps({"k": "pretty", "n": 3, "t": 5}, indent=2).encode(),
    good(4, n=(1 << 63) - 1, u=(1 << 64) - 1, f=-0.5, g=0.25, b=False, tags=[], ids=[-1], other={"x": [1]}),
    good(5, n=-(1 << 63), f=3, tags=["Sci-Fi, 1", 'a"b'], at="2022-04-25T08:00:00", more=None),
    '{"k":"\\u00e9\u00e9","n":6,"t":1.5}'.encode(),
    good(7, t=1_700_000_000 + 3_599),
    b'{"\\u006b":"escaped","n":8,"t":1e9}',
]


@pytest.mark.parametrize(("message", "reason"), BAD, ids=lambda v: v if isinstance(v, str) else repr(v)[:40])
def test_each_bad_message_alone_and_between_good_ones(message: bytes | None, reason: str) -> None:
    for before, after in (([], []), ([good(1)], [good(2), good(3)])):
        parsed = parse([*before, message, *after])
        assert parsed.rows.num_rows == len(before) + len(after)
        (letter,) = parsed.dead.to_pylist()
        assert letter["reason"] == reason and letter["reason"] in PARSE_REASONS
        assert letter["value"] == message
        assert (letter["log"], letter["partition"], letter["offset"]) == ("clicks", 3, 100 + len(before))
        assert letter["append"] == NOW_US and letter["detail"]


def test_good_rows_are_read_exactly() -> None:
    parsed = parse(list(GOOD))
    assert parsed.dead.num_rows == 0 and parsed.dead.schema == DEAD_LETTER_SCHEMA
    assert parsed.rows.schema == SCHEMA.row_schema
    rows = parsed.rows.to_pylist()
    assert [r["k"] for r in rows] == ["k1", "k2", "pretty", "k4", "k5", "éé", "k7", "escaped"]
    assert (rows[3]["n"], rows[3]["u"]) == ((1 << 63) - 1, (1 << 64) - 1)
    assert (rows[3]["f"], rows[3]["g"], rows[3]["b"], rows[3]["tags"], rows[3]["ids"]) == (
        -0.5,
        0.25,
        False,
        [],
        [-1],
    )
    assert rows[4]["n"] == -(1 << 63) and rows[4]["tags"] == ["Sci-Fi, 1", 'a"b']
    assert rows[4]["at"] == 1_650_866_400_000_000  # 08:00 in Zurich in summer is 06:00 UTC
    assert [r["_time"] for r in rows][5:] == [1_500_000, 1_700_003_599_000_000, 10**15]
    assert [r["_offset"] for r in rows] == list(range(100, 108))
    assert {(r["_log"], r["_partition"], r["_row"], r["_wm"], r["_append"]) for r in rows} == {
        (ACTIONS, 3, 0, NO_TIME_US, NOW_US)
    }
    assert "t" not in rows[0]
    expected = hash_rows([parsed.rows.column("k"), parsed.rows.column("n")])
    assert parsed.rows.column("_hash").to_numpy().tolist() == expected.tolist()
    assert [f.name for f in parsed.rows.schema][-len(ROW_COLUMNS) :] == [f.name for f in ROW_COLUMNS]


@settings(max_examples=60, deadline=None)
@given(picks=st.lists(st.sampled_from([(m, None) for m in GOOD] + BAD), max_size=60))
def test_any_mixture_gives_each_message_its_own_fate(picks: list[tuple[bytes | None, str | None]]) -> None:
    parsed = parse([message for message, _ in picks])
    dead = dict(
        zip(parsed.dead.column("offset").to_pylist(), parsed.dead.column("reason").to_pylist(), strict=True)
    )
    assert dead == {100 + i: reason for i, (_, reason) in enumerate(picks) if reason is not None}
    assert parsed.rows.column("_offset").to_pylist() == [
        100 + i for i, (_, reason) in enumerate(picks) if reason is None
    ]
    alone = [parse([message]).rows for message, reason in picks if reason is None]
    for row, single in zip(parsed.rows.to_pylist(), alone, strict=True):
        assert {**single.to_pylist()[0], "_offset": row["_offset"]} == row


def test_nothing_to_parse() -> None:
    parsed = parse([])
    assert (parsed.rows.num_rows, parsed.dead.num_rows) == (0, 0)
    assert parsed.rows.schema == SCHEMA.row_schema


@pytest.mark.parametrize("beside", [[], [b"{bad"], [b"", good(2)]])
def test_unknown_columns_are_refused_where_asked(beside: list[bytes]) -> None:
    message = good(1, other=5)
    assert parse([message]).dead.num_rows == 0
    dead = parse([message, good(9), *beside], STRICT).dead.to_pylist()
    assert (dead[0]["reason"], dead[0]["offset"]) == ("unknown_column", 100)
    assert "other" in dead[0]["detail"]
    assert parse([good(1, other=None)], STRICT).dead.num_rows == 0


def test_dead_letters_as_json_keep_the_bytes() -> None:
    messages: list[bytes | None] = [b'{"k":"\xff"}', '{"é"'.encode(), None]
    lines = to_json_lines(parse(messages).dead)
    assert [original_value(line) for line in lines] == messages
    assert json.loads(lines[0])["reason"] == "malformed"


# --- Arrow messages -------------------------------------------------------------------------


def arrow_table(count: int = 4) -> pa.Table:
    return pa.table(
        {
            "k": pa.array([f"k{i}" for i in range(count)]),
            "n": pa.array(range(count), pa.int32()),
            "t": pa.array([1_699_999_000 + i for i in range(count)], pa.int64()),
        }
    )


def test_arrow_and_json_messages_side_by_side() -> None:
    parsed = parse([good(7), stream(arrow_table(3)), good(8)])
    assert parsed.dead.num_rows == 0
    places = zip(
        parsed.rows.column("_offset").to_pylist(), parsed.rows.column("_row").to_pylist(), strict=True
    )
    assert list(places) == [(100, 0), (101, 0), (101, 1), (101, 2), (102, 0)]
    assert parsed.rows.column("k").to_pylist() == ["k7", "k0", "k1", "k2", "k8"]
    assert parsed.rows.column("_time").to_pylist()[1] == 1_699_999_000_000_000


def test_the_same_rows_hash_the_same_from_arrow_and_json() -> None:
    rows = parse([good(2), stream(arrow_table(3).slice(2, 1))]).rows
    assert rows.column("_hash")[0] == rows.column("_hash")[1]


def test_a_bad_row_of_an_arrow_message_leaves_the_others() -> None:
    table = arrow_table(4).set_column(0, "k", pa.array(["a", None, "c", "d"]))
    table = table.append_column("f", pa.array([1.0, 2.0, float("nan"), None]))
    parsed = parse([stream(table)])
    assert parsed.rows.column("_row").to_pylist() == [0, 3]
    letters = parsed.dead.to_pylist()
    assert [(x["row"], x["reason"]) for x in letters] == [(1, "missing_column"), (2, "not_finite")]
    again = pa.ipc.open_stream(letters[1]["value"]).read_all()
    assert again.column("k").to_pylist() == ["c"]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (arrow_table().drop_columns(["k"]), "missing_column"),
        (arrow_table().set_column(1, "n", pa.array(["x"] * 4)), "wrong_type"),
        (arrow_table().append_column("k", pa.array(["x"] * 4)), "malformed"),
    ],
)
def test_arrow_messages_refused_whole(table: pa.Table, reason: str) -> None:
    parsed = parse([stream(table), good(1)])
    assert parsed.rows.num_rows == 1
    assert [(x["row"], x["reason"]) for x in parsed.dead.to_pylist()] == [(-1, reason)]


def test_an_arrow_message_cut_anywhere_is_refused_whole() -> None:
    """Also between its schema and its rows, or before its end mark, where Arrow itself sees no fault."""
    whole = stream(arrow_table(5))
    for cut in range(len(whole)):
        parsed = parse([whole[:cut], good(1)])
        assert parsed.rows.num_rows == 1
        assert parsed.dead.column("offset").to_pylist() == [100]
    assert parse([whole]).rows.num_rows == 5


def test_arrow_types_that_convert() -> None:
    table = pa.table(
        {
            "k": pa.array(["a", "b"]).dictionary_encode(),
            "n": pa.array([1, 1 << 63], pa.uint64()),
            "u": pa.array([-1, 5], pa.int16()),
            "f": pa.array([1, 2], pa.int8()),
            "tags": pa.array([["x"], None], pa.large_list(pa.large_string())),
            "t": pa.array([1_600_000_000_000, 1_600_000_000_001], pa.timestamp("ms", "UTC")),
        }
    )
    parsed = parse([stream(table)])
    assert [(x["row"], x["reason"]) for x in parsed.dead.to_pylist()] == [
        (0, "out_of_range"),
        (1, "out_of_range"),
    ]
    fine = table.set_column(1, "n", pa.array([1, 2], pa.uint64())).set_column(
        2, "u", pa.array([1, 5], pa.int16())
    )
    rows = parse([stream(fine)]).rows.to_pylist()
    assert [(r["k"], r["n"], r["u"], r["f"], r["tags"]) for r in rows] == [
        ("a", 1, 1, 1.0, ["x"]),
        ("b", 2, 5, 2.0, None),
    ]
    assert [r["_time"] for r in rows] == [1_600_000_000_000_000, 1_600_000_000_001_000]


# --- times ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("s", 1_600_000_000, 1_600_000_000_000_000),
        ("s", 1_600_000_000.25, 1_600_000_000_250_000),
        ("ms", 1_600_000_000_123, 1_600_000_000_123_000),
        ("us", 1_600_000_000_123_456, 1_600_000_000_123_456),
        ("ns", 1_600_000_000_123_456_789, 1_600_000_000_123_456),
        ("iso", "2020-09-13T12:26:40Z", 1_600_000_000_000_000),
        ("iso", "2020-09-13T14:26:40+02:00", 1_600_000_000_000_000),
        ("iso", "2020-09-13 12:26:40.5", 1_600_000_000_500_000),
    ],
)
def test_units_of_time(unit: Any, value: Any, expected: int) -> None:
    schema = EventSchema(
        columns={"k": Column(type="int64"), "t": Column(type="time", unit=unit)}, time="t", key=("k",)
    )
    message = json.dumps({"k": 1, "t": value}).encode()
    bad = json.dumps({"k": 1, "t": "not a time" if unit == "iso" else 0}).encode()
    assert parse([message], schema).rows.column("_time").to_pylist() == [expected]
    assert parse([message, bad], schema).rows.column("_time").to_pylist() == [expected]


# --- cost -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_bad_rows_are_found_at_a_bounded_cost() -> None:
    """Printed, not asserted: 1 % bad, and all bad, beside a clean batch."""
    count = 65_536
    clean: list[bytes | None] = [good(i, tags=["x", "y"], pad="p" * 100) for i in range(count)]
    some = list(clean)
    kinds = [m for m, _ in BAD if m is not None and len(m) < 1_000]
    for i in range(0, count, 100):
        some[i] = kinds[(i // 100) % len(kinds)]
    for name, messages in (("clean", clean), ("one_percent_bad", some), ("all_bad", [b'{"k":5}'] * count)):
        begin = time.perf_counter()
        parsed = parse(messages)
        print(f"{name} rows_per_s={count / (time.perf_counter() - begin):.0f}")
        assert parsed.rows.num_rows + parsed.dead.num_rows == count
