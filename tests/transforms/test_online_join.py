"""OnlineJoin and NegativeSampling as Beam transforms: state, memory, and each timer where only it can work."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import GlobalWindow

from cuckooflow.errors import ChainOverflow, SpecError
from cuckooflow.transforms import online_join
from cuckooflow.transforms.balances import imbalances, totals
from cuckooflow.transforms.coders import Keyed
from cuckooflow.transforms.cold_reads import actions_that_wait, actions_that_waited
from cuckooflow.transforms.in_band import ACTIONS, IMPRESSIONS
from cuckooflow.transforms.join_options import JoinOptions, Label
from cuckooflow.transforms.join_outputs import ExamplesSchema
from cuckooflow.transforms.join_shard import JoinShard, ShardOutputs
from cuckooflow.transforms.join_state import HOT_TIER, CellRing, ListBag
from cuckooflow.transforms.join_testing import Collect, ElementFeed
from cuckooflow.transforms.negative_sampling import NegativeSampling, _CountFn, kept_negatives, sample_late
from cuckooflow.transforms.online_join import OnlineJoin

IMPRESSION_COLUMNS = pa.schema([("k", pa.int64()), ("feature", pa.string())])
ACTION_COLUMNS = pa.schema([("k", pa.int64()), ("kind", pa.string())])
OPTIONS = JoinOptions(
    key=("k",),
    action_type="kind",
    labels=(Label("click", "click", 10), Label("like", "like", 20)),
    late_horizon_us=30,
    max_lead_us=50,
    num_shards=2,
    tick_us=1_000,
    balance_interval_us=1_000,
    recheck_us=1_000,
)
SHARDS = 2


def impression(time_us: int, key: int, **more) -> dict:
    return {"_log": IMPRESSIONS, "_time": time_us, "k": key, "feature": f"f{key}", **more}


def action(time_us: int, key: int, kind: str = "click", **more) -> dict:
    return {"_log": ACTIONS, "_time": time_us, "k": key, "kind": kind, **more}


def new_feed(**more) -> ElementFeed:
    return ElementFeed(IMPRESSION_COLUMNS, ACTION_COLUMNS, ("k",), num_shards=SHARDS, **more)


def elements(*polls: dict[int, pa.RecordBatch]) -> list[tuple[int, pa.RecordBatch]]:
    return [(shard, batch) for poll in polls for shard, batch in poll.items()]


class _Emit(beam.DoFn):
    """One call gives all elements, as the live source does: one bundle."""

    def __init__(self, given: list[tuple[int, pa.RecordBatch]]) -> None:
        self._given = given

    def process(self, _):
        yield from self._given


def run(given, options=OPTIONS, sampling=None, bundles=False, job="test") -> dict[str, list]:
    """Every output's elements. ``bundles``: each element in a bundle of its own, as a runner might."""
    pipeline = beam.Pipeline(FnApiRunner(), PipelineOptions(["--no_save_main_session"]))
    if bundles:
        source = pipeline | beam.Create(given).with_output_types(Keyed)
    else:
        source = pipeline | beam.Create([0]) | beam.ParDo(_Emit(given)).with_output_types(Keyed)
    joined = source | OnlineJoin(options, job, IMPRESSION_COLUMNS, ACTION_COLUMNS)
    outputs = {name: joined[name] for name in ("examples", "late", "unmatched", "dead", "balances")}
    if sampling is not None:
        sampled = {name: outputs[name] for name in ("examples", "late")} | sampling
        outputs |= {"examples": sampled["examples"], "late": sampled["late"]}
        outputs["sampling"] = sampled["balances"]
    for name, collection in outputs.items():
        _ = collection | f"Collect{name}" >> beam.ParDo(Collect(f"{job}/{name}"))
    pipeline.run().wait_until_finish()
    return {name: Collect.taken(f"{job}/{name}") for name in outputs}


def rows(found: list) -> list[dict]:
    batches = [entry[1] if isinstance(entry, tuple) else entry for entry in found]
    return [row for batch in batches for row in batch.to_pylist()]


def some_polls() -> list[dict[int, pa.RecordBatch]]:
    feed = new_feed(max_skew_us=3)
    return [
        feed.poll([impression(100 + i, i) for i in range(20)], 10),
        feed.poll(
            [action(105, 1), action(105, 1), action(106, 2, "like"), action(107, 99), action(108, 3, "?")], 20
        ),
        feed.poll([impression(150, 50), action(150, 50), action(111, 4, "like")], 30),
        feed.poll([impression(100, 60), impression(151, 50)], 2_000),
        feed.end(2_001),
    ]


