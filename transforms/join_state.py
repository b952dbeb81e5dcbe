"""A shard's state: a ring of cells by event time in the runner, and its memory in the process.

State is the truth. Rows are added to the cell of their time bucket when they arrive, without a read.
Memory, an index over the same rows, lies in a registry of this module, because a worker swaps DoFn
instances between bundles; a token that every change writes to state tells whether memory is still
what state says.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.transforms.closed_impressions import KIND, ROWS

_SEQUENCE = b"cuckooflow.sequence"
#: So many rows in a row are worth a batch of their own in a cell.
_LONG_RUN_ROWS = 1_024


class Bag(Protocol):
    """What a cell is made of: the interface of Beam's bag state."""

    def add(self, value: Any) -> None:
        """Add blindly."""
        ...

    def read(self) -> Iterable[Any]:
        """All values."""
        ...

    def clear(self) -> None:
        """Empty it."""
        ...


class ListBag:
    """A bag in memory, for running the core without a runner."""

    def __init__(self) -> None:
        self._values: list[Any] = []

    def add(self, value: Any) -> None:
        """Add a value."""
        self._values.append(value)

    def read(self) -> Iterable[Any]:
        """All values."""
        return list(self._values)

    def clear(self) -> None:
        """Empty it."""
        self._values = []


class CellRing:
    """State cells by time bucket: bucket ``b`` lies in bag ``b mod n`` while it is in the ring's span.

    Rows of a bucket beyond the span, or that come before there is a clock, wait in the overflow bag, and
    move to their cells as the span moves on. Not thread-safe.

    Args:
        bags: the ring's bags.
        overflow: one bag more.
        bucket_us: event time of a bucket.
    """

    def __init__(self, bags: Sequence[Bag], overflow: Bag, bucket_us: int) -> None:
        self._bags = bags
        self._overflow = overflow
        self._bucket_us = bucket_us
        self._base: int | None = None
        self._used: set[int] = set()
        self._overflowing = False

    def bind(self, bags: Sequence[Bag], overflow: Bag) -> None:
        """Take the bags of the present bundle, which hold the same state."""
        self._bags, self._overflow = bags, overflow

    def save(self) -> dict[str, Any]:
        """Which cells are in use, for :meth:`resume`."""
        return {"base": self._base, "used": sorted(self._used), "overflowing": self._overflowing}

    def resume(self, saved: dict[str, Any]) -> None:
        """Continue from what :meth:`save` gave."""
        self._base, self._overflowing = saved["base"], saved["overflowing"]
        self._used = set(saved["used"])

    def _inside(self, bucket: int) -> bool:
        return self._base is not None and self._base <= bucket < self._base + len(self._bags)

    def add_rows(self, batch: pa.RecordBatch, sequence: int) -> None:
        """Add rows to the cells of their event times.

        Args:
            batch: with ``_time``.
            sequence: of the element they came in; :meth:`rows` gives it back.
        """
        if not batch.num_rows:
            return
        batch = batch.replace_schema_metadata({KIND: ROWS, _SEQUENCE: str(sequence).encode()})
        buckets = batch.column("_time").to_numpy() // self._bucket_us
        numbers = np.unique(buckets).tolist()
        if not any(self._inside(number) for number in numbers):
            self._spill(batch)
            return
        for number in numbers:
            for part in [batch] if len(numbers) == 1 else _rows_where(batch, buckets == number):
                if self._inside(number):
                    self.append(number, part)
                else:
                    self._spill(part)

    def _spill(self, batch: pa.RecordBatch) -> None:
        self._overflow.add(batch)
        self._overflowing = True

    def append(self, bucket: int, batch: pa.RecordBatch) -> None:
        """Add to the cell of a bucket inside the span."""
        if not self._inside(bucket):
            raise ValueError(f"expected a bucket in the ring's span from {self._base}, received {bucket}")
        self._bags[bucket % len(self._bags)].add(batch)
        self._used.add(bucket)

    def read(self, bucket: int) -> list[pa.RecordBatch]:
        """A cell's content, in the order it was added."""
        if bucket not in self._used:
            return []
        return list(self._bags[bucket % len(self._bags)].read())

    def clear(self, bucket: int) -> None:
        """Empty a cell."""
        if bucket in self._used:
            self._bags[bucket % len(self._bags)].clear()
            self._used.discard(bucket)

    def before(self, bucket: int) -> list[int]:
        """The cells in use that lie before a bucket, ascending."""
        return sorted(number for number in self._used if number < bucket)

    def advance(self, base: int) -> None:
        """Let the span begin at ``base``; the cells before it must be clear. Never moves back."""
        if self._base is not None and base <= self._base:
            return
        self._base = base
        if not self._overflowing:
            return
        spilled = list(self._overflow.read())
        self._overflow.clear()
        self._overflowing = False
        for batch in spilled:
            kept = batch.column("_time").to_numpy() // self._bucket_us >= base
            self.add_rows(batch if kept.all() else batch.filter(pa.array(kept)), _sequence(batch))

    def everything(self) -> Iterator[tuple[int | None, list[pa.RecordBatch]]]:
        """(bucket, content) of every cell in use; the overflow comes last, as bucket None."""
        for bucket in sorted(self._used):
            yield bucket, self.read(bucket)
        if self._overflowing:
            yield None, list(self._overflow.read())

    def rows(self, content: Iterable[pa.RecordBatch]) -> list[tuple[int, pa.RecordBatch]]:
        """(sequence, batch) of the row batches in a cell's content."""
        return [(_sequence(batch), batch) for batch in content if batch.schema.metadata[KIND] == ROWS]


