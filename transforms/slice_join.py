"""The join of one time slice: shuffled rows in, the rows that a stream would have given out for that slice.

A slice owns the impressions and the actions whose event time lies in ``[start, end)``. What becomes of them
depends on rows nearby only, which the slice is handed too: an impression on the actions of the ``window``
after it; an action on the impressions of the ``window`` before it, and on their other actions. Arrival does
not matter beyond each row's ``_wm``, so the late horizon asks for no further rows: an action that came a day
late has its own event time. The one thing that reaches further back is a reused key, and
:mod:`~cuckooflow.transforms.key_settlement` has settled that before.

The rows go into the core that the stream uses, and its clock moves once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.transforms import join_outputs
from cuckooflow.transforms.dead_letters import no_dead_letters
from cuckooflow.transforms.in_band import END_TIME_US, IMPRESSIONS, LOG_NAMES
from cuckooflow.transforms.join_core import JoinCore
from cuckooflow.transforms.join_outputs import ExamplesSchema, JoinCounts
from cuckooflow.transforms.join_rows import ACCEPTED, REPEATED, REUSED
from cuckooflow.transforms.join_state import CellRing, ListBag
from cuckooflow.transforms.slot_table import Slots

Array = npt.NDArray[Any]

_POSITION = ("_partition", "_offset", "_row")


@dataclass
class SliceOutputs:
    """What a slice gives out, each in a fixed order whatever order its rows came in.

    Attributes:
        examples: by event time, then by the impression's position.
        late: in the order in which a stream looks late actions up.
        unmatched: by event time, then by position.
        dead: by log and position.
        counts: of the rows that the slice owns.
        impressions_waiting, actions_waiting: of those, what is not decided at the clock.
    """

    examples: pa.RecordBatch
    late: pa.RecordBatch
    unmatched: pa.RecordBatch
    dead: pa.RecordBatch
    counts: JoinCounts = field(default_factory=JoinCounts)
    impressions_waiting: int = 0
    actions_waiting: int = 0


def complete(schema: ExamplesSchema) -> ExamplesSchema:
    """The schema with ``emit = "complete"``: what an eager stream gives depends on the arrival of its rows."""
    return replace(schema, options=replace(schema.options, emit="complete"))


def join_slice(
    schema: ExamplesSchema,
    impressions: pa.RecordBatch,
    actions: pa.RecordBatch,
    verdicts: npt.NDArray[np.int8],
    start_us: int,
    end_us: int,
    clock_us: int = END_TIME_US,
) -> SliceOutputs:
    """Join a slice.

    Args:
        schema: the job's columns and options; ``emit`` is taken as ``complete``.
        impressions: (n,) rows in any order with their declared columns and ``ROW_COLUMNS``, at least all of
            ``[start - window, end)``.
        actions: the same, at least all of ``[start - window, end + window]``.
        verdicts: (n,) of the impressions, from the settlement of keys; those of late ones are not asked for.
        start_us, end_us: event times that the slice owns, half open, microseconds.
        clock_us: what a stream has given out when its clock is here; default the end of the input.
    """
    core = _SliceCore(complete(schema), start_us, end_us)
    impressions, verdicts = _arrived(impressions, clock_us, verdicts)
    actions, _ = _arrived(actions, clock_us)
    window_us = schema.options.window_us
    # Those that are late are refused on their arrival, before their key is looked at.
    on_time = impressions.column("_wm").to_numpy() < impressions.column("_time").to_numpy() + window_us
    refused = on_time & (verdicts != ACCEPTED)
    joined = impressions.filter(pa.array(~refused))
    core.take_in(joined, actions)
    core.step(clock_us, release=True)
    out = _sorted(core)
    _add_refused(out, core, impressions, verdicts, refused & core.owned(impressions), clock_us)
    out.counts.impressions = int(core.owned(impressions).sum())
    out.counts.actions = int(core.owned(actions).sum())
    return out


def _arrived(
    rows: pa.RecordBatch, clock_us: int, verdicts: npt.NDArray[np.int8] | None = None
) -> tuple[pa.RecordBatch, npt.NDArray[np.int8]]:
    """The rows that every stream has read when its clock is there, in the order of time and position."""
    keys = [rows.column(name).to_numpy() for name in (*reversed(_POSITION), "_time")]
    order = np.lexsort(keys)
    order = order[rows.column("_wm").to_numpy()[order] < clock_us]
    verdict = np.empty(0, np.int8) if verdicts is None else verdicts[order]
    return rows.take(pa.array(order)), verdict


class _SliceCore(JoinCore):
    """A core that counts the rows that its slice owns, and keeps no state."""

    def __init__(self, schema: ExamplesSchema, start_us: int, end_us: int) -> None:
        options = schema.options
        bags = [ListBag() for _ in range(options.state_buckets)]
        super().__init__(schema, CellRing(bags, ListBag(), options.bucket_us))
        self._start_us, self._end_us = start_us, end_us
        self.of_slice = JoinCounts()

    def inside(self, times: Array) -> npt.NDArray[np.bool_]:
        """Which event times the slice owns."""
        return np.asarray((times >= self._start_us) & (times < self._end_us), np.bool_)

    def owned(self, rows: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Which rows the slice owns."""
        return self.inside(rows.column("_time").to_numpy())

    def take_in(self, impressions: pa.RecordBatch, actions: pa.RecordBatch) -> None:
        """Accept all rows; what the arrival of those that others own gives out is theirs to give."""
        for rows in (impressions, actions):
            self.accept(rows.filter(pa.array(~self.owned(rows))), 0, journal=False)
        self.take()
        for rows in (impressions, actions):
            self.accept(rows.filter(pa.array(self.owned(rows))), 0, journal=False)

    def waiting(self) -> tuple[int, int]:
        """Impressions and actions of the slice that are not decided."""
        opened = self._open.get("time", self._open.live_slots())
        waiting = self._actions.get("time", self._actions.live_slots())
        return int(self.inside(opened).sum()), int(self.inside(waiting).sum())

    def _of_slice(self, actions: Slots) -> int:
        return int(self.inside(self._actions.get("time", actions)).sum())

    def _on_time(self, features: pa.RecordBatch, hashes: Array, times: Array) -> tuple[Array, Slots, Array]:
        which, used, bits = super()._on_time(features, hashes, times)
        self.of_slice.used += self._of_slice(used)
        return which, used, bits

    def _give_late_examples(
        self, actions: Slots, buckets: Array, at: Slots, bits: Array, adds: Array
    ) -> None:
        self.of_slice.late += self._of_slice(actions)
        super()._give_late_examples(actions, buckets, at, bits, adds)

    def _drop_repeated(self, actions: Slots) -> None:
        self.of_slice.actions_repeated += self._of_slice(actions)
        super()._drop_repeated(actions)


