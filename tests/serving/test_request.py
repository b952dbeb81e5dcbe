"""Reading requests: formats, types, and messages that say what is wrong."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckooflow.errors import BadRequest
from cuckooflow.serving import columns as column_decoding
from cuckooflow.serving.columns import decode_column
from cuckooflow.serving.request import parse_request, request_batch, response_body
from cuckooflow.serving.times import TimeFormat

COLUMNS = ("user_id", "genres")
TYPES = {
    "user_id": "string",
    "genres": "list<string>",
    "age": "float64",
    "shown": "time[ms]",
    "time": "time[s]",
}
EVENT_COLUMNS = ("request_id", "time")


def parse(top: object, columns: tuple[str, ...] = COLUMNS):
    return parse_request(json.dumps(top).encode(), columns, rows_max=4)


def test_rows_and_columns_say_the_same() -> None:
    rows = parse({"instances": [{"user_id": "a"}, {"genres": ["x"]}]})
    columns = parse({"inputs": {"user_id": ["a", None], "genres": [None, ["x"]]}})
    assert rows.columns == columns.columns
    assert (rows.columnar, columns.columnar) == (False, True)
    assert rows.num_rows == columns.num_rows == 2


def test_a_model_of_one_column_takes_bare_values() -> None:
    for key in ("instances", "inputs"):
        assert parse({key: ["a", "b"]}, ("user_id",)).columns == {"user_id": ["a", "b"]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "expected a JSON object"),
        (b"[]", "expected a JSON object"),
        (b"\xff\xfe", "expected a JSON object"),
        (b'{"instances": [{"user_id": NaN}]}', "NaN is not a JSON value"),
        (b'{"instances": [{"age": -Infinity}]}', "-Infinity is not a JSON value"),
        (b"[" * 100_000, "expected a JSON object"),
        (b'{"instances": ' + b"9" * 5000 + b"}", "expected a JSON object"),
        (b"{}", "either 'instances'"),
        (b'{"instances": [1], "inputs": [1]}', "both or neither"),
        (b'{"instance": [{"user_id": "a"}]}', "received also 'instance'"),
        (b'{"instances": []}', "at least one row"),
        (b'{"instances": {"user_id": "a"}}', "expected a list"),
        (b'{"instances": ["a"]}', "a model of one column"),
        (b'{"instances": [{"user_id": "a"}, "b"]}', "row 1 is none"),
        (b'{"instances": [{}, {}, {}, {}, {}]}', "at most 4 rows, received 5"),
        (b'{"inputs": {"user_id": ["a", "b"], "genres": []}}', "lists of one length"),
        (b'{"inputs": {"user_id": "a"}}', "lists of values"),
        (b'{"inputs": {"user_id": []}}', "at least one row"),
        (b'{"inputs": {}}', "expected an object"),
        (b'{"instances": [{}], "signature_name": "other"}', "signature serving_default"),
        (b'{"instances": [{}], "log_impressions": "yes"}', "true or false"),
        (b'{"instances": [{}], "request_id": ""}', "a string of 1 to 256"),
    ],
    ids=lambda value: value[:40].decode("latin1") if isinstance(value, bytes) else None,
)
def test_a_wrong_body_is_refused_with_its_reason(body: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        parse_request(body, COLUMNS, rows_max=4)


def test_rows_with_ever_other_names_are_bounded() -> None:
    instances = [{f"c{row}": 1} for row in range(2_500)]
    with pytest.raises(BadRequest, match="4000000 values"):
        parse_request(json.dumps({"instances": instances}).encode(), COLUMNS, rows_max=10_000)


def test_a_batch_has_the_declared_types_and_the_event_time() -> None:
    request = parse(
        {
            "instances": [
                {"user_id": "a", "age": 3, "shown": 1.5, "time": 9, "request_id": "r"},
                {"genres": []},
            ]
        }
    )
    batch = request_batch(request, COLUMNS, TYPES, EVENT_COLUMNS, [7, 8])
    assert batch.to_pydict() == {
        "user_id": ["a", None],
        "age": [3.0, None],
        "shown": [1500, None],
        "genres": [None, []],
        "_time": [7, 8],
    }
    assert str(batch.schema.field("genres").type) == "list<item: string>"


def test_a_misspelt_column_is_named() -> None:
    request = parse({"instances": [{"usr_id": "a"}]})
    with pytest.raises(BadRequest, match=r"unknown columns 'usr_id'; known are age, genres, request_id"):
        request_batch(request, COLUMNS, TYPES, EVENT_COLUMNS, [0])
    # Without declared types there is nothing to compare with.
    assert request_batch(request, COLUMNS, {}, EVENT_COLUMNS, [0]).schema.names == ["_time"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("string", 7),
        ("string", "\ud800"),
        ("int64", "7"),
        ("int64", 7.0),
        ("int64", True),
        ("int64", 1 << 63),
        ("uint64", -1),
        ("uint64", 1 << 64),
        ("float64", "1"),
        ("float64", True),
        ("float64", math.inf),
        ("float64", 10**400),
        ("float32", 1e39),
        ("bool", 1),
        ("list<string>", "a"),
        ("list<string>", [1]),
        ("list<int64>", [1.5]),
        ("time[s]", "2022-04-25"),
        ("time[s]", 0),
        ("time[s]", 1_650_000_000_000),
        ("time[us]", 0.5),
        ("time[iso]", 7),
        ("time[iso]", "yesterday"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused_with_its_place(kind: str, value: object) -> None:
    with pytest.raises(BadRequest, match=r"row 1, column 'c': expected"):
        decode_column("c", kind, [None, value])


@pytest.mark.parametrize("kind", ["decimal", "time", "time[h]", "time[iso,Atlantis]", "time[iso,../x]"])
def test_a_type_that_this_version_does_not_know_is_named(kind: str) -> None:
    with pytest.raises(BadRequest, match="column 'c'"):
        decode_column("c", kind, ["x"])


@pytest.mark.parametrize(
    ("values", "arrow"),
    [
        (["a", None], "string"),
        ([1, -(1 << 63)], "int64"),
        ([(1 << 64) - 1, 0], "uint64"),
        ([1, 2.5], "double"),
        ([True], "bool"),
        ([["a"], []], "list<item: string>"),
        ([[1]], "list<item: int64>"),
        ([None], "null"),
    ],
    ids=str,
)
def test_types_are_inferred_where_none_are_declared(values: list[object], arrow: str) -> None:
    column = decode_column("c", None, values)
    assert str(column.type) == arrow
    assert column.to_pylist() == values


@pytest.mark.parametrize("values", [[1, "a"], [{"a": 1}], [["a", 1]], [[1.5]]], ids=str)
def test_values_without_a_common_type_are_refused(values: list[object]) -> None:
    with pytest.raises(BadRequest, match="values of one type"):
        decode_column("c", None, values)


@pytest.mark.parametrize(
    ("spelled", "value", "us"),
    [
        ("time[s]", 1_650_844_800, 1_650_844_800_000_000),
        ("time[s]", 1_650_844_800.25, 1_650_844_800_250_000),
        ("time[ms]", 1_650_844_800_001, 1_650_844_800_001_000),
        ("time[us]", 1_650_844_800_000_001, 1_650_844_800_000_001),
        ("time[ns]", 1_650_844_800_000_001_999, 1_650_844_800_000_001),
        ("time[iso]", "2022-04-25T00:00:00Z", 1_650_844_800_000_000),
        ("time[iso]", "2022-04-25T00:00:00", 1_650_844_800_000_000),
        ("time[iso,Asia/Shanghai]", "2022-04-25T08:00:00", 1_650_844_800_000_000),
        ("time[iso,Asia/Shanghai]", "2022-04-25T02:00:00+02:00", 1_650_844_800_000_000),
    ],
)
def test_times(spelled: str, value: object, us: int) -> None:
    assert TimeFormat.from_type(spelled).to_us(value) == us


@given(us=st.integers(1, 4_000_000_000_000_000), unit=st.sampled_from(["s", "ms", "us", "ns", "iso"]))
def test_now_is_written_as_the_log_reads_it(us: int, unit: str) -> None:
    format_ = TimeFormat(unit)
    us = max(us, 1_000)  # a time of zero is none
    exact = us // 1000 * 1000 if unit == "ms" else us
    assert format_.to_us(format_.from_us(us)) == exact


def test_answers_of_one_label_are_numbers_and_of_several_are_named() -> None:
    one = {"like": np.array([0.5, 0.25])}
    two = {"click": np.array([1.0, 0.0]), "like": np.array([0.5, 0.25])}
    assert json.loads(response_body(one, False, {})) == {"predictions": [0.5, 0.25]}
    assert json.loads(response_body(one, True, {})) == {"outputs": [0.5, 0.25]}
    assert json.loads(response_body(two, False, {"request_id": "r"})) == {
        "predictions": [{"click": 1.0, "like": 0.5}, {"click": 0.0, "like": 0.25}],
        "request_id": "r",
    }
    assert json.loads(response_body(two, True, {})) == {"outputs": {"click": [1.0, 0.0], "like": [0.5, 0.25]}}


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 65), 1 << 65),
    st.integers(-5, 5),
    st.floats(),
    st.floats(width=32),
    st.sampled_from([1e39, -1e39, 3.4028235e38, 1 << 53, (1 << 53) + 1, "\ud800", "", "7"]),
    st.text(max_size=3),
    st.lists(st.integers(-3, 3), max_size=2),
)


@given(
    kind=st.sampled_from(["string", "int64", "uint64", "float32", "float64", "bool", "list<int64>"]),
    data=st.data(),
)
def test_columns_made_at_once_are_those_made_value_by_value(kind: str, data: st.DataObject) -> None:
    some = data.draw(st.sampled_from([SCALARS, st.integers(), st.floats(), st.text(), st.booleans()]))
    values = data.draw(st.lists(st.one_of(st.none(), some), max_size=4))

    def made() -> object:
        try:
            return decode_column("c", kind, values)
        except BadRequest as error:
            return str(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column_decoding, "_at_once", lambda *_: None)
        expected = made()
    found = made()
    assert type(found) is type(expected)
    assert found.equals(expected) if isinstance(found, pa.Array) else found == expected
