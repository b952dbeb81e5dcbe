"""Values by path, lists that become rows, and action types that nobody wants; beside the json module as oracle."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cuckooflow.logs.contract import MessageBatch
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.dead_letters import original_value, to_json_lines
from cuckooflow.transforms.in_band import ACTIONS
from cuckooflow.transforms.message_format import MessageFormat
from cuckooflow.transforms.parse import Parsed, parse_messages

NOW_US = 1_700_000_000_000_000
PATHS = {
    "request": "request.id",
    "user": "user.id",
    "age": "user.age",
    "tag": "tags[1]",
    "item": "shown.items[].id",
    "price": "shown.items[].price.amount",
    "at": "shown.items[].places[0]",
    "t": "time",
}
COLUMNS = {
    "request": Column(type="string", path=PATHS["request"]),
    "user": Column(type="string", path=PATHS["user"], required=False),
    "age": Column(type="int64", path=PATHS["age"], required=False),
    "tag": Column(type="string", path=PATHS["tag"], required=False),
    "item": Column(type="uint64", path=PATHS["item"]),
    "price": Column(type="float64", path=PATHS["price"], required=False),
    "at": Column(type="int64", path=PATHS["at"], required=False),
    "t": Column(type="time", unit="ms", path=PATHS["t"]),
}
SCHEMA = EventSchema(
    columns=COLUMNS, time="t", key=("request", "item"), message=MessageFormat(explode="shown.items")
)


def parse(messages: list[bytes | None], schema: EventSchema = SCHEMA) -> Parsed:
    batch = MessageBatch(
        partition=3,
        offsets=np.arange(100, 100 + len(messages), dtype=np.int64),
        append_us=np.full(len(messages), NOW_US, np.int64),
        values=pa.array(messages, pa.binary()),
        next_offset=100 + len(messages),
    )
    return parse_messages(batch, ACTIONS, "clicks", schema)


# --- the oracle: plain dicts ----------------------------------------------------------------


class Wrong(Exception):
    pass


def walk(value: Any, path: str) -> Any:
    for step in path.replace("[", ".[").split("."):
        if value is None or step == "":
            continue
        if step.startswith("["):
            if not isinstance(value, list):
                raise Wrong("wrong_type")
            at = int(step[1:-1])
            value = value[at] if at < len(value) else None
        else:
            if not isinstance(value, dict):
                raise Wrong("wrong_type")
            value = value.get(step)
    return value


def typed(value: Any, column: Column) -> Any:
    """The value as its column has it."""
    kind = "float64" if column.type == "time" else column.type
    if kind == "string":
        fits = isinstance(value, str)
    elif kind == "float64":
        fits = type(value) in (int, float)
    else:
        fits = type(value) is int
    if not fits:
        raise Wrong("wrong_type")
    if kind == "uint64" and not 0 <= value < 1 << 64:
        raise Wrong("out_of_range")
    if kind == "int64" and not -(1 << 63) <= value < 1 << 63:
        raise Wrong("out_of_range")
    return value


def expected(message: bytes) -> tuple[list[tuple[int, Any]], bool]:
    """(item, its values or its reason) of a message, -1 for the whole; and whether it has no items."""
    try:
        body = json.loads(message)
    except ValueError:
        return [(-1, "malformed")], False
    try:
        items = walk(body, "shown.items")
        if items is None:
            raise Wrong("missing_column")
        if not isinstance(items, list):
            raise Wrong("wrong_type")
    except Wrong as error:
        return [(-1, str(error))], False
    found: list[tuple[int, Any]] = []
    for i, item in enumerate(items):
        try:
            row: dict[str, Any] = {}
            for name, column in COLUMNS.items():
                path = PATHS[name]
                inner = path.removeprefix("shown.items[]")
                value = walk(item, inner.lstrip(".")) if inner != path else walk(body, path)
                row[name] = None if value is None else typed(value, column)
            missing = [n for n, c in COLUMNS.items() if c.required and row[n] is None]
            if missing:
                raise Wrong("missing_column")
            if not 0 < row["t"] * 1_000 < 1 << 61:
                raise Wrong("bad_time")
            found.append((i, row))
        except Wrong as error:
            found.append((i, str(error)))
    return found, not items


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A good value nearly always, else one of another kind."""
    other = st.sampled_from([None, 5, -1, 1 << 64, 2.5, "text", True, [], [1], {}, {"id": 5}])
    return st.integers(0, 19).flatmap(lambda n: other if n == 0 else good)


