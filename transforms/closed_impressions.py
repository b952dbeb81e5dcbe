"""Impressions whose window has closed: kept for late actions and for recognising a reused key.

Two tiers. Hot: the impressions of a time bucket in memory. Cold: the same, in a state cell, from where
the bucket is read back when the key filter says that it holds the key of a late action. The filter
(hash, time) of every kept impression is always in memory: 21 to 32 bytes each. A bucket is *sealed* once
everything in it is closed: its cell then holds exactly what memory holds, plus a note for each later change.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.errors import StateDoesNotFit
from cuckooflow.transforms.hash_index import HashIndex
from cuckooflow.transforms.slot_table import Slots, SlotTable

Array = npt.NDArray[Any]

#: What a batch in a state cell is, in its schema metadata.
KIND = b"cuckooflow.cell"
ROWS, SEALED, NOTES = b"rows", b"sealed", b"notes"

_STATE = {
    "_hash": np.uint64,
    "_time": np.int64,
    "_append": np.int64,
    "_primary": np.uint64,
    "_labels": np.uint64,
}


class Cells(Protocol):
    """State by time bucket, as the core sees it; each call is as dear as the runner's state is."""

    def append(self, bucket: int, batch: pa.RecordBatch) -> None:
        """Add blindly."""
        ...

    def read(self, bucket: int) -> list[pa.RecordBatch]:
        """Everything in the bucket's cell, in the order it was added."""
        ...

    def clear(self, bucket: int) -> None:
        """Empty the bucket's cell."""
        ...


def marked(batch: pa.RecordBatch, kind: bytes) -> pa.RecordBatch:
    """The batch, marked as one kind of cell content."""
    return batch.replace_schema_metadata({KIND: kind})


def _note(slots: Array, actions: Array, bits: Array) -> pa.RecordBatch:
    columns = [pa.array(slots, pa.int64()), pa.array(actions, pa.uint64()), pa.array(bits, pa.uint64())]
    return marked(pa.RecordBatch.from_arrays(columns, names=["_slot", "_action", "_bits"]), NOTES)


class ClosedBucket:
    """The closed impressions of one time bucket; a slot is their number in it."""

    def __init__(self, schema: pa.Schema) -> None:
        self._rows = SlotTable(schema, _STATE)
        self._by_hash = HashIndex()
        self._indexed = 0
        self._actions = HashIndex()  # identity of a used or late action, slot
        self.sealed = False
        self._arrow_bytes = 0

    @property
    def nbytes(self) -> int:
        """Memory, roughly."""
        return self._arrow_bytes + 40 * self._rows.waiting + self._by_hash.nbytes + self._actions.nbytes

    def add(
        self, features: pa.RecordBatch, state: dict[str, Array], action_rows: Array, actions: Array
    ) -> None:
        """Add impressions; ``action_rows`` are row numbers in ``features`` of the used ``actions``."""
        slots = self._rows.append(features, state)
        self._actions.add(actions, slots[action_rows] if len(actions) else np.empty(0, np.int64))
        self._arrow_bytes += features.nbytes

    def find(self, hashes: Array, times: Array) -> tuple[Array, Slots]:
        """(query, slot) for every impression of this hash and time."""
        if self._indexed < self._rows.waiting:
            fresh = np.arange(self._indexed, self._rows.waiting)
            self._by_hash.add(self._rows.get("_hash", fresh), fresh)
            self._indexed = self._rows.waiting
        query, slots = self._by_hash.lookup(hashes)
        same = self._rows.get("_time", slots) == times[query]
        return query[same], slots[same]

    def get(self, name: str, slots: Slots) -> Array:
        """State of impressions: ``_hash``, ``_time``, ``_append``, ``_primary``, ``_labels``."""
        return self._rows.get(name, slots)

    def features(self, slots: Slots, names: tuple[str, ...] | None = None) -> pa.RecordBatch:
        """Arrow rows of impressions."""
        return self._rows.gather(slots, names)

    def seen(self, slots: Slots, actions: Array) -> npt.NDArray[np.bool_]:
        """Which actions were used on their impression before."""
        query, at = self._actions.lookup(actions)
        known = np.zeros(len(slots), bool)
        known[query[at == slots[query]]] = True
        return known

    def mark(self, slots: Slots, actions: Array, bits: Array) -> None:
        """Note that actions were used on impressions and what labels they set; slots may repeat."""
        self._actions.add(actions, slots)
        where, first = np.unique(slots, return_inverse=True)
        added = np.zeros(len(where), np.uint64)
        np.bitwise_or.at(added, first, bits)
        self._rows.put("_labels", where, self._rows.get("_labels", where) | added)

    def dump(self) -> list[pa.RecordBatch]:
        """All of it, as cell content."""
        content = []
        for first, features in self._rows.parts() or [(0, self._rows.gather(np.empty(0, np.int64)))]:
            slots = np.arange(first, first + features.num_rows)
            state = [pa.array(self._rows.get(name, slots)) for name in _STATE]
            names = [*features.schema.names, *(f"state{name}" for name in _STATE)]
            sealed = pa.RecordBatch.from_arrays([*features.columns, *state], names=names)
            content.append(marked(sealed, SEALED))
        actions, at = self._actions.entries()
        if len(actions):
            content.append(_note(at, actions, np.zeros(len(at), np.uint64)))
        return content

    @classmethod
    def load(cls, schema: pa.Schema, content: Sequence[pa.RecordBatch]) -> ClosedBucket | None:
        """From cell content; None where the cell was not sealed. Rows that came after are left out.

        Raises:
            StateDoesNotFit: a column's type was changed since, and a value is not of the new one.
        """
        kinds = [(batch.schema.metadata or {}).get(KIND) for batch in content]
        if SEALED not in kinds:
            return None
        bucket = cls(schema)
        bucket.sealed = True
        for kind, batch in zip(kinds, content, strict=True):
            if kind == SEALED:
                try:
                    features = fit(batch, schema)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as fault:
                    raise does_not_fit(str(fault)) from fault
                state = {name: batch.column(f"state{name}").to_numpy(zero_copy_only=False) for name in _STATE}
                bucket.add(features, state, np.empty(0, np.int64), np.empty(0, np.uint64))
            elif kind == NOTES:
                bucket.mark(*(batch.column(n).to_numpy() for n in ("_slot", "_action", "_bits")))
        return bucket


