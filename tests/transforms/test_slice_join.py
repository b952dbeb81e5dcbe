"""Slices of shuffled rows give what the stream gives, row for row, wherever they are cut and up to any clock."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuckooflow.transforms.in_band import ACTIONS, END_TIME_US, IMPRESSIONS, NO_TIME_US
from cuckooflow.transforms.in_band_clock import InBandClock
from cuckooflow.transforms.join_core import JoinCore
from cuckooflow.transforms.join_options import JoinOptions, Label
from cuckooflow.transforms.join_outputs import ExamplesSchema, JoinOutputs
from cuckooflow.transforms.join_rows import ACCEPTED, REPEATED, REUSED, LabelRules
from cuckooflow.transforms.join_state import CellRing, ListBag
from cuckooflow.transforms.join_testing import ElementFeed
from cuckooflow.transforms.key_settlement import settle_impressions
from cuckooflow.transforms.prefix_watermarks import latest_before, latest_before_blocks, watermarks
from cuckooflow.transforms.slice_join import SliceOutputs, join_slice

IMPRESSION_COLUMNS = pa.schema([("k", pa.string()), ("n", pa.int64()), ("feature", pa.int64())])
ACTION_COLUMNS = pa.schema(
    [
        ("k", pa.string()),
        ("n", pa.int64()),
        ("kind", pa.string()),
        ("id", pa.string()),
        ("seconds", pa.float64()),
    ]
)
SKEW_US = 4
OPTIONS = JoinOptions(
    key=("k", "n"),
    action_type="kind",
    labels=(
        Label("click", "click", 9),
        Label("like", "like", 20),
        Label("like_soon", "like", 5),
        Label("watched", "like", 20, "sum", "seconds"),
        Label("likes", "like", 20, "count"),
    ),
    late_horizon_us=15,
    max_lead_us=40,
    state_buckets=6,
)
SCHEMA = ExamplesSchema(OPTIONS, IMPRESSION_COLUMNS, ACTION_COLUMNS)
NAMES = ("examples", "late", "unmatched", "dead")


@st.composite
def arrivals(draw: st.DrawFn) -> list[list[dict]]:
    """Polls of two partitions of either log, with keys and times that collide."""
    rows: list[dict] = []
    for log in (IMPRESSIONS, ACTIONS):
        for partition in (0, 1):
            for time in draw(st.lists(st.integers(0, 120), max_size=16)):
                key = draw(st.sampled_from([("a", 1), ("a", 2), ("b", 1)]))
                row = {"_log": log, "_partition": partition, "_time": time, "k": key[0], "n": key[1]}
                row["_append"] = draw(st.integers(0, 9))
                if log == IMPRESSIONS:
                    row["feature"] = draw(st.integers(0, 9))
                else:
                    row["kind"] = draw(st.sampled_from(["click", "like", "like", "share"]))
                    row["id"] = draw(st.sampled_from([None, None, "x", "y", "z"]))
                    row["seconds"] = draw(st.sampled_from([0.0, 0.1, 0.7, 1e15, None]))
                rows.append(row)
    polls: list[list[dict]] = []
    for row in draw(st.permutations(rows)):
        if not polls or draw(st.booleans()):
            polls.append([])
        polls[-1].append(row)
    return polls


def stream(polls: list[list[dict]], options: JoinOptions) -> tuple[JoinOutputs, JoinCore, pa.Table]:
    """What the core gives out for elements as a source makes them, and the rows in them."""
    schema = replace(SCHEMA, options=options)
    ring = CellRing([ListBag() for _ in range(options.state_buckets)], ListBag(), options.bucket_us)
    core, clock = JoinCore(schema, ring), InBandClock()
    counts = {IMPRESSIONS: 2, ACTIONS: 2}
    feed = ElementFeed(IMPRESSION_COLUMNS, ACTION_COLUMNS, ("k", "n"), counts, max_skew_us=SKEW_US)
    seen = [pa.Table.from_batches([feed.poll([])[0].replace_schema_metadata(None)])]
    feed = ElementFeed(IMPRESSION_COLUMNS, ACTION_COLUMNS, ("k", "n"), counts, max_skew_us=SKEW_US)
    out = JoinOutputs()
    for sequence, element in enumerate([*(feed.poll(poll)[0] for poll in polls), feed.end()[0]]):
        seen.append(pa.Table.from_batches([element.replace_schema_metadata(None)]))
        for batch, _ in clock.accept(element):
            core.accept(batch, sequence)
        core.step(clock.clock_us(), release=True)
        given = core.take()
        for name in NAMES:
            getattr(out, name).extend(getattr(given, name))
    return out, core, pa.concat_tables(seen)


def split(rows: pa.Table, seed: int) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The rows of either log, shuffled."""
    logs = np.asarray(rows.column("_log"))
    chance = np.random.default_rng(seed)
    both = []
    for log, columns in ((IMPRESSIONS, IMPRESSION_COLUMNS), (ACTIONS, ACTION_COLUMNS)):
        at = chance.permutation(np.flatnonzero(logs == log))
        own = [*columns.names, *(n for n in rows.schema.names if n[0] == "_")]
        picked = rows.select(own).take(pa.array(at)).combine_chunks()
        fields = [pa.field(n, picked.schema.field(n).type) for n in own]
        both.append(
            pa.RecordBatch.from_arrays(
                [picked.column(n).combine_chunks() for n in own], schema=pa.schema(fields)
            )
        )
    return both[0], both[1]


