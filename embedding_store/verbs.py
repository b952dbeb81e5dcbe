"""The store's verbs over the wire, both sides of each: what a call carries and what its answer does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from cuckooflow.embedding_store.api import (
    AnyPush,
    Delta,
    Floats,
    Ids,
    PushAnswer,
    ReadAt,
    Store,
    TableDelta,
    Version,
)
from cuckooflow.embedding_store.config_json import config_to_json
from cuckooflow.embedding_store.kinds_wire import (
    pack_rows,
    pack_tables,
    states,
    unpack_lookup,
    unpack_tables,
)
from cuckooflow.embedding_store.range_checks import checked_event_time, checked_range
from cuckooflow.embedding_store.shards import Shard
from cuckooflow.embedding_store.wire_head import Array
from cuckooflow.embedding_store.wire_names import keyed, unkeyed
from cuckooflow.errors import StoreError
from cuckooflow.logs.contract import LogRange, Position


class ServedStore(Store, Protocol):
    """What a store's process serves: a store that knows which shard it is."""

    @property
    def shard(self) -> Shard: ...

    def rows(self, table: str) -> tuple[Ids, Floats]: ...

    def states(self, table: str) -> tuple[Ids, Array]: ...


Message = tuple[dict[str, Any], dict[str, Array]]


def pack_push(
    range_: LogRange,
    tables: Mapping[str, AnyPush],
    dense: Mapping[str, Floats],
    event_time_us: int,
    read: ReadAt | None = None,
) -> Message:
    """A push as a message.

    Raises:
        BadShape: the range, the time or a table's push is not of the form that the store asks for.
    """
    range_ = checked_range(range_)
    head = {
        "log": range_.log,
        "incarnation": range_.incarnation,
        "partition": range_.partition,
        "first": _pair(range_.first),
        "last": _pair(range_.last),
        "event_time_us": checked_event_time(event_time_us),
        "read": None if read is None else [list(read.clock), read.staleness_max],
    }
    return head, {**pack_tables(tables), **keyed("dense", dense)}


def unpack_push(
    head: dict[str, Any], arrays: dict[str, Array]
) -> tuple[LogRange, dict[str, AnyPush], dict[str, Floats], int, ReadAt | None]:
    """What :func:`pack_push` packed."""
    range_ = LogRange(
        head["log"], head["incarnation"], head["partition"], Position(*head["first"]), Position(*head["last"])
    )
    told = head["read"]
    read = None if told is None else ReadAt(tuple(told[0]), told[1])
    return range_, unpack_tables(arrays), unkeyed("dense", arrays), head["event_time_us"], read


def pack_delta(delta: Delta) -> Message:
    """A delta as a message."""
    head = {
        "version": list(delta.version),
        "base": None if delta.base is None else list(delta.base),
        "marks": pack_marks(delta.marks),
    }
    arrays = {
        **keyed("ids", {name: table.ids for name, table in delta.tables.items()}),
        **keyed("weights", {name: table.weights for name, table in delta.tables.items()}),
        **keyed("tombstones", {name: table.tombstones for name, table in delta.tables.items()}),
        **keyed("state", states(delta.tables)),
        **keyed("dense", delta.dense),
    }
    return head, arrays


def unpack_delta(head: dict[str, Any], arrays: dict[str, Array]) -> Delta:
    """What :func:`pack_delta` packed."""
    weights, tombstones = unkeyed("weights", arrays), unkeyed("tombstones", arrays)
    state = unkeyed("state", arrays)
    return Delta(
        version=Version(*head["version"]),
        base=None if head["base"] is None else Version(*head["base"]),
        tables={
            name: TableDelta(ids, weights[name], tombstones[name], state.get(name))
            for name, ids in unkeyed("ids", arrays).items()
        },
        dense=unkeyed("dense", arrays),
        marks={
            log: {int(partition): Position(*mark) for partition, mark in marks.items()}
            for log, marks in head["marks"].items()
        },
    )


def pack_marks(marks: Mapping[str, Mapping[int, Position]]) -> dict[str, dict[str, list[int]]]:
    """Log -> partition -> mark, for JSON."""
    return {
        log: {str(partition): _pair(mark) for partition, mark in of_log.items()}
        for log, of_log in marks.items()
    }


