"""The pure core against an independent batch join in SQL, for any interleaving, rebuilds included."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuckooflow.errors import StateDoesNotFit
from cuckooflow.transforms.in_band import ACTIONS, IMPRESSIONS, NO_TIME_US
from cuckooflow.transforms.in_band_clock import InBandClock
from cuckooflow.transforms.join_core import JoinCore
from cuckooflow.transforms.join_eager import new_core
from cuckooflow.transforms.join_options import JoinOptions, Label
from cuckooflow.transforms.join_outputs import ExamplesSchema, JoinCounts, JoinOutputs
from cuckooflow.transforms.join_state import CellRing, ListBag
from cuckooflow.transforms.join_testing import ElementFeed

IMPRESSION_COLUMNS = pa.schema([("k", pa.string()), ("n", pa.int64()), ("feature", pa.list_(pa.int64()))])
ACTION_COLUMNS = pa.schema(
    [("k", pa.string()), ("n", pa.int64()), ("kind", pa.string()), ("id", pa.string())]
)
SKEW_US = 4
OPTIONS = JoinOptions(
    key=("k", "n"),
    action_type="kind",
    labels=(Label("click", "click", 9), Label("like", "like", 20), Label("like_soon", "like", 5)),
    late_horizon_us=15,
    max_lead_us=40,
    state_buckets=6,
)


class Shard:
    """A core over list bags, its clock, and everything that it gave out."""

    def __init__(self, options: JoinOptions, cold_reads_max: int | None = None) -> None:
        self.cold_reads_max = cold_reads_max
        self.schema = ExamplesSchema(options, IMPRESSION_COLUMNS, ACTION_COLUMNS)
        self.bags = [ListBag() for _ in range(options.state_buckets)]
        self.overflow = ListBag()
        self.clock = InBandClock()
        self.ring = CellRing(self.bags, self.overflow, options.bucket_us)
        self.core = new_core(self.schema, self.ring)
        self.sequence = 0
        self.outputs = JoinOutputs()

    def rebuild(self) -> None:
        """Lose the memory and make it again from the cells."""
        old = self.core
        ring = CellRing(self.bags, self.overflow, self.schema.options.bucket_us)
        ring.resume(self.ring.save())
        self.ring = ring
        self.core = new_core(self.schema, ring)
        counts = JoinCounts(**old.counts.to_dict())
        self.core.rebuild(self.clock.clock_us(), old.released_us, counts, old.deferred)
        assert self.core.impressions_waiting == old.impressions_waiting
        assert self.core.actions_waiting == old.actions_waiting
        assert self.core.late_queued == old.late_queued

    def feed(self, element: pa.RecordBatch, release: bool = True) -> None:
        for batch, _ in self.clock.accept(element):
            self.core.accept(batch, self.sequence)
            self.sequence += 1
        self.core.step(self.clock.clock_us(), release, self.cold_reads_max)
        out = self.core.take()
        for name in ("examples", "late", "unmatched", "dead"):
            getattr(self.outputs, name).extend(getattr(out, name))
        assert_balanced(self.core)

    def rows(self, name: str, drop: tuple[str, ...] = ()) -> Counter[str]:
        """All rows of an output as a multiset."""
        rows = [row for batch in getattr(self.outputs, name) for row in batch.to_pylist()]
        return Counter(repr(sorted((k, v) for k, v in row.items() if k not in drop)) for row in rows)


def assert_balanced(core: JoinCore) -> None:
    c = core.counts
    assert (
        c.impressions == c.examples + core.impressions_waiting + c.impressions_dead + c.impressions_repeated
    )
    assert c.actions == (
        c.used + c.late + core.actions_waiting + c.unmatched + c.actions_dead + c.actions_repeated
    )


# --- the oracle -----------------------------------------------------------------------------

ORACLE = """
with recursive
imp as (select * from rows where _log = 0),
ontime as (select * from imp where _wm < _time + $W),
accepted_times as (
    select k, n, min(_time) as t from ontime group by all
    union all
    select * from (
        select a.k, a.n, (select min(o._time) from ontime o
                          where o.k = a.k and o.n = a.n and o._time > a.t + $W + $H) as t
        from accepted_times a) where t is not null),
ranked as (
    select o.*, a.t is not null as taken,
           row_number() over (partition by o.k, o.n, o._time order by _partition, _offset, _row) as copy
    from ontime o left join accepted_times a on a.k = o.k and a.n = o.n and a.t = o._time),
