"""What a changed model takes over from the parameters of an older one, and why not the rest.

Parameters are known by what they stand for: an id by its feature's name, a column of a table or a place of a dense
parameter by its label, feature or unit (:attr:`~cuckooflow.models.base.Model.axes`). So a feature may move in the list, and
one that was added leaves all others what they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cuckooflow.embedding_store.api import (
    SLOT_BITS,
    DenseConfig,
    Optimizer,
    StoreConfig,
    TableConfig,
)
from cuckooflow.embedding_store.warm_start import DensePlan, Indices, TablePlan, WarmPlan
from cuckooflow.models.base import Axis, Model
from cuckooflow.models.features import FeatureSpec, id_slots
from cuckooflow.models.registry import COUNT_TABLE

#: Options of a feature that may change while its ids and numbers mean the same.
_FREE = {"slot", "admission", "ttl", "max_length", "pooling"}


@dataclass
class Kept:
    """A line of the report.

    Attributes:
        kind: ``feature``, ``table``, ``dense`` or ``log``.
        name: of it.
        state: ``kept``, ``partly``, ``new`` (begins anew) or ``gone`` (only in the old model).
        why: in words, where it is not kept whole.
        kept, of: how many rows, or values of a dense parameter; None where nothing is counted.
        optimizer: whether the optimizer's state was kept; None where there is none.
    """

    kind: Literal["feature", "table", "dense", "log"]
    name: str
    state: Literal["kept", "partly", "new", "gone"]
    why: str = ""
    kept: int | None = None
    of: int | None = None
    optimizer: bool | None = None


@dataclass(frozen=True)
class WarmStart:
    """A plan and its report.

    Attributes:
        plan: for :func:`~cuckooflow.embedding_store.warm_start.write_warm_store`.
        lines: the report, but for the rows of tables.
    """

    plan: WarmPlan
    lines: list[Kept] = field(default_factory=list)


@dataclass(frozen=True)
class Side:
    """A model with its store.

    Attributes:
        model: with its features.
        config: of its store.
    """

    model: Model
    config: StoreConfig


def plan_warm_start(old: Side, new: Side, goes_on: bool, with_state: bool) -> WarmStart:
    """Say what is taken over.

    Args:
        goes_on: training goes on where the old store stands; otherwise what counts examples begins anew.
        with_state: the source has optimizer state and admission counts; a snapshot has none.
    """
    features, lines = _features(old.model.encoder.features, new.model.encoder.features)
    tables = _Tables(old, new, features, goes_on, with_state)
    dense = _Dense(old, new, features, with_state)
    plan = WarmPlan(tables.plans(), dense.plans())
    return WarmStart(plan, [*lines, *tables.lines, *dense.lines])


def _features(old: Sequence[FeatureSpec], new: Sequence[FeatureSpec]) -> tuple[frozenset[str], list[Kept]]:
    """Names of the features that mean the same in both, and lines."""
    before = {feature.name: feature for feature in old}
    kept, lines = set(), []
    for feature in new:
        if feature.name not in before:
            lines.append(Kept("feature", feature.name, "new", "not in the old model"))
            continue
        changed = _changed(before[feature.name], feature)
        if changed:
            lines.append(Kept("feature", feature.name, "new", f"another {', '.join(changed)}"))
        else:
            kept.add(feature.name)
            lines.append(Kept("feature", feature.name, "kept"))
    there = {feature.name for feature in new}
    lines += [Kept("feature", f.name, "gone", "not in the new model") for f in old if f.name not in there]
    return frozenset(kept), lines


def _changed(old: FeatureSpec, new: FeatureSpec) -> list[str]:
    before, after = old.model_dump(), new.model_dump()
    before["column"], after["column"] = old.inputs, new.inputs
    return [name for name in before if name not in _FREE and before[name] != after[name]]


def _places(old: Axis, new: Axis, features: frozenset[str]) -> Indices:
    """For each new place the old one that stands for the same, or -1."""
    where = {name: at for at, name in enumerate(old)}
    found = [
        -1 if name[0] in ("field", "number") and name[1] not in features else where.get(name, -1)
        for name in new
    ]
    return np.array(found, np.int64)


def _same_state(old: Optimizer, new: Optimizer) -> bool:
    """Whether the optimizer's state means the same; FTRL's z depends on its options."""
    return old.kind == new.kind and (old.kind != "ftrl" or old == new)


class _Tables:
    def __init__(
        self, old: Side, new: Side, features: frozenset[str], goes_on: bool, with_state: bool
    ) -> None:
        self._old, self._new = old, new
        self._goes_on, self._with_state = goes_on, with_state
        self._slots = np.full(1 << SLOT_BITS, -1, np.int64)
        before, after = (id_slots(side.model.encoder.features) for side in (old, new))
        for name in sorted(features):
            self._slots[before[name]] = after[name]
        self.lines: list[Kept] = []

    def plans(self) -> dict[int, TablePlan]:
        """By number of the new table."""
        known = {table.name: n for n, table in enumerate(self._old.config.tables)}
        plans = {}
        for number, table in enumerate(self._new.config.tables):
            if table.name not in known:
                self.lines.append(Kept("table", table.name, "new", "not in the old store"))
                continue
            source = known.pop(table.name)
            plan = self._plan(source, self._old.config.tables[source], table)
            if plan is not None:
                plans[number] = plan
        self.lines += [Kept("table", name, "gone", "not in the new store") for name in known]
        return plans

    def _plan(self, source: int, old: TableConfig, new: TableConfig) -> TablePlan | None:
        if old.kind != new.kind:
            self._anew(new, f"kind {new.kind}, was {old.kind}")
            return None
        if new.kind != "embedding" or new.name == COUNT_TABLE:
            return self._counts(source, old, new)
        columns = self._columns(old, new)
        if not (columns >= 0).any():
            self._anew(new, "none of its columns is in the old one")
            return None
        state = self._with_state and _same_state(old.optimizer, new.optimizer)
        whys = []
        fresh = [n for n in range(new.dim) if columns[n] < 0]
        if fresh:
            whys.append(f"columns {_ranges(fresh)} begin anew: dim {new.dim}, was {old.dim}")
        elif len(columns) < old.dim:
            whys.append(f"dim {new.dim}, was {old.dim}: the others are left out")
        if not state:
            whys.append(_no_state(self._with_state, old.optimizer, new.optimizer))
        same_slots = self._same_slots()
        admission = (
            self._with_state
            and same_slots
            and self._old.config.buckets == self._new.config.buckets
            and _admission(old) == _admission(new)
        )
        if max(new.admission, *new.slot_admission.values(), 1) > 1 and not admission:
            whys.append("ids that wait for admission are counted anew")
        self.lines.append(
            Kept("table", new.name, "partly" if whys else "kept", "; ".join(whys), optimizer=state)
        )
        return TablePlan(source, columns, self._slots, state, admission, self._times(old, new))

    def _counts(self, source: int, old: TableConfig, new: TableConfig) -> TablePlan | None:
        """Tables of counts and lists mean what they say only whole, and where each example counts once."""
        if not self._goes_on:
            self._anew(new, "its examples are read again")
            return None
        if new.name == COUNT_TABLE:
            self.lines.append(Kept("table", new.name, "kept", optimizer=None))
            return TablePlan(source, np.zeros(1, np.int64), self._slots, True, False, True)
        sides = (self._old.model.streaming, self._new.model.streaming)
        before, after = (None if s is None else s.definitions().get(new.name) for s in sides)
        if before != after or (old.dim, old.half_lives_us) != (new.dim, new.half_lives_us):
            self._anew(new, "its figures are of something else")
            return None
        self.lines.append(Kept("table", new.name, "kept"))
        columns = np.arange(new.dim, dtype=np.int64)
        return TablePlan(source, columns, None, True, False, self._times(old, new))

    def _columns(self, old: TableConfig, new: TableConfig) -> Indices:
        before, after = (side.model.axes.get(new.name) for side in (self._old, self._new))
        if before is None or after is None:
            same = old.dim == new.dim
            return np.arange(new.dim, dtype=np.int64) if same else np.full(new.dim, -1, np.int64)
        return _places(before[0], after[0], frozenset())

    def _same_slots(self) -> bool:
        before, after = (id_slots(side.model.encoder.features) for side in (self._old, self._new))
        return all(self._slots[slot] == slot for slot in {*before.values(), *after.values()})

    @staticmethod
    def _times(old: TableConfig, new: TableConfig) -> bool:
        longest = [max(t.ttl_us, *t.slot_ttl_us.values(), 0) for t in (old, new)]
        return longest[0] == longest[1] and old.memory_policy == new.memory_policy

    def _anew(self, table: TableConfig, why: str) -> None:
        self.lines.append(Kept("table", table.name, "new", why, kept=0))


class _Dense:
    def __init__(self, old: Side, new: Side, features: frozenset[str], with_state: bool) -> None:
        self._old, self._new = old, new
        self._features, self._with_state = features, with_state
        self.lines: list[Kept] = []

    def plans(self) -> dict[int, DensePlan]:
        """By number of the new parameter."""
        known = {dense.name: n for n, dense in enumerate(self._old.config.dense)}
        plans = {}
        for number, dense in enumerate(self._new.config.dense):
            size = int(np.prod(dense.shape))
            if dense.name not in known:
                self.lines.append(Kept("dense", dense.name, "new", "not in the old model", 0, size))
                continue
            source = known.pop(dense.name)
            old = self._old.config.dense[source]
            axes = self._axes(old, dense)
            kept = 0 if axes is None else int(np.prod([(axis >= 0).sum() for axis in axes]))
            if axes is None or not kept:
                why = f"shape {_shape(dense)}, was {_shape(old)}"
                if old.shape == dense.shape:
                    why = "what it multiplies is not in the old model"
                self.lines.append(Kept("dense", dense.name, "new", why, 0, size))
                continue
            state = self._with_state and _same_state(old.optimizer, dense.optimizer)
            whys = (
                []
                if kept == size
                else [f"{size - kept} values begin anew: shape {_shape(dense)}, was {_shape(old)}"]
            )
            if not state:
                whys.append(_no_state(self._with_state, old.optimizer, dense.optimizer))
            self.lines.append(
                Kept("dense", dense.name, "partly" if whys else "kept", "; ".join(whys), kept, size, state)
            )
            plans[number] = DensePlan(source, axes, state)
        self.lines += [Kept("dense", name, "gone", "not in the new model") for name in known]
        return plans

    def _axes(self, old: DenseConfig, new: DenseConfig) -> tuple[Indices, ...] | None:
        before, after = (side.model.axes.get(new.name) for side in (self._old, self._new))
        if before is None or after is None:
            same = old.shape == new.shape
            return tuple(np.arange(n, dtype=np.int64) for n in new.shape) if same else None
        return tuple(_places(b, a, self._features) for b, a in zip(before, after, strict=True))


def _admission(table: TableConfig) -> tuple[object, ...]:
    slots = sorted(table.slot_admission.items())
    return (table.admission, slots, table.admission_mode, table.filter_bytes, table.seed)


def _no_state(with_state: bool, old: Optimizer, new: Optimizer) -> str:
    if not with_state:
        return "a snapshot has no optimizer state"
    if old.kind == new.kind:
        return f"optimizer state anew: other options of {new.kind}"
    return f"optimizer state anew: {new.kind}, was {old.kind}"


def _shape(dense: DenseConfig) -> str:
    return "x".join(map(str, dense.shape)) or "one value"


def _ranges(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def add_rows(
    lines: Sequence[Kept], config: StoreConfig, rows: Mapping[int, int], left_out: Mapping[int, int]
) -> None:
    """Fill in how many rows of each table were kept, and of how many."""
    by_name = {line.name: line for line in lines if line.kind == "table"}
    for number, kept in rows.items():
        line = by_name[config.tables[number].name]
        line.kept, line.of = kept, kept + left_out.get(number, 0)
        if line.of > kept:
            gone = f"{line.of - kept} rows of features that are gone or changed are left out"
            line.why = f"{line.why}; {gone}" if line.why else gone
            line.state = "partly"
