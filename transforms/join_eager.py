"""Eager emission: a positive as soon as an impression and an on-time action have met.

Differs from :mod:`~cuckooflow.transforms.join_core` in this: keys are settled on arrival, the first arrived
wins; an example positive in some label goes out with the element that completes it, one negative in all
when its window closes; an on-time action that comes after its positive makes a late example if it
adds a label, else it is used. Late actions are treated as there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.transforms import join_outputs
from cuckooflow.transforms.hash_index import HashIndex
from cuckooflow.transforms.in_band import IMPRESSIONS
from cuckooflow.transforms.join_core import JoinCore, earlier_bits, repeated_values
from cuckooflow.transforms.join_outputs import ExamplesSchema
from cuckooflow.transforms.join_rows import ACCEPTED, REPEATED, REUSED, exact_codes, same_keys, settle_keys
from cuckooflow.transforms.join_state import CellRing
from cuckooflow.transforms.slot_table import Slots
from cuckooflow.transforms.sorted_runs import SortedRuns

Array = npt.NDArray[Any]


class EagerJoinCore(JoinCore):
    """As :class:`JoinCore`, for ``emit = "eager"``."""

    def __init__(self, schema: ExamplesSchema, cells: CellRing) -> None:
        super().__init__(schema, cells)
        self._open_by_hash = HashIndex()
        self._met = SortedRuns(np.int64, np.uint64)  # slot of an open impression, identity of a used action
        self._given_open = 0

    @property
    def impressions_waiting(self) -> int:
        """Open impressions whose example is still to come."""
        return self._open.waiting - self._given_open

    def _admit(self, batch: pa.RecordBatch, features: pa.RecordBatch, columns: dict[str, Array]) -> Slots:
        verdict = self._settle_arrivals(features, columns["hash"], columns["time"])
        reused = verdict == REUSED
        if reused.any():
            self._dead(IMPRESSIONS, batch.filter(pa.array(reused)), join_outputs.KEY_REUSED)
        self.counts.impressions_dead += int(reused.sum())
        self.counts.impressions_repeated += int((verdict == REPEATED).sum())
        accepted = verdict == ACCEPTED
        if not accepted.all():
            features = features.filter(pa.array(accepted))
            columns = {name: values[accepted] for name, values in columns.items()}
        nothing = np.zeros(features.num_rows, np.uint64)
        more = {"given": nothing.astype(bool), "primary": nothing, "labels": nothing}
        slots = super()._admit(batch, features, {**columns, **more})
        self._open_by_hash.add(columns["hash"], slots)
        return slots

    def _settle_arrivals(self, features: pa.RecordBatch, hashes: Array, times: Array) -> npt.NDArray[np.int8]:
        involved = repeated_values(hashes)
        reuse_us = self.options.reuse_us
        query, known = self._closed.maybe(hashes, times - reuse_us, times + reuse_us)
        open_query, open_slots = self._open_by_hash.lookup(hashes)
        near = self._open.alive(open_slots)
        open_query, open_slots = open_query[near], np.unique(open_slots[near])
        involved[query] = True
        involved[open_query] = True
        verdict = np.full(len(hashes), ACCEPTED, np.int8)
        rows = np.flatnonzero(involved)
        if not len(rows):
            return verdict
        keys = [features.select(list(self.options.key)).take(pa.array(rows))]
        before = [self._open.get("time", open_slots)]
        if len(open_slots):
            keys.insert(0, self._open.gather(open_slots, self.options.key))
        if len(query):
            closed_keys, closed_times = self._closed_keys(hashes[query], known)
            keys.insert(0, closed_keys)
            before.insert(0, closed_times)
        codes = exact_codes(pa.concat_batches(keys))
        existing = np.arange(len(codes)) < len(codes) - len(rows)
        all_times = np.concatenate((*before, times[rows]))
        settled = settle_keys(codes, all_times, existing, np.arange(len(codes)), reuse_us)
        verdict[rows] = settled[~existing]
        return verdict

    def _arrived(self, impressions: Slots, actions: Slots) -> None:
        hashes = self._open.get("hash", impressions)
        which, waiting = self._actions_by_hash.lookup(hashes)
        alive = self._actions.alive(waiting)
        by_impression = (impressions[which[alive]], waiting[alive])
        which, opened = self._open_by_hash.lookup(self._actions.get("hash", actions))
        alive = self._open.alive(opened)
        # Impressions of this element have met its actions above.
        if len(impressions):
            alive &= opened < impressions[0]
        at = np.concatenate((by_impression[0], opened[alive]))
        met = np.concatenate((by_impression[1], actions[which[alive]]))
        fits = self._within(self._open.get("time", at), met)
        at, met = at[fits], met[fits]
        if not len(at):
            return
        same = same_keys(self._open.gather(at, self.options.key), self._actions.gather(met, self.options.key))
        at, met = at[same], met[same]
        first = self._first_actions(at, met)
        known, identities = self._met.lookup(np.unique(at))
        if len(known):
            # Pairs as one number each: positions in the sorted distinct values of either side.
            owners = np.unique(at)[known]
            names = np.unique(np.concatenate((identities, self._actions.get("identity", met))))
            there = owners * np.int64(len(names)) + np.searchsorted(names, identities)
            here = at * np.int64(len(names)) + np.searchsorted(names, self._actions.get("identity", met))
            first &= ~np.isin(here, there)
        self._drop_repeated(met[~first])
        self._give_met(at[first], met[first])

    def _give_met(self, at: Slots, met: Slots) -> None:
        """Positives for impressions without one; late examples or nothing for the others."""
        if not len(at):
            return
        self._met.add(at, self._actions.get("identity", met))
        bits = self._bits(met, self._open.get("time", at))
        given = self._open.get("given", at)
        self._give_more(at[given], met[given], bits[given])
        at, met, bits = at[~given], met[~given], bits[~given]
        slots, row = np.unique(at, return_inverse=True)
        if len(slots):
            labels = np.zeros(len(slots), np.uint64)
            np.bitwise_or.at(labels, row, bits)
            latest = self._open.get("append", slots)
            np.maximum.at(latest, row, self._actions.get("append", met))
            self._open.put("given", slots, True)
            self._open.put("primary", slots, labels)
            self._open.put("labels", slots, labels)
            self._given_open += len(slots)
            self.counts.used += len(met)
            self._actions.release(met)
            order = np.lexsort([self._open.get(n, slots) for n in ("row", "offset", "partition", "time")])
            slots = slots[order]
            hashes, times = self._open.get("hash", slots), self._open.get("time", slots)
            columns = self._rules.values(len(slots), np.arange(len(slots)), labels[order], None)
            self._give_primary(self._open.gather(slots), hashes, times, latest[order], columns)

    def _give_more(self, at: Slots, met: Slots, bits: Array) -> None:
        if not len(at):
            return
        order = np.lexsort([self._actions.get(n, met) for n in ("row", "offset", "partition", "time")])
        at, met, bits = at[order], met[order], bits[order]
        before = self._open.get("labels", at) | earlier_bits(np.zeros_like(at), at, bits)
        adds = (bits & ~before) != 0
        self.counts.used += int((~adds).sum())
        self._actions.release(met[~adds])
        at, met, bits = at[adds], met[adds], bits[adds]
        if not len(at):
            return
        slots, row = np.unique(at, return_inverse=True)
        labels = self._open.get("labels", slots)
        np.bitwise_or.at(labels, row, bits)
        self._open.put("labels", slots, labels)
        append = np.maximum(self._open.get("append", at), self._actions.get("append", met))
        hashes, times = self._open.get("hash", at), self._open.get("time", at)
        identity = self._actions.get("identity", met)
        never = np.zeros(len(at), bool)
        columns = self._rules.values(len(at), np.arange(len(at)), bits, None)
        self._late_batch(self._open.gather(at), hashes, times, append, identity, columns, ~never, never)
        self._actions.release(met)

    def _close(self, clock_us: int) -> None:
        _, slots = self._open_by_time.pop_through(clock_us - self._window_us)
        if not len(slots):
            return
        slots = self._in_time_order(slots)
        features = self._open.gather(slots)
        # What is inside its label's window met its impression when the later of the two arrived.
        left, _, _ = self._on_time(features, self._open.get("hash", slots), self._open.get("time", slots))
        assert not len(left)
        state = {f"_{n}": self._open.get(n, slots) for n in ("hash", "time", "append", "primary", "labels")}
        negative = ~self._open.get("given", slots)
        rows = np.flatnonzero(negative)
        if len(rows):
            hashes, times, append = (state[name][rows] for name in ("_hash", "_time", "_append"))
            columns = self._rules.values(len(rows), rows[:0], np.empty(0, np.uint64), None)
            self._give_primary(features.take(pa.array(rows)), hashes, times, append, columns)
        query, identities = self._met.lookup(slots)
        self._closed.add(features, state, query, identities)
        self._given_open -= int((~negative).sum())
        self._open.release(slots)
        if 2 * self._open.waiting < len(self._open_by_hash) - 65_536:
            self._open_by_hash.retain(lambda _, at: self._open.alive(at))
            self._met.retain(lambda at, _: self._open.alive(at))


def new_core(schema: ExamplesSchema, cells: CellRing) -> JoinCore:
    """The core that the options ask for."""
    return EagerJoinCore(schema, cells) if schema.options.emit == "eager" else JoinCore(schema, cells)
