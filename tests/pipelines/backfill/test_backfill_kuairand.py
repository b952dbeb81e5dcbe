"""Backfill against stream, row for row, on KuaiRand: from logs, and from files whose rows lie anywhere."""

from __future__ import annotations

import json
from collections import Counter

import pytest

pytestmark = pytest.mark.slow
KINDS = ("examples", "late", "unmatched", "dead_letters")


def joined_letters(rows: Counter[str], parsed: bool) -> Counter[str]:
    """Dead letters of the join, or those of events that were refused before it."""
    joined = ("late_impression", "key_reused", "unknown_action")
    return Counter({line: n for line, n in rows.items() if (json.loads(line)["reason"] in joined) != parsed})


def test_from_the_same_logs(feed, streamed, backfill, day_rows, expected, tmp_path) -> None:
    out = tmp_path / "days"
    backfill(feed.spec, out)
    for kind in ("examples", "late", "unmatched"):
        assert day_rows(out, kind) == expected(kind), kind
        assert len(expected(kind)) > 300
    found = day_rows(out, "dead_letters")
    assert joined_letters(found, parsed=False) == expected("dead_letters")
    assert len(expected("dead_letters")) > 300
    assert joined_letters(found, parsed=True) <= joined_letters(streamed["dead_letters"], parsed=True)