acc as (select * from ranked where taken and copy = 1),
act as (select *, _time as a, coalesce(id, 'at ' || _time) as ident from rows where _log = 1),
found as (
    select act.*, acc._time as i, acc._append as i_append,
           case when act.kind = 'click' then 9 when act.kind = 'like' then 20 end as win
    from act left join acc on acc.k = act.k and acc.n = act.n and act.a between acc._time and acc._time + $W),
judged as (
    select *, case when win is null then 'unknown_action'
                   when _wm >= a + $W + $H then 'too_late'
                   when i is null then 'no_impression'
                   when a - i > win then 'outside_window'
                   when _wm >= i + $W + $H then 'too_late'
                   when _wm >= i + $W then 'late'
                   else 'used' end as fate
    from found),
copies as (
    select *, case when fate in ('used', 'late') then row_number() over (
        partition by k, n, i, kind, ident, fate in ('used', 'late') order by fate = 'late',
        case when fate = 'late' then _wm else a end, _partition, _offset, _row) else 1 end as copy
    from judged),
settled as (
    select *, (kind = 'click')::int + 2 * (kind = 'like')::int + 4 * (kind = 'like' and a - i <= 5)::int as bits,
           case when copy > 1 then 'repeated' else fate end as outcome
    from copies),
prim as (
    select acc.k, acc.n, acc._time as t, acc.feature, coalesce(bit_or(s.bits), 0) as bits,
           greatest(acc._append, coalesce(max(s._append), 0)) as app
    from acc left join settled s on s.outcome = 'used' and s.k = acc.k and s.n = acc.n and s.i = acc._time
    group by acc.k, acc.n, acc._time, acc.feature, acc._append),
lates as (
    select s.*, p.feature as f, p.bits as p_bits, greatest(s._append, i_append) as app,
           coalesce(bit_or(s.bits) over (partition by s.k, s.n, s.i order by s._wm, s._partition, s._offset, s._row
               rows between unbounded preceding and 1 preceding), 0) as before
    from settled s join prim p on p.k = s.k and p.n = s.n and p.t = s.i where s.outcome = 'late')
"""
QUERIES = {
    "examples": "select k, n, t, feature, bits, app from prim",
    "late": "select k, n, i, f, bits, app, (bits & ~(p_bits | before)) != 0, p_bits = 0 from lates",
    "unmatched": "select _partition, _offset, outcome from settled"
    " where outcome in ('too_late', 'no_impression', 'outside_window')",
    "dead": "select 'actions', _partition, _offset, 'unknown_action' from settled where outcome = 'unknown_action'"
    " union all select 'impressions', _partition, _offset, 'late_impression' from imp where _wm >= _time + $W"
    " union all select 'impressions', _partition, _offset, 'key_reused' from ranked where not taken",
    "repeated": "select count(*) filter (outcome = 'repeated'),"
    " (select count(*) from ranked where taken and copy > 1) from settled",
}


CONNECTION = duckdb.connect(config={"threads": 1})


def oracle(rows: pa.Table, options: JoinOptions) -> dict[str, Counter]:
    connection = CONNECTION
    connection.register("rows", rows)
    scale = {"W": options.window_us, "H": options.late_horizon_us}
    sql = ORACLE
    for name, value in scale.items():
        sql = sql.replace(f"${name}", str(value))
    answers = {}
    for name, query in QUERIES.items():
        for scale_name, value in scale.items():
            query = query.replace(f"${scale_name}", str(value))
        answers[name] = Counter(map(repr, connection.execute(f"{sql} {query}").fetchall()))
    return answers


def answered(shard: Shard) -> dict[str, Counter]:
    """What the core gave out, in the oracle's shape."""

    def bits(row: dict) -> int:
        return row["label_click"] + 2 * row["label_like"] + 4 * row["label_like_soon"]

    def listed(name: str) -> list[dict]:
        return [row for batch in getattr(shard.outputs, name) for row in batch.to_pylist()]

    example = ("k", "n", "_time", "feature")
    primary = [(*(r[c] for c in example), bits(r), r["_append"]) for r in listed("examples")]
    late = [
        (*(r[c] for c in example), bits(r), r["_append"], r["_negative_kept"], r["_primary_negative"])
        for r in listed("late")
    ]
    unmatched = [(r["_partition"], r["_offset"], r["reason"]) for r in listed("unmatched")]
    dead = [(r["log"], r["partition"], r["offset"], r["reason"]) for r in listed("dead")]
    counts = shard.core.counts
    repeated = [(counts.actions_repeated, counts.impressions_repeated)]
    lists = {
        "examples": primary,
        "late": late,
        "unmatched": unmatched,
        "dead": dead,
        "repeated": repeated,
    }
    return {name: Counter(map(repr, rows)) for name, rows in lists.items()}


