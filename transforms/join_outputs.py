"""What OnlineJoin gives out: the columns of examples, late examples, unmatched actions, dead letters."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from cuckooflow.errors import SpecError
from cuckooflow.transforms.dead_letters import DEAD_LETTER_SCHEMA
from cuckooflow.transforms.in_band import LOG_NAMES, ROW_COLUMNS
from cuckooflow.transforms.join_options import JoinOptions

Array = npt.NDArray[Any]

#: ``_kind``: an impression's one example, or what a late action adds to it.
PRIMARY, LATE = 0, 1

# --- reasons of dead letters ----------------------------------------------------------------

#: The impression's window had closed, by its own partition's watermark, before it came.
LATE_IMPRESSION = "late_impression"
#: Its key belongs to another impression, at another time.
KEY_REUSED = "key_reused"
#: No label names the action's type.
UNKNOWN_ACTION = "unknown_action"
#: A label sums or compares a column that is null or under 0 in this action.
LABEL_VALUE = "label_value"
#: A value does not fit the type that its column has in this job.
SCHEMA_MISMATCH = "schema_mismatch"
#: The input ended while an element before this row was still missing.
CHAIN_GAP = "chain_gap"

# --- reasons of unmatched actions -----------------------------------------------------------

#: No impression with its key, at or before it, until its window had closed.
NO_IMPRESSION = "no_impression"
#: Its impression is there, but the action came longer after it than its label's window.
OUTSIDE_WINDOW = "outside_window"
#: It arrived after the late horizon.
TOO_LATE = "too_late"


_LABEL_TYPES = {"flag": pa.uint8(), "count": pa.uint32(), "sum": pa.float64(), "max": pa.float64()}


@dataclass(frozen=True)
class ExamplesSchema:
    """The columns of a job's examples.

    ``examples`` and ``late``: the impression's declared columns, then ``_time`` (int64, event time of
    the impression, microseconds), ``_append`` (int64, the latest append time of the rows that made
    it), ``_hash`` (uint64, of the join key), ``label_<name>`` (see ``Label.value``) for each label, ``_kind`` (int8,
    ``PRIMARY`` or ``LATE``), ``_id_hi`` and ``_id_lo`` (uint64, the identity). NegativeSampling adds
    ``_rate`` (float32). ``late`` has two columns more, at the end: ``_negative_kept`` (bool, the
    examples log holds this impression with one of these labels at 0) and, until NegativeSampling has
    used it, ``_primary_negative`` (bool, the impression's example was negative in every label). A late
    example's labels are those of its one action.

    Attributes:
        options: of the join.
        impressions, actions: the declared columns, without the event time, as the source gives them.
    """

    options: JoinOptions
    impressions: pa.Schema
    actions: pa.Schema

    def check(self) -> None:
        """Refuse columns that do not go together.

        Raises:
            SpecError: naming all of them.
        """
        asked = [*self.options.key, self.options.action_type]
        asked += [self.options.action_id] if self.options.action_id is not None else []
        asked += [label.column for label in self.options.labels if label.column is not None]
        faults = [
            f"actions: expected a column {name!r}, declared are {self.actions.names}"
            for name in asked
            if name not in self.actions.names
        ]
        faults += [
            f"impressions: expected a column {name!r}, declared are {self.impressions.names}"
            for name in self.options.key
            if name not in self.impressions.names
        ]
        own = {*self.examples.names[len(self.impressions) :], *(f.name for f in ROW_COLUMNS)}
        faults += [
            f"impressions: the column {name!r} would be written by the join; call it otherwise"
            for name in self.impressions.names
            if name in own
        ]
        if faults:
            raise SpecError("the join's columns are wrong; mend: " + "; ".join(faults))

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Names of the label columns, in the order of the options."""
        return tuple(f"label_{label.name}" for label in self.options.labels)

    @property
    def examples(self) -> pa.Schema:
        """Of the main output."""
        added = [("_time", pa.int64()), ("_append", pa.int64()), ("_hash", pa.uint64())]
        added += [
            (name, _LABEL_TYPES[label.value])
            for name, label in zip(self.label_columns, self.options.labels, strict=True)
        ]
        added += [("_kind", pa.int8()), ("_id_hi", pa.uint64()), ("_id_lo", pa.uint64())]
        return pa.schema([*self.impressions, *(pa.field(*entry) for entry in added)])

    @property
    def late(self) -> pa.Schema:
        """Of the late output."""
        flags = [pa.field("_negative_kept", pa.bool_()), pa.field("_primary_negative", pa.bool_())]
        return pa.schema([*self.examples, *flags])

    @property
    def unmatched(self) -> pa.Schema:
        """Of the unmatched output: the action as it came, its position, and ``reason``."""
        return pa.schema([*self.actions, *ROW_COLUMNS, pa.field("reason", pa.string())])

    @property
    def waiting_actions(self) -> pa.Schema:
        """Of an action while it waits: its columns and the source's."""
        return pa.schema([*self.actions, *ROW_COLUMNS])


@dataclass
class JoinCounts:
    """Rows in and what became of them; what still waits is the core's to tell.

    Always: ``impressions = examples + waiting + impressions_dead + impressions_repeated`` and
    ``actions = used + late + waiting + unmatched + actions_dead + actions_repeated``.
    """

    impressions: int = 0
    examples: int = 0
    impressions_dead: int = 0
    impressions_repeated: int = 0
    actions: int = 0
    used: int = 0
    late: int = 0
    unmatched: int = 0
    actions_dead: int = 0
    actions_repeated: int = 0

    def to_dict(self) -> dict[str, int]:
        """Name -> count."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass
class JoinOutputs:
    """Batches given out by one step, in order; none is empty."""

    examples: list[pa.RecordBatch] = field(default_factory=list)
    late: list[pa.RecordBatch] = field(default_factory=list)
    unmatched: list[pa.RecordBatch] = field(default_factory=list)
    dead: list[pa.RecordBatch] = field(default_factory=list)

    def and_then(self, more: JoinOutputs) -> JoinOutputs:
        """These, and others after them."""
        return JoinOutputs(*(getattr(self, f.name) + getattr(more, f.name) for f in fields(self)))


def dead_rows(
    log: int, columns: dict[str, Array], values: pa.RecordBatch, reason: str, detail: str = ""
) -> pa.RecordBatch:
    """Refused rows as dead letters.

    The value is the row as the source parsed it, as JSON, with its event time as ``_time``: the
    message it came in lies at the position.

    Args:
        log: ``IMPRESSIONS`` or ``ACTIONS``.
        columns: ``partition``, ``offset``, ``row``, ``append``, ``time`` of the rows, (n,) each.
        values: (n,) the rows' declared columns.
        reason, detail: of all of them.
    """
    bodies = [
        json.dumps({**row, "_time": time}, default=str).encode()
        for row, time in zip(values.to_pylist(), columns["time"].tolist(), strict=True)
    ]
    n = len(bodies)
    arrays = [
        pa.array([LOG_NAMES[log]] * n, pa.string()),
        pa.array(columns["partition"], pa.int32()),
        pa.array(columns["offset"], pa.int64()),
        pa.array(columns["row"], pa.int32()),
        pa.array([reason] * n, pa.string()),
        pa.array([detail] * n, pa.string()),
        pa.array(bodies, pa.binary()),
        pa.array(columns["append"], pa.int64()),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=DEAD_LETTER_SCHEMA)
