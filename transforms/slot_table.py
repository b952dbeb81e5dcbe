"""Rows that wait: numpy columns addressed by an ever growing slot number, and their Arrow batches.

Batches are kept as they came (no copy); small ones are merged, so that a trickle of tiny elements does
not cost an Arrow batch each. A batch's memory goes when its last row is released. Not thread-safe.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]
Slots = npt.NDArray[np.int64]

#: Batches under so many rows are merged with their neighbour.
SMALL_ROWS = 4_096
#: Rows of a batch are copied as one span where that is at most so many times their number.
DENSE = 3
#: Released rows at the head of the columns are cut off once there are so many and they are the half.
COMPACT_ROWS = 65_536


class SlotTable:
    """Append, read by slot, release.

    Args:
        schema: of the Arrow batches.
        columns: name -> dtype of the numpy columns.
    """

    def __init__(self, schema: pa.Schema, columns: dict[str, Any]) -> None:
        self.schema = schema
        self._columns = {name: np.empty(1_024, dtype) for name, dtype in columns.items()}
        self._alive = np.zeros(1_024, bool)
        self._base = 0  # slot of index 0
        self._end = 0  # slot of the next row
        self._batches: list[pa.RecordBatch | None] = []
        self._firsts: list[int] = []  # first slot of each batch
        self._rows: list[int] = []
        self._live: list[int] = []
        self.waiting = 0  # rows not released

    def append(self, batch: pa.RecordBatch, columns: dict[str, Array]) -> Slots:
        """Add rows; their slots, ascending."""
        n = batch.num_rows
        slots = np.arange(self._end, self._end + n)
        if not n:
            return slots
        at = self._end - self._base
        if at + n > len(self._alive):
            size = max(2 * len(self._alive), at + n)
            self._alive = _grown(self._alive, at, size)
            self._columns = {name: _grown(a, at, size) for name, a in self._columns.items()}
        for name, array in self._columns.items():
            array[at : at + n] = columns[name]
        self._alive[at : at + n] = True
        self._batches.append(batch)
        self._firsts.append(self._end)
        self._rows.append(n)
        self._live.append(n)
        self._end += n
        self.waiting += n
        self._merge_small()
        return slots

    def _merge_small(self) -> None:
        while (
            len(self._batches) > 1
            and self._rows[-1] < SMALL_ROWS
            and self._rows[-2] <= 2 * self._rows[-1]
            and self._batches[-1] is not None
            and self._batches[-2] is not None
        ):
            last = self._batches.pop()
            self._batches[-1] = pa.concat_batches([self._batches[-1], last])
            self._firsts.pop()
            self._rows[-2:] = [self._rows[-2] + self._rows[-1]]
            self._live[-2:] = [self._live[-2] + self._live[-1]]

    def get(self, name: str, slots: Slots) -> Array:
        """Values of a column at slots (released ones too, until they are cut off)."""
        values: Array = self._columns[name][slots - self._base]
        return values

    def put(self, name: str, slots: Slots, values: Array | bool | int) -> None:
        """Overwrite values of a column."""
        self._columns[name][slots - self._base] = values

    def alive(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Which slots are not released."""
        index = slots - self._base
        known: npt.NDArray[np.bool_] = (index >= 0) & self._alive[np.maximum(index, 0)]
        return known

    def gather(self, slots: Slots, names: tuple[str, ...] | None = None) -> pa.RecordBatch:
        """The Arrow rows at slots, in their order; all columns or those named."""
        schema = self.schema if names is None else pa.schema([self.schema.field(n) for n in names])
        if not len(slots):
            return _empty(schema)
        first, last = int(slots.min()), int(slots.max())
        span = self._span(first, last, names) if last - first < DENSE * len(slots) else None
        if span is not None:
            return span if _consecutive(slots) else span.take(pa.array(slots - first))
        which = np.searchsorted(self._firsts, slots, "right") - 1
        order = np.argsort(slots, kind="stable")
        parts: list[pa.RecordBatch] = []
        index = np.empty(len(slots), np.int64)
        at = 0
        for part in np.split(order, np.flatnonzero(np.diff(which[order])) + 1):
            b = int(which[part[0]])
            first, last = int(slots[part[0]]), int(slots[part[-1]])
            span = last - first + 1
            batch = _select(self._batches[b], names)
            if span <= DENSE * len(part):  # copying the span is cheaper than picking its rows twice
                parts.append(batch.slice(first - self._firsts[b], span))
                index[part] = at + slots[part] - first
                at += span
            else:
                parts.append(batch.take(pa.array(slots[part] - self._firsts[b])))
                index[part] = at + np.arange(len(part))
                at += len(part)
        joined = pa.concat_batches(parts)
        return joined if at == len(slots) and _consecutive(index) else joined.take(pa.array(index))

    def _span(self, first: int, last: int, names: tuple[str, ...] | None) -> pa.RecordBatch | None:
        """All rows from slot ``first`` to ``last``; None where a batch of them is gone."""
        begin, end = (int(np.searchsorted(self._firsts, slot, "right")) for slot in (first, last))
        parts = []
        for b in range(begin - 1, end):
            batch = self._batches[b]
            if batch is None:
                return None
            low = max(first - self._firsts[b], 0)
            parts.append(_select(batch, names).slice(low, last + 1 - self._firsts[b] - low))
        return parts[0] if len(parts) == 1 else pa.concat_batches(parts)

    def parts(self) -> list[tuple[int, pa.RecordBatch]]:
        """(first slot, rows) of every batch that has not gone, in the order of slots, without a copy."""
        pairs = zip(self._firsts, self._batches, strict=True)
        return [(first, batch) for first, batch in pairs if batch is not None]

    def release(self, slots: Slots) -> None:
        """Forget rows; each slot once."""
        if not len(slots):
            return
        self._alive[slots - self._base] = False
        self.waiting -= len(slots)
        which = np.searchsorted(self._firsts, slots, "right") - 1
        for b, count in zip(*np.unique(which, return_counts=True), strict=True):
            self._live[b] -= int(count)
            if not self._live[b]:
                self._batches[b] = None
        head = 0
        while head < len(self._live) and not self._live[head]:
            head += 1
        if head:
            del self._batches[:head], self._firsts[:head], self._rows[:head], self._live[:head]
        self._cut_head()

    def _cut_head(self) -> None:
        first = self._firsts[0] if self._firsts else self._end
        dead = first - self._base
        if dead < COMPACT_ROWS or 2 * dead < self._end - self._base:
            return
        dead = min(dead, len(self._alive) - 1)  # a look at a slot that was cut off finds some row to look at
        self._alive = self._alive[dead:].copy()
        self._columns = {name: a[dead:].copy() for name, a in self._columns.items()}
        self._base += dead

    def live_slots(self) -> Slots:
        """Slots not released, ascending."""
        return np.flatnonzero(self._alive[: self._end - self._base]) + self._base


def _consecutive(values: Array) -> bool:
    return bool((np.diff(values) == 1).all())


def _grown(array: Array, used: int, size: int) -> Array:
    larger = np.empty(size, array.dtype)
    larger[:used] = array[:used]
    return larger


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)


def _select(batch: pa.RecordBatch, names: tuple[str, ...] | None) -> pa.RecordBatch:
    return batch if names is None else batch.select(list(names))
