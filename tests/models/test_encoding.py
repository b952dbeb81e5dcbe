"""Encoding: ids, weights and numbers against row-by-row Python, and every odd input."""

from __future__ import annotations

import datetime
import math
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckooflow.embedding_store.api import SLOT_BITS
from cuckooflow.embedding_store.hashing import hash_column
from cuckooflow.errors import SpecError
from cuckooflow.models.encoding import Encoded, Encoder
from cuckooflow.models.features import FeatureSpec

_LOW = (1 << (64 - SLOT_BITS)) - 1
_NULL = int(hash_column(pa.array([None], pa.string()))[0]) & _LOW


def encode(feature: FeatureSpec, column: pa.Array, name: str = "x") -> Encoded:
    return Encoder([feature]).encode(pa.record_batch({name: column}))


def one_id(value: Any, kind: pa.DataType | None = None) -> int:
    return int(hash_column(pa.array([value], kind))[0]) & _LOW


@given(
    rows=st.lists(
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=6)), max_size=20
    ),
    pooling=st.sampled_from(["mean", "sum"]),
    start=st.integers(0, 3),
)
def test_lists_agree_with_row_by_row_python(rows: list[Any], pooling: Any, start: int) -> None:
    feature = FeatureSpec(name="x", pooling=pooling, max_length=4, slot=9)
    # A sliced array has an offset that buffers do not show.
    column = pa.array(["skipped"] * start and [["skipped"]] * start + rows, pa.list_(pa.string()))
    encoded = encode(feature, column.slice(start) if start else pa.array(rows, pa.list_(pa.string())))
    for row, ids, weights in zip(rows, encoded.ids.tolist(), encoded.weights.tolist(), strict=True):
        values = [_NULL if v is None else one_id(v) for v in (row or [None])[:4]]
        share = 1 / len(values) if pooling == "mean" else 1.0
        assert ids == [9 << 52 | v for v in values] + [0] * (4 - len(values))
        assert weights == pytest.approx([share] * len(values) + [0.0] * (4 - len(values)))


_INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)


@given(rows=st.lists(st.tuples(*[_INTEGERS] * 3), max_size=20), start=st.integers(0, 3), data=st.data())
def test_integer_columns_at_once_agree_with_each_value(
    rows: list[tuple[int, ...]], start: int, data: st.DataObject
) -> None:
    columns = {name: [row[at] for row in rows] for at, name in enumerate("abc")}
    if data.draw(st.booleans()) and rows:
        columns["b"][-1] = None  # type: ignore[call-overload]
    kinds = [data.draw(st.sampled_from([pa.int64(), pa.int64(), pa.string()])) for _ in columns]
    arrays = {
        name: pa.array([0] * start + values).cast(kind)
        for (name, values), kind in zip(columns.items(), kinds, strict=True)
    }
    batch = pa.record_batch(arrays).slice(start)
    features = [FeatureSpec(name=name) for name in "bca"]
    features.insert(1, FeatureSpec(name="again", column="a", pooling="sum", max_length=2))
    features.insert(0, FeatureSpec(name="crossed", columns=("a", "c")))
    encoded = Encoder(features).encode(batch)
    alone = [Encoder([FeatureSpec(name="crossed", columns=("a", "c"))]).encode(batch).ids[:, :1]]
    for slot, name, places in ((1, "b", 1), (2, "a", 2), (3, "c", 1), (4, "a", 1)):
        kind = batch.schema.field(name).type
        ids = [_NULL if v is None else one_id(v, kind) for v in batch.column(name).to_pylist()]
        alone.append(np.array([[slot << 52 | one] + [0] * (places - 1) for one in ids], np.uint64))
    if rows:
        assert encoded.ids.tolist() == np.hstack(alone).tolist()
        assert encoded.weights.tolist() == [[1.0, 1.0, 1.0, 0.0, 1.0, 1.0]] * len(rows)
    else:
        assert encoded.ids.shape == (0, 6)


@given(st.lists(st.one_of(st.none(), st.floats(-1e9, 1e9, allow_nan=False)), min_size=1, max_size=30))
def test_buckets_agree_with_python(values: list[float | None]) -> None:
    boundaries = (-5.0, 0.0, 2.5)
    encoded = encode(
        FeatureSpec(name="x", kind="bucket", boundaries=boundaries), pa.array(values, pa.float64())
    )
    expected = [_NULL if v is None else one_id(sum(v >= b for b in boundaries)) for v in values]
    assert encoded.ids[:, 0].tolist() == expected


def test_the_slot_is_in_the_high_bits_and_keeps_equal_values_apart() -> None:
    encoder = Encoder([FeatureSpec(name="a", column="x"), FeatureSpec(name="b", column="x", slot=4095)])
    ids = encoder.encode(pa.record_batch({"x": pa.array([2**64 - 1, 0], pa.uint64())})).ids
    assert (ids >> np.uint64(52)).tolist() == [[0, 4095], [0, 4095]]
    assert (ids[:, 0] & np.uint64(_LOW)).tolist() == (ids[:, 1] & np.uint64(_LOW)).tolist()
    assert len(np.unique(ids)) == 4


@pytest.mark.parametrize(
    "column",
    [
        pa.nulls(2),
        pa.array([None, None], pa.int64()),
        pa.array([math.nan, math.inf], pa.float64()),
        pa.array([None, None], pa.list_(pa.string())),
        pa.array([[], []], pa.list_(pa.null())),
    ],
)
def test_nothing_known_has_its_own_id(column: pa.Array) -> None:
    pooling: Any = "mean" if pa.types.is_list(column.type) else None
    encoded = encode(FeatureSpec(name="x", pooling=pooling, max_length=2), column)
    assert encoded.ids[:, 0].tolist() == [_NULL, _NULL]
    assert encoded.weights[:, 0].tolist() == [1.0, 1.0]


