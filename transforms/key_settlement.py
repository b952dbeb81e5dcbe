"""Which impressions keep their key, over a whole log: the rule of the join, settled for all time at once.

Whether an impression is accepted depends on the accepted one of its key before it, and so on back to the
first: a chain without a bound. A stream knows it from what it has kept. A backfill of slices settles it
before they are joined, over the keys alone; keys may be divided in any way, as long as a key stays whole.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.transforms.join_core import repeated_values
from cuckooflow.transforms.join_options import JoinOptions
from cuckooflow.transforms.join_rows import ACCEPTED, exact_codes, settle_keys


def settle_impressions(rows: pa.RecordBatch, options: JoinOptions) -> npt.NDArray[np.int8]:
    """Accepted, repeated or reused, for impressions in any order.

    Late ones have no say and get ``ACCEPTED``; the join refuses them before it looks at their key.

    Args:
        rows: (n,) with ``_hash``, ``_time``, ``_wm``, ``_partition``, ``_offset``, ``_row`` and the key's
            columns; all impressions of the keys in it.

    Returns:
        (n,) int8 of ``ACCEPTED``, ``REPEATED``, ``REUSED``.
    """
    verdicts = np.full(rows.num_rows, ACCEPTED, np.int8)
    times = rows.column("_time").to_numpy()
    on_time = np.flatnonzero(rows.column("_wm").to_numpy() < times + options.window_us)
    hashes = rows.column("_hash").to_numpy()
    chosen = on_time[repeated_values(hashes[on_time])]
    if not len(chosen):
        return verdicts
    position = [rows.column(name).to_numpy()[chosen] for name in ("_row", "_offset", "_partition")]
    order = np.lexsort([*position, times[chosen]])
    chosen = chosen[order]
    # One that is further than the span from its neighbours of the same hash neither excludes nor is excluded.
    by_hash = np.argsort(hashes[chosen], kind="stable")
    near = (np.diff(hashes[chosen][by_hash]) == 0) & (np.diff(times[chosen][by_hash]) <= options.reuse_us)
    involved = np.zeros(len(chosen), np.bool_)
    involved[by_hash[1:][near]] = True
    involved[by_hash[:-1][near]] = True
    chosen = chosen[involved]
    if len(chosen):
        codes = exact_codes(rows.select(list(options.key)).take(pa.array(chosen)))
        none_before = np.zeros(len(chosen), np.bool_)
        rank = np.arange(len(chosen))
        verdicts[chosen] = settle_keys(codes, times[chosen], none_before, rank, options.reuse_us)
    return verdicts
