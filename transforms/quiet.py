"""How often to look where nothing comes: less often the longer it has been quiet."""

from __future__ import annotations

#: What a look costs at most in freshness is this part of the silence before it.
_PART = 10


def pause_us(quiet_us: int, shortest_us: int, longest_us: int) -> int:
    """A tenth of the silence so far, between two bounds, of which the shortest wins.

    >>> [pause_us(quiet_s * 1_000_000, 100_000, 1_000_000) for quiet_s in (0, 2, 60)]
    [100000, 200000, 1000000]
    """
    return max(shortest_us, min(longest_us, quiet_us // _PART))
