"""What a source read and what became of it, since the job began; for the balances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuckooflow.transforms.balances import SOURCE, balance_record
from cuckooflow.transforms.decoded import NO_ITEMS, OTHER_ACTION
from cuckooflow.transforms.in_band import LOG_NAMES
from cuckooflow.transforms.parse import Parsed


def parsed_counts(log: int, parsed: Parsed) -> dict[str, int]:
    """What became of the rows of messages that were parsed, by the names that the balances use."""
    found = {
        "read": parsed.read,
        "rows": parsed.rows.num_rows,
        "refused": parsed.dead.num_rows,
        "of_other_types": parsed.left_out.get(OTHER_ACTION, 0),
        "messages_without_items": parsed.left_out.get(NO_ITEMS, 0),
    }
    return {f"{LOG_NAMES[log]}_{name}": count for name, count in found.items()}


def add_counts(counts: dict[str, int], more: Mapping[str, int]) -> None:
    """Add counts to others of the same names, in place."""
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count


class SourceCounts:
    """Counts by log; a part of the poller's state, so that a restart counts nothing twice. Not thread-safe.

    Args:
        interval_us: between two reports while something is read.
        counts: what :attr:`counts` was when the state was kept.
    """

    def __init__(self, interval_us: int, counts: Mapping[str, int] | None = None) -> None:
        self.counts: dict[str, int] = dict(counts or {})
        self._fresh: dict[str, int] = {}
        self._interval_us = interval_us
        self._reported_us: int | None = None
        self._reported: dict[str, int] | None = None

    def add(self, log: int, messages: int, parsed: Parsed) -> None:
        """Count a batch of messages that was parsed."""
        found = {f"{LOG_NAMES[log]}_messages": messages, **parsed_counts(log, parsed)}
        add_counts(self.counts, found)
        for name in (f"{LOG_NAMES[log]}_messages", f"{LOG_NAMES[log]}_rows"):
            add_counts(self._fresh, {f"source_{name}": found[name]})

    def add_redelivered(self, log: int, messages: int) -> None:
        """Count messages that were known, and so are in no other count."""
        if messages:
            add_counts(self.counts, {f"{LOG_NAMES[log]}_redelivered": messages})

    def take(self) -> dict[str, int]:
        """Counters, by name, and by how much they moved since this was last called."""
        fresh, self._fresh = self._fresh, {}
        return fresh

    def report(self, now_us: int, final: bool) -> list[dict[str, Any]]:
        """A balance record where one is due."""
        waited = self._reported_us is None or now_us - self._reported_us >= self._interval_us
        if not final and (not waited or self.counts == self._reported):
            return []
        self._reported_us, self._reported = now_us, dict(self.counts)
        return [balance_record(SOURCE, 0, self.counts, None, now_us, final)]
