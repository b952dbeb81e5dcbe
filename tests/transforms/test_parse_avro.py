"""Avro messages, beside fastavro's reader as oracle."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cuckooflow.logs.contract import MessageBatch
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.in_band import IMPRESSIONS
from cuckooflow.transforms.message_format import MessageFormat
from cuckooflow.transforms.parse import Parsed, parse_messages

ITEM = {
    "type": "record",
    "name": "Item",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "note", "type": ["string", "null"]},
        {"name": "price", "type": ["null", {"type": "record", "name": "Price", "fields": [{"name": "amount", "type": "float"}]}]},
        {"name": "parent", "type": ["null", "Item"]},
    ],
}  # fmt: skip
SCHEMA_JSON: dict[str, Any] = {
    "type": "record",
    "name": "Request",
    "namespace": "shop",
    "fields": [
        {"name": "skipped", "type": {"type": "map", "values": ["null", "double", {"type": "array", "items": "int"}]}},
        {"name": "id", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "surface", "type": {"type": "enum", "name": "Surface", "symbols": ["HOME", "SEARCH"]}},
        {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 3}},
        {"name": "ok", "type": "boolean"},
        {"name": "raw", "type": "bytes"},
        {"name": "items", "type": {"type": "array", "items": ITEM}},
        {"name": "scores", "type": ["null", {"type": "array", "items": "double"}]},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "rank", "type": ["null", "int"]},
    ],
}  # fmt: skip
WRITER = fastavro.parse_schema(SCHEMA_JSON)
FORMAT = MessageFormat(kind="avro", avro_schema=json.dumps(SCHEMA_JSON), explode="items")
COLUMNS = {
    "request": Column(type="string", path="id"),
    "surface": Column(type="string"),
    "ok": Column(type="bool"),
    "rank": Column(type="int64", required=False),
    "second": Column(type="float64", path="scores[1]", required=False),
    "tags": Column(type="list<string>"),
    "item": Column(type="int64", path="items[].id"),
    "note": Column(type="string", path="items[].note", required=False),
    "price": Column(type="float64", path="items[].price.amount", required=False),
    "t": Column(type="time", unit="ms", path="at"),
}
SCHEMA = EventSchema(columns=COLUMNS, time="t", key=("request", "item"), message=FORMAT)


def parse(messages: list[bytes | None], schema: EventSchema = SCHEMA) -> Parsed:
    count = len(messages)
    batch = MessageBatch(
        partition=0,
        offsets=np.arange(count, dtype=np.int64),
        append_us=np.full(count, 1_700_000_000_000_000, np.int64),
        values=pa.array(messages, pa.binary()),
        next_offset=count,
    )
    return parse_messages(batch, IMPRESSIONS, "shown", schema)


def write(record: dict[str, Any], schema: Any = WRITER) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, record)
    return stream.getvalue()


# --- the oracle -----------------------------------------------------------------------------


def expected(message: bytes) -> list[dict[str, Any]] | None:
    """The rows of a message by fastavro, None where it is no record of the schema."""
    stream = io.BytesIO(message)
    try:
        record = fastavro.schemaless_reader(stream, WRITER, None)
    except Exception:
        return None
    if stream.tell() != len(message):
        return None
    assert isinstance(record, dict)
    scores = record["scores"] or []
    return [
        {
            "request": record["id"],
            "surface": record["surface"],
            "ok": record["ok"],
            "rank": record["rank"],
            "second": scores[1] if len(scores) > 1 else None,
            "tags": record["tags"],
            "item": item["id"],
            "note": item["note"],
            "price": None if item["price"] is None else item["price"]["amount"],
            "t": round(record["at"].timestamp() * 1_000),
        }
        for item in record["items"]
    ]


INT = st.integers(-(1 << 31), (1 << 31) - 1)
LONG = st.integers(-(1 << 63), (1 << 63) - 1)
FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)
ITEMS = st.recursive(
    st.none(),
    lambda parent: st.fixed_dictionaries(
        {
            "id": LONG,
            "note": st.none() | st.text(max_size=4),
            "price": st.none() | st.fixed_dictionaries({"amount": FLOAT}),
            "parent": parent,
        }
    ),
    max_leaves=3,
).filter(lambda item: item is not None)
RECORD = st.fixed_dictionaries(
    {
        "skipped": st.dictionaries(
            st.text(max_size=3), st.none() | FLOAT | st.lists(INT, max_size=3), max_size=3
        ),
        "id": st.text(max_size=6),
        "at": st.integers(1, 1_700_000_000_000),
        "surface": st.sampled_from(["HOME", "SEARCH"]),
        "hash": st.binary(min_size=3, max_size=3),
        "ok": st.booleans(),
        "raw": st.binary(max_size=5),
        "items": st.lists(ITEMS, max_size=4),
        "scores": st.none() | st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
        "tags": st.lists(st.text(max_size=3), max_size=3),
        "rank": st.none() | INT,
    }
)
DAMAGE = st.sampled_from(["cut", "more", "flip"])


@st.composite
def message(draw: st.DrawFn) -> bytes:
    whole = write(draw(RECORD))
    if draw(st.integers(0, 9)):
        return whole
    damage, at = draw(DAMAGE), draw(st.integers(0, len(whole) - 1))
    if damage == "cut":
        return whole[:at]
    if damage == "more":
        return whole + b"\x00"
    return whole[:at] + bytes([whole[at] ^ (1 << draw(st.integers(0, 7)))]) + whole[at + 1 :]


#: A key past U+10FFFF in a map that no column reads.
NO_TEXT = b"\x02\x08\xf4\x90\x80\x80\x00\x00\x00\x02" + bytes(10)


@settings(max_examples=200, deadline=None)
@example(messages=[NO_TEXT])
@given(messages=st.lists(message(), max_size=30))
def test_rows_and_dead_letters_are_what_fastavro_says(messages: list[bytes]) -> None:
    parsed = parse(list(messages))
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in parsed.rows.to_pylist():
        assert row["_row"] == len(rows.setdefault(row["_offset"], []))
        rows[row["_offset"]].append(
            {name: row[name] for name in COLUMNS if name != "t"} | {"t": row["_time"] // 1000}
        )
    dead = {x["offset"]: x for x in parsed.dead.to_pylist()}
    for n, one in enumerate(messages):
        answer = expected(one)
        if answer is None:
            assert dead[n]["reason"] in ("malformed", "empty") and dead[n]["value"] == one and n not in rows
        elif n in dead:
            # Stricter than fastavro: a number that does not fit its type, a boolean of 7, a time before 1970.
            assert dead[n]["value"] == one and was_damaged(one)
        else:
            assert rows.get(n, []) == answer


def was_damaged(one: bytes) -> bool:
    """Whether fastavro, too, would write what it read in another way."""
    record = fastavro.schemaless_reader(io.BytesIO(one), WRITER, None)
    assert isinstance(record, dict)
    times = record["at"].timestamp() * 1_000
    try:
        return write(record) != one or not 0 < times <= 1_700_003_600_000
    except (ValueError, OverflowError):
        return True


def good(**more: Any) -> dict[str, Any]:
    item = {"id": 7, "note": None, "price": None, "parent": None}
    return {
        "skipped": {}, "id": "r", "at": 5, "surface": "HOME", "hash": b"abc", "ok": True, "raw": b"",
        "items": [item], "scores": None, "tags": [], "rank": None, **more,
    }  # fmt: skip


def test_blocks_of_any_size_with_and_without_their_bytes() -> None:
    """A writer may cut a list into blocks, and say how many bytes each has."""
    longs = {"name": "k", "type": {"type": "array", "items": "long"}}
    schema = {"type": "record", "name": "R", "fields": [longs, {"name": "t", "type": "long"}]}
    spec = EventSchema(
        columns={"k": Column(type="int64", path="k[]"), "t": Column(type="time", unit="s")},
        time="t",
        key=("k",),
        message=MessageFormat(kind="avro", avro_schema=json.dumps(schema), explode="k"),
    )
    # Zigzag: 2 is one, 4 is two; 1 is minus one, 3 is minus two.
    messages = [b"\x02\x0a\x02\x0c\x00\x0a", b"\x03\x04\x0a\x0c\x02\x0e\x00\x0a", b"\x00\x0a"]
    parsed = parse(list(messages), spec)
    assert list(zip(*(parsed.rows.column(n).to_pylist() for n in ("_offset", "_row", "k")), strict=True)) == [
        (0, 0, 5), (0, 1, 6), (1, 0, 5), (1, 1, 6), (1, 2, 7),
    ]  # fmt: skip
    assert parsed.left_out == {"no_items": 1} and parsed.dead.num_rows == 0


def test_a_long_list_is_read_too_and_its_neighbours_beside_it() -> None:
    item = good()["items"][0]
    many = write(good(id="many", items=[{**item, "id": n} for n in range(2_000)]))
    parsed = parse([write(good(id="a")), many, write(good(id="b")), many[:-40]])
    assert parsed.rows.column("request").to_pylist() == ["a", *["many"] * 2_000, "b"]
    assert parsed.rows.column("item").to_pylist()[1:-1] == list(range(2_000))
    assert [(x["offset"], x["row"]) for x in parsed.dead.to_pylist()] == [(3, -1)]


def test_a_message_that_claims_more_than_it_holds_is_refused_at_once() -> None:
    huge = b"\x00\x02r\x0a\x00abc\x01\x00" + b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01" + b"\x00" * 20
    for message_ in (huge, b"\x00" + b"\xfe" * 9 + b"\x01", b"\x80" * 40):
        parsed = parse([write(good()), message_])
        assert parsed.rows.num_rows == 1
        assert [x["reason"] for x in parsed.dead.to_pylist()] == ["malformed"]


def test_a_confluent_header_is_looked_at() -> None:
    changes = {"confluent_header": True, "schema_id": 258}
    schema = SCHEMA.model_copy(update={"message": FORMAT.model_copy(update=changes)})
    body = write(good())
    messages = [
        b"\x00" + struct.pack(">I", 258) + body,
        b"\x00" + struct.pack(">I", 7) + body,
        body,
        b"\x00\x00",
    ]
    parsed = parse(list(messages), schema)
    assert parsed.rows.column("_offset").to_pylist() == [0]
    letters = parsed.dead.to_pylist()
    assert [x["value"] for x in letters] == messages[1:]
    assert "258" in letters[0]["detail"] and "7" in letters[0]["detail"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": Column(type="int64", path="ranking", required=False)}, "no field 'ranking'.*rank"),
        ({"rank": Column(type="string", required=False)}, "int in the Avro schema"),
        ({"rank": Column(type="string", path="items[].price", required=False)}, "record in the Avro schema"),
        ({"rank": Column(type="string", path="skipped.a", required=False)}, "skipped is map"),
        ({"rank": Column(type="string", path="id.x", required=False)}, "id is string"),
        ({"rank": Column(type="string", path="id[0]", required=False)}, "no array"),
        ({"rank": Column(type="string", path="raw", required=False)}, "bytes"),
        ({"tags": Column(type="list<int64>")}, "string in the Avro schema"),
    ],
)
def test_columns_that_the_schema_cannot_give_are_refused(changes: dict[str, Column], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        EventSchema(columns={**COLUMNS, **changes}, time="t", key=("request", "item"), message=FORMAT)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ('"string"', "of a record"),
        ('{"type": "record", "name": "R", "fields": [{"name": "a", "type": "nothing"}]}', "not an Avro schema"),
        ('{"type": "record", "name": "R", "fields": [{"name": "a", "type": {"type": "array", "items": "null"}}]}', "no bytes"),
    ],
)  # fmt: skip
def test_what_is_no_usable_schema(text: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MessageFormat(kind="avro", avro_schema=text)


def test_a_union_of_several_types_can_be_passed_over_but_not_read() -> None:
    schema = {"type": "record", "name": "R", "fields": [
        {"name": "k", "type": "string"}, {"name": "either", "type": ["long", "null", "string"]}, {"name": "t", "type": "long"},
    ]}  # fmt: skip
    columns = {"k": Column(type="string"), "t": Column(type="time", unit="s")}
    message_ = MessageFormat(kind="avro", avro_schema=json.dumps(schema))
    plain = EventSchema(columns=columns, time="t", key=("k",), message=message_)
    writer = fastavro.parse_schema(schema)
    values = [write({"k": "a", "either": either, "t": 5}, writer) for either in (3, None, "text")]
    assert parse(list(values), plain).rows.num_rows == 3
    with pytest.raises(ValidationError, match="union of long, null, string"):
        EventSchema(
            columns={**columns, "either": Column(type="int64", required=False)},
            time="t",
            key=("k",),
            message=message_,
        )
