"""How long a source waits between two polls."""

from __future__ import annotations

from typing import Any

import pytest

from cuckooflow.transforms import pollers
from cuckooflow.transforms.pollers import NEW, PAUSE_MAX_US, WAITING, OpenedPoller, resume

MS = 1_000
S = 1_000 * MS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    now = [0]
    monkeypatch.setattr(pollers, "wall_clock_us", lambda: now[0])
    return now


def test_the_wait_is_a_tenth_of_the_silence_and_none_where_something_came(clock: list[int]) -> None:
    opened = OpenedPoller(object(), 0)  # type: ignore[arg-type]
    waited = []
    for clock[0] in (0, S, 3 * S, 100 * S):
        waited.append(opened.pause_us(False, 100 * MS))
    assert waited == [100 * MS, 100 * MS, 300 * MS, PAUSE_MAX_US]
    assert opened.pause_us(True, 100 * MS) == 0
    clock[0] += S
    assert opened.pause_us(False, 100 * MS) == 100 * MS


def test_an_interval_past_the_longest_wait_is_kept() -> None:
    opened = OpenedPoller(object(), 0)  # type: ignore[arg-type]
    assert opened.pause_us(False, 7 * S) == 7 * S


def test_a_poller_that_waits_for_its_bundle_knows_how_long_it_has_been_quiet(clock: list[int]) -> None:
    def open_poller(_: bytes | None) -> Any:
        return object()

    opened = resume("a source", NEW, open_poller)
    WAITING.keep("a source", NEW, opened)
    clock[0] = 5 * S
    again = resume("a source", NEW, open_poller)
    assert again.poller is opened.poller
    assert again.pause_us(False, 100 * MS) == 500 * MS
    WAITING.keep("a source", NEW, again)
    assert resume("a source", b"S elsewhere", open_poller).poller is not opened.poller