def test_every_row_comes_out_once_and_the_balances_add_up():
    found = run(elements(*some_polls()))
    examples = rows(found["examples"])
    assert len(examples) == 21
    assert {r["k"] for r in examples if r["label_click"]} == {1, 50}
    assert {r["k"] for r in examples if r["label_like"]} == {2}
    assert [(r["k"], r["label_like"], r["_negative_kept"]) for r in rows(found["late"])] == [(4, 1, True)]
    assert [(r["k"], r["reason"]) for r in rows(found["unmatched"])] == [(99, "no_impression")]
    assert sorted(r["reason"] for r in rows(found["dead"])) == [
        "key_reused",
        "late_impression",
        "unknown_action",
    ]
    sums = totals(sorted(found["balances"], key=lambda r: r["counts"]["impressions"]))
    assert imbalances(sums) == []
    counts = sums["join"]
    assert (counts["impressions"], counts["examples"], counts["impressions_waiting"]) == (23, 21, 0)
    assert (counts["actions"], counts["used"], counts["late"], counts["actions_repeated"]) == (7, 3, 1, 1)
    assert all(shard == r["_hash"] % SHARDS for shard, b in found["examples"] for r in b.to_pylist())


@pytest.mark.parametrize("emit", ["complete", "eager"])
def test_memory_lost_between_elements_changes_nothing(emit, monkeypatch):
    options = replace(OPTIONS, emit=emit)
    kept = run(elements(*some_polls()), options)
    rebuilt = []

    def forgetful(job, stage, shard):
        place = type(HOT_TIER).place(HOT_TIER, job, stage, shard)
        if place.memory is not None:
            place.memory.token = "of another attempt"
            rebuilt.append(shard)
        return place

    monkeypatch.setattr(online_join.HOT_TIER, "place", forgetful, raising=False)
    lost = run(elements(*some_polls()), options)
    assert len(rebuilt) >= 4 * SHARDS
    for name in ("examples", "late", "unmatched", "dead"):
        assert sorted(map(repr, rows(lost[name]))) == sorted(map(repr, rows(kept[name])))
    assert totals(lost["balances"]) == totals(kept["balances"])


def test_elements_of_one_shard_in_any_order():
    polls = some_polls()
    one = run(elements(*polls))
    other = run(elements(*reversed(polls)), bundles=True)
    for name in ("examples", "late", "unmatched", "dead"):
        assert sorted(map(repr, rows(other[name]))) == sorted(map(repr, rows(one[name])))


def test_empty_input():
    assert not any(run([]).values())
    found = run(elements(new_feed().end(5)))
    assert not found["examples"]
    assert totals(found["balances"])["join"]["impressions"] == 0


def test_too_many_elements_out_of_order_stop_the_job_with_a_name():
    feed = new_feed()
    polls = [feed.poll([impression(i, i)]) for i in range(6)]
    with pytest.raises(Exception, match="out of order") as refused:
        run(elements(*polls[1:]), replace(OPTIONS, held_elements_max=2))
    chain = [refused.value]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    assert any(isinstance(e, ChainOverflow) or "ChainOverflow" in str(e) for e in chain)


# --- timers ---------------------------------------------------------------------------------


def late_and_then_silence() -> list[dict[int, pa.RecordBatch]]:
    """A late action that its element may not look up, as the poller's clock did not move by a tick."""
    feed = new_feed()
    return [
        feed.poll([impression(100, 1)], 5_000),
        feed.advance(125, 5_000),
        feed.poll([action(110, 1)], 5_001),
        feed.advance(126, 5_002),
    ]


def test_only_the_recheck_timer_looks_up_late_actions_when_the_input_pauses(monkeypatch):
    found = run(elements(*late_and_then_silence()))
    assert [r["k"] for r in rows(found["late"])] == [1]
    # The end of the input alone, without end marks, gives nothing out.
    monkeypatch.setattr(online_join._JoinFn, "_arm", only_end)
    found = run(elements(*late_and_then_silence()))
    assert not found["late"]
    assert totals(found["balances"])["join"]["actions_waiting"] == 1


def only_end(_self, state, _memory):
    state.end.set(GlobalWindow().max_timestamp())


