"""tf.Example messages, beside TensorFlow's own parser of Examples as oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cuckooflow.logs.contract import MessageBatch
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.in_band import ACTIONS
from cuckooflow.transforms.message_format import MessageFormat
from cuckooflow.transforms.parse import Parsed, parse_messages

tf = pytest.importorskip("tensorflow")

TF_EXAMPLE = MessageFormat(kind="tf_example")
COLUMNS = {
    "k": Column(type="string", path="user.id/raw"),
    "n": Column(type="int64"),
    "u": Column(type="uint64", required=False),
    "f": Column(type="float32", required=False),
    "b": Column(type="bool", required=False),
    "tags": Column(type="list<string>", required=False),
    "ids": Column(type="list<int64>", required=False),
    "second": Column(type="int64", path="ids[1]", required=False),
    "t": Column(type="time", unit="s"),
}
SCHEMA = EventSchema(columns=COLUMNS, time="t", key=("k", "n"), message=TF_EXAMPLE)
KINDS = {"string": "bytes_list", "list<string>": "bytes_list", "float32": "float_list"}


def parse(messages: list[bytes | None], schema: EventSchema = SCHEMA) -> Parsed:
    count = len(messages)
    batch = MessageBatch(
        partition=1,
        offsets=np.arange(count, dtype=np.int64),
        append_us=np.full(count, 1_700_000_000_000_000, np.int64),
        values=pa.array(messages, pa.binary()),
        next_offset=count,
    )
    return parse_messages(batch, ACTIONS, "clicks", schema)


def example(**features: Any) -> bytes:
    """A serialised Example; lists by the type of their values, None is a feature without a kind."""
    message = tf.train.Example()
    message.features.SetInParent()
    for name, values in features.items():
        feature = message.features.feature[name.replace("__", "/").replace("_dot_", ".")]
        if values is None:
            feature.SetInParent()
        elif isinstance(values, tuple):  # an empty list of this kind
            getattr(feature, values[0]).SetInParent()
        elif isinstance(values[0], bytes):
            feature.bytes_list.value.extend(values)
        elif isinstance(values[0], float):
            feature.float_list.value.extend(values)
        else:
            feature.int64_list.value.extend(values)
    return message.SerializeToString()


# --- the oracle -----------------------------------------------------------------------------


def expected(message: bytes) -> dict[str, Any] | str:
    """The row, or the reason of its dead letter."""
    if not message:
        return "empty"
    try:
        features = tf.train.Example.FromString(message).features.feature
    except DecodeError:
        return "malformed"
    row: dict[str, Any] = {}
    faults = []
    for name, column in COLUMNS.items():
        path = column.path or name
        feature = features.get(path.removesuffix("[1]"))
        kind = None if feature is None else feature.WhichOneof("kind")
        if kind is None:
            row[name] = None
            continue
        if kind != KINDS.get(column.type, "int64_list"):
            return "wrong_type"
        values = list(getattr(feature, kind).value)
        if kind == "bytes_list":
            try:
                values = [value.decode() for value in values]
            except UnicodeDecodeError:
                faults.append("malformed")
                continue
        if path.endswith("[1]"):
            row[name] = values[1] if len(values) > 1 else None
        elif column.type.startswith("list"):
            row[name] = values
        elif len(values) > 1:
            faults.append("wrong_type")
        else:
            row[name] = values[0] if values else None
            if column.type == "bool" and row[name] is not None:
                if row[name] not in (0, 1):
                    faults.append("wrong_type")
                row[name] = bool(row[name])
    if faults:
        return "refused"
    if any(row[name] is None for name in ("k", "n", "t")):
        return "missing_column"
    if row["u"] is not None and row["u"] < 0:
        return "out_of_range"
    return "bad_time" if row["t"] <= 0 else row


BYTES = st.lists(st.sampled_from([b"a", b"", "é".encode(), b"\xff"]), min_size=1, max_size=2)
INTS = st.lists(st.integers(-1, 3) | st.just((1 << 63) - 1), min_size=1, max_size=3)
FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=2)
EMPTY = st.sampled_from([None, ("bytes_list",), ("int64_list",), ("float_list",)])


def feature(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 24).flatmap(
        lambda n: EMPTY if n == 0 else BYTES | INTS | FLOATS if n == 1 else good
    )


def one(values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([[value] for value in values])


MESSAGE = st.fixed_dictionaries(
    {
        "user_dot_id__raw": feature(one([b"a", b"b", "é".encode()])),
        "n": feature(one([0, 1, -5, (1 << 63) - 1])),
        "t": feature(one([1, 1_600_000_000])),
    },
    optional={
        "u": feature(one([0, 7])),
        "f": feature(one([0.5, -1.25])),
        "b": feature(one([0, 1, 1, 2])),
        "tags": feature(st.lists(st.sampled_from([b"x", b"yy"]), min_size=1, max_size=3)),
        "ids": feature(INTS),
        "other": feature(INTS),
    },
).map(lambda features: example(**features))
BAD = st.sampled_from([b"junk", b"", b"\x0a", b"\x12\x00", b"\xff\xff\xff\xff"]) | MESSAGE.map(
    lambda m: m[:-2]
)


@settings(max_examples=150, deadline=None)
@given(messages=st.lists(st.integers(0, 15).flatmap(lambda n: BAD if n == 0 else MESSAGE), max_size=90))
def test_rows_and_dead_letters_are_what_tensorflow_says(messages: list[bytes]) -> None:
    parsed = parse(list(messages))
    answers = [expected(message) for message in messages]
    dead = {x["offset"]: x for x in parsed.dead.to_pylist()}
    rows = {r["_offset"]: r for r in parsed.rows.to_pylist()}
    assert sorted([*dead, *rows]) == list(range(len(messages)))
    for n, (message, answer) in enumerate(zip(messages, answers, strict=True)):
        if isinstance(answer, str):
            assert dead[n]["value"] == message
            assert dead[n]["reason"] in ((answer,) if answer != "refused" else ("malformed", "wrong_type"))
        else:
            assert {name: rows[n][name] for name in COLUMNS if name != "t"} | {
                "t": rows[n]["_time"] // 1_000_000
            } == answer


def test_a_bad_example_among_many_is_found_wherever_it_lies() -> None:
    good = [example(user_dot_id__raw=[b"a"], n=[i], t=[5]) for i in range(200)]
    for at in (0, 63, 64, 199):
        messages = [*good[:at], b"junk", *good[at:]]
        parsed = parse(list(messages))
        assert parsed.dead.column("offset").to_pylist() == [at]
        assert parsed.rows.column("n").to_pylist() == list(range(200))


def test_what_a_failed_batch_held_does_not_come_with_the_next() -> None:
    """tfx-bsl's decoder keeps the rows that it had when it failed."""
    good = example(user_dot_id__raw=[b"a"], n=[1], t=[5])
    assert parse([good, good, b"junk"]).rows.num_rows == 2
    assert parse([good]).rows.num_rows == 1


