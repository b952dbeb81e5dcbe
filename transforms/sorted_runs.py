"""An in-memory index of sorted runs: cheap batched inserts, lookups by binary search.

A log-structured merge tree without the disk (O'Neil et al., "The Log-Structured Merge-Tree", 1996): every
insert is a run of its own; a run is merged with its elder while that one is less than twice its size, so
there are at most about log2(n) runs and every entry is moved about log2(n) times. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class SortedRuns:
    """Entries ``(key, *payload)``; keys may repeat.

    >>> index = SortedRuns(np.int64, np.int64)
    >>> index.add(np.array([5, 3]), np.array([50, 30]))
    >>> index.add(np.array([3]), np.array([31]))
    >>> [a.tolist() for a in index.lookup(np.array([3, 4]))]
    [[0, 0], [30, 31]]
    """

    def __init__(self, *dtypes: Any) -> None:
        self._dtypes = tuple(np.dtype(d) for d in dtypes)
        self._runs: list[tuple[Array, ...]] = []

    def __len__(self) -> int:
        return sum(len(run[0]) for run in self._runs)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return sum(array.nbytes for run in self._runs for array in run)

    def _empty(self) -> tuple[Array, ...]:
        return tuple(np.empty(0, d) for d in self._dtypes)

    def add(self, *entry: Array) -> None:
        """Insert entries: one array for the keys, one for each payload, of equal length."""
        if not len(entry[0]):
            return
        order = np.argsort(entry[0], kind="stable")
        self._runs.append(
            tuple(a[order].astype(d, copy=False) for a, d in zip(entry, self._dtypes, strict=True))
        )
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            last, elder = self._runs.pop(), self._runs.pop()
            # A stable sort of two sorted runs is one linear merge (timsort).
            both = np.concatenate((elder[0], last[0]))
            order = np.argsort(both, kind="stable")
            rest = (np.concatenate(pair)[order] for pair in zip(elder[1:], last[1:], strict=True))
            self._runs.append((both[order], *rest))

    def lookup(self, queries: Array) -> tuple[Array, ...]:
        """All entries whose key is among ``queries``: ``(index of the query, *payload)``, equal lengths."""
        found: list[tuple[Array, ...]] = []
        if len(queries) and self._runs:
            order = np.argsort(queries)  # ascending probes walk the run in cache
            probes = queries[order].astype(self._dtypes[0], copy=False)
            for run in self._runs:
                at = np.searchsorted(run[0], probes)
                hit = np.flatnonzero(run[0][np.minimum(at, len(run[0]) - 1)] == probes)
                if not len(hit):
                    continue
                first = at[hit]
                counts = np.searchsorted(run[0], probes[hit], "right") - first
                which = order[np.repeat(hit, counts)]
                starts = np.repeat(first - np.concatenate(([0], np.cumsum(counts)[:-1])), counts)
                entries = starts + np.arange(len(which))
                found.append((which, *(a[entries] for a in run[1:])))
        if not found:
            return (np.empty(0, np.int64), *self._empty()[1:])
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))

    def pop_through(self, limit: int) -> tuple[Array, ...]:
        """Remove and return all entries with ``key <= limit``: ``(key, *payload)``, run by run."""
        popped: list[tuple[Array, ...]] = []
        kept: list[tuple[Array, ...]] = []
        for run in self._runs:
            cut = int(np.searchsorted(run[0], limit, "right"))
            if cut:
                popped.append(tuple(a[:cut] for a in run))
            if cut < len(run[0]):
                kept.append(tuple(a[cut:] for a in run))
        self._runs = kept
        if not popped:
            return self._empty()
        return tuple(np.concatenate(parts) for parts in zip(*popped, strict=True))

    def retain(self, keep: Callable[..., Array]) -> None:
        """Drop the entries for which ``keep(key, *payload)`` is false."""
        masked = ((run, keep(*run)) for run in self._runs)
        self._runs = [tuple(a[mask] for a in run) for run, mask in masked if mask.any()]
