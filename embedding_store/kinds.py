"""Table kinds besides embeddings: what is pushed to them and what a lookup as of a time answers.

Both are streaming features: functions of the events up to a time, kept up by the same pushes, under the same
marks, as embeddings. A push whose range was applied already is skipped, so no event counts twice.

``counter``: decayed sums. With the amounts ``a_i`` of an id at the event times ``t_i``, a lookup as of
``t`` answers ``sum(a_i * 2 ** -((t - t_i) / half_life))``. The order of updates does not matter. A row keeps
sums, not events: where ``t`` lies before the row's last update it cannot leave out what came after ``t``, so
it answers the sums as of that last update, never more (nothing is scaled up), and ``last_us`` tells; where
``t`` lies before the row's first update, the answer is 0, which is exact.

``recent``: the newest ids with their times. A lookup as of ``t`` leaves out entries later than ``t``; since
only the newest ``dim`` are kept, it may then answer fewer than there were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

#: The time of what never happened; earlier than any event time.
NEVER_US = -(1 << 63)
#: Event times and times of lookups lie within plus and minus this.
TIME_US_MAX = 1 << 61

Times = npt.NDArray[np.int64]
#: As of when: one time for all, or table -> (n,) int64 for its ids (tables left out: as of each row's own
#: last update), or None: every row as of its own last update.
AsOf = int | Mapping[str, Times] | None


@dataclass(frozen=True)
class CounterPush:
    """Amounts for a counter table.

    Attributes:
        ids: (n,) uint64; duplicates allowed.
        amounts: (n, dim) float32, of either sign.
        times_us: (n,) int64, each entry's event time, microseconds since the epoch.
    """

    ids: npt.NDArray[np.uint64]
    amounts: npt.NDArray[np.float32]
    times_us: Times


@dataclass(frozen=True)
class RecentPush:
    """Entries for a recent table; of two with one time, the one pushed later is the newer.

    Attributes:
        ids: (n,) uint64, whose lists; duplicates allowed.
        values: (n,) uint64, the ids that are listed.
        times_us: (n,) int64, each entry's event time, microseconds since the epoch.
    """

    ids: npt.NDArray[np.uint64]
    values: npt.NDArray[np.uint64]
    times_us: Times


class CounterRows(NamedTuple):
    """What a counter table answers.

    Attributes:
        sums: (n, dim) float32; 0 for an id without a row.
        first_us: (n,) int64, event time of the first update; :data:`NEVER_US` where there is none.
        last_us: (n,) int64, of the last one; later than the asked time where the sums are as of then.
    """

    sums: npt.NDArray[np.float32]
    first_us: Times
    last_us: Times


class RecentRows(NamedTuple):
    """What a recent table answers.

    Attributes:
        values: (n, dim) uint64, newest first; 0 in free places.
        times_us: (n, dim) int64; :data:`NEVER_US` in free places.
    """

    values: npt.NDArray[np.uint64]
    times_us: Times


class RowsAt(NamedTuple):
    """What a lookup over tables of all kinds answers, of one moment of the store; by table name.

    Attributes:
        weights: embedding tables: (n, dim) float32.
        counters: counter tables.
        recents: recent tables.
        dense: dense parameters, all of them where asked for, else none.
    """

    weights: dict[str, npt.NDArray[np.float32]]
    counters: dict[str, CounterRows]
    recents: dict[str, RecentRows]
    dense: dict[str, npt.NDArray[np.float32]]