ITEM = st.fixed_dictionaries(
    {"id": mostly(st.integers(0, 1 << 63))},
    optional={
        "price": mostly(st.fixed_dictionaries({"amount": mostly(st.floats(-1e9, 1e9) | st.integers(0, 9))})),
        "places": mostly(st.lists(mostly(st.integers(-5, 5)), max_size=3)),
        "other": st.sampled_from([1, "x", {"id": 7}]),
    },
)
BODY = st.fixed_dictionaries(
    {
        "request": mostly(st.fixed_dictionaries({"id": mostly(st.text(max_size=5))})),
        "time": mostly(st.integers(1, 1_600_000_000_000)),
        "shown": mostly(st.fixed_dictionaries({"items": mostly(st.lists(mostly(ITEM), max_size=4))})),
    },
    optional={
        "user": mostly(
            st.fixed_dictionaries({}, optional={"id": mostly(st.text()), "age": mostly(st.integers(0, 99))})
        ),
        "tags": mostly(st.lists(mostly(st.text(max_size=3)), max_size=3)),
        "other": st.sampled_from([1, "x", {"user": {"id": 7}}]),
    },
)
MESSAGE = st.integers(0, 29).flatmap(
    lambda n: st.just(b'{"request": {"id": ') if n == 0 else BODY.map(lambda b: json.dumps(b).encode())
)


@settings(max_examples=300, deadline=None)
@given(messages=st.lists(MESSAGE, max_size=40))
def test_rows_and_dead_letters_are_what_plain_dicts_say(messages: list[bytes]) -> None:
    parsed = parse(list(messages))
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    dead: dict[tuple[int, int], str] = {}
    without_items = 0
    for n, message in enumerate(messages):
        found, empty = expected(message)
        without_items += empty
        for item, answer in found:
            if isinstance(answer, str):
                dead[100 + n, item] = answer
            else:
                rows[100 + n, item] = answer
    got = {(r["_offset"], r["_row"]): r for r in parsed.rows.to_pylist()}
    assert list(got) == sorted(rows)
    for place, row in rows.items():
        time_ms = row.pop("t")
        assert {name: got[place][name] for name in row} == row
        assert abs(got[place]["_time"] - time_ms * 1000) <= 1
    letters = parsed.dead.to_pylist()
    assert [(x["offset"], x["row"]) for x in letters] == sorted(dead)
    for letter in letters:
        assert (letter["reason"], letter["partition"]) == (dead[letter["offset"], letter["row"]], 3)
    assert parsed.left_out.get("no_items", 0) == without_items
    check_bytes(letters, messages)


def check_bytes(letters: list[dict[str, Any]], messages: list[bytes]) -> None:
    """The first dead letter of a message has its bytes, the others of the same message do not repeat them."""
    brought = Counter(x["offset"] for x in letters if x["value"] is not None)
    assert brought == Counter({x["offset"] for x in letters})
    for letter in letters:
        assert letter["value"] in (None, messages[letter["offset"] - 100])


def test_bytes_come_once_a_message_and_survive_json() -> None:
    message = json.dumps(
        {"request": {"id": "r"}, "time": 5, "shown": {"items": [{}, {"id": 1}, {}]}}
    ).encode()
    parsed = parse([b" " + message])
    lines = to_json_lines(parsed.dead)
    assert [original_value(line) for line in lines] == [b" " + message, None]
    assert [json.loads(line)["row"] for line in lines] == [0, 2]
    assert [json.loads(line)["reason"] for line in lines] == ["missing_column"] * 2
    assert parsed.rows.column("_row").to_pylist() == [1]


def test_the_same_documents_as_arrow_messages() -> None:
    """Struct and list columns of an Arrow message are walked by the same paths."""
    bodies = [
        {"request": {"id": f"r{n}"}, "time": 1_000 + n, "shown": {"items": [{"id": n, "places": [7]}] * n}}
        for n in range(4)
    ]
    table = pa.Table.from_pylist(bodies)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    arrow, plain = parse([sink.getvalue().to_pybytes()]), parse([json.dumps(b).encode() for b in bodies])
    places = ("_offset", "_row")
    assert arrow.dead.num_rows == 0 and arrow.left_out == {"no_items": 1}
    assert arrow.rows.column("_row").to_pylist() == list(range(6))
    assert arrow.rows.drop_columns(list(places)).equals(plain.rows.drop_columns(list(places)))


def test_a_list_of_plain_values_explodes() -> None:
    schema = EventSchema(
        columns={
            "r": Column(type="string"),
            "item": Column(type="string", path="items[]"),
            "t": Column(type="time", unit="s"),
        },
        time="t",
        key=("r", "item"),
        message=MessageFormat(explode="items"),
    )
    parsed = parse([b'{"r":"a","t":9,"items":["x",null,"y"]}', b'{"r":"b","t":9,"items":[]}'], schema)
    assert parsed.rows.column("item").to_pylist() == ["x", "y"]
    assert parsed.rows.column("_row").to_pylist() == [0, 2]
    assert [(x["row"], x["reason"]) for x in parsed.dead.to_pylist()] == [(1, "missing_column")]
    assert parsed.left_out == {"no_items": 1}


