"""The rows of one shard's join: what comes in waits in tables, what goes out becomes batches.

The base of :class:`~cuckooflow.transforms.join_core.JoinCore`, which says when what happens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.transforms import join_outputs
from cuckooflow.transforms.closed_impressions import ClosedTier, fit
from cuckooflow.transforms.hash_index import HashIndex
from cuckooflow.transforms.in_band import ACTIONS, IMPRESSIONS, NO_TIME_US
from cuckooflow.transforms.join_outputs import ExamplesSchema, JoinCounts, JoinOutputs, dead_rows
from cuckooflow.transforms.join_rows import (
    LabelRules,
    action_identities,
    late_identities,
    primary_identities,
)
from cuckooflow.transforms.join_state import CellRing
from cuckooflow.transforms.slot_table import Slots, SlotTable
from cuckooflow.transforms.sorted_runs import SortedRuns

Array = npt.NDArray[Any]

POSITION = {"partition": np.int32, "offset": np.int64, "row": np.int32, "append": np.int64}
_IMPRESSION = {"hash": np.uint64, "time": np.int64, **POSITION}
_EAGER = {"given": np.bool_, "primary": np.uint64, "labels": np.uint64}
_ACTION = {
    "hash": np.uint64,
    "time": np.int64,
    "wm": np.int64,
    "code": np.int16,
    "sets": np.uint64,
    "identity": np.uint64,
    **POSITION,
}


class JoinIntake:
    """Tables, and rows in and out. Not thread-safe.

    Args:
        schema: the job's columns, and the options.
        cells: the shard's state; what is accepted is added to it.

    Attributes:
        counts: rows so far.
        released_us: late actions with ``w`` under this have been looked up, but for those that wait for a bucket.
        deferred: bucket of closed impressions that late actions wait for -> those with ``w`` under this do not.
    """

    def __init__(self, schema: ExamplesSchema, cells: CellRing) -> None:
        self.schema = schema
        self.options = schema.options
        self._window_us = self.options.window_us
        self._rules = LabelRules(self.options)
        self._cells = cells
        columns = _IMPRESSION | (_EAGER if self.options.emit == "eager" else {})
        self._open = SlotTable(schema.impressions, columns)
        self._open_by_time = SortedRuns(np.int64, np.int64)
        self._actions = SlotTable(schema.waiting_actions, _ACTION)
        self._actions_by_hash = HashIndex()
        self._actions_by_end = SortedRuns(np.int64, np.int64)
        self._queue: list[Slots] = []
        self._closed = ClosedTier(schema.impressions, self.options.bucket_us, self.options.cache_bytes, cells)
        self._out = JoinOutputs()
        self.counts = JoinCounts()
        self.released_us = NO_TIME_US
        self.deferred: dict[int, int] = {}

    # --- what an observer asks ----------------------------------------------------------------

    @property
    def impressions_waiting(self) -> int:
        """Impressions whose example is still to come."""
        return self._open.waiting

    @property
    def actions_waiting(self) -> int:
        """Actions that are not decided."""
        return self._actions.waiting

    @property
    def late_queued(self) -> int:
        """Late actions that wait to be looked up."""
        return sum(int(self._actions.alive(slots).sum()) for slots in self._queue)

    @property
    def cold_reads(self) -> int:
        """Buckets read back from state."""
        return self._closed.cold_reads

    @property
    def hot_hits(self) -> int:
        """Buckets that were in memory when they were asked for."""
        return self._closed.hot_hits

    @property
    def hot_bytes(self) -> int:
        """Memory for closed impressions."""
        return self._closed.hot_bytes

    def take(self) -> JoinOutputs:
        """What was given out since the last call."""
        out, self._out = self._out, JoinOutputs()
        return out

    # --- rows come in -------------------------------------------------------------------------

    def accept(self, batch: pa.RecordBatch, sequence: int, journal: bool = True) -> None:
        """Take an element's rows, impressions before actions.

        Args:
            batch: with the columns of :data:`~cuckooflow.transforms.in_band.ROW_COLUMNS`.
            sequence: ascending with every element; orders the rows when memory is rebuilt.
            journal: add them to the state cells.
        """
        if not batch.num_rows:
            return
        cut = int(np.searchsorted(batch.column("_log").to_numpy(), ACTIONS))
        impressions, kept_impressions = self._take_impressions(batch.slice(0, cut))
        actions, kept_actions = self._take_actions(batch.slice(cut))
        if journal:
            kept = np.concatenate((kept_impressions, kept_actions))
            rows = batch if kept.all() else batch.filter(pa.array(kept))
            self._cells.add_rows(rows, sequence)
        self._arrived(impressions, actions)

    def _fit(self, log: int, batch: pa.RecordBatch, schema: pa.Schema) -> tuple[pa.RecordBatch, Array]:
        """The rows that fit the job's columns, and which they are."""
        try:
            return fit(batch, schema), np.ones(batch.num_rows, bool)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            kept = np.ones(batch.num_rows, bool)
            parts = [fit(batch.slice(0, 0), schema)] if batch.num_rows == 0 else []
            for i in range(batch.num_rows):  # a schema changed under way: rare, so row by row
                row = batch.slice(i, 1)
                try:
                    parts.append(fit(row, schema))
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as fault:
                    kept[i] = False
                    self._dead(log, row, join_outputs.SCHEMA_MISMATCH, str(fault))
            none = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)
            return pa.concat_batches([none, *parts]), kept

    def _dead(self, log: int, rows: pa.RecordBatch, reason: str, detail: str = "") -> None:
        if rows.num_rows:
            position = {name: rows.column(f"_{name}").to_numpy() for name in (*POSITION, "time")}
            declared = self.schema.impressions if log == IMPRESSIONS else self.schema.actions
            shown = rows.select([name for name in declared.names if name in rows.schema.names])
            self._out.dead.append(dead_rows(log, position, shown, reason, detail))

    def _take_impressions(self, batch: pa.RecordBatch) -> tuple[Slots, Array]:
        self.counts.impressions += batch.num_rows
        time, wm = batch.column("_time").to_numpy(), batch.column("_wm").to_numpy()
        kept = wm < time + self._window_us
        if not kept.all():
            self._dead(IMPRESSIONS, batch.filter(pa.array(~kept)), join_outputs.LATE_IMPRESSION)
            batch = batch.filter(pa.array(kept))
        features, fits = self._fit(IMPRESSIONS, batch, self.schema.impressions)
        if not fits.all():
            batch = batch.filter(pa.array(fits))
            kept[np.flatnonzero(kept)[~fits]] = False
        self.counts.impressions_dead += len(kept) - batch.num_rows
        columns = {name: batch.column(f"_{name}").to_numpy() for name in _IMPRESSION}
        return self._admit(batch, features, columns), kept

    def _admit(self, batch: pa.RecordBatch, features: pa.RecordBatch, columns: dict[str, Array]) -> Slots:  # noqa: ARG002
        """Let impressions wait for their close."""
        slots = self._open.append(features, columns)
        self._open_by_time.add(columns["time"], slots)
        return slots

    def _take_actions(self, batch: pa.RecordBatch) -> tuple[Slots, Array]:
        self.counts.actions += batch.num_rows
        rows, kept = self._fit(ACTIONS, batch, self.schema.waiting_actions)
        codes = self._rules.codes(rows.column(self.options.action_type))
        time, wm = rows.column("_time").to_numpy(), rows.column("_wm").to_numpy()
        unknown = codes < 0
        # Its impression is not after it: past this, no impression is near enough whatever was kept.
        too_late = ~unknown & (wm >= time + self.options.reuse_us)
        if unknown.any():
            self._dead(ACTIONS, rows.filter(pa.array(unknown)), join_outputs.UNKNOWN_ACTION)
        if too_late.any():
            self._unmatched(rows.filter(pa.array(too_late)), join_outputs.TOO_LATE)
        valued, sets = self._rules.valued(codes, rows)
        bad = ~(valued | unknown | too_late)
        if bad.any():
            self._dead(ACTIONS, rows.filter(pa.array(bad)), join_outputs.LABEL_VALUE)
        self.counts.actions_dead += int((~kept).sum() + unknown.sum() + bad.sum())
        good = ~(unknown | too_late | bad)
        kept[np.flatnonzero(kept)[~good]] = False
        if not good.all():
            rows, codes, sets = rows.filter(pa.array(good)), codes[good], sets[good]
        columns = {n: rows.column(f"_{n}").to_numpy() for n in ("hash", "time", "wm", *POSITION)}
        time, wm = columns["time"], columns["wm"]
        # It may be late for an impression iff w has reached the close of the earliest one that is near enough.
        queued = wm >= time
        identity = action_identities(self.options, rows, time)
        slots = self._actions.append(rows, {**columns, "code": codes, "sets": sets, "identity": identity})
        self._actions_by_hash.add(columns["hash"], slots)
        self._actions_by_end.add((time + self._window_us)[~queued], slots[~queued])
        if queued.any():
            self._queue.append(slots[queued])
        return slots, kept

    def _arrived(self, impressions: Slots, actions: Slots) -> None:
        """Complete examples wait for the close."""

    # --- rows go out --------------------------------------------------------------------------

    def _bits(self, actions: Slots, impression_times: Array) -> npt.NDArray[np.uint64]:
        """The labels that actions set on impressions of these times."""
        delays = self._actions.get("time", actions) - impression_times
        return self._rules.bits(self._actions.get("code", actions), delays) & self._actions.get(
            "sets", actions
        )

    def _labels(self, rows: int, which: Array, actions: Slots, bits: Array) -> list[pa.Array]:
        """Label columns of ``rows`` examples, from the actions of each and the labels that they set."""
        valued = self._actions.gather(actions, self._rules.columns) if self._rules.columns else None
        return self._rules.values(rows, which, bits, valued)

    def _example_columns(
        self,
        features: pa.RecordBatch,
        times: Array,
        append: Array,
        hashes: Array,
        labels: list[pa.Array],
        kind: int,
    ) -> list[pa.Array]:
        return [
            *features.columns,
            pa.array(times),
            pa.array(append),
            pa.array(hashes),
            *labels,
            pa.array(np.full(len(times), kind, np.int8)),
        ]

    def _give_primary(
        self,
        features: pa.RecordBatch,
        hashes: Array,
        times: Array,
        append: Array,
        labels: list[pa.Array],
    ) -> None:
        if not len(times):
            return
        self.counts.examples += len(times)
        columns = self._example_columns(features, times, append, hashes, labels, join_outputs.PRIMARY)
        identity = primary_identities(features.select(list(self.options.key)), times)
        batch = [*columns, *(pa.array(part) for part in identity)]
        self._out.examples.append(pa.RecordBatch.from_arrays(batch, schema=self.schema.examples))

    def _late_batch(
        self,
        features: pa.RecordBatch,
        hashes: Array,
        times: Array,
        append: Array,
        identity: Array,
        labels: list[pa.Array],
        adds: Array,
        negative: Array,
    ) -> None:
        self.counts.late += len(times)
        columns = self._example_columns(features, times, append, hashes, labels, join_outputs.LATE)
        ids = late_identities(features.select(list(self.options.key)), times, identity)
        batch = [*columns, *(pa.array(part) for part in ids), pa.array(adds), pa.array(negative)]
        self._out.late.append(pa.RecordBatch.from_arrays(batch, schema=self.schema.late))

    def _drop_repeated(self, actions: Slots) -> None:
        self.counts.actions_repeated += len(actions)
        self._actions.release(actions)

    def _give_unmatched(self, actions: Slots, reason: str) -> None:
        if len(actions):
            self._unmatched(self._actions.gather(actions), reason)
            self._actions.release(actions)

    def _unmatched(self, rows: pa.RecordBatch, reason: str) -> None:
        self.counts.unmatched += rows.num_rows
        columns = [*rows.columns, pa.array([reason] * rows.num_rows, pa.string())]
        self._out.unmatched.append(pa.RecordBatch.from_arrays(columns, schema=self.schema.unmatched))