def only_recheck(self, state, memory):
    memory.end_armed = True
    state.recheck.set((self._now_us() + 1_000) / 1e6)


def gap_before_the_end() -> list[dict[int, pa.RecordBatch]]:
    feed = new_feed()
    first = feed.poll([impression(100, key) for key in range(4)], 10)
    feed.poll([impression(101, 5)], 20)  # lost
    return [first, feed.poll([impression(102, 6), action(102, 6)], 30), feed.end(40)]


def test_only_the_end_timer_gives_up_on_a_gap(monkeypatch):
    found = run(elements(*gap_before_the_end()))
    assert len(rows(found["examples"])) == 4
    dead = rows(found["dead"])
    assert [(r["log"], r["reason"]) for r in sorted(dead, key=lambda r: r["log"])] == [
        ("actions", "chain_gap"),
        ("impressions", "chain_gap"),
    ]
    assert imbalances(totals(found["balances"])) == []
    monkeypatch.setattr(online_join._JoinFn, "_arm", only_recheck)
    found = run(elements(*gap_before_the_end()))
    assert not found["examples"]
    assert not found["dead"]


def test_a_stopped_job_does_not_drain():
    feed = new_feed()
    found = run(elements(feed.poll([impression(100, 1), action(101, 1)], 10)))
    assert not found["examples"]
    counts = totals(found["balances"])["join"]
    assert (counts["impressions_waiting"], counts["actions_waiting"]) == (1, 1)


def test_balances_come_while_the_input_goes_on():
    feed = new_feed()
    polls = [feed.poll([impression(i, i), action(i, i)], 600 * i) for i in range(10)]
    records = run(elements(*polls))["balances"]
    by_shard = defaultdict(list)
    for record in records:
        by_shard[record["shard"]].append(record["polled_us"])
    assert all(len(times) >= 5 for times in by_shard.values())


# --- negative sampling ----------------------------------------------------------------------


def many(n: int) -> list[dict[int, pa.RecordBatch]]:
    feed = new_feed()
    polls = [feed.poll([impression(100, i) for i in range(n)] + [action(100, i) for i in range(0, n, 4)], 10)]
    # Late: past the window of these, by their own partition's watermark.
    polls += [feed.advance(125, 20), feed.poll([action(110, i, "like") for i in range(0, n, 2)], 30)]
    return [*polls, feed.end(40)]


def test_sampling_reports_all_while_the_input_pauses_without_a_timer():
    feed = new_feed()
    polls = [feed.poll([impression(100, i) for i in range(40)], 10), feed.advance(200, 20)]
    polls += [feed.poll([], polled_us) for polled_us in (1_500_000, 3_000_000)]
    found = run(elements(*polls), sampling=NegativeSampling(0.5, seed=7))
    newest = {r["shard"]: r for r in found["sampling"] if not r["final"]}
    assert sum(record["counts"]["examples"] for record in newest.values()) == 40
    assert {record["polled_us"] for record in newest.values()} == {
        1_500_000
    }  # and nothing new is not told again


def test_sampling_keeps_positives_and_a_share_of_negatives_by_key():
    n, rate = 400, 0.25
    found = run(elements(*many(n)), sampling=NegativeSampling(rate, seed=7))
    examples = rows(found["examples"])
    positive = {r["k"] for r in examples if r["label_click"]}
    assert positive == set(range(0, n, 4))
    negative = {r["k"] for r in examples if not r["label_click"]}
    assert 0.15 * 300 < len(negative) < 0.35 * 300
    assert {r["_rate"] for r in examples} == {rate}
    again = run(elements(*many(n)), sampling=NegativeSampling(rate, seed=7))
    assert {r["k"] for r in rows(again["examples"])} == positive | negative
    other = run(elements(*many(n)), sampling=NegativeSampling(rate, seed=8))
    assert {r["k"] for r in rows(other["examples"])} != positive | negative
    late = rows(found["late"])
    assert len(late) == n // 2
    assert all(r["_negative_kept"] == (r["k"] in positive | negative) for r in late)
    assert "_primary_negative" not in late[0]
    sums = totals([*found["balances"], *found["sampling"]])
    assert imbalances(sums) == []
    assert sums["sampling"] == {"examples": n, "kept": len(examples), "sampled_out": n - len(examples)}