def test_what_nobody_declared_is_refused_at_any_depth_where_asked() -> None:
    strict = SCHEMA.model_copy(update={"unknown_columns": "dead_letter"})
    fine = {"request": {"id": "r"}, "time": 5, "shown": {"items": [{"id": 1}]}}
    for place in (
        {"x": 1},
        {"request": {"id": "r", "x": 1}},
        {"shown": {"items": [{"id": 1}, {"id": 2, "x": 1}]}},
    ):
        message = json.dumps({**fine, **place}).encode()
        for beside in ([], [b'{"cut":']):
            dead = parse([json.dumps(fine).encode(), message, *beside], strict).dead.to_pylist()
            assert (dead[0]["reason"], dead[0]["offset"], dead[0]["row"]) == ("unknown_column", 101, -1)
            assert "x" in dead[0]["detail"]
        assert parse([message]).dead.num_rows == 0


# --- unwanted action types ------------------------------------------------------------------

DONE = EventSchema(
    columns={
        "k": Column(type="string"),
        "n": Column(type="int64"),
        "what": Column(type="string"),
        "t": Column(type="time", unit="s"),
    },
    time="t",
    key=("k",),
    action_type="what",
    message=MessageFormat(only=("click", "like")),
)


def done(what: Any, **more: Any) -> bytes:
    return json.dumps({"k": "a", "n": 1, "t": 5, "what": what, **more}).encode()


@pytest.mark.parametrize("beside", [[], [b"{", done("like", n=1.5)], [done("click", n="x")]])
def test_other_actions_are_counted_and_left_out_before_they_are_validated(beside: list[bytes]) -> None:
    others = [done("scroll"), done("scroll", n=None), done("view", n="text"), done("scroll", t=-1)]
    parsed = parse([done("click"), *others, done("like"), done(None), done(5), *beside], DONE)
    assert parsed.rows.column("what").to_pylist() == ["click", "like"]
    assert parsed.left_out == {"other_action": len(others)}
    reasons = parsed.dead.column("reason").to_pylist()
    assert reasons[:2] == ["missing_column", "wrong_type"] and len(reasons) == 2 + len(beside)


def test_other_actions_of_an_arrow_message_are_left_out_too() -> None:
    table = pa.table(
        {
            "k": ["a", None, "c"],
            "n": [1, 2, 3],
            "what": pa.array(["click", "scroll", "like"]).dictionary_encode(),
            "t": [5, 5, 0],
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    parsed = parse([sink.getvalue().to_pybytes()], DONE)
    assert parsed.left_out == {"other_action": 1}
    assert parsed.rows.column("_row").to_pylist() == [0]
    (letter,) = parsed.dead.to_pylist()
    assert (letter["row"], letter["reason"]) == (2, "bad_time")
    assert pa.ipc.open_stream(letter["value"]).read_all().column("k").to_pylist() == ["c"]


# --- what can be declared -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"item": Column(type="string", path="a..b")}, "no path"),
        ({"item": Column(type="string", path="[0]")}, "no path"),
        ({"item": Column(type="string", path="a[].b[].c")}, "twice"),
        ({"item": Column(type="string", path="other[].id")}, "shown.items is exploded"),
        ({"user": Column(type="string", path="user", required=False)}, "user for different things"),
        ({"age": Column(type="int64", path="user.id", required=False)}, "user.id for different things"),
        ({"tag": Column(type="string", path="tags.x", required=False)}, None),
        ({"tag": Column(type="list<string>", path="shown.items", required=False)}, "shown.items"),
    ],
)
def test_paths_that_contradict_are_refused(changes: dict[str, Column], words: str | None) -> None:
    def build() -> EventSchema:
        return EventSchema(
            columns={**COLUMNS, **changes},
            time="t",
            key=("request", "item"),
            message=MessageFormat(explode="shown.items"),
        )

    if words is None:
        build()
    else:
        with pytest.raises(ValidationError, match=words):
            build()


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "avro"},
        {"avro_schema": "{}"},
        {"confluent_header": True},
        {"schema_id": 5},
        {"explode": "items[]"},
        {"explode": ".items"},
        {"kind": "tf_example", "explode": "items"},
        {"only": ()},
    ],
)
def test_formats_that_contradict_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MessageFormat(**wrong)


def test_a_list_that_no_column_goes_through_is_refused() -> None:
    with pytest.raises(ValidationError, match="no column has a path through it"):
        EventSchema(
            columns={"k": Column(type="string"), "t": Column(type="time", unit="s")},
            time="t",
            key=("k",),
            message=MessageFormat(explode="items"),
        )
