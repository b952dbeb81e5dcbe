"""The poll core: what its elements carry, through the in-band clock; plain loops are the oracle."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.errors import LogError, SpecError
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.in_band import (
    ACTIONS,
    END_TIME_US,
    IMPRESSIONS,
    NO_TIME_US,
    read_header,
)
from cuckooflow.transforms.in_band_clock import InBandClock
from cuckooflow.transforms.poll_core import PollCore, PollOptions, PollSource

S = 1_000_000
T0 = 1_000_000
KEY = {"k": Column(type="string"), "t": Column(type="time", unit="s")}
SHOWN = EventSchema(columns={**KEY, "age": Column(type="float64", required=False)}, time="t", key=("k",))
DONE = EventSchema(columns={**KEY, "what": Column(type="string")}, time="t", key=("k",), action_type="what")


def shown(k: int, t: int) -> bytes:
    return json.dumps({"k": f"k{k}", "t": T0 + t, "age": k / 2}).encode()


def done(k: int, t: int) -> bytes:
    return json.dumps({"k": f"k{k}", "t": T0 + t, "what": "click"}).encode()


class Logs:
    """Two logs in a folder, and their writers."""

    def __init__(self, path: Path, impressions: int = 2, actions: int = 1) -> None:
        self.readers = {
            IMPRESSIONS: LocalLog.create(path / "impressions", impressions),
            ACTIONS: LocalLog.create(path / "actions", actions),
        }
        self.writers = {
            log: LocalLogWriter(reader.path, segment_bytes=1_000, fsync=False)
            for log, reader in self.readers.items()
        }

    def append(self, log: int, partition: int, *messages: bytes) -> None:
        self.writers[log].append(partition, messages, (T0 + 100_000) * S)

    def seal(self) -> None:
        for writer in self.writers.values():
            writer.seal()

    def core(self, options: PollOptions | None = None, state: bytes | None = None) -> PollCore:
        sources = [PollSource(self.readers[IMPRESSIONS], SHOWN), PollSource(self.readers[ACTIONS], DONE)]
        return PollCore(*sources, options, state)


OPTIONS = PollOptions(num_shards=3, max_skew_us=10 * S)
events = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 500)), max_size=60)


@settings(max_examples=60, deadline=None)
@given(events=events, per_poll=st.integers(1, 20), restart=st.integers(0, 20))
def test_every_row_once_in_its_shard_with_its_own_watermark(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, int, int]], per_poll: int, restart: int
) -> None:
    logs = Logs(tmp_path_factory.mktemp("logs"))
    expected: dict[tuple[int, int], list[tuple[int, int]]] = {(0, 0): [], (0, 1): [], (1, 0): []}
    highest: dict[tuple[int, int], int] = {}
    for place, k, t in events:
        key = ((0, 0), (0, 1), (1, 0))[place]
        logs.append(*key, (done if place == 2 else shown)(k, t))
        before = highest[key] - 10 * S if key in highest else NO_TIME_US
        expected[key].append(((T0 + t) * S, before))
        highest[key] = max(highest.get(key, 0), (T0 + t) * S)
    logs.seal()
    options = PollOptions(num_shards=3, max_skew_us=10 * S, max_messages=per_poll)
    core = logs.core(options)
    clocks = {shard: InBandClock(0) for shard in range(3)}
    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {key: [] for key in expected}
    for n in range(1_000):
        if n == restart:
            core = logs.core(options, core.state())
        polled = core.poll(now_us=n)
        assert len({shard for shard, _ in polled.elements}) == len(polled.elements) <= 3
        for shard, element in polled.elements:
            ((batch, _),) = clocks[shard].accept(element)
            assert batch.column("_log").to_pylist() == sorted(batch.column("_log").to_pylist())
            for row in batch.to_pylist():
                assert row["_hash"] % 3 == shard
                found[row["_log"], row["_partition"]].append((row["_offset"], row["_time"], row["_wm"]))
        if core.ended:
            break
    assert core.ended and core.poll(now_us=5_000_000).elements == []
    for key, rows in found.items():
        assert sorted(rows) == [(i, *row) for i, row in enumerate(expected[key])]
    assert all(clock.ended and clock.clock_us() == END_TIME_US for clock in clocks.values())


def test_impressions_come_first_and_missing_columns_are_null(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.append(ACTIONS, 0, done(1, 1))
    logs.append(IMPRESSIONS, 1, shown(1, 2), shown(1, 1))
    logs.append(IMPRESSIONS, 0, shown(1, 3))
    polled = logs.core(PollOptions(num_shards=1)).poll(7)
    ((_, batch),) = polled.elements
    columns = ("_log", "_partition", "_offset", "age", "what")
    assert [tuple(row[c] for c in columns) for row in batch.to_pylist()] == [
        (0, 0, 0, 0.5, None),
        (0, 1, 0, 0.5, None),
        (0, 1, 1, 0.5, None),
        (1, 0, 0, None, "click"),
    ]
    assert read_header(batch).polled_us == 7
    assert dict(read_header(batch).partitions) == {IMPRESSIONS: 2, ACTIONS: 1}


def test_dead_letters_do_not_move_the_watermark(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.append(IMPRESSIONS, 0, shown(1, 5), shown(1, 10_000_000), b"junk", shown(1, 6))
    core = logs.core(OPTIONS)
    polled = core.poll(1)
    assert [r for b in polled.dead for r in b.column("reason").to_pylist()] == ["future_time", "malformed"]
    link = next(n for n in read_header(polled.elements[0][1]).links if (n.log, n.partition) == (0, 0))
    assert link.watermark_us == (T0 + 6) * S - 10 * S


def test_one_far_ahead_is_paused_while_the_other_has_more(tmp_path: Path) -> None:
    logs = Logs(tmp_path, impressions=1)
    for t in range(0, 400, 10):
        logs.append(IMPRESSIONS, 0, shown(1, 10 * t))
        logs.append(ACTIONS, 0, done(1, t))
    core = logs.core(PollOptions(num_shards=1, max_skew_us=0, max_lead_us=100 * S, max_messages=2))
    lead, pauses = 0, 0
    for n in range(200):
        polled = core.poll(n)
        pauses += bool(polled.paused)
        marks = {(log, p): now.watermark_us for (log, p), now in core._partitions.items()}
        if not core._partitions[ACTIONS, 0].at_end and NO_TIME_US not in marks.values():
            lead = max(lead, marks[IMPRESSIONS, 0] - marks[ACTIONS, 0])
    assert pauses and lead <= 300 * S  # the lead, and the piece of the poll that went past it
    assert core.poll(1_000).paused == ()  # the actions are at their end: they hold the clock, not the poller
    assert core._partitions[IMPRESSIONS, 0].next_offset == 40


def test_only_a_live_idle_partition_moves_to_now(tmp_path: Path) -> None:
    logs = Logs(tmp_path, impressions=1)
    logs.append(IMPRESSIONS, 0, shown(1, 5))
    now = (T0 + 1_000) * S
    for live, moved in ((False, NO_TIME_US), (True, now + 11 * S - 10 * S)):
        core = logs.core(PollOptions(num_shards=1, max_skew_us=10 * S, live=live, idle_after_us=10 * S))
        clock = InBandClock()
        for after in (0, 1, 9, 11):
            for _, element in core.poll(now + after * S).elements:
                clock.accept(element)
            if after < 11:
                assert clock.clock_us() == NO_TIME_US
        assert clock.clock_us() == moved
    logs.append(ACTIONS, 0, done(1, 5))  # behind the clock that idleness moved: its own row says so
    ((_, batch),) = core.poll(now + 12 * S).elements
    assert batch.column("_wm").to_pylist() == [now + 1 * S]


def test_heartbeats_are_paced_and_nothing_else_is_sent_when_idle(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    core = logs.core(PollOptions(num_shards=2, heartbeat_us=100))
    assert len(core.poll(0).elements) == 2
    assert core.poll(99).elements == []
    core = logs.core(PollOptions(num_shards=2, heartbeat_us=100), core.state())
    assert core.poll(99).elements == []
    assert [read_header(b).links for _, b in core.poll(100).elements] == [(), ()]


def test_heartbeats_come_less_often_the_longer_it_is_quiet_and_as_before_after_a_row(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    core = logs.core(PollOptions(num_shards=1, heartbeat_us=S, heartbeat_max_us=4 * S))

    def sent(first_s: int, last_s: int) -> list[int]:
        return [s for s in range(first_s, last_s) if core.poll(s * S).elements]

    assert sent(0, 11) == list(range(11))
    times = sent(11, 300)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == sorted(gaps) and (gaps[0], gaps[-1]) == (2, 4)
    logs.append(IMPRESSIONS, 0, shown(1, 1))
    assert sent(301, 311) == list(range(301, 311))


def test_stop_at_end_stops_where_the_logs_ended_when_it_began(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.append(IMPRESSIONS, 0, shown(1, 1))
    core = logs.core(PollOptions(num_shards=1, stop_at_end=True))
    logs.append(IMPRESSIONS, 0, shown(2, 2))
    rows = 0
    for n in range(4):
        if n == 1:
            core = logs.core(PollOptions(num_shards=1, stop_at_end=True), core.state())
        rows += core.poll(n).rows
    assert (rows, core.ended) == (1, True)


def test_without_an_end_there_is_none(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    core = logs.core(OPTIONS)
    for n in range(5):
        core.poll(n)
    assert not core.ended


def test_a_state_of_another_log_or_beyond_its_end_is_refused(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.append(IMPRESSIONS, 0, shown(1, 1))
    core = logs.core(OPTIONS)
    core.poll(1)
    with pytest.raises(LogError, match="num_shards"):
        logs.core(PollOptions(num_shards=4), core.state())
    beyond = json.loads(core.state())
    beyond["partitions"][0][2] = 50
    with pytest.raises(LogError, match="lost messages"):
        logs.core(OPTIONS, json.dumps(beyond).encode())
    (logs.readers[ACTIONS].path / "meta.json").unlink()
    LocalLog.create(logs.readers[ACTIONS].path)
    with pytest.raises(LogError, match="recreated"):
        logs.core(OPTIONS, core.state())


@pytest.mark.parametrize(
    ("actions", "fault"),
    [
        (DONE.model_copy(update={"key": ("k", "what")}), "one join key"),
        (DONE.model_copy(update={"action_type": None}), "action_type"),
        (DONE.model_copy(update={"columns": {**DONE.columns, "age": Column(type="int64")}}), "'age'"),
    ],
)
def test_schemas_that_do_not_go_together_are_refused(
    tmp_path: Path, actions: EventSchema, fault: str
) -> None:
    logs = Logs(tmp_path)
    with pytest.raises(SpecError, match=fault):
        PollCore(PollSource(logs.readers[0], SHOWN), PollSource(logs.readers[1], actions))


def test_options_out_of_bounds_are_refused_together() -> None:
    with pytest.raises(SpecError, match=r"num_shards >= 1, received 0; max_messages >= 1, received -1"):
        PollOptions(num_shards=0, max_messages=-1)


@pytest.mark.parametrize(
    ("kwargs", "fault"),
    [
        ({"type": "time"}, "needs a unit"),
        ({"type": "string", "unit": "s"}, "only a column of type time"),
        ({"type": "time", "unit": "s", "zone": "UTC"}, "unit iso"),
        ({"type": "time", "unit": "iso", "zone": "Mars/Base"}, "IANA"),
        ({"type": "text"}, "string"),
        ({"type": "string", "requird": True}, "requird"),
    ],
)
def test_wrong_columns_are_refused(kwargs: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Column(**kwargs)


def test_a_wrong_schema_names_all_its_faults() -> None:
    columns = {**KEY, "tags": Column(type="list<string>"), "opt": Column(type="string", required=False)}
    with pytest.raises(ValueError) as caught:
        EventSchema(columns={**columns, "_x": Column(type="bool")}, time="when", key=("tags", "opt", "opt"))
    for fault in (
        "'_x'",
        "'when' is not declared",
        "'tags' is list<string>",
        "'opt' must be required",
        "twice",
    ):
        assert fault in str(caught.value)


@pytest.mark.parametrize("live", [False, True])
def test_an_idle_job_sends_no_more_than_its_heartbeats(tmp_path: Path, live: bool) -> None:
    """Ten polls a second for ten seconds over 8 partitions and 8 shards; the cost is printed.

    Live, every partition is idle from the first second on, so that each poll finds a later clock.
    """
    logs = Logs(tmp_path, impressions=4, actions=4)
    core = logs.core(PollOptions(num_shards=8, max_skew_us=0, live=live, idle_after_us=S))
    polled = [core.poll(0).elements]
    clock = InBandClock()
    begin = time.process_time()
    polled += [core.poll(n * 100_000).elements for n in range(1, 101)]
    print(f"idle_core_share={(time.process_time() - begin) / 10:.4f}")
    assert sum(len(elements) for elements in polled[1:]) == 10 * 8
    if live:
        for elements in polled:
            for shard, element in elements:
                if shard == 3:
                    clock.accept(element)
        assert clock.clock_us() == 10 * S


def test_an_idle_partition_moves_the_clock_with_every_row_of_another(tmp_path: Path) -> None:
    logs, clock = Logs(tmp_path, impressions=1), InBandClock()
    core = logs.core(PollOptions(num_shards=1, max_skew_us=0, live=True, idle_after_us=S))
    begin = T0 * S
    for n in range(40):
        now = begin + n * 100_000
        logs.append(IMPRESSIONS, 0, json.dumps({"k": f"k{n}", "t": now / S}).encode())
        for _, element in core.poll(now).elements:
            clock.accept(element)
        if n > 11:  # the actions are idle
            assert clock.clock_us() == now


def test_unused_batches_have_the_row_columns(tmp_path: Path) -> None:
    ((_, batch),) = Logs(tmp_path).core(PollOptions(num_shards=1)).poll(0).elements
    assert isinstance(batch, pa.RecordBatch)
    assert [n.watermark_us for n in read_header(batch).links] == [NO_TIME_US] * 3