def test_a_missing_column_is_unknown() -> None:
    features = [
        FeatureSpec(name="x"),
        FeatureSpec(name="l", pooling="sum", max_length=1),
        FeatureSpec(name="h", kind="hour"),
        FeatureSpec(name="b", kind="bucket", boundaries=(1.0,)),
        FeatureSpec(name="n", kind="number"),
        FeatureSpec(name="c", columns=("x", "l")),
    ]
    encoded = Encoder(features).encode(pa.record_batch({"other": [1]}))
    assert (encoded.ids & np.uint64(_LOW))[0, :4].tolist() == [_NULL] * 4
    assert encoded.numbers.tolist() == [[0.0, 1.0]]


def test_hours_are_of_the_zone_over_a_change_of_clocks() -> None:
    zone = "Europe/Berlin"
    utc = [datetime.datetime(2024, 3, 31, hour, 30, tzinfo=datetime.UTC) for hour in (0, 1, 2)]
    micros = [int(t.timestamp() * 1e6) for t in utc]
    feature = FeatureSpec(name="h", kind="hour", zone=zone)
    expected = [one_id(t.astimezone(ZoneInfo(zone)).hour) for t in utc]
    assert expected == [one_id(1), one_id(3), one_id(4)]
    assert encode(feature, pa.array(micros), "_time").ids[:, 0].tolist() == expected
    assert encode(feature, pa.array(utc, pa.timestamp("ms", "UTC")), "_time").ids[:, 0].tolist() == expected


def test_crosses_tell_columns_apart() -> None:
    encoder = Encoder([FeatureSpec(name="c", columns=("x", "y"))])
    ids = encoder.encode(pa.record_batch({"x": ["a", "b", "a", None], "y": ["b", "a", "b", "b"]})).ids[:, 0]
    assert ids[0] == ids[2]
    assert len(np.unique(ids)) == 3


def test_numbers_are_scaled_and_unknown_ones_flagged() -> None:
    features = [
        FeatureSpec(name="u"),
        FeatureSpec(name="n", kind="number", log=True, center=1.0, scale=2.0),
        FeatureSpec(name="b", kind="number"),
    ]
    values = [math.e - 1, -(math.e - 1), None, math.nan, 1e308]
    batch = pa.record_batch(
        {"u": ["a"] * 5, "n": pa.array(values, pa.float64()), "b": [True, False, None, True, True]}
    )
    numbers = Encoder(features).encode(batch).numbers
    assert numbers[:, 0].tolist() == pytest.approx([0.0, -1.0, 0.0, 0.0, (math.log(1e308) - 1) / 2])
    assert numbers[:, 1].tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]
    assert numbers[:, 2:].tolist() == [[1, 0], [0, 0], [0, 1], [1, 0], [1, 0]]


def test_a_value_has_one_id_whatever_its_width() -> None:
    feature = FeatureSpec(name="x")
    ids = [encode(feature, pa.array([7], kind)).ids[0, 0] for kind in (pa.int8(), pa.int64(), pa.uint64())]
    texts = [encode(feature, pa.array(["é"], kind)).ids[0, 0] for kind in (pa.string(), pa.large_string())]
    assert len(set(ids)) == 1
    assert len(set(texts)) == 1


@pytest.mark.parametrize(
    ("feature", "column"),
    [
        (FeatureSpec(name="x"), pa.array([["a"]])),
        (FeatureSpec(name="x"), pa.array([{"a": 1}])),
        (FeatureSpec(name="x", kind="bucket", boundaries=(1.0,)), pa.array(["a"])),
        (FeatureSpec(name="x", kind="number"), pa.array(["a"])),
        (FeatureSpec(name="x", kind="hour", column="x"), pa.array(["noon"])),
        (FeatureSpec(name="x", pooling="mean"), pa.array([[{"a": 1}]])),
    ],
)
def test_a_type_that_does_not_fit_is_named(feature: FeatureSpec, column: pa.Array) -> None:
    encoder = Encoder([feature, FeatureSpec(name="y")])
    with pytest.raises(SpecError, match="'x'"):
        encoder.encode(pa.record_batch({"x": column}))


def test_an_empty_batch_keeps_its_shape() -> None:
    encoder = Encoder([FeatureSpec(name="x"), FeatureSpec(name="l", pooling="mean", max_length=3)])
    encoded = encoder.encode(
        pa.record_batch({"x": pa.array([], pa.string()), "l": pa.array([], pa.list_(pa.string()))})
    )
    assert encoded.ids.shape == (0, 4)


def test_slices_and_concat_are_inverse() -> None:
    encoder = Encoder([FeatureSpec(name="x"), FeatureSpec(name="n", kind="number")])
    encoded = encoder.encode(pa.record_batch({"x": ["a", "b", "c"], "n": [1, 2, 3]}))
    again = Encoded.concat([encoded.slice(0, 1), encoded.slice(1, 3)])
    assert np.array_equal(again.ids, encoded.ids)
    assert np.array_equal(again.numbers, encoded.numbers)


def test_numbers_alone_are_refused() -> None:
    with pytest.raises(SpecError, match="numbers only"):
        Encoder([FeatureSpec(name="n", kind="number")])