# --- what arrives ---------------------------------------------------------------------------

KEYS = [("a", 1), ("a", 2), ("b", 1)]


@st.composite
def arrivals(draw: st.DrawFn, spread: int = 90, reuse: bool = True) -> list[list[dict]]:
    """Polls of two partitions of either log: any order, any cuts, keys and times that collide."""
    rows: list[dict] = []
    for log in (IMPRESSIONS, ACTIONS):
        for partition in (0, 1):
            for time in draw(st.lists(st.integers(0, spread), max_size=14)):
                key = draw(st.integers(0, len(KEYS) - 1))
                row = {
                    "_log": log,
                    "_partition": partition,
                    "_time": time,
                    "_append": draw(st.integers(0, 9)),
                }
                row["k"], row["n"] = KEYS[key]
                if log == IMPRESSIONS:
                    row["_time"] = time if reuse else key * 7
                    row["feature"] = [row["_time"], key]
                else:
                    row["kind"] = draw(st.sampled_from(["click", "like", "like", "share"]))
                    row["id"] = draw(st.sampled_from([None, None, "x"]))
                rows.append(row)
    order = draw(st.permutations(rows))
    polls: list[list[dict]] = []
    for row in order:
        if not polls or draw(st.booleans()):
            polls.append([])
        polls[-1].append(row)
    return polls


def play(
    polls: list[list[dict]], options: JoinOptions, seed: int, rebuilds: bool, collide: bool = False
) -> tuple[Shard, pa.Table]:
    """Feed the polls; look-ups of late actions and rebuilds at random places, with and without a bound on reads."""
    chance = random.Random(seed)
    shard = Shard(options, chance.choice([None, 0, 1]))
    feed = ElementFeed(
        IMPRESSION_COLUMNS, ACTION_COLUMNS, ("k", "n"), {IMPRESSIONS: 2, ACTIONS: 2}, max_skew_us=SKEW_US
    )
    seen = []
    for poll in polls:
        if collide:
            poll = [{**row, "_hash": 7} for row in poll]
        element = feed.poll(poll)[0]
        seen.append(pa.Table.from_batches([element.replace_schema_metadata(None)]))
        shard.feed(element, release=chance.random() < 0.5)
        if rebuilds and chance.random() < 0.4:
            shard.rebuild()
    if not seen:
        seen.append(pa.Table.from_batches([feed.poll([])[0].replace_schema_metadata(None)]))
    if chance.random() < 0.5:
        shard.feed(feed.advance(200)[0], release=False)
    shard.feed(feed.end()[0])
    assert shard.core.impressions_waiting == shard.core.actions_waiting == 0
    assert shard.ring.save()["used"] == []
    return shard, pa.concat_tables(seen)


quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(arrivals(), st.integers(0, 10_000), st.booleans(), st.booleans())
def test_equals_a_batch_join_whatever_the_interleaving(polls, seed, by_id, collide):
    options = replace(OPTIONS, action_id="id" if by_id else None, cache_bytes=[1, 1 << 20][seed % 2])
    shard, rows = play(polls, options, seed, rebuilds=True, collide=collide)
    if not by_id:
        rows = rows.set_column(rows.schema.get_field_index("id"), "id", pa.nulls(len(rows), pa.string()))
    assert answered(shard) == oracle(rows, options)


@quick
@given(arrivals(), st.integers(0, 10_000), st.booleans())
def test_interleavings_of_the_same_rows_agree(polls, seed, by_id):
    """One row a poll, partition after partition, gives what any other arrival gives."""
    options = replace(OPTIONS, action_id="id" if by_id else None)
    one, _ = play(polls, options, seed, rebuilds=False)
    rows = [row for poll in polls for row in poll]
    by_partition = sorted(rows, key=lambda row: (-row["_log"], row["_partition"]))
    other, _ = play([[row] for row in by_partition], options, seed, rebuilds=False)
    assert answered(one) == answered(other)


