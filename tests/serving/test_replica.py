"""The replica: snapshots whole, in order, and a way back after every kind of gap."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuckooflow.errors import NoSnapshot
from cuckooflow.models import snapshots
from cuckooflow.serving.replica import Applied, Replica, ReplicaCounts

NOW_US = 50_000_000


def new_replica(publisher: Any, **options):
    return Replica(publisher.folder, lambda: NOW_US, **options)


def held(replica: Replica, publisher: Any) -> dict[str, float]:
    """Users' weights as served; zero ones left out, as if they had no row."""
    everyone = sorted({user for users, _ in publisher.published.values() for user in users})
    weights = replica.served().store.lookup({"linear": publisher.ids(everyone)})["linear"]
    return {user: float(w) for user, w in zip(everyone, weights[:, 0], strict=True) if w != 0}


def assert_serves(replica: Replica, publisher: Any, sequence: int) -> None:
    served = replica.served()
    users, bias = publisher.published[sequence]
    assert served.manifest.sequence == sequence
    assert served.store.version == served.manifest.version
    assert held(replica, publisher) == {u: float(np.float32(w)) for u, w in users.items()}
    np.testing.assert_array_equal(served.store.dense()["linear/bias"], np.float32([bias]))


def damage(publisher: Any, sequence: int) -> None:
    blob = publisher.folder / snapshots.read_manifest(publisher.folder, sequence).blob
    raw = bytearray(blob.read_bytes())
    raw[-1] ^= 0xFF
    blob.write_bytes(raw)


def test_nothing_is_served_before_the_first_snapshot(publisher: Any) -> None:
    replica = new_replica(publisher)
    assert replica.poll() == 0
    with pytest.raises(NoSnapshot, match="wait for the trainer"):
        replica.served()
    publisher.set(ann=1.5)
    publisher.publish()
    assert replica.poll() == 1
    assert_serves(replica, publisher, 1)


@pytest.mark.parametrize("rows", ["float32", "float16", "int8"])
def test_deltas_are_applied_in_order(publisher: Any, rows: str) -> None:
    """The weights are such that every format holds them exactly."""
    replica = new_replica(publisher, rows=rows)
    publisher.set(ann=1.0, bob=2.0, bias=0.5)
    publisher.publish()
    publisher.set(ann=3.0)
    publisher.publish()
    assert replica.poll() == 2
    publisher.set(cid=-1.0, bias=-0.25)
    publisher.publish()
    assert replica.poll() == 1
    assert_serves(replica, publisher, 3)
    assert replica.served().store.rows("linear") == 3
    assert replica.served().store.stats()["linear"]["row_bytes"] == 32
    assert [a.manifest.sequence for a in replica.history()] == [1, 2, 3]
    assert replica.counts == ReplicaCounts(applied=3)


def test_a_new_replica_starts_at_the_newest_full_one(publisher: Any) -> None:
    for n in range(1, 7):
        publisher.set(ann=float(n))
        publisher.publish(full=n == 4)
    replica = new_replica(publisher)
    assert replica.poll() == 3
    assert [a.manifest.sequence for a in replica.history()] == [4, 5, 6]
    assert_serves(replica, publisher, 6)


def test_a_damaged_delta_leaves_the_last_good_version_until_a_full_one(publisher: Any) -> None:
    replica = new_replica(publisher)
    publisher.set(ann=1.0)
    publisher.publish()
    replica.poll()
    publisher.set(ann=2.0)
    damage(publisher, publisher.publish().sequence)
    publisher.set(bob=1.0)
    publisher.publish()
    assert replica.poll() == 0
    assert replica.poll() == 0
    assert_serves(replica, publisher, 1)
    assert replica.counts == ReplicaCounts(applied=1, damaged=1, gaps=1)
    assert snapshots.full_requested(publisher.folder)
    publisher.publish(full=True)
    assert replica.poll() == 1
    assert_serves(replica, publisher, 4)
    publisher.set(bob=2.0)
    publisher.publish()
    assert replica.poll() == 1
    assert_serves(replica, publisher, 5)


def test_a_damaged_manifest_counts_like_a_damaged_blob(publisher: Any) -> None:
    replica = new_replica(publisher)
    publisher.publish()
    publisher.publish()
    (publisher.folder / "000000000002.json").write_bytes(b"{")
    assert replica.poll() == 1
    assert replica.counts == ReplicaCounts(applied=1, damaged=1, gaps=1)


def test_with_the_newest_full_one_damaged_an_older_one_is_served(publisher: Any) -> None:
    for n in range(1, 6):
        publisher.set(ann=float(n))
        publisher.publish(full=n in (1, 4))
    damage(publisher, 4)
    replica = new_replica(publisher)
    assert replica.poll() == 3
    assert_serves(replica, publisher, 3)
    assert replica.counts == ReplicaCounts(applied=3, damaged=1, gaps=1)
    assert snapshots.full_requested(publisher.folder)


def test_a_slow_replica_finds_the_way_after_retention(publisher: Any) -> None:
    replica = new_replica(publisher, relist_polls=3)
    publisher.set(ann=1.0)
    publisher.publish()
    replica.poll()
    for n in range(2, 12):  # keeps three full ones: the numbers up to 7 go
        publisher.set(ann=float(n))
        publisher.publish(full=n % 2 == 0)
    assert not snapshots.is_published(publisher.folder, 2)
    polls = 0
    while replica.served().manifest.sequence < 11:
        replica.poll()
        polls += 1
        assert polls <= 4, "the listing did not find the way"
    assert_serves(replica, publisher, 11)


