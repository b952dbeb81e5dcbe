"""Partitions that fall silent under a join of the present: idle ones hold nothing up, the others everything."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Producer

from cuckooflow.runners.cluster import LocalCluster
from tests.faults.batch_join import Rules
from tests.faults.events import Event
from tests.faults.live_join import BOUND_S, LiveJoin

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.fault,
    pytest.mark.deep,
    pytest.mark.timeout(600),
]

IDLE_AFTER_S, WINDOW_S, SKEW_S = 8, 6, 1
RULES = Rules(click_ms=6_000, watch_ms=6_000, horizon_ms=60_000, skew_ms=1_000)
CHANGES = {
    "idle_after: 7d": "idle_after: 8s",
    "max_skew: 10s": "max_skew: 1s",
    "window: 10m": "window: 6s",
    "window: 30m": "window: 6s",
    "late_horizon: 1d": "late_horizon: 1m",
}

Wait = Callable[..., None]


@pytest.fixture(scope="module")
def present(
    tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., Any], flink: LocalCluster
) -> Iterator[LiveJoin]:
    """A join of events of the present, in which partitions may be idle."""
    made = LiveJoin(tmp_path_factory.mktemp("silence") / "job", cli, flink, CHANGES, RULES)
    made.start("--parallelism=1")
    yield made
    made.cancel()
    made.close()


class Clients:
    """Requests and their clicks, each with a name of its own."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0

    def request(self, in_s: float = 0) -> tuple[Event, Event]:
        """An impression of ``in_s`` from now, and a click on it a second later."""
        self._count += 1
        at_ms = time.time_ns() // 1_000_000 + int(in_s * 1_000)
        key = {"request_id": f"{self._name}-{self._count}", "item_id": "i"}
        return (
            {**key, "time": at_ms, "user_id": "u"},
            {**key, "time": at_ms + 1_000, "action": "click"},
        )


def test_an_idle_partition_holds_up_nobody(present: LiveJoin, wait_for: Wait) -> None:
    """Only one partition of each log has events, and they do not end: examples come all the same."""
    clients = Clients("idle")
    begin_s = time.monotonic()

    def one_is_joined() -> bool:
        shown, clicked = clients.request()
        present.send("impressions", 0, [shown])
        present.send("actions", 0, [clicked])
        return ("idle-1", "i") in present.labelled()

    wait_for(one_is_joined, "an example while events go on", BOUND_S)
    print(f"first_example_after_s={time.monotonic() - begin_s:.1f}")
    present.check(all_closed=True)


def test_a_partition_that_stops_without_being_idle_holds_the_clock(
    present: LiveJoin, flink: LocalCluster, wait_for: Wait
) -> None:
    """Its newest messages belong to a transaction that stays open: nobody may read them, and they are there."""
    clients = Clients("open")
    wait_for(present.has_read, "everything is read", BOUND_S)
    producer = Producer(
        {"bootstrap.servers": flink.addresses().kafka, "transactional.id": present.name, "linger.ms": 0}
    )
    producer.init_transactions(30)
    pairs = [clients.request(in_s=10) for _ in range(20)]
    producer.begin_transaction()
    for _, clicked in pairs:
        producer.produce(present.topics["actions"].address.topic, json.dumps(clicked).encode(), partition=1)
    assert producer.flush(30) == 0
    present.send("impressions", 0, [shown for shown, _ in pairs])
    closed_s = time.monotonic() + 10 + WINDOW_S + SKEW_S + 2 * IDLE_AFTER_S

    def others_go_on() -> bool:
        shown, clicked = clients.request()
        present.send("impressions", 1, [shown])
        present.send("actions", 0, [clicked])
        return time.monotonic() > closed_s

    wait_for(others_go_on, "long past the close of the first windows", BOUND_S)
    assert not [key for key in present.labelled() if key[0].startswith("open-")]
    producer.commit_transaction(30)
    begin_s = time.monotonic()
    actions = present.topics["actions"]

    def readable() -> bool:  # the marker is written after the commit was answered
        return sum(m.partition == 1 and b"open-" in (m.value or b"") for m in actions.messages()) == len(
            pairs
        )

    wait_for(readable, "the clicks of the transaction", 30)
    present.check(begin_s, all_closed=True)


def test_nothing_closes_early_while_the_broker_is_away(
    present: LiveJoin, flink: LocalCluster, wait_for: Wait
) -> None:
    """For longer than idleness takes, and past the close of windows whose actions are still to come."""
    clients = Clients("away")
    in_s = 15
    pairs = [clients.request(in_s) for _ in range(40)]
    closed_s = time.monotonic() + in_s + WINDOW_S + SKEW_S
    present.send("impressions", 1, [shown for shown, _ in pairs])
    wait_for(present.has_read, "the impressions are read", BOUND_S)
    os.kill(flink.pid("kafka"), signal.SIGKILL)
    killed_s = time.monotonic()
    assert killed_s < closed_s - WINDOW_S, "too slow: windows closed before the broker was killed"
    back_s = max(killed_s + 20, closed_s + 5)
    wait_for(lambda: time.monotonic() > back_s, "the broker was away for 20 s")
    flink.start("kafka")
    present.send("actions", 1, [clicked for _, clicked in pairs])
    present.check(killed_s, all_closed=True)