def slices(
    rows: pa.Table, options: JoinOptions, slice_us: int, seed: int, clock_us: int = END_TIME_US
) -> list[SliceOutputs]:
    """Every slice alone, with no more than the rows that it asks for."""
    schema = replace(SCHEMA, options=options)
    impressions, actions = split(rows, seed)
    verdicts = settle_impressions(impressions, options)
    shown, acted = (batch.column("_time").to_numpy() for batch in (impressions, actions))
    window_us = options.window_us
    answers = []
    for start in range(0, 121, slice_us):
        end = start + slice_us
        near = (shown >= start - window_us) & (shown < end)
        there = (acted >= start - window_us) & (acted <= end + window_us)
        mine = (impressions.filter(pa.array(near)), actions.filter(pa.array(there)))
        answers.append(join_slice(schema, *mine, verdicts[near], start, end, clock_us))
    return answers


def listed(batches: list[pa.RecordBatch]) -> Counter[str]:
    return Counter(repr(sorted(row.items())) for batch in batches for row in batch.to_pylist())


quick = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(arrivals(), st.integers(0, 9), st.sampled_from([1, 7, 40, 121]), st.booleans())
def test_slices_of_shuffled_rows_give_what_the_stream_gives(polls, seed, slice_us, by_id):
    options = replace(OPTIONS, action_id="id" if by_id else None)
    streamed, core, rows = stream(polls, options)
    found = slices(rows, options, slice_us, seed)
    for name in NAMES:
        assert listed([getattr(part, name) for part in found]) == listed(getattr(streamed, name)), name
    sums = {name: sum(part.counts.to_dict()[name] for part in found) for name in core.counts.to_dict()}
    assert sums == core.counts.to_dict()
    assert all(part.impressions_waiting == part.actions_waiting == 0 for part in found)


@quick
@given(arrivals(), st.integers(0, 9), st.sampled_from([7, 40, 121]), st.integers(0, 140))
def test_every_slice_balances_at_any_clock(polls, seed, slice_us, clock_us):
    _, _, rows = stream(polls, OPTIONS)
    for part in slices(rows, OPTIONS, slice_us, seed, clock_us):
        c = part.counts
        assert c.impressions == (
            c.examples + part.impressions_waiting + c.impressions_dead + c.impressions_repeated
        )
        assert c.actions == (
            c.used + c.late + part.actions_waiting + c.unmatched + c.actions_dead + c.actions_repeated
        )