def test_each_timer_of_sampling_reports_alone(monkeypatch):
    def recheck_only(self, _state, recheck, _end):
        recheck.set((self._now_us() + 1_000) / 1e6)

    def end_only(_self, _state, _recheck, end):
        end.set(GlobalWindow().max_timestamp())

    for arm, final in ((end_only, True), (recheck_only, False)):
        monkeypatch.setattr(_CountFn, "_arm", arm)
        found = run(elements(*many(8)), sampling=NegativeSampling(0.5, 1, balance_interval_us=10**9))
        assert [r["final"] for r in found["sampling"]] == [final] * SHARDS
    monkeypatch.setattr(_CountFn, "_arm", lambda *_: None)
    found = run(elements(*many(8)), sampling=NegativeSampling(0.5, 1, balance_interval_us=10**9))
    assert not found["sampling"]


def test_sampling_share_is_uniform_and_hash_independent():
    keys = np.arange(200_000, dtype=np.uint64)
    kept = kept_negatives(keys, 0.3, 5)
    assert abs(kept.mean() - 0.3) < 0.005
    both = kept & kept_negatives(keys, 0.3, 6)
    assert abs(both.mean() - 0.09) < 0.005
    assert kept_negatives(keys, 1.0, 5).all()
    assert (kept_negatives(keys, 0.1, 5) <= kept).all()  # a lower rate keeps a part of the same


def test_late_rows_know_whether_their_negative_was_kept():
    batch = pa.RecordBatch.from_pydict(
        {
            "_hash": pa.array([1, 2, 3, 4], pa.uint64()),
            "_negative_kept": [True, True, True, False],
            "_primary_negative": [True, True, False, True],
        }
    )
    kept = kept_negatives(batch.column("_hash").to_numpy(), 0.5, 3)
    got = sample_late(batch, 0.5, 3)
    assert got.column("_negative_kept").to_pylist() == [bool(kept[0]), bool(kept[1]), True, False]
    assert got.column("_rate").to_pylist() == [0.5, 0.5, 1.0, 0.5]


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.5])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(SpecError, match="rate"):
        NegativeSampling(rate, 0)


def test_columns_that_do_not_go_together_are_refused_when_the_pipeline_is_built():
    with pytest.raises(SpecError, match=r"'kind'.*'k'.*'label_click'"):
        OnlineJoin(OPTIONS, "j", pa.schema([("label_click", pa.int8())]), pa.schema([("k", pa.int64())]))


# --- cold reads -----------------------------------------------------------------------------

BUCKETS = 6
LATE_OF_A_BUCKET = 20
COLD = replace(OPTIONS, cache_bytes=1, late_horizon_us=10_000, max_lead_us=0, tick_us=10)


def closed_and_then_late(num_shards: int) -> tuple[ElementFeed, list[dict[int, pa.RecordBatch]]]:
    """Impressions of several buckets, all closed; then, at once, late actions on all of them, mixed."""
    feed = ElementFeed(IMPRESSION_COLUMNS, ACTION_COLUMNS, ("k",), num_shards=num_shards)
    keys = range(BUCKETS * LATE_OF_A_BUCKET)
    times = {key: key % BUCKETS * COLD.bucket_us for key in keys}
    shown = feed.poll([impression(times[key], key) for key in sorted(keys, key=times.__getitem__)])
    closed = feed.advance(BUCKETS * COLD.bucket_us + COLD.window_us, 100)
    late = feed.poll([action(times[key] + 5, key, "like") for key in keys], 101)
    return feed, [shown, closed, late]


