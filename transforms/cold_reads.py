"""Which late actions are looked up in a tick, so that a shard reads state little at a time.

A look-up wants the buckets of closed impressions that may hold an action's impression. Those in memory cost nothing;
of the others a tick reads few, beginning with what the first action wants. All actions of a bucket that is read
are looked up with it, so a backlog lasts as many ticks as there are buckets, however many its actions are.
The other actions wait. Since a bucket's actions are looked up together or not at all, those of one impression
come in their order, and what happens with one impression depends on no other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]


def actions_that_wait(
    query: Array, buckets: Array, free: Array, forced: Array, reads_max: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The actions that wait for a later tick, and the buckets that they wait for.

    Args:
        query, buckets: (n,) pairs: action ``query`` may have its impression in ``buckets``. Actions are numbered in
            the order in which they are looked up.
        free: buckets that cost no read.
        forced: buckets that are read in any case, as they are about to be cleared.
        reads_max: buckets to read, with the forced ones; an action that wants two, as only equal hashes make it, has
            both of them read.

    >>> pairs = np.array([0, 1, 2, 3, 4]), np.array([7, 8, 7, 9, 8])
    >>> actions_that_wait(*pairs, free=np.array([9]), forced=np.array([]), reads_max=1)
    (array([1, 4]), array([8]))
    """
    cold = ~np.isin(buckets, free)
    served = np.isin(buckets, forced)
    served |= np.isin(buckets, buckets[np.isin(query, query[served])])  # all that an action wants, or nothing
    left = reads_max - len(np.unique(buckets[cold & served]))
    if left > 0:
        asking = cold & ~served
        firsts = np.unique(query[asking])[:left]
        served |= np.isin(buckets, buckets[asking & np.isin(query, firsts)])
    waits = cold & ~served
    return np.unique(query[waits]), np.unique(buckets[waits])


def actions_that_waited(
    query: Array, buckets: Array, wm: Array, deferred: Mapping[int, int]
) -> npt.NDArray[np.int64]:
    """The actions that wait according to what was noted for each bucket.

    Args:
        query, buckets: see :func:`actions_that_wait`.
        wm: (n,) of each pair, the action's partition's watermark.
        deferred: bucket -> actions under this watermark had been looked up when it was last read.
    """
    if not deferred:
        return np.empty(0, np.int64)
    known = np.array(sorted(deferred), np.int64)
    marks = np.array([deferred[number] for number in known.tolist()], np.int64)
    at = np.minimum(np.searchsorted(known, buckets), len(known) - 1)
    return np.unique(query[(known[at] == buckets) & (wm >= marks[at])])
