"""A poller whose log's broker is away, and one whose log gets more partitions while it runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cuckooflow.errors import LogUnavailable
from cuckooflow.logs.contract import MessageBatch
from cuckooflow.logs.local_log import LocalLog, LocalLogReader, LocalLogWriter
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.in_band import ACTIONS, IMPRESSIONS, NO_TIME_US, read_header
from cuckooflow.transforms.in_band_clock import InBandClock
from cuckooflow.transforms.poll_core import PollCore, PollOptions, PollSource

S = 1_000_000
T0 = 1_000_000
KEY = {"k": Column(type="string"), "t": Column(type="time", unit="s")}
SHOWN = EventSchema(columns=KEY, time="t", key=("k",))
DONE = EventSchema(columns={**KEY, "what": Column(type="string")}, time="t", key=("k",), action_type="what")


class Broker(LocalLogReader):
    """A local log that shows some of its partitions, and is away when told so, as a broker may be."""

    def __init__(self, path: Path, shown: int) -> None:
        super().__init__(path)
        self.shown = shown
        self.away = False
        self.holds_back = False
        self.asked = 0

    def partitions(self) -> Sequence[int]:
        return range(self.shown)

    def read(self, partition: int, offset: int, max_messages: int = 1, max_bytes: int = 1) -> MessageBatch:
        self.asked += 1
        if self.away:
            raise LogUnavailable("no broker answers")
        batch = super().read(partition, offset, max_messages, max_bytes)
        return replace(batch, held_back=self.holds_back and not len(batch))

    def start_offset(self, partition: int) -> int:
        if self.away:
            raise LogUnavailable("no broker answers")
        return super().start_offset(partition)


class Logs:
    def __init__(self, path: Path, impressions: int = 2) -> None:
        LocalLog.create(path / "impressions", impressions)
        LocalLog.create(path / "actions")
        self.impressions = Broker(path / "impressions", impressions)
        self.actions = Broker(path / "actions", 1)
        self.writers = {
            IMPRESSIONS: LocalLogWriter(path / "impressions", fsync=False),
            ACTIONS: LocalLogWriter(path / "actions", fsync=False),
        }

    def append(self, log: int, partition: int, *times: int) -> None:
        more = {"what": "click"} if log == ACTIONS else {}
        rows = [json.dumps({"k": f"k{t}", "t": T0 + t, **more}).encode() for t in times]
        self.writers[log].append(partition, rows, (T0 + 100_000) * S)

    def core(self, options: PollOptions, state: bytes | None = None) -> PollCore:
        sources = (PollSource(self.impressions, SHOWN), PollSource(self.actions, DONE))
        return PollCore(*sources, options, state)


class Shard:
    """What the one shard of a job hears."""

    def __init__(self) -> None:
        self.clock = InBandClock(0)
        self.clocks: list[int] = []
        self.rows: list[dict[str, int]] = []

    def hear(self, core: PollCore, now_us: int) -> None:
        for _, element in core.poll(now_us).elements:
            for batch, _ in self.clock.accept(element):
                self.rows += batch.to_pylist()
            self.clocks.append(self.clock.clock_us())


def test_a_log_that_is_away_holds_the_clock_and_stops_nobody(tmp_path: Path) -> None:
    logs, shard = Logs(tmp_path), Shard()
    live = PollOptions(num_shards=1, max_skew_us=0, live=True, idle_after_us=5 * S, heartbeat_us=S)
    core = logs.core(live)
    for log, partition in ((IMPRESSIONS, 0), (IMPRESSIONS, 1), (ACTIONS, 0)):
        logs.append(log, partition, 10)
    now = (T0 + 500) * S
    shard.hear(core, now)
    assert shard.clock.clock_us() == (T0 + 10) * S
    logs.impressions.away = True
    for n in range(1, 60):  # far longer than a partition may be silent
        if n % 10 == 0:
            logs.append(ACTIONS, 0, 10 + n)
        asked = logs.impressions.asked
        shard.hear(core, now + n * S)
        assert logs.impressions.asked == asked + 1  # one wait a poll, not one a partition
        assert shard.clock.clock_us() == (T0 + 10) * S
        assert not core.ended
    assert [r["_time"] for r in shard.rows if r["_log"] == ACTIONS] == [
        (T0 + t) * S for t in (10, 20, 30, 40, 50, 60)
    ]
    logs.append(IMPRESSIONS, 0, 70)
    logs.impressions.away = False
    shard.hear(core, now + 60 * S)
    assert [r["_time"] for r in shard.rows if r["_log"] == IMPRESSIONS][-1] == (T0 + 70) * S
    shard.hear(core, now + 64 * S)
    assert (
        shard.clock.clock_us() == (T0 + 10) * S
    )  # it answers again, but partition 1 is not idle for long yet
    shard.hear(core, now + 66 * S)
    assert shard.clock.clock_us() == (T0 + 70) * S
    assert shard.clocks == sorted(shard.clocks)


@pytest.mark.parametrize("waited_s", [3, 30])  # within a call's bound, and past it
@pytest.mark.parametrize("at", ["partitions", "read"])
def test_who_could_not_write_was_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, waited_s: int
) -> None:
    """Impressions wait for a broker; actions, of the same one, are asked when it is back and before a writer is."""
    logs, shard = Logs(tmp_path, impressions=1), Shard()
    core = logs.core(PollOptions(num_shards=1, max_skew_us=0, live=True, idle_after_us=8 * S, heartbeat_us=S))
    for log in (IMPRESSIONS, ACTIONS):
        logs.append(log, 0, 10)
    now = (T0 + 500) * S
    for n in range(8):
        shard.hear(core, now + n * S)
    waits, passed_s = [True], [0.0]
    call = getattr(Broker, at)

    def wait(broker: Broker, *args: object, **kwargs: object) -> object:
        if broker is logs.impressions and waits:
            waits.clear()
            passed_s[0] += waited_s
            if at == "read" and waited_s > 10:
                raise LogUnavailable("no broker answers")
        return call(broker, *args, **kwargs)

    monkeypatch.setattr(Broker, at, wait)
    monkeypatch.setattr("cuckooflow.transforms.log_watch.time.monotonic", lambda: passed_s[0])
    shard.hear(core, now + 8 * S)
    for n in range(7):
        shard.hear(core, now + (9 + n + waited_s) * S)
    assert shard.clock.clock_us() == (T0 + 10) * S
    logs.append(ACTIONS, 0, 15)  # who writes has found the broker too
    shard.hear(core, now + (16 + waited_s) * S)
    assert shard.rows[-1]["_wm"] == (T0 + 10) * S


def test_what_an_open_transaction_holds_back_is_no_idleness(tmp_path: Path) -> None:
    logs, shard = Logs(tmp_path, impressions=1), Shard()
    core = logs.core(PollOptions(num_shards=1, max_skew_us=0, live=True, idle_after_us=5 * S))
    for log in (IMPRESSIONS, ACTIONS):
        logs.append(log, 0, 10)
    now = (T0 + 500) * S
    logs.impressions.holds_back = True
    for n in range(60):
        shard.hear(core, now + n * S)
        assert shard.clock.clock_us() == (T0 + 10) * S
    logs.append(IMPRESSIONS, 0, 70)  # as when it is committed: not late
    shard.hear(core, now + 60 * S)
    assert shard.rows[-1]["_wm"] == (T0 + 10) * S
    logs.impressions.holds_back = False
    for n in (61, 65, 66):
        assert shard.clock.clock_us() == (T0 + 70) * S
        shard.hear(core, now + n * S)
    assert shard.clock.clock_us() == now + 66 * S


def test_a_log_that_stays_away_is_an_error_past_the_bound(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.append(ACTIONS, 0, 5)
    core = logs.core(PollOptions(num_shards=1, unavailable_for_us=30 * S, stop_at_end=True))
    logs.actions.away = True
    for n in range(31):
        core.poll(n * S)
    assert not core.ended
    with pytest.raises(LogUnavailable):
        core.poll(31 * S)


def test_partitions_that_are_added_are_read_in_order_and_lose_nothing(tmp_path: Path) -> None:
    logs, shard = Logs(tmp_path, impressions=4), Shard()
    logs.impressions.shown = 2
    options = PollOptions(num_shards=1, max_skew_us=5 * S, heartbeat_us=S)
    core = logs.core(options)
    for n in range(60):
        now = (T0 + n) * S
        if n == 20:
            logs.append(IMPRESSIONS, 2, *range(0, 20, 2))  # written before it was found
            logs.impressions.shown = 3
        if n == 25:
            core = logs.core(options, core.state())
        if n == 30:
            logs.impressions.shown, logs.impressions.away = 4, True
        if n == 33:
            logs.impressions.away = False
        if n == 40:
            state = core.state()
            logs.append(IMPRESSIONS, 3, n)
            core = logs.core(options, state)
        for log, partition in ((IMPRESSIONS, 0), (IMPRESSIONS, 1), (ACTIONS, 0)):
            logs.append(log, partition, n)
        if n > 20:
            logs.append(IMPRESSIONS, 2, n)
        shard.hear(core, now)
    found = {
        p: [r for r in shard.rows if r["_log"] == IMPRESSIONS and r["_partition"] == p] for p in range(4)
    }
    for partition, rows in found.items():
        assert [r["_offset"] for r in rows] == list(range(len(rows))), partition
    assert [len(rows) for rows in found.values()] == [60, 60, 49, 1]
    assert shard.clocks == sorted(shard.clocks)
    # What the clock had already passed when the partition was found is late by the partition's own watermark.
    told = (T0 + 19 - 5) * S
    assert [r["_wm"] for r in found[2][:2]] == [told, told]
    assert found[3][0]["_wm"] != NO_TIME_US
    assert dict(read_header(core.poll((T0 + 70) * S).elements[0][1]).partitions) == {
        IMPRESSIONS: 4,
        ACTIONS: 1,
    }


def test_a_job_that_stops_at_the_end_takes_no_partitions_up(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.impressions.shown = 1
    core = logs.core(PollOptions(num_shards=1, stop_at_end=True))
    logs.impressions.shown = 2
    logs.append(IMPRESSIONS, 1, 5)
    assert sum(core.poll(n).rows for n in range(4)) == 0
    assert core.ended
