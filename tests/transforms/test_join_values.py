"""Labels that count, sum or take the most of a column, against plain loops."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckooflow.errors import SpecError
from cuckooflow.transforms.in_band import ACTIONS, IMPRESSIONS
from cuckooflow.transforms.join_options import JoinOptions, Label
from cuckooflow.transforms.join_outputs import LABEL_VALUE, ExamplesSchema
from cuckooflow.transforms.join_shard import JoinShard
from cuckooflow.transforms.join_state import CellRing, ListBag
from cuckooflow.transforms.join_testing import ElementFeed

IMPRESSION_COLUMNS = pa.schema([("k", pa.int64())])
ACTION_COLUMNS = pa.schema(
    [("k", pa.int64()), ("kind", pa.string()), ("id", pa.int64()), ("watched", pa.float32())]
)
WATCH_US, CLICK_US = 20, 8
OPTIONS = JoinOptions(
    key=("k",),
    action_type="kind",
    action_id="id",
    labels=(
        Label("click", "click", CLICK_US),
        Label("clicks", "click", CLICK_US, "count"),
        Label("watched", "watch", WATCH_US, "sum", "watched"),
        Label("longest", "watch", WATCH_US, "max", "watched"),
        Label("views", "watch", WATCH_US, "count"),
    ),
    late_horizon_us=100,
    max_lead_us=100,
    state_buckets=6,
)
LABELS = ("label_click", "label_clicks", "label_watched", "label_longest", "label_views")


class Join:
    """A shard over list bags; ``lose_memory`` makes it anew from its state."""

    def __init__(self) -> None:
        self._schema = ExamplesSchema(OPTIONS, IMPRESSION_COLUMNS, ACTION_COLUMNS)
        self._bags = [ListBag() for _ in range(OPTIONS.state_buckets)]
        self._overflow = ListBag()
        self._shard = self._made(None)
        self.outputs: dict[str, list[dict[str, Any]]] = {"examples": [], "late": [], "dead": []}

    def _made(self, saved: Any) -> JoinShard:
        return JoinShard(0, self._schema, CellRing(self._bags, self._overflow, OPTIONS.bucket_us), saved)

    def take(self, elements: dict[int, pa.RecordBatch]) -> None:
        out = self._shard.accept(elements[0])
        for name, rows in self.outputs.items():
            rows += [row for batch in getattr(out.rows, name) for row in batch.to_pylist()]

    def lose_memory(self) -> None:
        self._shard = self._made(self._shard.save())


def shown(k: int, time: int) -> dict[str, Any]:
    return {"_log": IMPRESSIONS, "_time": time, "k": k}


def done(k: int, time: int, kind: str, ident: int, watched: float | None = None) -> dict[str, Any]:
    return {"_log": ACTIONS, "_time": time, "k": k, "kind": kind, "id": ident, "watched": watched}


def feed() -> ElementFeed:
    return ElementFeed(IMPRESSION_COLUMNS, ACTION_COLUMNS, OPTIONS.key, max_skew_us=1_000)


actions = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 25),
        st.sampled_from(["click", "watch"]),
        st.integers(0, 3),
        st.sampled_from([0.0, 0.25, 1.0, 3.0, 300.0]),
    ),
    max_size=14,
)


@given(actions, st.booleans())
def test_values_are_those_of_a_plain_loop(given_actions: list[Any], lose_memory: bool) -> None:
    expected = {k: dict.fromkeys(LABELS, 0.0) for k in range(4)}
    first: dict[Any, Any] = {}  # of actions that come again only the earliest counts
    for at, (k, delay, kind, ident, _) in enumerate(given_actions):
        if delay <= (CLICK_US if kind == "click" else WATCH_US):
            name = (k, kind, ident)
            first[name] = min(first.get(name, (delay, at)), (delay, at))
    for _, at in first.values():
        k, _, kind, _, watched = given_actions[at]
        labels = expected[k]
        if kind == "click":
            labels["label_click"] = 1.0
            labels["label_clicks"] += 1
        else:
            labels["label_watched"] += watched
            labels["label_longest"] = max(labels["label_longest"], watched)
            labels["label_views"] += 1

    source, join = feed(), Join()
    rows = [done(k, 100 + delay, kind, ident, watched) for k, delay, kind, ident, watched in given_actions]
    join.take(source.poll([shown(k, 100) for k in range(4)] + rows[::2], partitions=[(0, 0), (1, 0)]))
    if lose_memory:
        join.lose_memory()
    # The others come later, and so have later offsets: a tie of times is broken by them.
    join.take(source.poll(rows[1::2]))
    join.take(source.end())
    got = {row["k"]: {name: float(row[name]) for name in LABELS} for row in join.outputs["examples"]}
    ties = {(k, kind, ident, delay) for k, delay, kind, ident, _ in given_actions}
    if len(ties) == len(given_actions):
        assert got == expected
    for k in range(4):  # who comes first of equals decides what is summed, never how many there are
        assert {n: got[k][n] for n in ("label_click", "label_clicks", "label_views")} == {
            n: expected[k][n] for n in ("label_click", "label_clicks", "label_views")
        }
    assert not join.outputs["dead"]


def test_a_late_action_brings_its_own_value() -> None:
    source = ElementFeed(IMPRESSION_COLUMNS, ACTION_COLUMNS, OPTIONS.key)
    join = Join()
    join.take(source.poll([shown(1, 100), done(1, 105, "watch", 1, 2.5)]))
    join.take(source.advance(150))
    join.lose_memory()
    join.take(source.poll([done(1, 110, "watch", 2, 4.0), done(1, 107, "click", 3)]))
    join.take(source.end())
    (example,) = join.outputs["examples"]
    assert [example[name] for name in LABELS] == [0, 0, 2.5, 2.5, 1]
    late = sorted(join.outputs["late"], key=lambda row: row["label_watched"])
    assert [[row[name] for name in LABELS] for row in late] == [[1, 1, 0.0, 0.0, 0], [0, 0, 4.0, 4.0, 1]]


def test_an_action_without_its_value_is_a_dead_letter_and_the_others_go_on() -> None:
    source, join = feed(), Join()
    rows = [
        done(1, 101, "watch", 1, None),
        done(1, 102, "watch", 2, -1.0),
        done(1, 103, "watch", 3, 5.0),
        done(1, 104, "click", 4, None),
    ]
    join.take(source.poll([shown(1, 100), *rows]))
    join.take(source.end())
    assert [row["reason"] for row in join.outputs["dead"]] == [LABEL_VALUE] * 2
    (example,) = join.outputs["examples"]
    assert [example[name] for name in LABELS] == [1, 1, 5.0, 5.0, 1]


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(SpecError, match=r"labels\.a: expected a column with sum and max"):
        JoinOptions(("k",), "kind", (Label("a", "click", 1, "sum"),))
    with pytest.raises(SpecError, match=r"labels\.a\.value: expected 'flag' with emit 'eager'"):
        JoinOptions(("k",), "kind", (Label("a", "click", 1, "count"),), emit="eager")
