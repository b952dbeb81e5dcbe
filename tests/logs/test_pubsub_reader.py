"""Pub/Sub on Google's own fake: what comes again is known, and only what was acknowledged comes no more."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from cuckooflow.errors import LogNotFound, LogUnavailable, ReadOnceLog
from cuckooflow.logs.contract import MessageBatch, OnceReader
from cuckooflow.logs.once_messages import label_of
from cuckooflow.logs.pubsub_address import PubSubAddress
from cuckooflow.logs.pubsub_reader import acknowledge

pytestmark = pytest.mark.slow
WaitFor = Callable[..., None]


@pytest.fixture
def clicks(pubsub: Any) -> PubSubAddress:
    """A subscription of its own."""
    address: PubSubAddress = pubsub.create(f"clicks-{uuid.uuid4().hex[:8]}")
    return address


class Reading:
    """A reader, and every batch that it gave."""

    def __init__(self, reader: OnceReader, offset: int = 0) -> None:
        self.reader, self.offset = reader, offset
        self.batches: list[MessageBatch] = []

    def more(self, **bounds: int) -> int:
        """Read once; how many messages there are by now."""
        self.reader.keep()
        batch = self.reader.read(0, self.offset, **bounds)
        assert batch.next_offset >= self.offset + len(batch)
        self.offset = batch.next_offset
        self.batches.append(batch)
        return sum(map(len, self.batches))

    def values(self) -> list[bytes]:
        return [value for batch in self.batches for value in batch.values.to_pylist()]


def test_every_message_comes_with_its_label_number_and_time(
    pubsub: Any, clicks: PubSubAddress, wait_for: WaitFor
) -> None:
    began_us = time.time_ns() // 1_000
    sent = [b"%d" % n for n in range(1_700)]  # more than one answer holds
    ids = pubsub.publish(clicks.subscription, sent)
    reading = Reading(clicks.open_reader())
    wait_for(lambda: reading.more() == len(sent), "all messages")
    assert sorted(reading.values()) == sorted(sent)
    assert [o for b in reading.batches for o in b.offsets.tolist()] == list(range(len(sent)))
    labels = {
        value: label
        for b in reading.batches
        for value, label in zip(b.values.to_pylist(), b.labels.tolist(), strict=True)  # type: ignore[union-attr]
    }
    assert labels == {value: label_of(one) for value, one in zip(sent, ids, strict=True)}
    times = [us for b in reading.batches for us in b.append_us.tolist()]
    assert began_us <= min(times) and max(times) <= time.time_ns() // 1_000


def test_bounds_of_a_read_hold(pubsub: Any, clicks: PubSubAddress, wait_for: WaitFor) -> None:
    pubsub.publish(clicks.subscription, [bytes(100)] * 20)
    reading = Reading(clicks.open_reader())
    wait_for(lambda: reading.more(max_messages=3) == 20, "all messages")
    assert max(map(len, reading.batches)) == 3
    pubsub.publish(clicks.subscription, [bytes(100)] * 20)
    reading.batches.clear()
    wait_for(lambda: reading.more(max_bytes=250) == 20, "all messages")
    assert max(map(len, reading.batches)) == 2
    pubsub.publish(clicks.subscription, [bytes(1_000)])
    wait_for(lambda: reading.more(max_bytes=250) == 21, "one that is larger than the bound")


def test_what_was_not_acknowledged_comes_again_and_is_known(
    pubsub: Any, clicks: PubSubAddress, wait_for: WaitFor
) -> None:
    first = pubsub.publish(clicks.subscription, [b"a", b"b", b"c"])
    reading = Reading(clicks.open_reader())
    wait_for(lambda: reading.more() == 3, "three messages")
    state = json.loads(json.dumps(reading.reader.state()))
    receipts = reading.reader.receipts()
    assert (len(receipts.ids), receipts.repeated, receipts.waiting) == (3, 0, 3)
    acknowledge(pubsub.subscriber, clicks, [receipts.ids[reading.values().index(b"a")]])
    assert reading.reader.receipts().waiting == 2
    reading.reader.close()

    # As after a failure: another reader, with the state as it was when all three had been read.
    again = Reading(clicks.open_reader(), reading.offset)
    again.reader.restore(state)
    second = pubsub.publish(clicks.subscription, [b"d"])
    told: list[str] = []
    repeated = 0

    def redelivered() -> bool:
        nonlocal repeated
        again.more()
        found = again.reader.receipts()
        told.extend(found.ids)
        repeated += found.repeated
        return repeated >= 2 and bool(again.values())

    wait_for(redelivered, "b and c once more, and d")
    assert again.values() == [b"d"]
    acknowledge(pubsub.subscriber, clicks, told)
    seen = {one: pubsub.seen()[one] for one in first + second}
    assert all(acks for _, acks in seen.values())
    assert Counter(deliveries for deliveries, _ in seen.values()) == {1: 2, 2: 2}


@pytest.mark.deep
def test_leases_are_renewed_while_messages_wait(
    pubsub: Any, clicks: PubSubAddress, wait_for: WaitFor
) -> None:
    (one,) = pubsub.publish(clicks.subscription, [b"a"])
    reading = Reading(clicks.open_reader())
    wait_for(lambda: reading.more() == 1, "a message")
    # As long as one lease and a half, by the fake's own clock: what is published last is delivered at once.
    until = time.monotonic() + 1.5 * clicks.lease_s
    wait_for(lambda: reading.more() and time.monotonic() > until, "a while")
    assert pubsub.seen()[one] == (1, 0)


def test_no_more_is_asked_for_than_may_wait(pubsub: Any, wait_for: WaitFor) -> None:
    address = pubsub.create(f"few-{uuid.uuid4().hex[:8]}", unacknowledged_max=5, remember=7)
    ids = pubsub.publish(address.subscription, [b"%d" % n for n in range(12)])
    reading = Reading(address.open_reader())
    wait_for(lambda: reading.more() == 5, "as many as may wait")
    for _ in range(20):
        assert reading.more() == 5
    assert sum(pubsub.seen()[one][0] for one in ids) == 5
    acknowledge(pubsub.subscriber, address, reading.reader.receipts().ids)
    wait_for(lambda: reading.more() == 10, "the next ones")
    assert len(reading.reader.state()["known"]) == len("A" * 4 * -(-7 * 8 // 3))  # seven of eight bytes


def test_what_is_not_there_is_named(clicks: PubSubAddress) -> None:
    with pytest.raises(LogNotFound, match="no-such"):
        clicks.model_copy(update={"subscription": "no-such"}).open_reader()
    with pytest.raises(LogUnavailable, match="clicks"):
        clicks.model_copy(update={"endpoint": "127.0.0.1:9", "read_timeout_s": 0.5}).open_reader()


def test_a_log_that_is_read_once_says_so(clicks: PubSubAddress) -> None:
    reader = clicks.open_reader()
    assert isinstance(reader, OnceReader)
    with pytest.raises(ReadOnceLog, match=clicks.subscription):
        reader.end_offset(0)
    with pytest.raises(ReadOnceLog, match=clicks.subscription):
        list(reader.read_range(0, 0, 1))


def test_what_may_come_again_must_be_remembered() -> None:
    with pytest.raises(ValidationError, match="recognised"):
        PubSubAddress(project="shop-1", subscription="clicks", remember=10, unacknowledged_max=11)
