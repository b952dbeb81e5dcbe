"""Streaming features of one partition against duckdb over the whole log, through real counter and recent tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.embedding_store.api import StoreConfig
from cuckooflow.embedding_store.hashing import hash_column
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.errors import SpecError
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.models.encoding import Encoder
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.streaming import Events, Streaming
from tests.models.streaming_oracle import FEATURES, HOUR_S, LAG_S, SECOND, check, rows_of


@pytest.mark.parametrize(("disorder_s", "pushed_rows"), [(0, 37), (0, 10**9), (8, 61)])
def test_equals_duckdb_over_the_whole_log(disorder_s: int, pushed_rows: int) -> None:
    """In pieces, with some examples in the tables and the rest pending, as the trainer has them."""
    rng = np.random.default_rng(3)
    rows = rows_of(rng, 700, disorder_s)
    streaming = Streaming(FEATURES)
    store = EmbeddedStore(StoreConfig(streaming.tables))
    store.open_log("l", "once", {0: Position(0)})
    clock = np.maximum.accumulate(rows.column("_time").to_numpy())
    events = streaming.events(rows)
    done = []
    pushed = 0
    for start in range(0, len(events), 53):
        piece = rows.slice(start, 53)
        end = start + piece.num_rows
        visible = np.searchsorted(clock, clock[start:end] - LAG_S * SECOND, side="right")
        if visible[0] - pushed >= min(pushed_rows, 10**8):
            upto = int(visible[0])
            range_ = LogRange("l", "once", 0, Position(pushed), Position(upto))
            store.push(range_, events.between(pushed, upto).pushes(), {}, 0)
            pushed = upto
        pending = events.between(pushed, end)
        done.append(streaming.replayed(piece, store.lookup_at, pending, visible - pushed))
    assert (pushed > 0) == (pushed_rows < 10**8)
    check(pa.Table.from_batches(done).combine_chunks().to_batches()[0], rows)


def test_served_values_are_those_of_the_tables() -> None:
    """A scorer's look-up as of a row's time equals what a trainer replays for the same examples."""
    rng = np.random.default_rng(5)
    rows = rows_of(rng, 400, 5)
    streaming = Streaming(FEATURES)
    events = streaming.events(rows)
    asked_rows = rows_of(rng, 60, 5)
    empty, full = (EmbeddedStore(StoreConfig(streaming.tables)) for _ in range(2))
    full.open_log("l", "once", {0: Position(0)})
    for start in range(0, 400, 90):
        stop = min(start + 90, 400)
        range_ = LogRange("l", "once", 0, Position(start), Position(stop))
        full.push(range_, events.between(start, stop).pushes(), {}, 0)
    late = np.full(60, 20_000 * SECOND) + rng.integers(0, HOUR_S * SECOND, 60)
    asked_rows = asked_rows.set_column(asked_rows.schema.get_field_index("_time"), "_time", pa.array(late))
    served = streaming.served(asked_rows, full.lookup_at)
    replayed = streaming.replayed(asked_rows, empty.lookup_at, events, np.full(60, 400))
    assert served.schema.names[-1] == "@shown"
    for name in served.schema.names[9:]:
        ours, theirs = served.column(name), replayed.column(name)
        if pa.types.is_floating(ours.type):
            np.testing.assert_allclose(ours.to_numpy(), theirs.to_numpy(), rtol=1e-5, atol=1e-30)
        else:
            assert ours.to_pylist() == theirs.to_pylist(), name


def test_events_go_together_and_apart() -> None:
    rows = rows_of(np.random.default_rng(9), 90, 3)
    streaming = Streaming(FEATURES)
    whole = streaming.events(rows)
    parts = [streaming.events(rows.slice(start, 40)) for start in range(0, 90, 40)]
    both = Events.concat(parts), Events.concat([whole.between(0, 11), whole.between(11, 90)])
    for again in both:
        np.testing.assert_array_equal(again.times_us, whole.times_us)
        for name, table in whole.tables.items():
            other = again.tables[name]
            np.testing.assert_array_equal(other.row, table.row)
            np.testing.assert_array_equal(other.ids, table.ids)
            if table.amounts is not None:
                np.testing.assert_array_equal(other.amounts, table.amounts)
            if table.values is not None:
                np.testing.assert_array_equal(other.values, table.values)


def test_what_the_model_sees() -> None:
    """Numbers by hand; a list's values have the ids of the feature that it is like."""
    like = {"name": "passed", "kind": "recent", "by": ["user"], "column": "video", "like": "video"}
    encoder = Encoder(
        [
            FeatureSpec(name="video"),
            FeatureSpec.model_validate({**like, "max_length": 2}),
            FeatureSpec.model_validate(
                {
                    "name": "ctr",
                    "kind": "rate",
                    "by": ["user"],
                    "label": "click",
                    "half_life": "1h",
                    "prior": 0.25,
                }
            ),
            FeatureSpec(name="age", kind="age", by=("video",)),
        ]
    )
    rows = pa.record_batch(
        {
            "video": [3, 4],
            "@passed": pa.array([hash_column(pa.array([4, 3])), []], pa.list_(pa.uint64())),
            "@ctr.positive": [2.5, 0.0],
            "@ctr.shown": [10.0, 0.0],
            "@age": pa.array([9 * SECOND, None], pa.int64()),
        }
    )
    encoded = encoder.encode(rows)
    assert encoded.ids[0, 1:].tolist() == [encoded.ids[1, 0], encoded.ids[0, 0]]
    assert encoded.weights.tolist() == [[1, 0.5, 0.5], [1, 1, 0]]
    np.testing.assert_allclose(encoded.numbers[0], [0, np.log(11) / 3, np.log(10) / 6, 0], atol=1e-6)
    np.testing.assert_allclose(encoded.numbers[1], [0, 0, 0, 1], atol=1e-6)
    nothing = encoder.encode(pa.record_batch({"video": [3]}))
    assert nothing.numbers.tolist() == [[0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "rate", "by": ["user"], "label": "click"}, "half_life"),
        ({"kind": "rate", "label": "click", "half_life": "1h"}, "key columns"),
        ({"kind": "count", "by": ["user", "user"]}, "each once"),
        ({"kind": "recent", "by": ["user"]}, "column goes with kind recent"),
        ({"kind": "age", "by": ["user"], "column": "video"}, "column goes with kind recent"),
        ({"kind": "age", "by": ["user"], "label": "click"}, "label goes with kind rate or count or recent"),
        ({"by": ["user"]}, "by goes with kind rate"),
        ({"kind": "recent", "by": ["user"], "column": "video", "when": "negative"}, "needs a label"),
        ({"kind": "rate", "by": ["user"], "label": "click", "half_life": "1h", "prior": 1}, "less than 1"),
        ({"kind": "count", "by": ["user"], "half_life": "0s"}, "1000"),
    ],
)
def test_what_a_streaming_feature_lacks_is_named(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FeatureSpec.model_validate({"name": "x", **given})


def test_what_no_feature_can_be_like_or_by_is_named() -> None:
    recent = FeatureSpec.model_validate(
        {"name": "r", "kind": "recent", "by": ["tags"], "column": "video", "like": "vidoe"}
    )
    with pytest.raises(SpecError, match=r"'vidoe'.*video"):
        Encoder([FeatureSpec(name="video"), recent])
    with pytest.raises(SpecError, match="tags: list"):
        Streaming([recent]).keys(pa.record_batch({"tags": [["a"]]}))
    assert FeatureSpec.model_validate(recent.model_dump(mode="json")) == recent