@quick
@given(arrivals(), st.integers(0, 9))
def test_the_order_of_the_output_does_not_depend_on_the_order_of_the_input(polls, seed):
    _, _, rows = stream(polls, OPTIONS)
    one, other = slices(rows, OPTIONS, 40, seed), slices(rows, OPTIONS, 40, seed + 1)
    for a, b in zip(one, other, strict=True):
        for name in NAMES:
            assert getattr(a, name).equals(getattr(b, name)), name


@quick
@given(st.lists(st.integers(0, 200), max_size=40), st.integers(1, 9), st.integers(0, 5))
def test_watermarks_put_together_from_blocks_equal_those_of_one_pass(times, block_rows, skew):
    expected, latest = [], None
    for time in times:
        expected.append(NO_TIME_US if latest is None else latest - skew)
        latest = time if latest is None else max(latest, time)
    blocks = [np.array(times[at : at + block_rows], np.int64) for at in range(0, len(times), block_rows)]
    order = list(range(len(blocks)))
    random.Random(skew).shuffle(order)
    tops = np.array([blocks[at].max() for at in order], np.int64)
    before = latest_before_blocks(np.zeros(len(order), np.int64), np.array(order, np.int64), tops)
    found: dict[int, list[int]] = {}
    for at, start in zip(order, before.tolist(), strict=True):
        found[at] = watermarks(np.maximum(latest_before(blocks[at]), start), skew).tolist()
    assert [w for at in sorted(found) for w in found[at]] == expected


def keyed(times: list[int], wm: int = NO_TIME_US) -> pa.RecordBatch:
    n = len(times)
    columns = {
        "k": pa.array(["a"] * n),
        "n": pa.array([1] * n, pa.int64()),
        "_hash": pa.array([7] * n, pa.uint64()),
        "_time": pa.array(times, pa.int64()),
        "_wm": pa.array([wm] * n, pa.int64()),
        "_partition": pa.array([0] * n, pa.int32()),
        "_offset": pa.array(range(n), pa.int64()),
        "_row": pa.array([0] * n, pa.int32()),
    }
    return pa.RecordBatch.from_pydict(columns)


def test_a_chain_of_reused_keys_is_settled_from_its_beginning():
    span = OPTIONS.reuse_us
    times = [step * (span - 1) for step in range(7)]
    # Each within the span of its neighbours: the first keeps the key, so the second goes, so the third stays.
    assert settle_impressions(keyed(times[::-1]), OPTIONS).tolist() == [ACCEPTED, REUSED] * 3 + [ACCEPTED]
    assert settle_impressions(keyed([5, 5, 5 + span + 1]), OPTIONS).tolist() == [ACCEPTED, REPEATED, ACCEPTED]


def test_a_late_impression_settles_nothing():
    assert settle_impressions(keyed([5, 6], wm=1_000), OPTIONS).tolist() == [ACCEPTED, ACCEPTED]


@pytest.mark.parametrize("same_hash", [True, False])
def test_keys_are_told_apart_exactly(same_hash):
    rows = keyed([5, 6])
    rows = rows.set_column(0, "k", pa.array(["a", "b"]))
    if not same_hash:
        rows = rows.set_column(2, "_hash", pa.array([7, 8], pa.uint64()))
    assert settle_impressions(rows, OPTIONS).tolist() == [ACCEPTED, ACCEPTED]


def test_a_sum_of_fractions_does_not_depend_on_the_order_of_arrival():
    rules = LabelRules(OPTIONS)
    seconds = np.array([0.1, 0.2, 0.3, 1e15, 0.7])
    sums = set()
    for order in itertools.permutations(range(5)):
        actions = pa.RecordBatch.from_pydict({"seconds": pa.array(seconds[list(order)])})
        watched = rules.values(1, np.zeros(5, np.int64), np.full(5, 8, np.uint64), actions)[3]
        sums.add(watched[0].as_py())
    assert len(sums) == 1
    assert len({sum(order) for order in itertools.permutations(seconds.tolist())}) > 1