EACH = EventSchema(
    columns={
        "r": Column(type="string"),
        "item": Column(type="int64", path="items[]"),
        "score": Column(type="float64", path="scores[]", required=False),
        "t": Column(type="time", unit="s"),
    },
    time="t",
    key=("r", "item"),
    message=TF_EXAMPLE,
)


def test_features_of_an_item_become_rows() -> None:
    parsed = parse(
        [
            example(r=[b"a"], t=[5], items=[1, 2, 3], scores=[0.5, 1.0, 1.5]),
            example(r=[b"b"], t=[5], items=[4]),
            example(r=[b"c"], t=[5], items=[5, 6], scores=[0.5]),
            example(r=[b"d"], t=[5]),
            example(r=[b"e"], t=[5], items=("int64_list",)),
            example(t=[5], items=[7, 8]),
        ],
        EACH,
    )
    columns = [parsed.rows.column(n).to_pylist() for n in ("_offset", "_row", "r", "item", "score")]
    assert list(zip(*columns, strict=True)) == [
        (0, 0, "a", 1, 0.5),
        (0, 1, "a", 2, 1.0),
        (0, 2, "a", 3, 1.5),
        (1, 0, "b", 4, None),
    ]
    letters = [(x["offset"], x["row"], x["reason"], x["value"] is None) for x in parsed.dead.to_pylist()]
    assert letters == [
        (2, -1, "wrong_type", False),
        (3, -1, "missing_column", False),
        (5, 0, "missing_column", False),
        (5, 1, "missing_column", True),
    ]
    assert parsed.left_out == {"no_items": 1}


def test_other_actions_are_left_out_though_they_would_not_decode() -> None:
    schema = EventSchema(
        columns={
            "k": Column(type="string"),
            "what": Column(type="string"),
            "t": Column(type="time", unit="s"),
        },
        time="t",
        key=("k",),
        action_type="what",
        message=MessageFormat(kind="tf_example", only=("click",)),
    )
    others = [
        example(k=[7], what=[b"scroll"], t=[5]),
        example(k=[b"\xff"], what=[b"view"], t=[5]),
        example(k=[b"a", b"b"], what=[b"view"]),
        example(what=[b"view"]),
    ]
    good = example(k=[b"a"], what=[b"click"], t=[5])
    parsed = parse([good, *others, good, example(k=[7], what=[b"click"], t=[5])], schema)
    assert parsed.left_out == {"other_action": len(others)}
    assert parsed.rows.column("_offset").to_pylist() == [0, 5]
    assert [(x["offset"], x["reason"]) for x in parsed.dead.to_pylist()] == [(6, "wrong_type")]


@pytest.mark.parametrize(
    "changes",
    [{"f": Column(type="float64", path="n")}, {"tags": Column(type="list<string>", path="tags[0]")}],
)
def test_columns_that_contradict_are_refused(changes: dict[str, Column]) -> None:
    with pytest.raises(ValidationError, match="feature"):
        EventSchema(columns={**COLUMNS, **changes}, time="t", key=("k", "n"), message=TF_EXAMPLE)