@quick
@given(arrivals(reuse=False), st.integers(0, 10_000))
def test_eager_gives_the_same_labels_in_the_end(polls, seed):
    eager, _ = play(polls, replace(OPTIONS, emit="eager"), seed, rebuilds=False)
    complete, _ = play(polls, OPTIONS, seed, rebuilds=False)
    assert labels_in_the_end(eager) == labels_in_the_end(complete)
    assert eager.rows("unmatched") == complete.rows("unmatched")
    assert eager.rows("dead") == complete.rows("dead")
    a, b = eager.core.counts, complete.core.counts
    assert (a.examples, a.impressions_repeated) == (b.examples, b.impressions_repeated)
    assert (a.used + a.late, a.actions_repeated) == (b.used + b.late, b.actions_repeated)


def labels_in_the_end(shard: Shard) -> dict[tuple, tuple]:
    """Every impression's labels, over its example and its late ones; exactly one of the former."""
    union: dict[tuple, tuple] = {}
    primaries: Counter[tuple] = Counter()
    for batch in [*shard.outputs.examples, *shard.outputs.late]:
        for row in batch.to_pylist():
            at = (row["k"], row["n"], row["_time"])
            primaries[at] += row["_kind"] == 0
            labels = [row[name] for name in shard.schema.label_columns]
            union[at] = tuple(np.maximum(labels, union.get(at, (0, 0, 0))).tolist())
    assert set(primaries.values()) <= {1}
    return union


@quick
@given(arrivals(), st.integers(0, 10_000), st.booleans())
def test_eager_survives_the_loss_of_its_memory(polls, seed, small_cache):
    options = replace(OPTIONS, emit="eager", cache_bytes=1 if small_cache else 1 << 20)
    kept, _ = play(polls, options, seed, rebuilds=False)
    chance = random.Random(seed)
    lost = Shard(options, chance.choice([None, 0, 1]))
    feed = ElementFeed(
        IMPRESSION_COLUMNS, ACTION_COLUMNS, ("k", "n"), {IMPRESSIONS: 2, ACTIONS: 2}, max_skew_us=SKEW_US
    )
    for poll in polls:
        lost.feed(feed.poll(poll)[0], release=chance.random() < 0.5)
        lost.rebuild()
    lost.feed(feed.end()[0])
    assert answered(lost) == answered(kept)


# --- single cases, by hand ------------------------------------------------------------------


def impression(time: int, key: int = 0, **more) -> dict:
    k, n = KEYS[key]
    return {"_log": IMPRESSIONS, "_time": time, "k": k, "n": n, "feature": [time], **more}


def action(time: int, kind: str = "click", key: int = 0, **more) -> dict:
    k, n = KEYS[key]
    return {"_log": ACTIONS, "_time": time, "k": k, "n": n, "kind": kind, **more}


def new_feed(**more) -> ElementFeed:
    return ElementFeed(IMPRESSION_COLUMNS, ACTION_COLUMNS, ("k", "n"), **more)


def test_without_every_partition_there_is_no_clock():
    shard = Shard(OPTIONS)
    feed = new_feed()
    shard.feed(feed.poll([impression(0), impression(500, 1)])[0])
    assert shard.clock.clock_us() == NO_TIME_US
    assert not shard.outputs.examples
    assert shard.core.impressions_waiting == 2
    shard.feed(feed.poll([action(400, key=2)])[0])
    assert [b.num_rows for b in shard.outputs.examples] == [1]


def test_examples_come_in_event_time_order():
    shard = Shard(OPTIONS)
    feed = new_feed(max_skew_us=1000)
    shard.feed(feed.poll([impression(30), impression(10, 1), impression(20, 2), action(25)])[0])
    shard.feed(feed.advance(300)[0])
    assert [t for b in shard.outputs.examples for t in b.column("_time").to_pylist()] == [10, 20, 30]


def test_a_late_action_never_comes_before_its_window_closed():
    """The actions' partition is far ahead: late by its own watermark, while the window is still open."""
    shard = Shard(OPTIONS)
    feed = new_feed()
    shard.feed(feed.poll([impression(100)])[0])
    shard.feed(feed.poll([action(125, key=1), action(105)])[0])
    assert not shard.outputs.late
    assert shard.core.late_queued == 1
    shard.feed(feed.poll([impression(126, 2)])[0])
    assert not shard.outputs.late  # others of the same watermark may follow
    shard.feed(feed.advance(126)[0])
    assert [b.column("_negative_kept").to_pylist() for b in shard.outputs.late] == [[True]]
    assert [b.column("_kind").to_pylist() for b in shard.outputs.late] == [[1]]


