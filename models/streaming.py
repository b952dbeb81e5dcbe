"""Streaming features: what earlier examples of the same key say, from counter and recent tables of the store.

Features of one ``by`` share one counter table, with a sum for each label and half-life, and its first and last time; every
list has a recent table. Trainer and scorer use the same code: :meth:`Streaming.events` says what examples add to the
tables, :meth:`Streaming.served` what the tables say of rows as of each row's time, and
:meth:`Streaming.replayed` the same where the newest examples are not in the tables yet.

A table's key is a hash of the values of ``by``; null is a value like any other. An example that was kept by negative sampling
counts as many as it stands for. A late example adds its positives and is no example of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.embedding_store.api import Floats, Ids, TableConfig
from cuckooflow.embedding_store.hashing import hash_column, hash_rows
from cuckooflow.embedding_store.kinds import (
    NEVER_US,
    AsOf,
    CounterPush,
    CounterRows,
    RecentPush,
    RecentRows,
    RowsAt,
    Times,
)
from cuckooflow.errors import SpecError
from cuckooflow.models.example_columns import example_column, is_late, label_values, numbers_of, stands_for
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.stream_replay import replay_counters, replay_recents
from cuckooflow.models.streaming_columns import column_names

Places = npt.NDArray[np.int64]


class LookupAt(Protocol):
    """``Store.lookup_at``."""

    def __call__(self, ids: Mapping[str, Ids], as_of_us: AsOf = None) -> RowsAt: ...


@dataclass(frozen=True)
class Sum:
    """A sum of a counter table.

    Attributes:
        label: whose; None: examples, whatever their labels.
        positive: count positives only; else examples in which the label is known.
        half_life_us: 0: never decays.
    """

    label: str | None
    positive: bool
    half_life_us: int


@dataclass(frozen=True)
class TableEvents:
    """What examples add to one table: m entries, in log order.

    Attributes:
        row: (m,) int64, ascending: which example.
        ids: (m,) uint64 keys.
        amounts: of a counter table, (m, dim) float32.
        values: of a recent table, (m,) uint64.
    """

    row: Places
    ids: Ids
    amounts: Floats | None = None
    values: Ids | None = None

    def between(self, start: int, stop: int) -> TableEvents:
        """Of examples ``start <= row < stop``, counted from ``start``."""
        low, high = np.searchsorted(self.row, [start, stop])
        return TableEvents(
            self.row[low:high] - start,
            self.ids[low:high],
            None if self.amounts is None else self.amounts[low:high],
            None if self.values is None else self.values[low:high],
        )

    @staticmethod
    def concat(parts: Sequence[TableEvents], begins: Sequence[int]) -> TableEvents:
        """Parts of examples that begin at these rows; there is at least one."""
        return TableEvents(
            np.concatenate([part.row + begin for part, begin in zip(parts, begins, strict=True)]),
            np.concatenate([part.ids for part in parts]),
            _joined([part.amounts for part in parts]),
            _joined([part.values for part in parts]),
        )


@dataclass(frozen=True)
class Events:
    """What n examples of one partition, in log order, add to the tables.

    Attributes:
        times_us: (n,) int64 event times.
        tables: table name -> its entries.
    """

    times_us: Times
    tables: Mapping[str, TableEvents]

    def __len__(self) -> int:
        return len(self.times_us)

    def between(self, start: int, stop: int) -> Events:
        """Examples ``start <= row < stop``."""
        return Events(
            self.times_us[start:stop], {name: t.between(start, stop) for name, t in self.tables.items()}
        )

    @staticmethod
    def concat(parts: Sequence[Events]) -> Events:
        """The examples of all parts, in order; there is at least one part."""
        begins = np.cumsum([0, *(len(part) for part in parts)])[:-1].tolist()
        return Events(
            np.concatenate([part.times_us for part in parts]),
            {
                name: TableEvents.concat([part.tables[name] for part in parts], begins)
                for name in parts[0].tables
            },
        )

    def pushes(self) -> dict[str, CounterPush | RecentPush]:
        """As ``Store.push`` takes them; a table without entries is left out."""
        found: dict[str, CounterPush | RecentPush] = {}
        for name, table in self.tables.items():
            times = self.times_us[table.row]
            if not len(table.ids):
                continue
            if table.amounts is not None:
                found[name] = CounterPush(table.ids, table.amounts, times)
            else:
                assert table.values is not None
                found[name] = RecentPush(table.ids, table.values, times)
        return found


@dataclass(frozen=True)
class _Counters:
    config: TableConfig
    by: tuple[str, ...]
    sums: tuple[Sum, ...]


@dataclass(frozen=True)
class _Recents:
    config: TableConfig
    feature: FeatureSpec


class Streaming:
    """A job's streaming features. Immutable; safe to share between threads.

    Args:
        features: all of the job's; others than streaming ones are passed over.
        ttl_us: of tables whose features say none; 0: never.
    """

    def __init__(self, features: Sequence[FeatureSpec], ttl_us: int = 0) -> None:
        self.features = tuple(feature for feature in features if feature.streaming)
        groups: dict[tuple[str, ...], list[FeatureSpec]] = {}
        self._recents: list[_Recents] = []
        for feature in self.features:
            if feature.kind != "recent":
                groups.setdefault(feature.by, []).append(feature)
                continue
            config = TableConfig(
                f"recent/{feature.name}",
                feature.max_length,
                kind="recent",
                ttl_us=ttl_us if feature.ttl is None else feature.ttl,
            )
            self._recents.append(_Recents(config, feature))
        self._counters = [_counters(by, of, ttl_us) for by, of in groups.items()]
        self._table_of = {
            feature.name: "counter/" + ",".join(feature.by)
            for feature in self.features
            if feature.kind != "recent"
        }

    @property
    def tables(self) -> tuple[TableConfig, ...]:
        """What it needs in the store."""
        return (*(table.config for table in self._counters), *(table.config for table in self._recents))

    def definitions(self) -> dict[str, tuple[object, ...]]:
        """Table name -> what its figures are of: two tables of one name mean the same where these are equal."""
        found: dict[str, tuple[object, ...]] = {
            counters.config.name: (counters.by, counters.sums) for counters in self._counters
        }
        for recents in self._recents:
            of = recents.feature
            when = of.when if of.label is not None else ""
            found[recents.config.name] = (of.by, of.column, of.label, when)
        return found

    def keys(self, batch: pa.RecordBatch) -> dict[str, Ids]:
        """Table name -> (n,) uint64 keys of the rows of a batch.

        Raises:
            SpecError: a key column has a type that cannot be hashed.
        """
        of_by: dict[tuple[str, ...], Ids] = {}
        found = {}
        for name, by in self._keyed():
            if by not in of_by:
                of_by[by] = _hashed(batch, by)
            found[name] = of_by[by]
        return found

    def events(self, batch: pa.RecordBatch) -> Events:
        """What the rows of a batch of the examples log add to the tables.

        Raises:
            SpecError: a key column, or one that is listed, has a type that cannot be hashed.
        """
        keys = self.keys(batch)
        late, weight = is_late(batch), stands_for(batch)
        tables: dict[str, TableEvents] = {}
        for counters in self._counters:
            amounts = np.stack([_amounts(batch, each, late, weight) for each in counters.sums], axis=1)
            row = np.flatnonzero(amounts.any(axis=1))
            name = counters.config.name
            tables[name] = TableEvents(row, keys[name][row], amounts=amounts[row])
        for recents in self._recents:
            feature, name = recents.feature, recents.config.name
            assert feature.column is not None
            column = example_column(batch, feature.column)
            listed = np.zeros(len(late), np.bool_)
            if column is not None:
                listed = column.is_valid().to_numpy(zero_copy_only=False)
            if feature.label is None:
                listed = listed & ~late
            else:
                known, positive = label_values(batch, feature.label)
                negative = feature.when == "negative"
                listed = listed & known & (~positive & ~late if negative else positive)
            row = np.flatnonzero(listed)
            values = _hashed(batch, (feature.column,))[row]
            tables[name] = TableEvents(row, keys[name][row], values=values)
        return Events(event_times(batch), tables)

    def served(self, batch: pa.RecordBatch, lookup_at: LookupAt) -> pa.RecordBatch:
        """The batch with what the tables say of each row as of its ``_time``.

        Raises:
            SpecError: as :meth:`keys`.
        """
        keys = self.keys(batch)
        times = event_times(batch)
        found = lookup_at(keys, dict.fromkeys(keys, times))
        return self._attached(batch, times, found.counters, found.recents)

    def replayed(
        self, batch: pa.RecordBatch, lookup_at: LookupAt, pending: Events, visible: Places
    ) -> pa.RecordBatch:
        """As :meth:`served` would answer if the first ``visible`` examples of ``pending`` were in the tables.

        Args:
            batch: n rows.
            lookup_at: of tables that hold everything before ``pending``, and nothing of it.
            visible: (n,) int64, for each row; 0 to ``len(pending)``.

        Raises:
            SpecError: as :meth:`keys`.
        """
        keys = self.keys(batch)
        times = event_times(batch)
        distinct = {name: np.unique(ids, return_inverse=True) for name, ids in keys.items()}
        found = lookup_at({name: ids for name, (ids, _) in distinct.items()})
        counters, recents = {}, {}
        for name, (ids, place) in distinct.items():
            table = pending.tables[name]
            at = np.searchsorted(ids, table.ids).clip(max=max(len(ids) - 1, 0))
            here = np.flatnonzero(ids[at] == table.ids) if len(ids) else np.empty(0, np.int64)
            row, at = table.row[here], at[here]
            newer = (at, row, pending.times_us[row])
            if table.amounts is not None:
                rows = found.counters[name]
                half_lives = next(c.config.half_lives_us for c in self._counters if c.config.name == name)
                amounts = table.amounts[here]
                counters[name] = replay_counters(rows, half_lives, *newer, amounts, place, visible, times)
            else:
                assert table.values is not None
                recents[name] = replay_recents(
                    found.recents[name], *newer, table.values[here], place, visible, times
                )
        return self._attached(batch, times, counters, recents)

    def _keyed(self) -> list[tuple[str, tuple[str, ...]]]:
        return [
            *((table.config.name, table.by) for table in self._counters),
            *((table.config.name, table.feature.by) for table in self._recents),
        ]

    def _attached(
        self,
        batch: pa.RecordBatch,
        times: Times,
        counters: Mapping[str, CounterRows],
        recents: Mapping[str, RecentRows],
    ) -> pa.RecordBatch:
        for feature in self.features:
            arrays: list[Any]
            if feature.kind == "recent":
                arrays = [_lists(recents[f"recent/{feature.name}"])]
            else:
                table = next(c for c in self._counters if c.config.name == self._table_of[feature.name])
                rows = counters[table.config.name]
                if feature.kind in ("age", "since_last"):
                    since = rows.first_us if feature.kind == "age" else rows.last_us
                    never = since == NEVER_US
                    arrays = [pa.array(np.where(never, 0, times - since), pa.int64(), mask=never)]
                else:
                    arrays = [
                        pa.array(rows.sums[:, table.sums.index(each)].astype(np.float64))
                        for each in _sums(feature)
                    ]
            for name, array in zip(column_names(feature), arrays, strict=True):
                batch = batch.append_column(name, array)
        return batch


def _joined(arrays: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
    """All of them, or none where there are none."""
    there = [array for array in arrays if array is not None]
    return np.concatenate(there) if there else None


def event_times(batch: pa.RecordBatch) -> Times:
    """(n,) int64, ``_time``."""
    times: Times = numbers_of(example_column(batch, "_time"), np.int64, 0, batch.num_rows)
    return times


def _sums(feature: FeatureSpec) -> tuple[Sum, ...]:
    """The sums that a feature reads, in the order of its columns."""
    half_life = feature.half_life or 0
    if feature.kind == "rate":
        return Sum(feature.label, True, half_life), Sum(feature.label, False, half_life)
    if feature.kind == "count" and feature.label is not None:
        return (Sum(feature.label, True, half_life),)
    # Times are those of a row's updates, so each example has to make one.
    return (Sum(None, False, half_life),)


def _counters(by: tuple[str, ...], features: Sequence[FeatureSpec], ttl_us: int) -> _Counters:
    sums = tuple(dict.fromkeys(each for feature in features for each in _sums(feature)))
    ttls = [ttl_us if feature.ttl is None else feature.ttl for feature in features]
    config = TableConfig(
        "counter/" + ",".join(by),
        len(sums),
        kind="counter",
        half_lives_us=tuple(each.half_life_us for each in sums),
        ttl_us=0 if 0 in ttls else max(ttls),
    )
    return _Counters(config, by, sums)


def _amounts(batch: pa.RecordBatch, each: Sum, late: npt.NDArray[np.bool_], weight: Floats) -> Floats:
    """(n,) float32: what each row adds to a sum."""
    if each.label is None:
        return np.where(late, np.float32(0), weight)
    known, positive = label_values(batch, each.label)
    return np.where(known & (positive if each.positive else ~late), weight, np.float32(0))


def _hashed(batch: pa.RecordBatch, names: Sequence[str]) -> Ids:
    columns = []
    for name in names:
        column = example_column(batch, name)
        if column is None or pa.types.is_null(column.type):
            column = pa.nulls(batch.num_rows, pa.string())
        columns.append(column)
    try:
        # One column as the encoder hashes it, so that a listed value has the id of its feature.
        return hash_column(columns[0]) if len(columns) == 1 else hash_rows(columns)
    except TypeError as error:
        kinds = ", ".join(f"{name}: {column.type}" for name, column in zip(names, columns, strict=True))
        raise SpecError(f"streaming features cannot take {kinds} ({error})") from error


def _lists(rows: RecentRows) -> pa.Array:
    """Lists of the used places, newest first."""
    used = rows.times_us != NEVER_US
    offsets = np.concatenate([[0], np.cumsum(used.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.values[used]))
