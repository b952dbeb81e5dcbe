"""The stateful front end's DoFn, with a cell and a timer that this test holds as a runner would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.front_ends import Firing, Poller, allow_sources, stop_sources
from cuckooflow.transforms.poll_core import PollCore, PollOptions, PollSource
from cuckooflow.transforms.stateful_poll import StatefulPoll

KEY = {"k": Column(type="string"), "t": Column(type="time", unit="s")}
IMPRESSIONS = EventSchema(columns=KEY, time="t", key=("k",))
ACTIONS = EventSchema(
    columns={**KEY, "what": Column(type="string")}, time="t", key=("k",), action_type="what"
)
MESSAGES = 100


class Cell:
    """A state cell. What a checkpoint restores is put back into ``value``."""

    def __init__(self) -> None:
        self.value: bytes | None = None

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value


class Timer:
    """A timer: when it was set to fire, if it was, since the last :meth:`fired`."""

    def __init__(self) -> None:
        self.at_s: float | None = None

    def set(self, at_s: float) -> None:
        self.at_s = at_s

    def fired(self) -> bool:
        was, self.at_s = self.at_s is not None, None
        return was


class Counting:
    """Opens pollers over the logs in a folder, 5 messages a poll, and counts them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened = 0

    def __call__(self, options: PollOptions, state: bytes | None) -> Poller:
        self.opened += 1
        sources = [
            PollSource(LocalLog.open(self.path / name), schema)
            for name, schema in (("impressions", IMPRESSIONS), ("actions", ACTIONS))
        ]
        return PollCore(*sources, options, state)


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Counting]:
    allow_sources()
    for name in ("impressions", "actions"):
        LocalLog.create(tmp_path / name)
        with LocalLogWriter(tmp_path / name) as writer:
            lines = [
                json.dumps({"k": f"k{n}", "t": 1_000 + n, "what": "click"}).encode() for n in range(MESSAGES)
            ]
            writer.append(0, lines, 10**15)
            writer.seal()
    yield Counting(tmp_path)
    allow_sources()


def source(logs: Counting, firing: Firing) -> StatefulPoll:
    options = PollOptions(num_shards=2, max_skew_us=0, max_messages=10, heartbeat_us=1 << 60)
    return StatefulPoll(partial(logs, options), 100_000, firing)


def fire(fn: StatefulPoll, cell: Cell, timer: Timer) -> list[tuple[int, pa.RecordBatch]]:
    assert timer.fired(), "the timer was not armed"
    return [output for output in fn.on_again(cell, timer) if isinstance(output, tuple)]


def offsets(elements: list[tuple[int, pa.RecordBatch]]) -> list[tuple[int, int]]:
    rows = [
        (log, offset)
        for _, batch in elements
        for log, offset in zip(*(batch.column(c).to_pylist() for c in ("_log", "_offset")), strict=True)
    ]
    return sorted(rows)


ONE_POLL = Firing(max_bytes=1)
EVERYTHING = sorted((log, offset) for log in (0, 1) for offset in range(MESSAGES))


def test_only_the_first_seed_arms_the_timer(logs: Counting) -> None:
    fn, cell, timer = source(logs, ONE_POLL), Cell(), Timer()
    fn.process((0, b""), cell, timer)
    assert timer.fired()
    fn.process((0, b""), cell, timer)
    assert not timer.fired()


def test_a_firing_ends_at_its_bound_and_the_next_one_goes_on_with_the_same_poller(logs: Counting) -> None:
    fn, cell, timer = source(logs, ONE_POLL), Cell(), Timer()
    fn.process((0, b""), cell, timer)
    seen: list[tuple[int, int]] = []
    firings = 0
    while timer.at_s is not None:
        rows = offsets(fire(fn, cell, timer))
        assert len(rows) <= 10
        seen += rows
        firings += 1
    assert sorted(seen) == EVERYTHING
    assert firings >= 20 and logs.opened == 1


def test_one_firing_polls_on_while_there_is_something(logs: Counting) -> None:
    fn, cell, timer = source(logs, Firing(min_bytes=1, max_us=60_000_000)), Cell(), Timer()
    fn.process((0, b""), cell, timer)
    assert offsets(fire(fn, cell, timer)) == EVERYTHING
    assert timer.at_s is None, "every partition has ended: nothing is left to poll for"


def test_a_poll_that_gave_little_is_the_last_of_its_firing(logs: Counting) -> None:
    fn, cell, timer = source(logs, Firing(max_us=60_000_000)), Cell(), Timer()
    fn.process((0, b""), cell, timer)
    assert 0 < len(offsets(fire(fn, cell, timer))) <= 10
    assert timer.at_s is not None


def test_state_that_a_checkpoint_restored_counts_and_not_the_poller_in_memory(logs: Counting) -> None:
    """After a recovery the same rows come again, though this process had read on."""
    fn, cell, timer = source(logs, ONE_POLL), Cell(), Timer()
    fn.process((0, b""), cell, timer)
    seen = offsets(fire(fn, cell, timer))
    checkpoint = cell.value
    for _ in range(3):
        fire(fn, cell, timer)
    cell.value = checkpoint
    while timer.at_s is not None:
        seen += offsets(fire(fn, cell, timer))
    assert sorted(seen) == EVERYTHING and logs.opened == 2


def test_a_firing_that_failed_half_way_leaves_nothing_behind(logs: Counting) -> None:
    """The runner throws the bundle away: its cell is as before, and the poller that went on is forgotten."""
    fn, cell, timer = source(logs, ONE_POLL), Cell(), Timer()
    fn.process((0, b""), cell, timer)
    seen = offsets(fire(fn, cell, timer))
    torn = fn.on_again(cell, timer)
    next(torn)
    torn.close()
    timer.set(0)
    while timer.at_s is not None:
        seen += offsets(fire(fn, cell, timer))
    assert sorted(seen) == EVERYTHING


def test_stopping_rests_the_timer_and_keeps_the_place(logs: Counting) -> None:
    fn, cell, timer = source(logs, ONE_POLL), Cell(), Timer()
    fn.process((0, b""), cell, timer)
    seen = offsets(fire(fn, cell, timer))
    place: Any = cell.value
    stop_sources()
    assert fire(fn, cell, timer) == [] and timer.at_s is None and cell.value == place
    allow_sources()
    timer.set(0)
    while timer.at_s is not None:
        seen += offsets(fire(fn, cell, timer))
    assert sorted(seen) == EVERYTHING