def test_a_reused_key_is_refused_and_later_is_new():
    shard = Shard(OPTIONS)
    feed = new_feed()
    span = OPTIONS.reuse_us
    shard.feed(
        feed.poll([impression(0), impression(5), impression(span), impression(span + 1), action(0)])[0]
    )
    shard.feed(feed.end()[0])
    assert [t for b in shard.outputs.examples for t in b.column("_time").to_pylist()] == [0, span + 1]
    reasons = [r for b in shard.outputs.dead for r in b.column("reason").to_pylist()]
    assert reasons == ["key_reused", "key_reused"]


def test_primary_identity_tells_two_impressions_of_one_key_apart_and_nothing_else():
    def identity(time: int, feature: list[int]) -> tuple[int, int]:
        shard = Shard(OPTIONS)
        feed = new_feed()
        shard.feed(feed.poll([impression(time, feature=feature), action(time)])[0])
        shard.feed(feed.end()[0])
        row = shard.outputs.examples[0].to_pylist()[0]
        return row["_id_hi"], row["_id_lo"]

    assert identity(3, [1]) == identity(3, [2])
    assert identity(3, [1]) != identity(4, [1])


def test_cold_buckets_are_read_once_for_all_late_actions():
    options = replace(OPTIONS, cache_bytes=1, late_horizon_us=10_000, max_lead_us=0)
    shard = Shard(options)
    feed = new_feed()
    shard.feed(
        feed.poll([*(impression(t, key) for t, key in [(0, 0), (1, 1), (2, 2)]), action(0, "like", 0)])[0]
    )
    shard.feed(feed.advance(options.bucket_us + 100)[0])
    assert shard.core.hot_bytes == 0
    before = shard.core.cold_reads
    late = [action(5, "like", key) for key in range(3)] + [action(2, "click", 0), action(0, "like", 0)]
    shard.feed(feed.poll(late)[0])
    shard.feed(feed.advance(options.bucket_us + 100 + 1)[0])
    assert sum(b.num_rows for b in shard.outputs.late) == 4
    assert shard.core.counts.actions_repeated == 1
    assert shard.core.cold_reads - before == 1
    shard.feed(feed.poll([action(5, "like", 0)])[0])  # the note in the cold cell knows it
    shard.feed(feed.advance(options.bucket_us + 100 + 2)[0])
    assert shard.core.counts.actions_repeated == 2


def test_a_key_that_no_bucket_may_hold_reads_nothing():
    options = replace(OPTIONS, cache_bytes=1, late_horizon_us=10_000, max_lead_us=0)
    shard = Shard(options)
    feed = new_feed()
    shard.feed(feed.poll([impression(0, 0), action(0, "like", 0)])[0])
    shard.feed(feed.advance(options.bucket_us + 100)[0])
    before = shard.core.cold_reads
    shard.feed(feed.poll([action(5, "like", 2)])[0])
    shard.feed(feed.advance(options.bucket_us + 100 + 1)[0])
    assert shard.core.counts.unmatched == 1
    assert shard.core.cold_reads == before


def test_state_and_memory_stay_flat():
    shard = Shard(replace(OPTIONS, cache_bytes=1 << 20))
    feed = new_feed(max_skew_us=SKEW_US)
    sizes = []
    for round_ in range(60):
        start = round_ * 30
        rows = [{**impression(start + i), "n": start + i} for i in range(30)]
        rows += [{**action(start + i, "like"), "n": start + i} for i in range(0, 30, 3)]
        shard.feed(feed.poll(rows)[0])
        kept = sum(b.num_rows for bag in [*shard.bags, shard.overflow] for b in bag.read())
        sizes.append((kept, shard.core.hot_bytes, len(shard.core._closed._filter)))
    later = sizes[20:]
    assert max(k for k, _, _ in later) <= 2 * min(k for k, _, _ in later)
    assert max(h for _, h, _ in later) <= 2 * min(h for _, h, _ in later)
    assert max(f for _, _, f in later) <= 2 * min(f for _, _, f in later)


