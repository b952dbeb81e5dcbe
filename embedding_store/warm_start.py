"""A new store that begins with what another one has learned, as far as a plan says that it fits.

Rows are read as images from whole checkpoints, or from tables made for it, and written as images: weights column by
column, optimizer slots where the optimizer is the same, ids under another slot number. Columns and values that the plan
takes from nowhere begin as those of a new store do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.api import SLOT_BITS, Floats, Ids, Optimizer, StoreConfig, TableConfig
from cuckooflow.embedding_store.checkpoint_files import Bytes
from cuckooflow.embedding_store.data_folder import DataFolder
from cuckooflow.embedding_store.dense_init import initial_dense
from cuckooflow.embedding_store.durable import whole_folder
from cuckooflow.embedding_store.marks import Marks
from cuckooflow.embedding_store.native_core import NativeCore, dense_bucket
from cuckooflow.embedding_store.resharding import shard_folder
from cuckooflow.embedding_store.row_images import HEADER_BYTES, cut_images, image_ids, image_weights
from cuckooflow.embedding_store.shards import Ownership, Shard
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.errors import CheckpointDamaged
from cuckooflow.logs.contract import Position

Indices = npt.NDArray[np.int64]
_VALUE_BITS = 64 - SLOT_BITS
_VALUE_MASK = np.uint64((1 << _VALUE_BITS) - 1)
_HEADER = np.dtype([("id", "<u8"), ("epoch", "<u4"), ("step", "<u2"), ("touched", "<u2")])
#: Arrays of as many floats as weights that an optimizer keeps beside a row.
_SLOT_ARRAYS = {"sgd": 0, "adagrad": 1, "adam": 2, "ftrl": 2, "rowwise_adagrad": 0}


@dataclass(frozen=True)
class SourcePart:
    """One shard of what is taken over.

    Attributes:
        config: of the store.
        core: its content.
        dense: numbers of the dense parameters that this shard has.
        event_time_us: newest event time in it, or None.
    """

    config: StoreConfig
    core: NativeCore
    dense: frozenset[int]
    event_time_us: int | None


@dataclass(frozen=True)
class TablePlan:
    """Where the rows of a table come from.

    Attributes:
        source: number of the source's table.
        columns: (dim,) for each weight the source's column; -1: its initial value.
        slots: (4096,) for each of the source's slots the one that its ids get; -1: they are left out. None: ids and
            rows stay just as they are, of a table of the same kind and layout.
        optimizer_state: take the optimizer's slots and step counts too.
        admission: take the filter too: same buckets, same options, same slots.
        times: the times of last touch are in the same unit; else every row counts as touched now.
    """

    source: int
    columns: Indices
    slots: Indices | None
    optimizer_state: bool
    admission: bool
    times: bool


@dataclass(frozen=True)
class DensePlan:
    """Where the values of a dense parameter come from.

    Attributes:
        source: number of the source's parameter.
        axes: for each axis, for each place the source's place; -1: the initial values there.
        optimizer_state: as of :class:`TablePlan`.
    """

    source: int
    axes: tuple[Indices, ...]
    optimizer_state: bool


@dataclass(frozen=True)
class WarmPlan:
    """What a new store takes over.

    Attributes:
        tables, dense: by number in the new configuration; what is not there begins anew.
        logs: log -> incarnation and partition -> where training goes on.
    """

    tables: Mapping[int, TablePlan]
    dense: Mapping[int, DensePlan]
    logs: Mapping[str, tuple[str, Mapping[int, Position]]] = field(default_factory=dict)


@dataclass
class Taken:
    """What was taken over: table number -> rows kept, and rows that were left out."""

    rows: dict[int, int] = field(default_factory=dict)
    left_out: dict[int, int] = field(default_factory=dict)


def write_warm_store(
    config: StoreConfig,
    plan: WarmPlan,
    parts: Sequence[Callable[[], SourcePart]],
    target: Path,
    shards: int,
) -> Taken:
    """Write the folder, or of several shards the folders, of a new store.

    Everything appears at once, by one rename. One part and one new shard are in memory at a time.

    Args:
        config: of the new store.
        parts: read the shards of the source, the one of the oldest event time first.
        target: an absent or empty folder; of several shards it gets ``shard-0``, ``shard-1``...

    Raises:
        StoreError: by name, as of the parts.
    """
    taken = Taken()
    held: tuple[int, SourcePart] | None = None
    with whole_folder(target) as building:
        for number in range(shards):
            owned = Ownership(config, Shard(number, shards))
            core = NativeCore.of(config)
            newest_us: int | None = None
            for at, read in enumerate(parts):
                if held is None or held[0] != at:
                    held = None  # before the next one is read: one is in memory at a time
                    held = (at, read())
                _take_part(config, plan, owned, held[1], core, taken)
                if held[1].event_time_us is not None:
                    newest_us = max(held[1].event_time_us, newest_us or held[1].event_time_us)
            folder = building if shards == 1 else shard_folder(building, number)
            _write(config, owned, folder, core, plan, newest_us)
    return taken


def _write(
    config: StoreConfig,
    owned: Ownership,
    path: Path,
    core: NativeCore,
    plan: WarmPlan,
    event_time_us: int | None,
) -> None:
    marks = Marks(owned.buckets)
    for log, (incarnation, positions) in plan.logs.items():
        marks.open(log, incarnation, positions)
    folder = DataFolder(path)
    try:
        folder.claim(config, owned.shard)
        folder.record_logs(marks.opened())
        body: dict[str, Any] = {} if event_time_us is None else {"event_time_us": event_time_us}
        EmbeddedStore.assemble(config, owned, folder, core, marks, body).checkpoint()
    finally:
        folder.close()


def _take_part(
    config: StoreConfig, plan: WarmPlan, owned: Ownership, part: SourcePart, core: NativeCore, taken: Taken
) -> None:
    part.core.raw.begin_cut()
    try:
        for number, table in plan.tables.items():
            _take_table(config, number, table, owned, part, core, taken)
        for number, dense in plan.dense.items():
            name = config.dense[number].name
            mine = owned.first <= dense_bucket(name, config.buckets) < owned.end
            if mine and dense.source in part.dense:
                core.raw.load_dense(number, _dense_image(config, number, dense, part))
    finally:
        part.core.raw.end_cut()


def _take_table(
    config: StoreConfig,
    number: int,
    plan: TablePlan,
    owned: Ownership,
    part: SourcePart,
    core: NativeCore,
    taken: Taken,
) -> None:
    table, source = config.tables[number], part.config.tables[plan.source]
    clock = part.core.raw.clock(plan.source) if plan.times else _clock(table, part.event_time_us)
    if clock is not None:
        core.raw.set_clock(number, clock)
    kept = left_out = 0
    for images in cut_images(part.core, plan.source):
        ids = image_ids(images)
        if plan.slots is not None:
            slots = plan.slots[(ids >> np.uint64(_VALUE_BITS)).astype(np.int64)]
            fits = slots >= 0
            left_out += int((~fits).sum())
            ids = (ids & _VALUE_MASK) | (slots.clip(0).astype(np.uint64) << np.uint64(_VALUE_BITS))
            mine = fits & owned.owned(ids)
            made = _row_images(core, number, table, source, plan, ids[mine], images[mine], clock)
        else:
            made = images[owned.owned(ids)]
        kept += len(made)
        if not core.raw.load_rows(number, np.ascontiguousarray(made).reshape(-1), clock=clock):
            raise CheckpointDamaged(f"table {source.name!r} holds an id twice")
    if plan.admission:
        core.raw.load_filter_buckets(number, part.core.raw.cut_filter(plan.source), owned.first, owned.end)
    taken.rows[number] = taken.rows.get(number, 0) + kept
    if owned.shard.number == 0:  # every new shard reads all parts
        taken.left_out[number] = taken.left_out.get(number, 0) + left_out


def _row_images(
    core: NativeCore,
    number: int,
    table: TableConfig,
    source: TableConfig,
    plan: TablePlan,
    ids: Ids,
    images: Bytes,
    clock: int | None,
) -> Bytes:
    """(n, row_bytes) rows in the layout of the new table."""
    dim = table.dim
    old = np.ascontiguousarray(images[:, :HEADER_BYTES]).view(_HEADER).reshape(-1)
    weights: Floats = _native.initial_values(ids, dim, table.seed, table.init_stddev)
    known = plan.columns >= 0
    weights[:, known] = image_weights(images, source.dim)[:, plan.columns[known]]
    slots = fresh_slots(table.optimizer, weights)
    if plan.optimizer_state and slots.shape[1]:
        begin = HEADER_BYTES + 4 * source.dim
        arrays = _SLOT_ARRAYS[source.optimizer.kind]
        width = arrays * source.dim or slots.shape[1]
        theirs = np.ascontiguousarray(images[:, begin : begin + 4 * width]).view(np.float32)
        if not arrays:
            slots = theirs  # one for the whole row
        for array in range(arrays):
            mine = slots[:, array * dim : (array + 1) * dim]
            mine[:, known] = theirs[:, array * source.dim + plan.columns[known]]
    step = old["step"] if plan.optimizer_state else 0
    touched = old["touched"] if plan.times else (clock or 0) & 0xFFFF
    return _images(core, number, ids, np.concatenate([weights, slots], axis=1), step, touched)


def images_of_weights(core: NativeCore, number: int, table: TableConfig, ids: Ids, weights: Floats) -> Bytes:
    """(n, row_bytes) rows of an embedding table that were never updated, of ids and (n, dim) weights."""
    return _images(
        core, number, ids, np.concatenate([weights, fresh_slots(table.optimizer, weights)], axis=1)
    )


def images_of_states(core: NativeCore, number: int, ids: Ids, states: Bytes) -> Bytes:
    """(n, row_bytes) rows of a counter or recent table, of ids and their state, see TableDelta."""
    return _images(core, number, ids, states)


def _images(
    core: NativeCore, number: int, ids: Ids, body: npt.NDArray[Any], step: Any = 0, touched: Any = 0
) -> Bytes:
    made = np.zeros((len(ids), core.raw.row_bytes(number)), np.uint8)
    header = np.zeros(len(ids), _HEADER)
    header["id"], header["step"], header["touched"] = ids, step, touched
    made[:, :HEADER_BYTES] = header.view(np.uint8).reshape(-1, HEADER_BYTES)
    raw = np.ascontiguousarray(body).view(np.uint8).reshape(len(ids), -1) if len(ids) else made[:, :0]
    made[:, HEADER_BYTES : HEADER_BYTES + raw.shape[1]] = raw
    return made


def fresh_slots(optimizer: Optimizer, weights: Floats) -> Floats:
    """(n, k) slots of rows that have these (n, dim) weights and were never updated."""
    n, dim = weights.shape
    if optimizer.kind == "rowwise_adagrad":
        return np.full((n, 1), optimizer.initial_accumulator, np.float32)
    slots = np.zeros((n, _SLOT_ARRAYS[optimizer.kind] * dim), np.float32)
    if optimizer.kind == "adagrad":
        slots[:] = optimizer.initial_accumulator
    elif optimizer.kind == "ftrl":
        # As the core does it: the z from which FTRL's formula gives just these weights.
        slots[:, dim:] = optimizer.initial_accumulator
        root = np.sqrt(np.float32(optimizer.initial_accumulator))
        curvature = np.float32((np.float32(optimizer.beta) + root) / np.float32(optimizer.learning_rate))
        pulled = weights * (curvature + np.float32(optimizer.l2)) + np.copysign(
            np.float32(optimizer.l1), weights
        )
        slots[:, :dim] = np.where(weights == 0, np.float32(0), -pulled)
    return slots


def _dense_image(config: StoreConfig, number: int, plan: DensePlan, part: SourcePart) -> Bytes:
    """Step, value and slots of a dense parameter."""
    new, old = config.dense[number], part.config.dense[plan.source]
    image = part.core.raw.cut_dense(plan.source)
    step = image[:8]
    theirs = np.ascontiguousarray(image[8:]).view(np.float32)
    size = max(1, int(np.prod(old.shape)))
    arrays = [theirs[at : at + size].reshape(old.shape) for at in range(0, len(theirs), size)]
    value = _placed(initial_dense(new), arrays[0], plan.axes)
    slots = fresh_slots(new.optimizer, value.reshape(1, -1)).reshape(-1, *new.shape)
    if plan.optimizer_state:
        for at, their in enumerate(arrays[1:]):
            slots[at] = _placed(slots[at], their, plan.axes)
    body = np.concatenate([value.ravel(), slots.ravel()]).astype(np.float32)
    head = step if plan.optimizer_state else np.zeros(8, np.uint8)
    return np.concatenate([head, body.view(np.uint8)])


def _placed(into: Floats, values: Floats, axes: Sequence[Indices]) -> Floats:
    """A copy of ``into`` with the values that have a place in it."""
    result = np.array(into, np.float32)
    if not axes:
        return np.array(values, np.float32)
    there = [np.flatnonzero(axis >= 0) for axis in axes]
    result[np.ix_(*there)] = values[np.ix_(*(axis[at] for axis, at in zip(axes, there, strict=True)))]
    return result


def _clock(table: TableConfig, event_time_us: int | None) -> int | None:
    """A clock that reads an event time, in the unit of the table's; None: it has none."""
    longest = max(table.ttl_us, *table.slot_ttl_us.values(), 0)
    if longest > 0 and event_time_us is not None:
        return event_time_us // max(1, (longest + (1 << 15) - 1) >> 15)
    return None
