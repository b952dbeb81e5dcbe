"""Counter and recent tables against plain dicts of events: embedded, served, restored and replicated."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.api import DenseConfig, Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.client import StoreClient
from cuckooflow.embedding_store.config_json import check_config, config_from_json, config_to_json
from cuckooflow.embedding_store.kinds import NEVER_US, TIME_US_MAX, CounterPush, RecentPush
from cuckooflow.embedding_store.native_core import NativeCore
from cuckooflow.embedding_store.read_store import ReadStore
from cuckooflow.embedding_store.server import StoreServer
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.errors import BadShape, NonFiniteGradient, SnapshotGap, SpecError, UnknownTable
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.models.snapshots import SnapshotInfo, read_snapshot, write_snapshot

HALF_LIVES = (1_000, 0, 250)
LENGTH = 4
TABLES = (
    TableConfig("emb", dim=2, optimizer=Optimizer("sgd", 1.0)),
    TableConfig("sums", dim=3, kind="counter", half_lives_us=HALF_LIVES),
    TableConfig("last", dim=LENGTH, kind="recent"),
)
CONFIG = StoreConfig(TABLES, (DenseConfig("w", (2,), Optimizer("sgd", 1.0)),), buckets=8)
SUMS_ONLY = StoreConfig(TABLES[1:2], buckets=4)
IDS = np.array([0, 1, 2**63, 2**64 - 1, *range(100, 140)], np.uint64)


@dataclass
class Events:
    """The oracle: every event, kept."""

    amounts: dict[int, list[tuple[int, list[float]]]] = field(default_factory=dict)
    entries: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def counter(self, id_: int, as_of: int | None) -> tuple[list[float], int, int]:
        events = self.amounts.get(id_, [])
        if not events or (as_of is not None and as_of < min(t for t, _ in events)):
            return [0.0] * 3, NEVER_US, NEVER_US
        first, last = min(t for t, _ in events), max(t for t, _ in events)
        at = last if as_of is None else max(as_of, last)
        sums = [
            math.fsum(a[c] * (2.0 ** (-(at - t) / half) if half else 1.0) for t, a in events)
            for c, half in enumerate(HALF_LIVES)
        ]
        return sums, first, last

    def recent(self, id_: int, as_of: int | None) -> tuple[list[int], list[int]]:
        """Of one time, the later pushed is the newer. Only the newest are remembered."""
        entries = enumerate(self.entries.get(id_, []))
        kept = [entry for _, entry in sorted(entries, key=lambda e: (-e[1][0], -e[0]))][:LENGTH]
        seen = [(t, v) for t, v in kept if as_of is None or t <= as_of]
        free = LENGTH - len(seen)
        return [v for _, v in seen] + [0] * free, [t for t, _ in seen] + [NEVER_US] * free


def a_push(rng: np.random.Generator, events: Events, around: int):
    n = int(rng.integers(1, 120))
    ids = rng.choice(IDS, n)
    amounts = rng.integers(-3, 9, (n, 3)).astype(np.float32)
    times = rng.integers(around - 500, around + 500, n)
    values = rng.integers(0, 2**64, n, np.uint64)
    for id_, amount, time, value in zip(
        ids.tolist(), amounts.tolist(), times.tolist(), values.tolist(), strict=True
    ):
        events.amounts.setdefault(id_, []).append((time, amount))
        events.entries.setdefault(id_, []).append((time, value))
    return {
        "sums": CounterPush(ids, amounts, times),
        "last": RecentPush(ids, values, times),
        "emb": TablePush(ids, rng.normal(size=(n, 2)).astype(np.float32)),
    }


def assert_is(store, events: Events, as_of) -> None:
    """``as_of``: None, one time, or a time for each id."""
    asked = None if as_of is None else np.broadcast_to(np.asarray(as_of, np.int64), IDS.shape).copy()
    given_ = {"sums": asked, "last": asked} if isinstance(as_of, np.ndarray) else as_of
    rows = store.lookup_at({"sums": IDS, "last": IDS}, given_)
    times = [None] * len(IDS) if asked is None else asked.tolist()
    expected = [events.counter(id_, time) for id_, time in zip(IDS.tolist(), times, strict=True)]
    found = rows.counters["sums"]
    np.testing.assert_allclose(found.sums, [sums for sums, _, _ in expected], rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(found.first_us, [first for _, first, _ in expected])
    np.testing.assert_array_equal(found.last_us, [last for _, _, last in expected])
    lists = [events.recent(id_, time) for id_, time in zip(IDS.tolist(), times, strict=True)]
    np.testing.assert_array_equal(rows.recents["last"].values, np.array([v for v, _ in lists], np.uint64))
    np.testing.assert_array_equal(rows.recents["last"].times_us, [t for _, t in lists])


def same(ours, theirs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            arrays = [part[name] if isinstance(part[name], tuple) else (part[name],) for part in (one, other)]
            for a, b in zip(*arrays, strict=True):
                np.testing.assert_array_equal(a, b)


def test_equals_the_events_however_it_is_reached(tmp_path, feeder, rng):
    """One history in memory, behind the process, through restores, and in two replicas."""
    embedded = EmbeddedStore(CONFIG)
    stored = open_store(CONFIG, tmp_path / "data")
    remote = EmbeddedStore(CONFIG)
    server = StoreServer(remote, "127.0.0.1:0")
    client = StoreClient(f"127.0.0.1:{server.port}", retry_s=5)
    replica, by_snapshot = ReadStore(TABLES), ReadStore(TABLES)
    try:
        feeds = [feeder(store) for store in (embedded, stored, client)]
        events = Events()
        for round_ in range(12):
            push = a_push(rng, events, around=10_000 + 300 * round_)
            for feed in feeds:
                feed.push(push, {"w": np.ones(2, np.float32)})
            stored.checkpoint()
            stored.close()
            feeds[1].store = stored = open_store(CONFIG, tmp_path / "data")
            delta = client.delta("replica", full=round_ in (0, 7))
            replica.apply(delta)
            manifest = write_snapshot(tmp_path / "snapshots", delta, SnapshotInfo(name="m", created_us=1))
            by_snapshot.apply(read_snapshot(tmp_path / "snapshots", manifest))
            client.ack("replica", delta.version)
            newest = 10_500 + 300 * round_
            for store in (embedded, stored, client, replica, by_snapshot):
                assert_is(store, events, None)
                assert_is(store, events, newest + 7_000)
                assert_is(store, events, rng.integers(9_000, newest + 500, len(IDS)))
        asked = dict.fromkeys(("emb", "sums", "last"), IDS)
        expected = embedded.lookup_at(asked, 12_000, with_dense=True)
        np.testing.assert_array_equal(expected.weights["emb"], embedded.lookup({"emb": IDS})["emb"])
        np.testing.assert_array_equal(expected.dense["w"], embedded.dense()["w"])
        assert embedded.lookup_at(asked).dense == {}
        for store in (stored, client, replica, by_snapshot):
            same(store.lookup_at(asked, 12_000, with_dense=True), expected)
    finally:
        client.close()
        server.shutdown()
        stored.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-5_000, 5_000), st.integers(-8, 8)), min_size=1),
    st.randoms(use_true_random=False),
    st.integers(1, 7),
    st.integers(-6_000, 20_000),
)
def test_no_order_of_updates_changes_a_counter(updates, random, piece, as_of):
    events = Events()
    for id_, time, amount in updates:
        events.amounts.setdefault(id_, []).append((time, [amount, amount, -amount]))
    shuffled = list(updates)
    random.shuffle(shuffled)
    ids = np.arange(3, dtype=np.uint64)
    for order, step in ((updates, len(updates)), (shuffled, piece)):
        store = EmbeddedStore(SUMS_ONLY)
        store.open_log("l", "once", {0: Position(0)})
        for n, start in enumerate(range(0, len(order), step)):
            part = order[start : start + step]
            amounts = np.array([[a, a, -a] for _, _, a in part], np.float32)
            push = CounterPush(
                np.array([i for i, _, _ in part], np.uint64), amounts, np.array([t for _, t, _ in part])
            )
            store.push(LogRange("l", "once", 0, Position(n), Position(n + 1)), {"sums": push}, {}, 0)
        for asked in (None, as_of):
            found = store.lookup_at({"sums": ids}, asked).counters["sums"]
            expected = [events.counter(id_, asked) for id_ in range(3)]
            np.testing.assert_allclose(found.sums, [s for s, _, _ in expected], rtol=2e-6, atol=1e-5)
            np.testing.assert_array_equal(found.last_us, [last for _, _, last in expected])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 99)), min_size=1, max_size=60),
    st.integers(1, 9),
    st.integers(-1, 7),
)
def test_a_recent_table_is_a_sorted_list(entries, piece, as_of):
    """Few times, so that many are equal: the later pushed comes first."""
    store = EmbeddedStore(StoreConfig(TABLES[2:]))
    store.open_log("l", "once", {0: Position(0)})
    events = Events()
    for n, start in enumerate(range(0, len(entries), piece)):
        part = entries[start : start + piece]
        for id_, time, value in part:
            events.entries.setdefault(id_, []).append((time, value))
        ids, times, values = (np.array(column) for column in zip(*part, strict=True))
        push = RecentPush(ids.astype(np.uint64), values.astype(np.uint64), times)
        store.push(LogRange("l", "once", 0, Position(n), Position(n + 1)), {"last": push}, {}, 0)
    for asked in (None, as_of):
        found = store.lookup_at({"last": np.arange(3, dtype=np.uint64)}, asked).recents["last"]
        for id_ in range(3):
            values, times = events.recent(id_, asked)
            assert found.values[id_].tolist() == values
            assert found.times_us[id_].tolist() == times


def test_a_counter_is_never_scaled_up_and_tells_when_it_is_of_later():
    store = EmbeddedStore(SUMS_ONLY)
    store.open_log("l", "once", {0: Position(0)})
    one = np.array([7], np.uint64)
    for n, time in enumerate((1_000, 3_000)):
        push = CounterPush(one, np.ones((1, 3), np.float32), np.array([time]))
        store.push(LogRange("l", "once", 0, Position(n), Position(n + 1)), {"sums": push}, {}, 0)

    def at(time: int) -> list[float]:
        return store.lookup_at({"sums": one}, time).counters["sums"].sums[0].tolist()

    assert at(999) == [0, 0, 0]
    assert at(1_000) == at(2_000) == at(3_000) == [1.25, 2, 1 + 2.0**-8]
    assert at(4_000) == [0.625, 2, (1 + 2.0**-8) / 16]
    assert store.lookup_at({"sums": one}, 2_000).counters["sums"].last_us[0] == 3_000
    assert at(TIME_US_MAX) == [0, 2, 0]


def test_counts_go_on_where_float32_would_stand_still():
    store = EmbeddedStore(StoreConfig((TableConfig("n", dim=1, kind="counter", half_lives_us=(0,)),)))
    store.open_log("l", "once", {0: Position(0)})
    one = np.array([7], np.uint64)
    for n, amount in enumerate((2.0**24, 1.0, 1.0)):
        push = CounterPush(one, np.full((1, 1), amount, np.float32), np.array([n]))
        store.push(LogRange("l", "once", 0, Position(n), Position(n + 1)), {"n": push}, {}, 0)
    assert store.lookup_at({"n": one}).counters["n"].sums[0, 0] == 2**24 + 2


def test_exactly_once_by_marks(feeder, rng):
    """A range that comes again changes nothing, whatever it holds."""
    store = EmbeddedStore(CONFIG)
    feed = feeder(store)
    events = Events()
    feed.push(a_push(rng, events, 10_000))
    again = LogRange("examples", "made-once", 0, Position(0), Position(1))
    assert store.push(again, a_push(rng, Events(), 10_000), {}, 0).applied == 0
    assert_is(store, events, None)


def test_a_push_reaches_the_masked_buckets_only(rng):
    """As where some buckets had the range already."""
    core = NativeCore(TABLES, (), 8)
    push = {name: part for name, part in a_push(rng, Events(), 10_000).items() if name != "emb"}
    mask = np.array([1, 0, 1, 1, 0, 0, 0, 1], np.uint8)
    core.prepare(push, {}).apply(core.raw, mask)
    rows, _ = core.lookup_at({"sums": IDS, "last": IDS}, None)
    taken = mask[_native.buckets_of(IDS, 8)] == 1
    expected = np.isin(IDS, push["sums"].ids) & taken
    assert 0 < expected.sum() < np.isin(IDS, push["sums"].ids).sum()
    np.testing.assert_array_equal(rows.counters["sums"].last_us != NEVER_US, expected)
    np.testing.assert_array_equal(rows.recents["last"].times_us[:, 0] != NEVER_US, expected)


def test_lookups_beside_deltas_see_one_version_of_all_kinds():
    """Version n's counter holds n, its newest entry is n, its weights are n and so is its dense parameter."""
    replica = ReadStore(TABLES)
    store = EmbeddedStore(CONFIG)
    store.open_log("l", "once", {0: Position(0)})
    full = store.lookup_at({"emb": IDS}).weights["emb"]
    done = threading.Event()
    failures: list[BaseException] = []
    seen: set[int] = set()

    def read() -> None:
        try:
            while not done.is_set():
                rows, version = replica.pull_at({"emb": IDS, "sums": IDS, "last": IDS})
                if version is None:
                    continue
                n = int(rows.dense["w"][0])
                seen.add(n)
                assert (rows.counters["sums"].sums[:, 1] == n).all()
                assert (rows.recents["last"].values[:, 0] == n).all()
                np.testing.assert_allclose(rows.weights["emb"], full + n, rtol=1e-5)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    rows_of = len(IDS)
    for n in range(1, 80):
        at = np.full(rows_of, n)
        push = {
            "emb": TablePush(IDS, np.full((rows_of, 2), -1.0, np.float32)),
            "sums": CounterPush(IDS, np.ones((rows_of, 3), np.float32), at),
            "last": RecentPush(IDS, at.astype(np.uint64), at),
        }
        gradient = {"w": np.full(2, -1.0, np.float32)}
        store.push(LogRange("l", "once", 0, Position(n - 1), Position(n)), push, gradient, n)
        delta = store.delta("replica", full=n % 20 == 1)
        replica.apply(delta)
        store.ack("replica", delta.version)
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert replica.pull_at({})[1] == delta.version
    assert seen <= set(range(1, 80))