def does_not_fit(fault: str) -> StateDoesNotFit:
    """The error for state in which a value is not of its column's type."""
    return StateDoesNotFit(
        f"expected every value in the join's state to be of the type that its column now has, received one that "
        f"is not: {fault}; declare the column as it was, or wider, and go on from the same savepoint"
    )


def fit(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch's columns as ``schema`` names and types them; absent ones are null.

    Raises:
        pa.ArrowInvalid: a value does not fit its declared type.
    """
    columns = []
    for field in schema:
        at = batch.schema.get_field_index(field.name)
        if at < 0:
            columns.append(pa.nulls(batch.num_rows, field.type))
        else:
            column = batch.column(at)
            columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


class ClosedTier:
    """All closed impressions of a shard.

    Args:
        schema: of an impression's features.
        bucket_us: event time of a bucket.
        cache_bytes: sealed buckets are dropped from memory past this.
        cells: where sealed buckets are kept.
    """

    def __init__(self, schema: pa.Schema, bucket_us: int, cache_bytes: int, cells: Cells) -> None:
        self._schema = schema
        self._bucket_us = bucket_us
        self._cache_bytes = cache_bytes
        self._cells = cells
        self._filter = HashIndex()
        self._forgotten_us = -(1 << 63)  # filter entries before this may be there, and count for nothing
        self._kept: dict[int, int] = {}  # bucket -> filter entries
        self._hot: OrderedDict[int, ClosedBucket] = OrderedDict()
        self.sealed: set[int] = set()
        self.cold_reads = 0
        self.hot_hits = 0

    @property
    def hot_bytes(self) -> int:
        """Memory of the hot buckets."""
        return sum(bucket.nbytes for bucket in self._hot.values())

    def add(
        self, features: pa.RecordBatch, state: dict[str, Array], action_rows: Array, actions: Array
    ) -> None:
        """Add closed impressions, in event-time order."""
        self._index(state["_hash"], state["_time"])
        numbers = state["_time"] // self._bucket_us
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        for a, b in itertools.pairwise(cuts):
            if a == b:
                continue
            part = {name: values[a:b] for name, values in state.items()}
            mine = (action_rows >= a) & (action_rows < b)
            bucket = self._hot.setdefault(int(numbers[a]), ClosedBucket(self._schema))
            bucket.add(features.slice(a, b - a), part, action_rows[mine] - a, actions[mine])

    def _index(self, hashes: Array, times: Array) -> None:
        self._filter.add(hashes, times)
        for number, count in zip(*np.unique(times // self._bucket_us, return_counts=True), strict=True):
            self._kept[int(number)] = self._kept.get(int(number), 0) + int(count)

    def maybe(self, hashes: Array, earliest: Array, latest: Array) -> tuple[Array, Array]:
        """(query, time) of every kept impression with this hash and ``earliest <= time <= latest``."""
        query, times = self._filter.lookup(hashes)
        inside = (times >= np.maximum(earliest[query], self._forgotten_us)) & (times <= latest[query])
        return query[inside], times[inside]

    def locate(self, hashes: Array, times: Array) -> tuple[Array, Array, Slots]:
        """(query, bucket, slot) of the impressions of these hashes and times, each bucket read once."""
        numbers = times // self._bucket_us
        found: list[tuple[Array, Array, Array]] = []
        for number in np.unique(numbers).tolist():
            mine = np.flatnonzero(numbers == number)
            self.hot_hits += number in self._hot
            query, slots = self.bucket(number).find(hashes[mine], times[mine])
            found.append((mine[query], np.full(len(query), number), slots))
        if not found:
            none = np.empty(0, np.int64)
            return none, none, none
        query, buckets, slots = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return query, buckets, slots

    def is_hot(self, number: int) -> bool:
        """Whether a bucket is in memory."""
        return number in self._hot

    def bucket(self, number: int) -> ClosedBucket:
        """A bucket, read back from its cell if it is cold."""
        hot = self._hot.get(number)
        if hot is None:
            self.cold_reads += 1
            hot = ClosedBucket.load(self._schema, self._cells.read(number)) or ClosedBucket(self._schema)
            self._hot[number] = hot
        self._hot.move_to_end(number)
        return hot

    def gather(
        self, buckets: Array, slots: Slots, names: tuple[str, ...] | None = None
    ) -> tuple[pa.RecordBatch, dict[str, Array]]:
        """Features and state of impressions, in the order asked; at least one row."""
        order = np.argsort(buckets, kind="stable")
        parts = []
        states: dict[str, list[Array]] = {name: [] for name in _STATE}
        for part in np.split(order, np.flatnonzero(np.diff(buckets[order])) + 1):
            bucket = self.bucket(int(buckets[part[0]]))
            parts.append(bucket.features(slots[part], names))
            for name, values in states.items():
                values.append(bucket.get(name, slots[part]))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        features = pa.concat_batches(parts).take(pa.array(back))
        return features, {name: np.concatenate(values)[back] for name, values in states.items()}

    def mark(self, number: int, slots: Slots, actions: Array, bits: Array) -> None:
        """Note used actions, in memory and, where the bucket is sealed, in its cell."""
        bucket = self.bucket(number)
        bucket.mark(slots, actions, bits)
        if bucket.sealed:
            self._cells.append(number, _note(slots, actions, bits))

    def seal(self, number: int) -> None:
        """Replace the cell's rows by the bucket; everything in it must be closed and decided."""
        self._cells.clear(number)
        self.sealed.add(number)
        bucket = self._hot.setdefault(number, ClosedBucket(self._schema))
        bucket.sealed = True
        for batch in bucket.dump():
            self._cells.append(number, batch)

    def restore(self, number: int, content: Sequence[pa.RecordBatch]) -> bool:
        """Take a bucket from its cell's content, if it was sealed."""
        bucket = ClosedBucket.load(self._schema, content)
        if bucket is None:
            return False
        self.sealed.add(number)
        self._hot[number] = bucket
        slots = np.arange(bucket._rows.waiting)
        self._index(bucket.get("_hash", slots), bucket.get("_time", slots))
        return True

    def any_before(self, number: int) -> bool:
        """Whether a bucket before this one is kept."""
        return any(kept < number for kept in (*self._hot, *self.sealed))

    def forget(self, before: int) -> None:
        """Drop the buckets before this one and, once they are the third part, their filter entries."""
        gone = [number for number in {*self._hot, *self.sealed} if number < before]
        for number in gone:
            self._hot.pop(number, None)
            self.sealed.discard(number)
            self._kept.pop(number, None)
        if gone:
            self._forgotten_us = before * self._bucket_us
            if 3 * sum(self._kept.values()) < 2 * len(self._filter):
                self._filter.retain(lambda _, times: times >= self._forgotten_us)

    def evict(self) -> None:
        """Drop sealed buckets, least recently used first, until memory is within ``cache_bytes``."""
        excess = self.hot_bytes - self._cache_bytes
        for number in [n for n, bucket in self._hot.items() if bucket.sealed]:
            if excess <= 0:
                return
            excess -= self._hot.pop(number).nbytes
