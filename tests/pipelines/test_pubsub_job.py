"""A job whose inputs are Pub/Sub subscriptions: what is refused, and on Flink each event once after a kill -9."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cuckooflow.logs.local_log import LocalLog
from cuckooflow.logs.pubsub_address import PubSubAddress
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.spec_file import SpecFaults, load_spec, parse_spec
from cuckooflow.runners.cluster import LocalCluster
from cuckooflow.runners.flink_rest import FlinkRest
from cuckooflow.transforms.balances import imbalances, totals

START_MS = 1_767_225_600_000
DAY_MS = 86_400_000
IMPRESSIONS = "{path: logs/impressions, partitions: 2}"
ACTIONS = "{path: logs/actions}"
EXAMPLES = "{path: logs/examples, partitions: 2}"
SUBSCRIPTION = "{pubsub: {project: shop-1, subscription: clicks}}"
#: For a job until its first rows, on a busy machine.
BOUND_S = 240


def changed(films: Any, *changes: tuple[str, str]) -> str:
    text: str = films.spec.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def test_inputs_may_be_subscriptions_and_nothing_else(films: Any) -> None:
    job = parse_spec(changed(films, (IMPRESSIONS, SUBSCRIPTION), (ACTIONS, SUBSCRIPTION)), films.spec)
    assert job.subscriptions() == ["pubsub://shop-1/clicks"] * 2
    with pytest.raises(SpecFaults) as caught:
        parse_spec(changed(films, (EXAMPLES, SUBSCRIPTION)), films.spec)
    (fault,) = caught.value.faults
    assert fault.location == ("logs", "examples")
    assert "Pub/Sub" in fault.allowed and "impressions and actions only" in fault.allowed


@pytest.mark.parametrize(
    ("old", "new", "field", "words"),
    [
        (ACTIONS, "{pubsub: {project: shop-1}}", "logs.actions.pubsub.subscription", "required"),
        (ACTIONS, "{pubsub: {project: shop-1, subscription: c}}", "logs.actions.pubsub.subscription", "pattern"),
        (ACTIONS, "{pubsub: {project: shop-1, topic: clicks}}", "logs.actions.pubsub.topic", "subscription"),
        (ACTIONS, "{pubsub: {project: shop-1, subscription: clicks, remember: 9}}", "logs.actions.pubsub", "remember"),
    ],
)  # fmt: skip
def test_faults_of_a_subscription_name_the_field(
    films: Any, old: str, new: str, field: str, words: str
) -> None:
    with pytest.raises(SpecFaults) as caught:
        parse_spec(changed(films, (old, new)), films.spec)
    faults = {".".join(map(str, f.location)): f"{f.received}; {f.allowed}" for f in caught.value.faults}
    assert words in faults[field]


def test_a_replay_needs_what_can_be_read_again(films: Any) -> None:
    text = changed(films, (ACTIONS, SUBSCRIPTION), ("  num_shards: 2", "  num_shards: 2\n  replay_speed: 60"))
    with pytest.raises(SpecFaults, match="replay_speed"):
        parse_spec(text, films.spec)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("run", "join", "SPEC"),
        ("run", "join", "SPEC", "--runner", "prism"),
        ("preview", "SPEC"),
        ("backfill", "join", "SPEC", "--from", "2026-01-01", "--to", "2026-01-02", "--out", "OUT"),
        ("dlq", "replay", "SPEC"),
    ],
)
def test_commands_that_would_read_twice_or_lose_state_are_refused(
    films: Any, cli: Callable[..., Any], words: tuple[str, ...]
) -> None:
    films.spec.write_text(changed(films, (ACTIONS, SUBSCRIPTION)))
    LocalLog.create(films.job.path(films.job.logs.dead_letters.path), 1)
    places = {"SPEC": films.spec, "OUT": films.spec.parent / "days"}
    done = cli(*(places.get(word, word) for word in words))
    assert done.returncode == 2, done.stderr[-2000:]
    assert "pubsub://shop-1/clicks" in done.stderr


@pytest.fixture
def subscribed(films: Any, pubsub: Any, flink: LocalCluster) -> Iterator[tuple[JobSpec, dict[str, str]]]:
    """The films job over two subscriptions of its own, and their topics; its Flink job ends with the test."""
    mark = uuid.uuid4().hex[:8]
    topics = {name: f"{name}-{mark}" for name in ("impressions", "actions")}
    places: dict[str, PubSubAddress] = {name: pubsub.create(topic) for name, topic in topics.items()}

    def log(name: str) -> str:
        return json.dumps({"pubsub": places[name].model_dump(exclude_unset=True)})

    text = changed(
        films,
        (IMPRESSIONS, log("impressions")),
        (ACTIONS, log("actions")),
        # Messages come in no order: the clock has to stay behind the whole of them.
        ("max_skew: 10s", "max_skew: 6h"),
        ("name: films", f"name: films_{mark}"),
    )
    films.spec.write_text(text)
    films.job = load_spec(films.spec)
    yield films.job, topics
    url = flink.addresses().flink_rest
    assert url is not None
    rest = FlinkRest(url)
    for job in rest.jobs():
        if job.name == f"{films.job.name}-join" and not job.ended:
            rest.cancel(job.id)


@pytest.mark.cluster
@pytest.mark.fault
@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_killed_before_it_acknowledged_loses_and_doubles_nothing(
    films: Any,
    subscribed: tuple[JobSpec, dict[str, str]],
    pubsub: Any,
    flink: LocalCluster,
    cli: Callable[..., Any],
    wait_for: Callable[..., None],
) -> None:
    job, topics = subscribed

    def publish(impressions: list[Any], actions: list[Any]) -> list[str]:
        sent = pubsub.publish(topics["impressions"], (json.dumps(row).encode() for row in impressions))
        return [*sent, *pubsub.publish(topics["actions"], (json.dumps(row).encode() for row in actions))]

    impressions, actions = films.events(200)
    half = len(impressions) // 2, len(actions) // 2
    first = publish(impressions[: half[0]], actions[: half[1]])
    words = ("--runner", "flink", "--detach", "--checkpointing_interval=10000", "--cluster", flink.folder)
    done = cli("run", "join", films.spec, *words)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]

    def acknowledged(ids: list[str]) -> int:
        seen = pubsub.seen()
        return sum(seen[one][1] > 0 for one in ids)

    # With the second checkpoint after it was read: 10 to 20 s, in which the kill below falls.
    wait_for(lambda: acknowledged(first) == len(first), "the first half acknowledged", BOUND_S)
    second = publish(impressions[half[0] :], actions[half[1] :])
    wait_for(lambda: all(pubsub.seen()[one][0] for one in second), "the second half delivered", BOUND_S)
    worker = flink.worker_pids()[-1]
    os.kill(worker, signal.SIGKILL)
    late = len(second) - acknowledged(second)
    assert late, "the worker had acknowledged everything before it was killed"
    wait_for(lambda: acknowledged(second) == len(second), "the second half acknowledged", BOUND_S)
    assert worker not in flink.worker_pids()

    at_ms = START_MS + DAY_MS // 2
    closing = {"request_id": "r-closing-", "item_id": "i0", "time": at_ms}
    publish([{**closing, "user_id": "u", "genres": ["all"]}], [{**closing, "action": "click"}])
    wait_for(lambda: films.labels() == films.expected, "every impression's example", BOUND_S)

    def counts() -> dict[str, dict[str, int]]:
        return totals(films.rows(job.logs.join_balances.path))  # type: ignore[union-attr]

    wait_for(lambda: counts()["join"].get("impressions") == len(impressions) + 1, "the balances")
    sums = counts()
    assert imbalances(sums) == []
    assert sums["join"]["impressions_repeated"] == sums["join"]["actions_repeated"] == 0
    assert sums["source"]["impressions_read"] == len(impressions) + 1
    assert sums["source"]["actions_read"] == len(actions) + 1
    print(f"unacknowledged_at_the_kill={late} of={len(second)}")