def test_a_tick_reads_one_bucket_and_the_other_late_actions_wait_in_their_order():
    schema = ExamplesSchema(replace(COLD, num_shards=1), IMPRESSION_COLUMNS, ACTION_COLUMNS)
    bags = [ListBag() for _ in range(COLD.state_buckets)]
    overflow = ListBag()
    shard = JoinShard(0, schema, CellRing(bags, overflow, COLD.bucket_us), None)
    feed, polls = closed_and_then_late(1)
    sums: dict[str, int] = defaultdict(int)
    given: list[list[int]] = []

    def counted(out: ShardOutputs) -> dict[str, int]:
        for name, by in out.counted.items():
            sums[name] += by
        given.append([r["k"] for batch in out.rows.late for r in batch.to_pylist()])
        for record in out.balances:
            assert imbalances({"join": record["counts"]}) == []
            assert record["counts"]["actions_waiting"] == record["figures"]["join_late_queued"]
        return out.counted

    for poll in polls:
        counted(shard.accept(poll[0]))
    assert (sums["join_cold_reads"], shard.late_queued) == (0, BUCKETS * LATE_OF_A_BUCKET)
    now_us = BUCKETS * COLD.bucket_us + COLD.window_us
    for tick in range(1, BUCKETS + 1):
        if tick == 3:  # memory is lost, and what waits is still what waited
            saved = shard.save()
            shard = JoinShard(0, schema, CellRing(bags, overflow, COLD.bucket_us), saved)
            assert shard.late_queued == (BUCKETS - 2) * LATE_OF_A_BUCKET
        # Half of the ticks come with an element, half with the timer that fires when the input pauses.
        quiet = tick % 2 == 0
        out = shard.recheck() if quiet else shard.accept(feed.advance(now_us + tick, 100 + 100 * tick)[0])
        assert counted(out)["join_cold_reads"] <= out.counted["join_ticks"] == 1
        assert shard.late_queued == (BUCKETS - tick) * LATE_OF_A_BUCKET
        assert shard.late_deferred == (tick < BUCKETS)
    assert given[len(polls) :] == [
        [key for key in range(BUCKETS * LATE_OF_A_BUCKET) if key % BUCKETS == bucket]
        for bucket in range(BUCKETS)
    ]
    # A rebuild takes all buckets back into memory at once, which a tick then need not do.
    assert BUCKETS // 2 <= sums["join_cold_reads"] <= BUCKETS <= sums["join_ticks"]
    assert sums["join_cold_reads_beyond_one_a_tick"] == 0


def test_late_actions_that_wait_for_a_bucket_are_looked_up_while_the_input_pauses():
    feed, polls = closed_and_then_late(SHARDS)
    after = feed.advance(
        BUCKETS * COLD.bucket_us + COLD.window_us + 1, 102
    )  # before a tick; then nothing comes
    found = run(elements(*polls, after), options=COLD)
    assert sorted(r["k"] for r in rows(found["late"])) == list(range(BUCKETS * LATE_OF_A_BUCKET))
    assert totals(found["balances"])["join"]["actions_waiting"] == 0


def test_what_is_about_to_be_cleared_is_read_at_once_and_counted_beyond_one_a_tick():
    schema = ExamplesSchema(replace(COLD, num_shards=1), IMPRESSION_COLUMNS, ACTION_COLUMNS)
    ring = CellRing([ListBag() for _ in range(COLD.state_buckets)], ListBag(), COLD.bucket_us)
    shard = JoinShard(0, schema, ring, None)
    feed, polls = closed_and_then_late(1)
    for poll in polls:
        shard.accept(poll[0])
    out = shard.accept(feed.advance(3 * BUCKETS * COLD.bucket_us + COLD.keep_us, 102)[0])  # before a tick
    assert sum(batch.num_rows for batch in out.rows.late) == BUCKETS * LATE_OF_A_BUCKET
    assert out.counted["join_ticks"] == 0
    assert out.counted["join_cold_reads"] == BUCKETS
    assert out.counted["join_cold_reads_beyond_one_a_tick"] == BUCKETS - 1


def test_an_action_whose_hash_two_buckets_have_waits_for_neither_half():
    query, buckets = np.array([0, 1, 1, 2, 3]), np.array([4, 5, 6, 6, 7])
    none = np.empty(0, np.int64)

    def waits(free=none, forced=none, reads_max: int = 1) -> tuple[list[int], list[int]]:
        found = actions_that_wait(query, buckets, free, forced, reads_max)
        return found[0].tolist(), found[1].tolist()

    assert waits() == ([1, 2, 3], [5, 6, 7])
    assert waits(free=np.array([4])) == ([3], [7])  # one action, its two buckets, and who wants one of them
    assert waits(free=np.array([4]), forced=np.array([6])) == ([3], [7])
    assert waits(forced=np.array([4])) == ([1, 2, 3], [5, 6, 7])  # the forced one is the one
    assert waits(free=np.array([6]), reads_max=0) == ([0, 1, 3], [4, 5, 7])
    wm = np.array([10, 20, 20, 30, 40])
    assert actions_that_waited(query, buckets, wm, {6: 30, 7: 40}).tolist() == [2, 3]
    assert actions_that_waited(query, buckets, wm, {}).tolist() == []