def _pair(position: Position) -> list[int]:
    return [int(position[0]), int(position[1])]


def _ids(arrays: dict[str, Array]) -> dict[str, Ids]:
    return unkeyed("ids", arrays)


def _pull(store: ServedStore, _: dict[str, Any], arrays: dict[str, Array]) -> Message:
    rows, dense, clock = store.pull(_ids(arrays))
    return {"clock": list(clock)}, {**keyed("rows", rows), **keyed("dense", dense)}


def _push(store: ServedStore, head: dict[str, Any], arrays: dict[str, Array]) -> Message:
    return {"answer": list(store.push(*unpack_push(head, arrays)))}, {}


def _rows(store: ServedStore, head: dict[str, Any], _: dict[str, Array]) -> Message:
    ids, weights = store.rows(head["table"])
    return {}, {"ids": ids, "weights": weights}


def _states(store: ServedStore, head: dict[str, Any], _: dict[str, Array]) -> Message:
    ids, states = store.states(head["table"])
    return {}, {"ids": ids, "states": states}


def _open_log(store: ServedStore, head: dict[str, Any], _: dict[str, Array]) -> Message:
    starts = {int(partition): Position(*start) for partition, start in head["starts"].items()}
    store.open_log(head["log"], head["incarnation"], starts)
    return {}, {}


def _marks(store: ServedStore, head: dict[str, Any], _: dict[str, Array]) -> Message:
    marks = store.marks(head["log"])
    return {"marks": {str(partition): [_pair(mark) for mark in of] for partition, of in marks.items()}}, {}


def _ack(store: ServedStore, head: dict[str, Any], _: dict[str, Array]) -> Message:
    store.ack(head["consumer"], Version(*head["version"]))
    return {}, {}


def _answer(name: str, call: Callable[[ServedStore, dict[str, Any]], Any]) -> Callable[..., Message]:
    return lambda store, head, _: ({name: call(store, head)}, {})


_VERBS: dict[str, Callable[[ServedStore, dict[str, Any], dict[str, Array]], Message]] = {
    "config": _answer("config", lambda store, _: config_to_json(store.config)),
    "shard": _answer("shard", lambda store, _: list(store.shard)),
    "incarnation": _answer("incarnation", lambda store, _: store.incarnation()),
    "open_log": _open_log,
    "lookup": lambda store, _, arrays: ({}, keyed("rows", store.lookup(_ids(arrays)))),
    "lookup_at": lambda store, head, arrays: (
        {},
        pack_rows(store.lookup_at(*unpack_lookup(head, arrays))),
    ),
    "dense": lambda store, _, __: ({}, keyed("dense", store.dense())),
    "pull": _pull,
    "push": _push,
    "marks": _marks,
    "log_incarnation": _answer("incarnation", lambda store, head: store.log_incarnation(head["log"])),
    "delta": lambda store, head, _: pack_delta(store.delta(head["consumer"], head["full"])),
    "ack": _ack,
    "checkpoint": _answer("name", lambda store, _: store.checkpoint()),
    "evict_expired": _answer("evicted", lambda store, _: store.evict_expired()),
    "rows": _rows,
    "states": _states,
    "stats": _answer("stats", lambda store, _: store.stats()),
}


#: What a store's process can be asked.
VERBS = frozenset(_VERBS)


def perform(store: ServedStore, verb: str, head: dict[str, Any], arrays: dict[str, Array]) -> Message:
    """Do what a call asks of the store; its answer.

    Raises:
        StoreError: the verb is unknown, the message lacks a part, or what the verb itself raises.
    """
    if verb not in _VERBS:
        raise StoreError(f"expected one of the verbs {sorted(_VERBS)}, received {verb!r}")
    try:
        return _VERBS[verb](store, head, arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"expected a whole {verb!r} message, received one that cannot be used ({type(error).__name__}: {error})"
        ) from error


def pushed_answer(head: dict[str, Any]) -> PushAnswer:
    """The answer to a push."""
    return PushAnswer(*head["answer"])
