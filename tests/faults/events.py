"""Events of a stretch of time as clients would send them: delayed, repeated, unmatched, and with keys used twice."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

IMPRESSION_PARTITIONS, ACTION_PARTITIONS = 4, 2
#: Requests go to the first ones. The last one holds nothing but what moves its clock, until a test wants it.
BUSY_PARTITIONS = 3
ITEMS_OF_A_REQUEST = 4
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
#: From the first event of a stretch to the events that close all its windows.
_LONGEST_ACTION_MS = HOUR_MS
_LONGEST_DELAY_MS = 45 * MINUTE_MS
_LONGEST_WINDOW_MS = 30 * MINUTE_MS

Event = dict[str, Any]


@dataclass
class Stretch:
    """Events by partition, each in the order in which they arrive.

    Attributes:
        shown, done: of the impressions and the actions log, partition -> events.
        end_ms: event time; the next stretch begins after it.
    """

    shown: dict[int, list[Event]] = field(
        default_factory=lambda: {p: [] for p in range(IMPRESSION_PARTITIONS)}
    )
    done: dict[int, list[Event]] = field(default_factory=lambda: {p: [] for p in range(ACTION_PARTITIONS)})
    end_ms: int = 0

    def halves(self) -> tuple[Stretch, Stretch]:
        """What arrives first, and the rest."""
        first, second = Stretch(end_ms=self.end_ms), Stretch(end_ms=self.end_ms)
        for name in ("shown", "done"):
            for partition, events in getattr(self, name).items():
                middle = len(events) // 2
                getattr(first, name)[partition] = events[:middle]
                getattr(second, name)[partition] = events[middle:]
        return first, second


def _delay_ms(rng: random.Random) -> int:
    """Most arrive within the allowed skew, some minutes later, a few after their window has closed."""
    kind = rng.random()
    longest = 8_000 if kind < 0.9 else 5 * MINUTE_MS if kind < 0.97 else _LONGEST_DELAY_MS
    return rng.randrange(longest)


def stretch(
    seed: int, first_request: int, requests: int, start_ms: int, delay: Callable[..., int] = _delay_ms
) -> Stretch:
    """A second of event time a request, and at the end what closes all windows.

    Of the impressions 3 % are repeated and 1 % use the key of another one; of the actions 3 % are repeated and
    5 % have no impression; clicks and watches lie within their window, past it, or arrive after it has closed.
    """
    rng = random.Random(seed)
    shown: list[tuple[int, int, Event]] = []
    done: list[tuple[int, int, Event]] = []

    def arrive(to: list[tuple[int, int, Event]], partition: int, event: Event) -> None:
        at_ms = event["time"] + delay(rng)
        to.append((at_ms, partition, event))
        if rng.random() < 0.03:
            to.append((at_ms + rng.randrange(60_000), partition, event))

    for n in range(first_request, first_request + requests):
        shown_ms = start_ms + (n - first_request) * 1_000
        for item in rng.sample(range(40), ITEMS_OF_A_REQUEST):
            key = {"request_id": f"r{n}", "item_id": f"i{item}"}
            impression = {**key, "time": shown_ms, "user_id": f"u{n % 17}"}
            arrive(shown, n % BUSY_PARTITIONS, impression)
            if rng.random() < 0.01:
                arrive(shown, n % BUSY_PARTITIONS, {**impression, "time": shown_ms + 5_000})
            if rng.random() < 0.05:
                key = {**key, "item_id": "none"}
            if rng.random() < 0.4:
                at_ms = shown_ms + rng.randrange(20 * MINUTE_MS)
                arrive(done, n % ACTION_PARTITIONS, {**key, "time": at_ms, "action": "click"})
            for _ in range(rng.choice((0, 0, 1, 2))):
                at_ms = shown_ms + rng.randrange(_LONGEST_ACTION_MS)
                watch = {**key, "time": at_ms, "action": "watch", "seconds": rng.randrange(1, 600)}
                arrive(done, n % ACTION_PARTITIONS, watch)
    made = Stretch()
    for found, by_partition in ((shown, made.shown), (done, made.done)):
        for _, partition, event in sorted(found, key=lambda entry: entry[0]):
            by_partition[partition].append(event)
    made.end_ms = start_ms + requests * 1_000 + _LONGEST_ACTION_MS + _LONGEST_WINDOW_MS + MINUTE_MS
    close(made, f"close-{first_request}")
    return made


def close(made: Stretch, name: str) -> None:
    """Bring every partition to the stretch's end, with an event each that nothing else belongs to."""
    for partition, events in made.shown.items():
        key = {"request_id": f"{name}-{partition}", "item_id": "i0"}
        events.append({**key, "time": made.end_ms, "user_id": "u"})
    for partition, events in made.done.items():
        key = {"request_id": f"{name}-{partition}", "item_id": "none"}
        events.append({**key, "time": made.end_ms, "action": "click"})
