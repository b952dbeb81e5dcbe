"""Time-to-live, checkpoints full and incremental, and dying: whatever comes in whatever order, as a dict with times."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.embedding_store.api import SLOT_BITS, Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.checkpoint_chain import CheckpointPolicy
from cuckooflow.embedding_store.native_core import NativeCore
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.logs.contract import LogRange, Position


def slotted(slot: int, number: int) -> int:
    return slot << (64 - SLOT_BITS) | number


class TimedDict:
    """What a table with a time-to-live should hold, written down plainly."""

    def __init__(self, ttl_us: int, slots: dict[int, int]) -> None:
        self.ttl_us, self.slots = ttl_us, slots
        self.clock: int | None = None
        self.rows: dict[int, tuple[int, int]] = {}  # id -> (count, last touched)

    def is_over(self, id_: int) -> bool:
        ttl = self.slots.get(id_ >> (64 - SLOT_BITS), self.ttl_us)
        return ttl > 0 and self.clock - self.rows[id_][1] > ttl

    def push(self, ids: list[int], now: int) -> None:
        self.clock = now if self.clock is None else max(self.clock, now)
        for id_ in set(ids):
            if id_ in self.rows and self.is_over(id_):
                del self.rows[id_]
            count, touched = self.rows.get(id_, (0, now))
            self.rows[id_] = (count + ids.count(id_), max(touched, now))

    def live(self) -> dict[int, int]:
        return {id_: count for id_, (count, _) in self.rows.items() if not self.is_over(id_)}


# A longest time-to-live of at most 32,768 microseconds has ticks of one: expiry is then exact.
TTL, SLOTS = 1_000, {1: 50, 2: 0, 3: 30_000}
ALL_IDS = [0, 2**64 - 1] + [slotted(slot, number) for slot in range(4) for number in range(6)]
pushes = st.tuples(
    st.lists(st.sampled_from(ALL_IDS), max_size=8),
    st.one_of(st.integers(-300, 300), st.integers(-70_000, 70_000), st.just(1_000_000)),
    st.sampled_from(["look", "look", "evict", "checkpoint", "checkpoint", "die"]),
)


def table(ttl_us: int, slots: dict[int, int]) -> TableConfig:
    counting = Optimizer("sgd", learning_rate=1.0)
    return TableConfig("t", dim=1, optimizer=counting, init_stddev=0.0, ttl_us=ttl_us, slot_ttl_us=slots)


def ones(ids: list[int]) -> dict[str, TablePush]:
    return {"t": TablePush(np.array(ids, np.uint64), np.full((len(ids), 1), -1.0, np.float32))}


def push(store: EmbeddedStore, n: int, ids: list[int], now: int) -> None:
    range_ = LogRange("examples", "once", 0, Position(n), Position(n + 1))
    store.push(range_, ones(ids), {}, now)


def opened(config: StoreConfig, folder: Path, policy: CheckpointPolicy) -> EmbeddedStore:
    store = open_store(config, folder, policy=policy)
    store.open_log("examples", "once", {0: Position(0)})
    return store


def counts_of(store: EmbeddedStore) -> list[int]:
    return store.lookup({"t": np.array(ALL_IDS, np.uint64)})["t"][:, 0].astype(int).tolist()


def assert_swept_equals(store: EmbeddedStore, expected: TimedDict) -> None:
    store.evict_expired()
    live = expected.live()
    assert counts_of(store) == [live.get(id_, 0) for id_ in ALL_IDS]
    stats = store.stats()["tables"]["t"]
    slots = [id_ >> (64 - SLOT_BITS) for id_ in live]
    assert stats["rows"] == len(live)
    assert stats["slots"] == {str(slot): slots.count(slot) for slot in set(slots)}


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(pushes, max_size=40),
    start=st.sampled_from([-5, 0, 1_700_000_000_000_000]),
    incrementals=st.sampled_from([0, 2, 30]),
    backlog=st.sampled_from([3, 10, 1 << 26]),
)
def test_equals_a_dict_with_times(tmp_path_factory, steps, start, incrementals, backlog):
    """A backlog of few ids makes the store forget what was evicted, and write full checkpoints."""
    folder = tmp_path_factory.mktemp("store")
    config = StoreConfig((table(TTL, SLOTS),), buckets=4, delta_backlog_max=backlog)
    policy = CheckpointPolicy(incrementals, chain_share_max=1e9, full_below_bytes=0)
    store = opened(config, folder / "a", policy)
    expected = TimedDict(TTL, SLOTS)
    saved, saved_n, n, now = copy.deepcopy(expected), 0, 0, start
    try:
        for ids, ahead, then in steps:
            now += ahead
            push(store, n, ids, now)
            expected.push(ids, now)
            n += 1
            if then == "evict":
                assert_swept_equals(store, expected)
            elif then == "checkpoint":
                store.checkpoint()
                saved, saved_n = copy.deepcopy(expected), n
                shutil.copytree(folder / "a", folder / "b")
                again = EmbeddedStore.restore(folder / "b")
                assert_swept_equals(again, expected)
                again.close()
                shutil.rmtree(folder / "b")
            elif then == "die":
                store.close()
                store = opened(config, folder / "a", policy)
                expected, n = copy.deepcopy(saved), saved_n
            live = expected.live()
            for id_, count in zip(ALL_IDS, counts_of(store), strict=True):
                # Until it is swept, a row whose time is over may still answer.
                may_be = {live[id_]} if id_ in live else {0, expected.rows.get(id_, (0, 0))[0]}
                assert count in may_be
    finally:
        store.close()


cut_steps = st.lists(
    st.tuples(
        st.lists(st.integers(0, 40), max_size=12),
        st.integers(0, 60),
        st.sampled_from(["push", "evict", "read"]),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(before=cut_steps, after=cut_steps)
def test_a_cut_is_one_moment_while_rows_go_and_come(before, after):
    core = NativeCore((table(100, {}),), (), 4)
    everywhere = np.ones(4, np.uint8)
    expected = TimedDict(100, {})
    now = 0
    images = []

    def step(ids: list[int], ahead: int, then: str) -> None:
        nonlocal now
        now += ahead
        core.prepare(ones(ids), {}).apply(core.raw, everywhere, now)
        if then == "evict":
            core.raw.evict_expired(0, 0, 1 << 20)

    for ids, ahead, then in before:
        step(ids, ahead, then)
        expected.push(ids, now)
    core.raw.evict_expired(0, 0, 1 << 20)
    at_cut = {} if expected.clock is None else expected.live()
    core.raw.begin_cut()
    left = core.raw.cut_rows(0)
    for ids, ahead, then in after:
        step(ids, ahead, then)
        if then == "read" and left:
            images.append(core.raw.read_cut(0, min(3, left)))
            left -= min(3, left)
    images.append(core.raw.read_cut(0, left))
    core.raw.end_cut()
    rows = np.concatenate(images).reshape(-1, core.raw.row_bytes(0))
    ids = rows[:, :8].copy().view(np.uint64)[:, 0].tolist()
    assert dict(zip(ids, rows[:, 16:20].copy().view(np.float32)[:, 0].tolist(), strict=True)) == at_cut
    assert len(ids) == len(set(ids))
    core = NativeCore((table(100, {}),), (), 4)
    assert core.raw.load_rows(0, np.ascontiguousarray(rows).ravel())
    assert core.raw.table_stats(0)["rows"] == len(at_cut)
