"""The join's source over Pub/Sub: impressions from a log, actions from a subscription, on Google's own fake."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cuckooflow.errors import ReadOnceLog
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.logs.once_messages import label_of
from cuckooflow.logs.pubsub_address import PubSubAddress
from cuckooflow.logs.pubsub_reader import acknowledge
from cuckooflow.transforms.acknowledge import Acknowledge
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.hand_over import HandOver
from cuckooflow.transforms.in_band import ACTIONS, IMPRESSIONS
from cuckooflow.transforms.poll_core import PollCore, Polled, PollOptions, PollSource

pytestmark = pytest.mark.slow
KEY = {"k": Column(type="string"), "t": Column(type="time", unit="s")}
SHOWN = EventSchema(columns=KEY, time="t", key=("k",))
DONE = EventSchema(columns={**KEY, "what": Column(type="string")}, time="t", key=("k",), action_type="what")
OPTIONS = PollOptions(num_shards=2, heartbeat_us=1)
T0 = 1_767_225_600
WaitFor = Callable[..., None]


def done(n: int) -> bytes:
    return json.dumps({"k": f"k{n}", "t": T0 + n, "what": "click"}).encode()


class Source:
    """A poller over both logs, what it gave, and what of it a checkpoint would hold."""

    def __init__(self, folder: Path, place: PubSubAddress) -> None:
        self.folder, self.place = folder, place
        LocalLog.create(folder / "shown", 1)
        self.answers: list[Polled] = []
        self.core: PollCore
        self.open(None)

    def open(self, state: bytes | None, **more: Any) -> None:
        shown = PollSource(LocalLog.open(self.folder / "shown"), SHOWN)
        self.core = PollCore(shown, PollSource(self.place.open_reader(), DONE), OPTIONS, state, **more)

    def poll(self) -> None:
        self.answers.append(self.core.poll(time.time_ns() // 1_000))

    def keys(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for answer in self.answers:
            for _, batch in answer.elements:
                found.update(batch.column("k").to_pylist() if "k" in batch.schema.names else [])
        return found

    def dead(self) -> list[dict[str, Any]]:
        return [row for answer in self.answers for batch in answer.dead for row in batch.to_pylist()]

    def counts(self) -> dict[str, int]:
        records = [record for answer in self.answers for record in answer.balances]
        return dict(records[-1]["counts"])


@pytest.fixture
def source(pubsub: Any, tmp_path: Path) -> Source:
    return Source(tmp_path, pubsub.create(f"actions-{uuid.uuid4().hex[:8]}"))


def test_rows_and_letters_have_the_message_for_a_position(
    pubsub: Any, source: Source, wait_for: WaitFor
) -> None:
    with LocalLogWriter(source.folder / "shown") as writer:
        writer.append(0, [json.dumps({"k": "k1", "t": T0}).encode()], T0 * 1_000_000)
    ids = pubsub.publish(source.place.subscription, [done(1), b"nonsense", done(2)])

    def all_there() -> bool:
        source.poll()
        return source.keys() == Counter({"k1": 2, "k2": 1}) and bool(source.dead())

    wait_for(all_there, "an impression, two actions and a dead letter")
    places = {
        (row["_log"], row["k"]): (row["_partition"], row["_offset"])
        for answer in source.answers
        for _, batch in answer.elements
        for row in batch.to_pylist()
    }
    assert places == {
        (IMPRESSIONS, "k1"): (0, 0),
        (ACTIONS, "k1"): (0, label_of(ids[0])),
        (ACTIONS, "k2"): (0, label_of(ids[2])),
    }
    (letter,) = source.dead()
    assert (letter["log"], letter["offset"], letter["value"]) == (
        source.place.subscription,
        label_of(ids[1]),
        b"nonsense",
    )


def test_after_a_failure_each_message_counts_once(pubsub: Any, source: Source, wait_for: WaitFor) -> None:
    def reached(*numbers: int) -> Callable[[], bool]:
        def there() -> bool:
            source.poll()
            return set(source.keys()) == {f"k{n}" for n in numbers}

        return there

    pubsub.publish(source.place.subscription, [done(0), done(1), b"nonsense"])
    wait_for(lambda: reached(0, 1)() and source.dead(), "what came before the checkpoint")
    checkpoint, kept = source.core.state(), len(source.answers)
    first = [one for answer in source.answers for one in answer.receipts.get(ACTIONS, ())]
    acknowledge(pubsub.subscriber, source.place, first[:1])

    pubsub.publish(source.place.subscription, [done(2)])
    wait_for(reached(0, 1, 2), "what came after it")
    # The worker is lost: what the checkpoint does not hold never was, and nothing more is acknowledged.
    del source.answers[kept:]
    source.open(checkpoint)
    pubsub.publish(source.place.subscription, [done(3)])

    def settled() -> bool:
        source.poll()
        return source.keys()["k2"] > 0 and source.counts().get("actions_redelivered", 0) >= 2

    wait_for(settled, "what was not acknowledged once more")
    wait_for(reached(0, 1, 2, 3), "what came last")
    assert source.keys() == Counter({f"k{n}": 1 for n in range(4)})
    assert len(source.dead()) == 1
    wait_for(
        lambda: source.poll() or source.counts()["actions_read"] == 5, "the counts of all five, each once"
    )


def test_what_needs_a_log_that_can_be_read_again_is_refused(source: Source) -> None:
    shown = PollSource(LocalLog.open(source.folder / "shown"), SHOWN)
    acted = PollSource(source.place.open_reader(), DONE)
    for options in (PollOptions(stop_at_end=True), PollOptions(replay_speed=2.0)):
        with pytest.raises(ReadOnceLog, match=source.place.subscription):
            PollCore(shown, acted, options)
    with pytest.raises(ReadOnceLog, match="a hand-over"):
        source.open(None, hand_over=HandOver(T0, T0, 1, 1, ("k",), {}))


class Bundles:
    """A runner's side of finalization: which callbacks each bundle has registered."""

    def __init__(self, fn: Acknowledge) -> None:
        self.fn = fn
        self.ended: list[list[Callable[[], None]]] = []

    def run(self, *receipts: tuple[str, ...]) -> None:
        registered: list[Callable[[], None]] = []
        for ids in receipts:
            self.fn.process({ACTIONS: ids}, SimpleNamespace(register=registered.append))
        self.ended.append(registered)

    def checkpoint_completes(self) -> None:
        """As Flink does it: all bundles that have ended so far."""
        bundles, self.ended = self.ended, []
        for callback in (callback for bundle in bundles for callback in bundle):
            callback()


def test_an_acknowledgement_waits_for_the_second_checkpoint(
    pubsub: Any, source: Source, wait_for: WaitFor
) -> None:
    ids = pubsub.publish(source.place.subscription, [done(n) for n in range(3)])

    def acknowledged() -> list[int]:
        seen = pubsub.seen()
        return [seen[one][1] for one in ids]

    wait_for(lambda: source.poll() or len(source.keys()) == 3, "three messages")
    receipts = [one for answer in source.answers for one in answer.receipts.get(ACTIONS, ())]
    by_message = {one.split(":")[0]: one for one in receipts}
    a, b, c = (by_message[one] for one in ids)
    fn = Acknowledge(uuid.uuid4().hex, {ACTIONS: source.place})
    bundles = Bundles(fn)
    bundles.run((a,), (b,))
    bundles.run((c,))  # ended after the checkpoint was taken, before it completed: it is not in it
    bundles.checkpoint_completes()
    assert acknowledged() == [0, 0, 0]
    bundles.run(())
    assert acknowledged() == [0, 0, 0]
    bundles.checkpoint_completes()
    assert acknowledged() == [1, 1, 1]
    assert source.core.poll(time.time_ns() // 1_000).receipts == {}
    fn.teardown()
