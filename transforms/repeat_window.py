"""Which rows repeat an identity of the preceding D rows: a sliding window over 128-bit identities.

Columnar: the window is a few chunks, each sorted by identity and merged as they grow (a log-structured
merge), searched with binary search for a whole batch at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class _Chunk(NamedTuple):
    """Identities in ascending (hi, lo) order, each once, with the index of its latest row."""

    hi: U64
    lo: U64
    last: I64


class RepeatWindow:
    """The identities of the last ``size`` rows. 24 bytes a row, up to about twice ``size`` rows.

    >>> window = RepeatWindow(2)
    >>> ids = np.array([1, 2, 1, 3, 3, 2], np.uint64)
    >>> window.push(ids, ids).tolist()  # the last 2 lies three rows behind: out of the window
    [False, False, True, False, True, False]
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"expected a window of 0 rows or more, received {size}")
        self.size = size
        self.rows = 0
        self._chunks: list[_Chunk] = []

    def push(self, hi: U64, lo: U64) -> Bools:
        """Add rows in order; (n,) whether each one's identity occurs in the ``size`` rows before it."""
        count = len(hi)
        index = np.arange(self.rows, self.rows + count, dtype=np.int64)
        self.rows += count
        if self.size == 0 or count == 0:
            return np.zeros(count, np.bool_)
        order = np.lexsort((index, lo, hi))
        hi, lo, index = hi[order], lo[order], index[order]
        same = (hi[1:] == hi[:-1]) & (lo[1:] == lo[:-1])
        repeat = np.zeros(count, np.bool_)
        repeat[1:] = same & (np.diff(index) <= self.size)
        first = np.concatenate(([True], ~same))
        repeat[first] |= self._seen(hi[first], lo[first], index[first])
        latest = np.concatenate((~same, [True]))
        self._add(_Chunk(hi[latest], lo[latest], index[latest]))
        answer = np.empty(count, np.bool_)
        answer[order] = repeat
        return answer

    def _seen(self, hi: U64, lo: U64, index: I64) -> Bools:
        """Of identities, each once: whether its latest row in the chunks is within reach of ``index``."""
        seen = np.zeros(len(hi), np.bool_)
        for chunk in self._chunks:
            left = np.searchsorted(chunk.hi, hi, side="left")
            right = np.searchsorted(chunk.hi, hi, side="right")
            one = np.flatnonzero(right - left == 1)
            at = left[one]
            seen[one] |= (chunk.lo[at] == lo[one]) & (index[one] - chunk.last[at] <= self.size)
            for i in np.flatnonzero(right - left > 1):  # two identities that share their high half
                near = slice(int(left[i]), int(right[i]))
                seen[i] |= bool(
                    ((chunk.lo[near] == lo[i]) & (index[i] - chunk.last[near] <= self.size)).any()
                )
        return seen

    def _add(self, chunk: _Chunk) -> None:
        oldest = self.rows - self.size
        self._chunks = [c for c in self._chunks if c.last.max(initial=-1) >= oldest]
        while self._chunks and len(self._chunks[-1].hi) <= 2 * len(chunk.hi):
            chunk = _merge(self._chunks.pop(), chunk, oldest)
        self._chunks.append(chunk)


def _merge(older: _Chunk, newer: _Chunk, oldest: int) -> _Chunk:
    hi = np.concatenate((older.hi, newer.hi))
    lo = np.concatenate((older.lo, newer.lo))
    last = np.concatenate((older.last, newer.last))
    keep = last >= oldest
    hi, lo, last = hi[keep], lo[keep], last[keep]
    order = np.lexsort((last, lo, hi))
    hi, lo, last = hi[order], lo[order], last[order]
    latest = np.ones(len(hi), np.bool_)
    latest[:-1] = (hi[1:] != hi[:-1]) | (lo[1:] != lo[:-1])
    return _Chunk(hi[latest], lo[latest], last[latest])