def _rows_where(batch: pa.RecordBatch, mask: npt.NDArray[np.bool_]) -> list[pa.RecordBatch]:
    """The rows that are marked: long runs of them as slices, without a copy, the others together."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    firsts, lasts = edges[::2], edges[1::2]
    long = lasts - firsts >= _LONG_RUN_ROWS
    parts = []
    for first, last in zip(firsts[long].tolist(), lasts[long].tolist(), strict=True):
        parts.append(batch.slice(first, last - first))
        mask[first:last] = False
    return [*parts, batch.filter(pa.array(mask))] if mask.any() else parts


def _sequence(batch: pa.RecordBatch) -> int:
    return int(batch.schema.metadata[_SEQUENCE])


def packed(first: bytes, second: bytes) -> bytes:
    """Two as one."""
    return len(first).to_bytes(8, "little") + first + second


def unpacked(both: bytes) -> tuple[bytes, bytes]:
    """What :func:`packed` was given."""
    end = 8 + int.from_bytes(both[:8], "little")
    return both[8:end], both[end:]


@dataclass
class ShardMeta:
    """What is written to state with every change, beside the cells.

    Attributes:
        token: fresh with every change; memory that carries another is not what state says.
        clock_us: up to which windows were closed.
        released_us: up to which late actions were looked up.
        deferred: bucket of closed impressions that late actions wait for -> up to where those were looked up.
        sequence: of the next element.
        balance_us: the poller's clock at the last balance record.
        tick_us: the poller's clock at the last look-up of late actions.
        polled_us: the poller's clock, from the newest element.
        counts: of rows, by name.
        cells: of :meth:`CellRing.save`.
    """

    token: str
    clock_us: int
    released_us: int
    sequence: int
    balance_us: int
    tick_us: int
    polled_us: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    cells: dict[str, Any] = field(default_factory=dict)
    deferred: dict[int, int] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(self.__dict__, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, blob: bytes) -> ShardMeta:
        """What :meth:`to_bytes` wrote."""
        body = json.loads(blob)
        deferred = {int(number): us for number, us in body.pop("deferred", {}).items()}
        return cls(**body, deferred=deferred)


@dataclass
class _Place:
    lock: threading.Lock = field(default_factory=threading.Lock)
    memory: Any = None
    over: bool = False  # everything was given out and told; there is no memory any more


class HotTier:
    """The memories of all shards in this process, by (job, stage, shard), each under a lock."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str, int], _Place] = {}
        self._lock = threading.Lock()

    def place(self, job: str, stage: str, shard: int) -> _Place:
        """The shard's place; hold its ``lock`` while its ``memory`` is used."""
        with self._lock:
            return self._places.setdefault((job, stage, shard), _Place())

    def forget(self, job: str, wanted: Callable[[str, int], bool] = lambda _stage, _shard: True) -> None:
        """Drop a job's memories; they are rebuilt from state when asked for again."""
        with self._lock:
            for key in [k for k in self._places if k[0] == job and wanted(k[1], k[2])]:
                self._places[key].memory = None


#: One for the process, in an importable module, as a DoFn instance does not live long enough.
HOT_TIER = HotTier()
