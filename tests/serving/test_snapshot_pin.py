"""Replicas of a pinned folder: there from wherever they stand, nowhere else, and on again when it is unpinned."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cuckooflow.models import snapshots
from cuckooflow.models.snapshot_pin import remove_pin, write_pin
from cuckooflow.serving.replica import Replica
from tests.serving.test_replica import assert_serves, damage

Cli = Callable[..., Any]


def replica_of(publisher: Any) -> Replica:
    return Replica(publisher.folder, lambda: 50_000_000, relist_polls=2)


def publish(publisher: Any, count: int, full_at: tuple[int, ...] = ()) -> None:
    for _ in range(count):
        number = publisher.n + 1
        publisher.set(ann=float(number), bias=number / 2)
        publisher.publish(full=number in full_at)


@pytest.mark.parametrize("pinned", range(1, 7))
@pytest.mark.parametrize("stands_at", [0, 2, 6])
def test_any_replica_comes_to_the_pinned_one_and_on_again(
    publisher: Any, pinned: int, stands_at: int
) -> None:
    replica = replica_of(publisher)
    publish(publisher, stands_at, full_at=(4,))
    replica.poll()
    publish(publisher, 6 - stands_at, full_at=(4,))
    write_pin(publisher.folder, pinned)
    replica.poll()
    assert_serves(replica, publisher, pinned)
    publish(publisher, 2)
    for _ in range(4):
        assert replica.poll() == 0
    assert_serves(replica, publisher, pinned)
    assert remove_pin(publisher.folder) and not remove_pin(publisher.folder)
    replica.poll()
    assert_serves(replica, publisher, 8)


def test_what_leads_to_a_pinned_one_is_kept_and_nothing_else(publisher: Any) -> None:
    publish(publisher, 6, full_at=(3,))
    write_pin(publisher.folder, 5)
    publish(publisher, 9, full_at=(8, 10, 12, 14))
    assert snapshots.sequences(publisher.folder) == [3, 4, 5, *range(10, 16)]
    replica = replica_of(publisher)
    replica.poll()
    assert_serves(replica, publisher, 5)
    remove_pin(publisher.folder)
    publish(publisher, 1, full_at=(16,))
    assert snapshots.sequences(publisher.folder) == [12, 13, 14, 15, 16]


def test_a_pinned_one_that_is_damaged_changes_nothing(
    publisher: Any, caplog: pytest.LogCaptureFixture
) -> None:
    publish(publisher, 5, full_at=(4,))
    replica = replica_of(publisher)
    replica.poll()
    damage(publisher, 3)
    write_pin(publisher.folder, 3)
    for _ in range(3):
        assert replica.poll() == 0
    assert_serves(replica, publisher, 5)
    assert "event=pinned_snapshot_missing sequence=3" in caplog.text
    (publisher.folder / "pinned.json").write_text("{")
    replica.poll()
    assert "event=pin_refused" in caplog.text
    remove_pin(publisher.folder)
    publish(publisher, 1)
    replica.poll()
    assert_serves(replica, publisher, 6)


@pytest.mark.deep
def test_by_command(publisher: Any, cli: Cli) -> None:
    publish(publisher, 6, full_at=(4,))
    folder = publisher.folder
    replica = replica_of(publisher)
    done = cli("snapshot", "rollback", folder, "--reason", "inverted labels")
    assert done.returncode == 0 and "pinned 3" in done.stdout, done.stderr
    replica.poll()
    assert_serves(replica, publisher, 3)
    listed = cli("snapshot", "list", folder).stdout
    assert [line.split()[0] for line in listed.splitlines()[1:7]] == ["1", "2", "3", "4", "5", "6"]
    assert "pinned" in listed.splitlines()[3] and "inverted labels" in listed
    assert [s["pinned"] for s in json.loads(cli("snapshot", "list", folder, "--json").stdout)].index(
        True
    ) == 2
    assert cli("snapshot", "pin", folder, 5).returncode == 0
    replica.poll()
    replica.poll()
    assert_serves(replica, publisher, 5)
    assert json.loads(cli("snapshot", "inspect", folder).stdout)["sequence"] == 6
    done = cli("snapshot", "pin", folder, 9)
    assert done.returncode == 1 and "found 1 to 6" in done.stderr
    damage(publisher, 2)
    done = cli("snapshot", "inspect", folder, 2)
    assert done.returncode == 1 and "expected sha256" in done.stderr
    assert cli("snapshot", "pin", folder, 3).returncode == 1
    assert "newest again" in cli("snapshot", "unpin", folder).stdout
    assert "nothing was pinned" in cli("snapshot", "unpin", folder).stdout