def test_a_restored_store_takes_over_with_its_full_one(publisher: Any) -> None:
    replica = new_replica(publisher)
    publisher.set(ann=1.0, bob=1.0)
    publisher.publish()
    publisher.set(ann=2.0)
    publisher.publish()
    replica.poll()
    publisher.restore()
    publisher.lose("bob")  # what was trained since the checkpoint is gone for a while
    publisher.set(ann=1.0)
    publisher.publish()
    replica.poll()
    assert_serves(replica, publisher, 3)


def test_a_delta_that_was_not_acknowledged_comes_again_within_the_next(publisher: Any) -> None:
    replica = new_replica(publisher)
    publisher.publish()
    publisher.set(ann=1.0)
    publisher.publish(ack=False)
    replica.poll()
    publisher.set(bob=2.0)
    publisher.publish()
    assert replica.poll() == 1
    assert_serves(replica, publisher, 3)
    assert replica.counts.gaps == 0


def test_a_model_that_changed_comes_with_its_full_one(publisher: Any) -> None:
    replica = new_replica(publisher)
    publisher.set(ann=1.0)
    publisher.publish()
    replica.poll()
    before = replica.served()
    other = type(publisher)(publisher.folder, labels=("click", "like"))
    other.set(ann=2.0)
    other.acked = publisher.acked  # a publisher that believes its new model stands on the old one
    other.incarnation = publisher.incarnation
    other.n = publisher.n
    other.publish()
    assert replica.poll() == 0
    assert replica.counts.gaps == 1
    other.publish(full=True)
    assert replica.poll() == 1
    assert replica.served().model.labels == ("click", "like")
    assert before.store.version.n == 1  # who began with the old one finishes with it


@pytest.mark.parametrize("wrong", ["kind", "dense", "dim"])
def test_a_model_that_cannot_be_built_is_refused(publisher: Any, wrong: str) -> None:
    replica = new_replica(publisher)
    publisher.publish()
    replica.poll()
    dump = publisher.spec.model_dump(mode="json")
    if wrong == "kind":
        publisher.publish(full=True, model={**dump, "kind": "oracle"})
    elif wrong == "dense":
        publisher.publish(full=True, model={**dump, "kind": "deepfm"})
    else:
        publisher.publish(full=True, model={**dump, "labels": ["a", "b"]})
    assert replica.poll() == 0
    assert replica.counts == ReplicaCounts(applied=1, damaged=1, gaps=1)
    assert_serves(replica, publisher, 1)


def test_freshness_is_from_arrival_to_being_served(publisher: Any) -> None:
    seen: list[Applied] = []
    replica = new_replica(publisher, on_applied=seen.append)
    publisher.publish(arrivals_us=(NOW_US - 3_000_000, NOW_US - 500_000))
    replica.poll()
    assert seen[0].freshness_s == (3.0, 0.5)
    assert replica.history() == seen


def test_a_folder_that_is_not_writable_is_still_followed(
    publisher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, reason: str) -> None:
        raise PermissionError(13, "read-only", str(folder / reason))

    monkeypatch.setattr(snapshots, "request_full", refuse)
    replica = new_replica(publisher)
    publisher.publish()
    publisher.publish()
    damage(publisher, 2)
    assert replica.poll() == 1
    publisher.publish(full=True)
    assert replica.poll() == 1


def test_a_folder_that_fails_for_a_while_is_followed_again(
    publisher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.publish()
    real = snapshots.sequences
    failures = iter([OSError(5, "I/O error")] * 3)

    def flaky(folder: Path) -> list[int]:
        for error in failures:
            raise error
        return real(folder)

    monkeypatch.setattr(snapshots, "sequences", flaky)
    served, stop = threading.Event(), threading.Event()
    replica = new_replica(publisher, on_applied=lambda _: served.set())
    thread = threading.Thread(target=replica.follow, args=(stop, 0.001))
    thread.start()
    assert served.wait(60)
    stop.set()
    thread.join()


STEP = st.sampled_from(
    ["delta", "delta", "delta", "unacked", "full", "restore", "damage", "poll", "poll", "new"]
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, min_size=4, max_size=25), seed=st.integers(0, 1000))
def test_whatever_happens_a_published_version_is_served_whole(
    tmp_path_factory: pytest.TempPathFactory, publisher: Any, steps: list[str], seed: int
) -> None:
    """Against plain dicts: what is served is exactly one published version, and never an older one again."""
    rng = np.random.default_rng(seed)
    publisher = type(publisher)(tmp_path_factory.mktemp("any") / "snapshots")
    replica = new_replica(publisher, relist_polls=2)
    newest_full_whole = 0
    last = 0
    for step in [*steps, "full", "poll", "poll"]:
        if step in ("delta", "unacked", "full", "damage"):
            publisher.set(**{f"u{rng.integers(6)}": float(rng.integers(1, 100))}, bias=float(rng.integers(9)))
            manifest = publisher.publish(full=step == "full", ack=step != "unacked")
            if step == "damage":
                damage(publisher, manifest.sequence)
            elif manifest.kind == "full":
                newest_full_whole = manifest.sequence
        elif step == "restore":
            publisher.restore()
            if publisher.users:
                publisher.lose(sorted(publisher.users)[rng.integers(len(publisher.users))])
        elif step == "new":
            replica, last = new_replica(publisher, relist_polls=2), 0
        else:
            replica.poll()
            # Retention deletes the last whole one after enough damaged ones have followed it.
            if last or newest_full_whole in snapshots.full_sequences(publisher.folder):
                sequence = replica.served().manifest.sequence
                assert_serves(replica, publisher, sequence)
                assert sequence >= last
                last = sequence
    assert last >= newest_full_whole
