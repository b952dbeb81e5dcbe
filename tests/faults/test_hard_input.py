"""Input that is broken, late, ahead of its time or too much at once: the join stays exact."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cuckooflow.runners.cluster import LocalCluster
from tests.faults.events import BUSY_PARTITIONS, HOUR_MS, Event, Stretch, close
from tests.faults.live_join import BOUND_S, LiveJoin

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(600)]

DAY_MS = 24 * HOUR_MS
#: Nothing but its own test has events in this one.
QUIET_PARTITION = BUSY_PARTITIONS


def test_poison_messages_are_dead_letters_with_their_bytes(join: LiveJoin) -> None:
    first, second = join.next_stretch().halves()
    poison = [b"nonsense", b'{"request_id": "r0"', None, b"\xff\xfe\x00", b"[" * 10_000]
    join.append(first)
    begin_s = time.monotonic()
    placed = {}
    for log, partition in (("impressions", 1), ("actions", 0)):
        offset = join.send(log, partition, poison)
        placed |= {(log, partition, offset + n): value for n, value in enumerate(poison)}
    join.append(second)
    found = join.check(begin_s)
    assert placed.keys() <= found.dead.keys()
    topics = {join.topics[log].address.topic: log for log in ("impressions", "actions")}
    letters = join.topics["dead_letters"].rows()
    kept = {(topics.get(r["log"], r["log"]), r["partition"], r["offset"]): r for r in letters}
    for position, value in placed.items():
        row = kept[position]
        if value is not None and value.isascii():
            assert row["value"].encode() == value
        assert row["reason"] == ("tombstone" if value is None else "malformed"), row


@pytest.mark.deep
def test_a_burst_at_ten_times_the_steady_rate(join: LiveJoin) -> None:
    """A second's events once a second, then as many of ten seconds a second."""
    steady = [join.next_stretch(requests=60) for _ in range(3)]
    for part in steady:
        begin_s = time.monotonic()
        join.append(part)
        while time.monotonic() - begin_s < 1:
            time.sleep(0.01)
    burst = [join.next_stretch(requests=600) for _ in range(3)]
    begin_s = time.monotonic()
    for part in burst:
        join.append(part)
    join.check(begin_s)


@pytest.mark.deep
def test_events_that_come_six_hours_late(join: LiveJoin) -> None:
    """Actions still find their impressions, as late examples; impressions are refused; neither in silence."""
    now = join.next_stretch(requests=20)
    join.append(now)
    shown = [event for events in now.shown.values() for event in events if event["request_id"][0] == "r"]
    later = Stretch(end_ms=now.end_ms + 6 * HOUR_MS)
    close(later, f"six-hours-{now.end_ms}")
    join.append(later)
    join.skip_to(later.end_ms + 1_000)
    before = join.check()

    late = [
        {k: e[k] for k in ("request_id", "item_id")} | {"time": e["time"] + 7, "action": "click"}
        for e in shown[:10]
    ]
    lost = [{**e, "request_id": f"late-{e['request_id']}"} for e in shown[:10]]
    begin_s = time.monotonic()
    join.send("actions", 1, late)
    join.send("impressions", 1, lost)
    join.append(join.next_stretch(requests=1))  # a late action is looked up once the clock has moved on
    found = join.check(begin_s)
    new = {(r, i) for r, i, *_ in found.late - before.late}
    assert new >= {(e["request_id"], e["item_id"]) for e in shown[:10]}
    assert found.examples.items() >= before.examples.items()
    assert sum(r.startswith("late-") for r, _ in found.examples) == 0
    assert found.counts["impressions_dead"] >= before.counts["impressions_dead"] + len(lost)


@pytest.mark.deep
def test_one_partition_whose_clock_is_a_day_ahead(join: LiveJoin) -> None:
    """Its own later events pay for it; nobody else's window closes early or waits."""
    first, second = join.next_stretch().halves()
    now_ms = time.time_ns() // 1_000_000
    # Past the time at which they were appended they cannot be: a client's clock is wrong.
    wrong = [
        {"request_id": f"wrong-{n}", "item_id": "i", "time": now_ms + DAY_MS, "user_id": "u"}
        for n in range(5)
    ]
    join.append(first)
    offset = join.send("impressions", 2, wrong)
    # Where the broker believes it too, the events wait until the others have come as far.
    ahead_ms = first.end_ms + DAY_MS
    ahead: list[Event] = [
        {"request_id": f"ahead-{n}", "item_id": "i", "time": ahead_ms + n, "user_id": "u"} for n in range(5)
    ]
    join.send("impressions", QUIET_PARTITION, ahead)
    begin_s = time.monotonic()
    join.append(second)
    found = join.check(begin_s)
    assert {found.dead["impressions", 2, offset + n] for n in range(5)} == {"future_time"}
    assert found.counts["impressions_waiting"] >= 5
    assert not {r for r, _ in found.examples if r.startswith("ahead-")}

    # A day later they are joined like any other.
    then = Stretch(end_ms=ahead_ms + 2 * HOUR_MS)
    close(then, f"day-{ahead_ms}")
    join.append(then)
    join.skip_to(then.end_ms + 1_000)
    found = join.check()
    assert len({r for r, _ in found.examples if r.startswith("ahead-")}) == 5


@pytest.mark.deep
def test_a_replay_with_another_interleaving_of_partitions(
    join: LiveJoin,
    tmp_path: Path,
    cli: Callable[..., Any],
    flink: LocalCluster,
    wait_for: Callable[..., None],
) -> None:
    """The same messages, a partition after the other and the last one first: the same examples, row for row."""
    join.append(join.next_stretch())
    join.check()
    again = LiveJoin(tmp_path / "replay", cli, flink)
    try:
        parts = [
            (log, partition, [m for m in join.topics[log].messages() if m.partition == partition])
            for log in ("impressions", "actions")
            for partition in join.topics[log].address.open_reader().partitions()
        ]
        sent = 0
        for number, (log, partition, messages) in enumerate(reversed(parts)):
            for append_us, group in itertools.groupby(messages, key=lambda message: message.append_us):
                again.send(log, partition, [message.value for message in group], append_us)
            sent += len(messages)
            if number == 0:
                again.start()
        begin_s = time.monotonic()
        again.check(begin_s)

        def rows(live: LiveJoin) -> list[str]:
            """Without where the examples lie, which the reader adds."""
            place = ("_offset", "_row")
            kept = [{k: v for k, v in row.items() if k not in place} for row in live.examples()]
            return sorted(json.dumps(row) for row in kept)

        assert rows(again) == rows(join)
        wait_for(lambda: again.topics["late"].rows(), "late examples", BOUND_S)
    finally:
        again.cancel()
        again.close()
