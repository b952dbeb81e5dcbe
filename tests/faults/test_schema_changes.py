"""Columns that are added, widened or removed, while the join runs and across a savepoint: unified or dead letters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cuckooflow.runners.cluster import LocalCluster
from tests.faults.events import Event, Stretch
from tests.faults.live_join import BOUND_S, LiveJoin

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.deep, pytest.mark.timeout(600)]

RANK = "    user_id: {type: string}\n    rank: {type: int64, required: false}\n"
DEVICE = "    rank: {type: float64, required: false}\n    device: {type: string, required: false}\n"
USER = "  - {name: user, column: user_id}\n"

Wait = Callable[..., None]


def refused(log: str, row: Event) -> str | None:
    """What the declared columns say of a row."""
    if log == "impressions" and "user_id" not in row:
        return "missing_column"
    return "wrong_type" if isinstance(row.get("rank"), str | float) else None


@pytest.fixture
def ranked(tmp_path: Path, cli: Callable[..., Any], flink: LocalCluster) -> Iterator[LiveJoin]:
    """A join whose impressions may have a rank."""
    made = LiveJoin(tmp_path / "job", cli, flink, {"    user_id: {type: string}\n": RANK})
    made.start("--parallelism=1")
    yield made
    made.cancel()
    made.close()


def with_columns(
    made: Stretch, of: Callable[[int], Event], without: Callable[[int], tuple[str, ...]]
) -> Stretch:
    """Impressions with further columns and without some, by the number of their request."""
    for events in made.shown.values():
        for event in events:
            if event["request_id"].startswith("r"):
                n = int(event["request_id"][1:])
                event |= of(n)
                for name in without(n):
                    event.pop(name, None)  # a repeat is the same event
    return made


def test_while_the_join_runs(ranked: LiveJoin) -> None:
    """In turn: as declared, a column that nobody declared, a fraction and a text for an integer, no rank, no user."""
    changes: tuple[Event, ...] = (
        {"rank": 3},
        {"rank": 3, "device": "tv"},
        {"rank": 3.0},
        {"rank": "high"},
        {},
        {"rank": 3},
    )
    made = with_columns(
        ranked.next_stretch(), lambda n: changes[n % 6], lambda n: ("user_id",) if n % 6 == 5 else ()
    )
    ranked.append(made)
    found = ranked.check(refused=refused)
    assert {"wrong_type", "missing_column"} <= set(found.dead.values())
    ranks = {row["rank"] for row in ranked.examples() if row["request_id"].startswith("r")}
    assert ranks == {3, None}
    assert not [row for row in ranked.examples() if "device" in row]


def test_across_a_savepoint(ranked: LiveJoin, wait_for: Wait) -> None:
    """A column is added, one widened, one removed, while impressions with the old columns wait."""
    first, second = ranked.next_stretch().halves()
    ranked.append(with_columns(first, lambda n: {"rank": n}, lambda _: ()))
    wait_for(ranked.has_read, "the old impressions wait in state", BOUND_S)
    ranked.command("job", "stop", ranked.name)
    ranked.change_spec({RANK: DEVICE, USER: ""})
    new = with_columns(second, lambda n: {"rank": n + 0.5, "device": "tv"}, lambda _: ("user_id",))
    ranked.append(new)
    ranked.resume("--parallelism=1")
    ranked.check()
    seen = set()
    for row in ranked.examples():
        request = row["request_id"]
        if request.startswith("r"):
            n = int(request[1:])
            assert (row["rank"], row["device"]) in ((n, None), (n + 0.5, "tv"))
            assert "user_id" not in row
            seen.add(row["device"])
    assert seen == {None, "tv"}