def test_faults_of_the_caller(feeder, rng):
    store = EmbeddedStore(CONFIG)
    feed = feeder(store)
    push = a_push(rng, Events(), 10_000)
    ids, amounts, times = push["sums"].ids, push["sums"].amounts, push["sums"].times_us
    nan = amounts.copy()
    nan[-1, -1] = np.nan
    for tables, error, says in (
        ({"sums": push["emb"]}, BadShape, "expected a CounterPush"),
        ({"emb": push["sums"]}, BadShape, "expected a TablePush"),
        ({"last": push["sums"]}, BadShape, "expected a RecentPush"),
        ({"sums": CounterPush(ids, amounts[:, :2], times)}, BadShape, "amounts of shape"),
        ({"sums": CounterPush(ids, amounts, times[1:])}, BadShape, "times_us of shape"),
        ({"sums": CounterPush(ids, amounts, times * 2**60)}, BadShape, "microseconds"),
        ({"sums": CounterPush(ids, nan, times)}, NonFiniteGradient, "sums"),
        ({"last": RecentPush(ids, times, times)}, BadShape, "values of shape"),
        ({"nope": push["sums"]}, UnknownTable, "nope"),
    ):
        with pytest.raises(error, match=says):
            feed.push({**tables, "emb": push["emb"]} if "emb" not in tables else tables)
    assert store.marks("examples") == {0: (Position(0),)}
    with pytest.raises(BadShape, match="lookup_at"):
        store.lookup({"sums": IDS})
    with pytest.raises(BadShape, match="times_us"):
        store.lookup_at({"sums": IDS}, {"sums": times[:1]})
    with pytest.raises(BadShape, match="microseconds"):
        store.lookup_at({"sums": IDS}, 2**62)
    with pytest.raises(UnknownTable):
        store.lookup_at({"sums": IDS}, {"nope": times})