def test_a_row_that_does_not_fit_the_columns_is_a_dead_letter_and_the_others_go_on():
    shard = Shard(OPTIONS)
    changed = pa.schema([("k", pa.string()), ("n", pa.string()), ("feature", pa.list_(pa.int64()))])
    same = pa.schema([("k", pa.string()), ("n", pa.string()), ("kind", pa.string()), ("id", pa.string())])
    feed = ElementFeed(changed, same, ("k", "n"))
    shard.feed(feed.poll([{**impression(0), "n": "5"}, {**impression(1), "n": "five"}])[0])
    shard.feed(feed.poll([{**action(3), "n": "5"}])[0])
    shard.feed(feed.end()[0])
    assert [r["n"] for b in shard.outputs.examples for r in b.to_pylist()] == [5]
    assert [r["reason"] for b in shard.outputs.dead for r in b.to_pylist()] == ["schema_mismatch"]


def rebuilt_with(shard: Shard, impressions: pa.Schema, actions: pa.Schema) -> JoinCore:
    """A core of other columns, from the state of a shard."""
    ring = CellRing(shard.bags, shard.overflow, shard.schema.options.bucket_us)
    ring.resume(shard.ring.save())
    core = new_core(ExamplesSchema(shard.schema.options, impressions, actions), ring)
    counts = JoinCounts(**shard.core.counts.to_dict())
    core.rebuild(shard.clock.clock_us(), shard.core.released_us, counts)
    return core


#: Under which a bucket is sealed at 90 and still asked for.
LONG = replace(OPTIONS, late_horizon_us=100)


@pytest.mark.parametrize("closed", [False, True])
def test_columns_added_widened_and_removed_since_the_state_was_written(closed: bool):
    shard = Shard(LONG)
    feed = new_feed(max_skew_us=SKEW_US)
    shard.feed(feed.poll([{**impression(0), "feature": [1, 2]}, action(3)])[0])
    if closed:
        shard.feed(feed.advance(90)[0])
        assert len(shard.outputs.examples) == 1
    wider = ("feature", pa.list_(pa.float64()))
    columns = pa.schema([*IMPRESSION_COLUMNS.remove(2), wider, ("added", pa.string())])
    shard.core = rebuilt_with(shard, columns, ACTION_COLUMNS)
    assert shard.core.impressions_waiting == int(not closed)
    if closed:
        shard.feed(feed.poll([action(4, "like")])[0])
    shard.feed(feed.advance(91)[0])
    out = shard.outputs.late if closed else shard.outputs.examples
    (row,) = (row for batch in out for row in batch.to_pylist())
    assert row["feature"] == [1.0, 2.0] and row["added"] is None
    shard.core = rebuilt_with(shard, IMPRESSION_COLUMNS.remove(2), ACTION_COLUMNS)
    shard.feed(feed.poll([action(5, "like")])[0])
    shard.feed(feed.advance(92)[0])
    assert "feature" not in shard.outputs.late[-1].schema.names


@pytest.mark.parametrize("closed", [False, True])
def test_state_that_does_not_fit_a_changed_column_is_refused_and_not_dropped(closed: bool):
    shard = Shard(LONG)
    feed = new_feed(max_skew_us=SKEW_US)
    shard.feed(feed.poll([{**impression(0), "feature": [1, 2]}])[0])
    if closed:
        shard.feed(feed.advance(90)[0])
    narrow = pa.schema([*IMPRESSION_COLUMNS.remove(2), ("feature", pa.int64())])
    with pytest.raises(StateDoesNotFit, match="go on from the same savepoint"):
        rebuilt_with(shard, narrow, ACTION_COLUMNS)


def test_rows_ahead_of_the_ring_wait_in_the_overflow_and_come_to_their_cells():
    shard = Shard(OPTIONS)
    feed = new_feed(max_skew_us=1_000_000)
    far = OPTIONS.bucket_us * 9
    shard.feed(feed.poll([impression(0), impression(far, 1), action(0), action(far, "like", 1)])[0])
    assert shard.ring.save()["overflowing"]
    shard.feed(feed.advance(far - 10)[0])
    shard.rebuild()
    assert not shard.ring.save()["overflowing"]
    shard.feed(feed.end()[0])
    labels = [(r["_time"], r["label_like"]) for b in shard.outputs.examples for r in b.to_pylist()]
    assert labels == [(0, 0), (far, 1)]


def test_wrong_options_are_answered_all_at_once():
    with pytest.raises(Exception, match=r"state_buckets.*cache_bytes") as refused:
        replace(OPTIONS, state_buckets=99, cache_bytes=0)
    assert "SpecError" in type(refused.value).__name__