def _sorted(core: _SliceCore) -> SliceOutputs:
    """What the core gave out of the slice's own rows."""
    given = core.take()
    examples = _mine(core, given.examples, core.schema.examples)
    late = _mine(core, given.late, core.schema.late)
    unmatched = _by(_mine(core, given.unmatched, core.schema.unmatched), ("_time", *_POSITION))
    dead = pa.concat_batches([no_dead_letters(), *given.dead])
    assert join_outputs.KEY_REUSED not in dead.column("reason").to_pylist(), "keys were settled before"
    counts = core.of_slice
    counts.examples, counts.unmatched = examples.num_rows, unmatched.num_rows
    of_impressions = pa.compute.equal(dead.column("log"), LOG_NAMES[IMPRESSIONS])
    counts.impressions_dead = int(pa.compute.sum(of_impressions).as_py() or 0)
    counts.actions_dead = dead.num_rows - counts.impressions_dead
    return SliceOutputs(examples, late, unmatched, dead, counts, *core.waiting())


def _mine(core: _SliceCore, batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    none = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)
    rows = pa.concat_batches([none, *batches])
    return rows.filter(pa.array(core.owned(rows)))


def _by(rows: pa.RecordBatch, names: tuple[str, ...]) -> pa.RecordBatch:
    return rows.sort_by([(name, "ascending") for name in names])


def _add_refused(
    out: SliceOutputs,
    core: _SliceCore,
    impressions: pa.RecordBatch,
    verdicts: npt.NDArray[np.int8],
    refused: npt.NDArray[np.bool_],
    clock_us: int,
) -> None:
    """Reused keys as dead letters and repeats as counts, once their window has closed."""
    window_us = core.options.window_us
    closed = impressions.column("_time").to_numpy() <= clock_us - window_us
    out.impressions_waiting += int((refused & ~closed).sum())
    out.counts.impressions_repeated += int((refused & closed & (verdicts == REPEATED)).sum())
    reused = impressions.filter(pa.array(refused & closed & (verdicts == REUSED)))
    out.counts.impressions_dead += reused.num_rows
    position = {
        name: reused.column(f"_{name}").to_numpy()
        for name in ("partition", "offset", "row", "append", "time")
    }
    declared = reused.select(core.schema.impressions.names)
    letters = join_outputs.dead_rows(IMPRESSIONS, position, declared, join_outputs.KEY_REUSED)
    out.dead = _by(pa.concat_batches([out.dead, letters]), ("log", "partition", "offset", "row"))