def test_a_delta_of_another_shape_is_refused(feeder, rng):
    store = EmbeddedStore(CONFIG)
    feeder(store).push(a_push(rng, Events(), 10_000))
    delta = store.delta("replica", full=True)
    wider = ReadStore(
        (*TABLES[:1], TableConfig("sums", dim=2, kind="counter", half_lives_us=(1,)), TABLES[2])
    )
    with pytest.raises(BadShape, match="state"):
        wider.apply(delta)
    with pytest.raises(SnapshotGap):
        ReadStore(TABLES).apply(replace(delta, base=delta.version))


def test_configuration():
    assert config_from_json(config_to_json(CONFIG)) == CONFIG
    wrong = StoreConfig(
        (
            TableConfig("a", dim=3, kind="counter"),
            TableConfig("b", dim=3, kind="counter", half_lives_us=(1, -2)),
            TableConfig("c", dim=3, half_lives_us=(1,)),
            TableConfig("d", dim=3, kind="recent", admission=2, init_stddev=0.5),
            TableConfig("e", dim=3, kind="list"),  # type: ignore[arg-type]
        )
    )
    with pytest.raises(SpecError) as caught:
        check_config(wrong)
    for fault in (
        "a.half_lives_us: expected 1 or 3 (dim) of them, received 0",
        "b.half_lives_us: expected 1 or 3 (dim) of them, received 2",
        "b.half_lives_us: expected 0 (never decays) to 2^61 microseconds, received -2",
        "c.half_lives_us: expected none but for a counter, received 1",
        "d.admission",
        "d.init_stddev",
        "e.kind",
    ):
        assert fault in str(caught.value)
