"""Watermarks of rows that are read in any order.

A row's ``_wm`` is a function of what lies before it in its partition: the latest event time there, less the
allowed skew. A partition is cut into blocks of consecutive positions. Inside a block the latest time before
each row needs the block alone; what was before the block is one number, the maximum over the blocks before
it. So blocks are read in any order, and the two are put together when all were read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cuckooflow.transforms.in_band import NO_TIME_US

I64 = npt.NDArray[np.int64]


def latest_before(times: I64, before: int = NO_TIME_US) -> I64:
    """The latest of the times before each row, ``NO_TIME_US`` where there is none.

    Args:
        times: (n,) event times in the order of positions, microseconds.
        before: the latest of those before the first.

    >>> latest_before(np.array([5, 9, 7]), 6).tolist()
    [6, 6, 9]
    """
    earlier = np.concatenate(([before], times[:-1])) if len(times) else np.empty(0, np.int64)
    return np.maximum.accumulate(earlier).astype(np.int64)


def latest_before_blocks(partitions: npt.NDArray[Any], blocks: I64, latest: I64) -> I64:
    """For each block, the latest time of the blocks before it in its partition.

    Args:
        partitions: (n,) codes, one for a (log, partition).
        blocks: (n,) ascending with the position; each block once.
        latest: (n,) the latest time in each, ``NO_TIME_US`` in one without rows.

    >>> latest_before_blocks(np.array([0, 0, 1, 0]), np.array([2, 1, 7, 3]), np.array([8, 9, 4, 5])).tolist()[0]
    9
    """
    answer = np.full(len(blocks), NO_TIME_US, np.int64)
    order = np.lexsort((blocks, partitions))
    for part in np.split(order, np.flatnonzero(np.diff(partitions[order])) + 1):
        answer[part] = latest_before(latest[part])
    return answer


def watermarks(latest: I64, max_skew_us: int) -> I64:
    """The watermark that a partition has once it has shown these latest times."""
    return np.where(latest == NO_TIME_US, NO_TIME_US, latest - max_skew_us)
