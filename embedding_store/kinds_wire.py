"""Pushes and lookups of tables of all kinds as messages; see :mod:`cuckooflow.embedding_store.verbs`.

A table's push says its kind by the arrays that it brings: gradients, amounts or values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuckooflow.embedding_store.api import AnyPush, Ids, TableDelta, TablePush
from cuckooflow.embedding_store.kind_checks import check_as_of
from cuckooflow.embedding_store.kinds import AsOf, CounterPush, CounterRows, RecentPush, RecentRows, RowsAt
from cuckooflow.embedding_store.wire_head import Array
from cuckooflow.embedding_store.wire_names import keyed, unkeyed
from cuckooflow.errors import BadShape


def pack_tables(tables: Mapping[str, AnyPush]) -> dict[str, Array]:
    """The arrays of a push.

    Raises:
        BadShape: what is given for a table is no push.
    """
    _check_pushes(tables)
    arrays = keyed("ids", {name: push.ids for name, push in tables.items()})
    for name, push in tables.items():
        if isinstance(push, TablePush):
            arrays.update(keyed("gradients", {name: push.gradients}))
            if push.counts is not None:
                arrays.update(keyed("counts", {name: push.counts}))
            continue
        arrays.update(keyed("times_us", {name: push.times_us}))
        if isinstance(push, CounterPush):
            arrays.update(keyed("amounts", {name: push.amounts}))
        else:
            arrays.update(keyed("values", {name: push.values}))
    return arrays


def _check_pushes(tables: Mapping[str, AnyPush]) -> None:
    for name, push in tables.items():
        if not isinstance(push, TablePush | CounterPush | RecentPush):
            raise BadShape(
                f"table {name!r}: expected a TablePush, CounterPush or RecentPush, received a {type(push).__name__}"
            )


def unpack_tables(arrays: dict[str, Array]) -> dict[str, AnyPush]:
    """What :func:`pack_tables` packed."""
    kinds = ("gradients", "counts", "times_us", "amounts", "values")
    gradients, counts, times, amounts, values = (unkeyed(kind, arrays) for kind in kinds)
    tables: dict[str, AnyPush] = {}
    for name, ids in unkeyed("ids", arrays).items():
        if name in amounts:
            tables[name] = CounterPush(ids, amounts[name], times[name])
        elif name in values:
            tables[name] = RecentPush(ids, values[name], times[name])
        else:
            tables[name] = TablePush(ids, gradients[name], counts.get(name))
    return tables


def pack_lookup(
    ids: Mapping[str, Ids], as_of_us: AsOf, with_dense: bool
) -> tuple[dict[str, Any], dict[str, Array]]:
    """A lookup as a message.

    Raises:
        BadShape: ``as_of_us`` is neither a time nor times by table.
    """
    check_as_of(as_of_us)
    head: dict[str, Any] = {"with_dense": with_dense, "as_of_us": None, "as_of": "all"}
    arrays = keyed("ids", ids)
    if isinstance(as_of_us, Mapping):
        return {**head, "as_of": "tables"}, {**arrays, **keyed("times_us", as_of_us)}
    if as_of_us is not None:
        head["as_of_us"] = int(as_of_us)
    return head, arrays


def unpack_lookup(head: dict[str, Any], arrays: dict[str, Array]) -> tuple[dict[str, Ids], AsOf, bool]:
    """What :func:`pack_lookup` packed."""
    as_of_us: AsOf = unkeyed("times_us", arrays) if head["as_of"] == "tables" else head["as_of_us"]
    return unkeyed("ids", arrays), as_of_us, head["with_dense"]


def pack_rows(rows: RowsAt) -> dict[str, Array]:
    """A lookup's answer as arrays."""
    counters, recents = rows.counters, rows.recents
    return {
        **keyed("rows", rows.weights),
        **keyed("sums", {name: found.sums for name, found in counters.items()}),
        **keyed("first_us", {name: found.first_us for name, found in counters.items()}),
        **keyed("last_us", {name: found.last_us for name, found in counters.items()}),
        **keyed("values", {name: found.values for name, found in recents.items()}),
        **keyed("times_us", {name: found.times_us for name, found in recents.items()}),
        **keyed("dense", rows.dense),
    }


def unpack_rows(arrays: dict[str, Array]) -> RowsAt:
    """What :func:`pack_rows` packed."""
    first, last, times = (unkeyed(kind, arrays) for kind in ("first_us", "last_us", "times_us"))
    return RowsAt(
        unkeyed("rows", arrays),
        {name: CounterRows(sums, first[name], last[name]) for name, sums in unkeyed("sums", arrays).items()},
        {name: RecentRows(values, times[name]) for name, values in unkeyed("values", arrays).items()},
        unkeyed("dense", arrays),
    )


def states(tables: Mapping[str, TableDelta]) -> dict[str, Array]:
    """The states of a delta's tables, those that have one."""
    return {name: table.state for name, table in tables.items() if table.state is not None}
