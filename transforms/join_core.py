"""The join of one shard, over arrays: rows and a clock in, examples out. No Beam, no time of its own.

What decides, with ``W`` the longest label window, ``H`` the late horizon, ``i`` an impression's event
time, ``a`` an action's, ``w`` a row's ``_wm`` (its own partition's watermark just before it), and
``clock`` the lowest watermark of all partitions:

- An impression with ``w >= i + W`` is late: a dead letter. The others are settled when the clock
  reaches ``i + W``, in event-time order: accepted, a repeat, or a reused key.
- An action belongs to the accepted impression of its key with ``0 <= a - i <= window`` of its type. With
  ``w < i + W`` it is used in the example. With ``i + W <= w < i + W + H`` it makes one late example, once
  ``clock > w``: late actions are taken in the order of ``(w, partition, offset, row)``.
- An action on time but outside its label's window is unmatched when its impression closes.
- An action that found no impression is unmatched when ``clock >= a + W`` (and ``clock > w``).
- Late actions whose impressions are not in memory may wait longer, until their bucket is read (``cold_reads``), at
  the latest until it is about to be cleared.

A row with ``w < i + W`` arrives while ``clock <= w``, so everything that an impression's close
depends on is there when it closes: the outcome is the same however partitions interleave. It also
lets memory be rebuilt by taking the rows in the state cells again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.transforms import join_outputs
from cuckooflow.transforms.closed_impressions import does_not_fit
from cuckooflow.transforms.cold_reads import actions_that_wait, actions_that_waited
from cuckooflow.transforms.in_band import END_TIME_US, IMPRESSIONS, NO_TIME_US
from cuckooflow.transforms.join_intake import POSITION, JoinIntake
from cuckooflow.transforms.join_outputs import JoinCounts, dead_rows
from cuckooflow.transforms.join_rows import (
    ACCEPTED,
    REPEATED,
    REUSED,
    exact_codes,
    first_of_each,
    same_keys,
    settle_keys,
)
from cuckooflow.transforms.slot_table import Slots

Array = npt.NDArray[Any]


class JoinCore(JoinIntake):
    """Emits ``complete`` examples; :class:`~cuckooflow.transforms.join_eager.EagerJoinCore` eager ones.

    Call :meth:`accept` for every element in chain order, then :meth:`step` with the clock, then
    :meth:`take`. Not thread-safe.
    """

    # --- the clock moves ----------------------------------------------------------------------

    def step(self, clock_us: int, release: bool, cold_reads_max: int | None = None) -> None:
        """Close what the clock has passed; look up late actions if ``release``, or if it must be now.

        Args:
            cold_reads_max: buckets of closed impressions to read back from state for them, but for those that are
                about to be cleared; None: whatever is wanted. At the end of all inputs it is as None.
        """
        if clock_us == NO_TIME_US:
            return
        self._close(clock_us)
        oldest_bucket = (clock_us - self.options.keep_us) // self.options.bucket_us
        if cold_reads_max is None or clock_us == END_TIME_US:
            if release or clock_us == END_TIME_US or self._closed.any_before(oldest_bucket):
                self.release_late(clock_us)
        elif release or self._closed.any_before(oldest_bucket):
            self.release_late(clock_us, cold_reads_max if release else 0, oldest_bucket)
        self._expire(clock_us)
        self._settle_cells(clock_us, oldest_bucket)
        self._closed.evict()
        if 2 * self._actions.waiting < len(self._actions_by_hash) - 65_536:
            self._actions_by_hash.retain(lambda _, slots: self._actions.alive(slots))
            self._actions_by_end.retain(lambda _, slots: self._actions.alive(slots))

    def _in_time_order(self, slots: Slots) -> Slots:
        times = self._open.get("time", slots)
        order = np.argsort(times, kind="stable")  # of a few sorted runs: linear
        slots, times = slots[order], times[order]
        same = np.diff(times) == 0
        tied = np.flatnonzero(np.concatenate(([False], same)) | np.concatenate((same, [False])))
        if len(tied):
            columns = [self._open.get(name, slots[tied]) for name in ("row", "offset", "partition", "time")]
            slots[tied] = slots[tied][np.lexsort(columns)]
        return slots

    def _close(self, clock_us: int) -> None:
        _, slots = self._open_by_time.pop_through(clock_us - self._window_us)
        if not len(slots):
            return
        slots = self._in_time_order(slots)
        verdict = self._settle(slots)
        refused = slots[verdict == REUSED]
        if len(refused):
            position = {name: self._open.get(name, refused) for name in (*POSITION, "time")}
            rows = self._open.gather(refused)
            self._out.dead.append(dead_rows(IMPRESSIONS, position, rows, join_outputs.KEY_REUSED))
        self.counts.impressions_dead += len(refused)
        self.counts.impressions_repeated += int((verdict == REPEATED).sum())
        accepted = slots[verdict == ACCEPTED]
        features = self._open.gather(accepted)
        hashes, times = self._open.get("hash", accepted), self._open.get("time", accepted)
        which, used, bits = self._on_time(features, hashes, times)
        labels = np.zeros(len(accepted), np.uint64)
        np.bitwise_or.at(labels, which, bits)
        append = self._open.get("append", accepted)
        latest = append.copy()
        np.maximum.at(latest, which, self._actions.get("append", used))
        state = {"_hash": hashes, "_time": times, "_append": append, "_primary": labels, "_labels": labels}
        columns = self._labels(len(accepted), which, used, bits)
        self._give_primary(features, hashes, times, latest, columns)
        self._closed.add(features, state, which, self._actions.get("identity", used))
        self._actions.release(used)
        self._open.release(slots)

    def _settle(self, slots: Slots) -> npt.NDArray[np.int8]:
        """Accepted, repeated or reused, for impressions that close, given in event-time order."""
        hashes, times = self._open.get("hash", slots), self._open.get("time", slots)
        involved = repeated_values(hashes)
        query, known = self._closed.maybe(hashes, times - self.options.reuse_us, times)
        involved[query] = True
        verdict = np.full(len(slots), ACCEPTED, np.int8)
        rows = np.flatnonzero(involved)
        if len(rows):
            keys = [self._open.gather(slots[rows], self.options.key)]
            known_times = np.empty(0, np.int64)
            if len(query):
                keys_before, known_times = self._closed_keys(hashes[query], known)
                keys.insert(0, keys_before)
            codes = exact_codes(pa.concat_batches(keys))
            all_times = np.concatenate((known_times, times[rows]))
            existing = np.arange(len(codes)) < len(known_times)
            settled = settle_keys(codes, all_times, existing, np.arange(len(codes)), self.options.reuse_us)
            verdict[rows] = settled[len(known_times) :]
        return verdict

    def _closed_keys(self, hashes: Array, times: Array) -> tuple[pa.RecordBatch, Array]:
        """Keys and times of the closed impressions of these hashes and times, each once."""
        pairs = np.unique(np.stack((hashes.view(np.int64), times)), axis=1)
        _, buckets, at = self._closed.locate(pairs[0].view(np.uint64), pairs[1])
        keys, state = self._closed.gather(buckets, at, self.options.key)
        return keys, state["_time"]

    def _on_time(self, features: pa.RecordBatch, hashes: Array, times: Array) -> tuple[Array, Slots, Array]:
        """(row, action, label bits) of the actions that these closing impressions use.

        Their repeats go, and so do those on time for the impression but outside their label's window.
        """
        which, actions = self._actions_by_hash.lookup(hashes)
        alive = self._actions.alive(actions)
        which, actions = which[alive], actions[alive]
        delays = self._actions.get("time", actions) - times[which]
        closes = times[which] + self._window_us
        theirs = (delays >= 0) & (delays <= self._window_us) & (self._actions.get("wm", actions) < closes)
        which, actions = which[theirs], actions[theirs]
        if len(which):
            keys = features.select(list(self.options.key)).take(pa.array(which))
            same = same_keys(keys, self._actions.gather(actions, self.options.key))
            which, actions = which[same], actions[same]
        inside = self._within(times[which], actions)
        self._give_unmatched(actions[~inside], join_outputs.OUTSIDE_WINDOW)
        which, actions = which[inside], actions[inside]
        first = self._first_actions(which, actions)
        self.counts.used += int(first.sum())
        self._drop_repeated(actions[~first])
        which, actions = which[first], actions[first]
        return which, actions, self._bits(actions, times[which])

    def _within(self, times: Array, actions: Slots) -> npt.NDArray[np.bool_]:
        """Which actions are on time for an impression at these times, and inside a label's window."""
        delays = self._actions.get("time", actions) - times
        windows = self._rules.windows_us[self._actions.get("code", actions)]
        fits: npt.NDArray[np.bool_] = (delays >= 0) & (delays <= windows)
        return fits & (self._actions.get("wm", actions) < times + self._window_us)

    def _first_actions(self, which: Array, actions: Slots) -> npt.NDArray[np.bool_]:
        """Marks one of the actions of each identity on each impression."""
        order = [self._actions.get(name, actions) for name in ("time", "partition", "offset", "row")]
        return first_of_each([which, self._actions.get("identity", actions)], order)

    def release_late(
        self, clock_us: int, cold_reads_max: int | None = None, forced_before: int | None = None
    ) -> None:
        """Look up the late actions that the clock has passed, each bucket of impressions read once.

        Args:
            cold_reads_max: see :meth:`step`.
            forced_before: buckets before this one are read whatever it costs.
        """
        before_us, self.released_us = self.released_us, max(self.released_us, clock_us)
        slots = self._due(clock_us)
        if cold_reads_max is None:
            self.deferred = {}
        else:
            query, buckets = self._candidates(slots)
            free = np.array(
                [number for number in np.unique(buckets) if self._closed.is_hot(number)], np.int64
            )
            forced = buckets[:0] if forced_before is None else buckets[buckets < forced_before]
            waits, wanted = actions_that_wait(query, buckets, free, forced, cold_reads_max)
            self.deferred = {number: self.deferred.get(number, before_us) for number in wanted.tolist()}
            slots = self._without(slots, waits)
        self._look_up(slots)

    def _due(self, clock_us: int) -> Slots:
        """The late actions that the clock has passed, in the order in which they are looked up, off the queue."""
        slots = np.concatenate([np.empty(0, np.int64), *self._queue])
        slots = slots[self._actions.alive(slots)]
        due = self._actions.get("wm", slots) < clock_us
        self._queue = [slots[~due]] if not due.all() else []
        slots = slots[due]
        order = [self._actions.get(name, slots) for name in ("row", "offset", "partition", "wm")]
        return slots[np.lexsort(order)]

    def _candidates(self, actions: Slots) -> tuple[Array, Array]:
        """(index, bucket) of what may be the closed impression of each action."""
        times, hashes = self._actions.get("time", actions), self._actions.get("hash", actions)
        query, known = self._closed.maybe(hashes, times - self._window_us, times)
        return query, known // self.options.bucket_us

    def _without(self, slots: Slots, waits: Array) -> Slots:
        """Put some back into the queue."""
        if len(waits):
            self._queue.append(slots[waits])
        return np.delete(slots, waits)

    def _look_up(self, slots: Slots) -> None:
        if not len(slots):
            return
        query, buckets, at = self._their_impressions(slots)
        if len(query):
            self._give_late(slots[query], buckets, at)
        slots = slots[self._actions.alive(slots)]
        self._actions_by_end.add(self._actions.get("time", slots) + self._window_us, slots)

    def _their_impressions(self, actions: Slots) -> tuple[Array, Array, Slots]:
        """(index, bucket, slot) of the closed impression of each action that has one within the window.

        In the order of ``actions``; an action has at most one, as a key's impressions lie further apart.
        """
        times, hashes = self._actions.get("time", actions), self._actions.get("hash", actions)
        query, known = self._closed.maybe(hashes, times - self._window_us, times)
        if not len(query):
            return query, query, query
        sub, buckets, at = self._closed.locate(hashes[query], known)
        query = query[sub]
        # Two impressions of one hash and time were both candidates and both found: keep a pair once.
        first = first_of_each([query, buckets, at], [])
        query, buckets, at = query[first], buckets[first], at[first]
        keys, _ = self._closed.gather(buckets, at, self.options.key)
        same = same_keys(keys, self._actions.gather(actions[query], self.options.key))
        query, buckets, at = query[same], buckets[same], at[same]
        order = np.argsort(query, kind="stable")
        return query[order], buckets[order], at[order]

    def _give_late(self, actions: Slots, buckets: Array, at: Slots) -> None:
        _, state = self._closed.gather(buckets, at, self.options.key)
        closes = state["_time"] + self._window_us
        delays = self._actions.get("time", actions) - state["_time"]
        codes, wm = self._actions.get("code", actions), self._actions.get("wm", actions)
        identity = self._actions.get("identity", actions)
        outside = delays > self._rules.windows_us[codes]
        too_late = ~outside & (wm >= closes + self.options.late_horizon_us)
        self._give_unmatched(actions[outside], join_outputs.OUTSIDE_WINDOW)
        self._give_unmatched(actions[too_late], join_outputs.TOO_LATE)
        seen = np.zeros(len(actions), bool)
        for number in np.unique(buckets).tolist():
            mine = buckets == number
            seen[mine] = self._closed.bucket(number).seen(at[mine], identity[mine])
        candidate = ~(outside | too_late)
        # On time for its impression and yet here: memory was rebuilt, and it was used before.
        fresh = candidate & ~seen & (wm >= closes)
        rows = np.flatnonzero(fresh)
        first = first_of_each([buckets[rows], at[rows], identity[rows]], [rows])
        repeated = candidate.copy()
        repeated[rows[first]] = False
        rows = rows[first]
        self._drop_repeated(actions[repeated])
        if len(rows):
            bits = self._bits(actions[rows], state["_time"][rows])
            before = state["_labels"][rows] | earlier_bits(buckets[rows], at[rows], bits)
            self._give_late_examples(actions[rows], buckets[rows], at[rows], bits, adds=(bits & ~before) != 0)

    def _give_late_examples(
        self, actions: Slots, buckets: Array, at: Slots, bits: Array, adds: Array
    ) -> None:
        features, state = self._closed.gather(buckets, at)
        append = np.maximum(state["_append"], self._actions.get("append", actions))
        identity = self._actions.get("identity", actions)
        negative = state["_primary"] == 0
        labels = self._labels(len(actions), np.arange(len(actions)), actions, bits)
        self._late_batch(features, state["_hash"], state["_time"], append, identity, labels, adds, negative)
        for number in np.unique(buckets).tolist():
            mine = buckets == number
            self._closed.mark(number, at[mine], identity[mine], bits[mine])
        self._actions.release(actions)

    def _expire(self, clock_us: int) -> None:
        """Actions whose impression can no longer come, and that were looked up where it had come before them."""
        _, slots = self._actions_by_end.pop_through(clock_us)
        slots = slots[self._actions.alive(slots)]
        if len(slots):
            self._give_unmatched(np.sort(slots), join_outputs.NO_IMPRESSION)

    # --- state --------------------------------------------------------------------------------

    def _settle_cells(self, clock_us: int, oldest_bucket: int) -> None:
        """Seal the cells that are wholly closed, clear those that nothing asks for any more."""
        for number in self._cells.before(oldest_bucket):
            self._cells.clear(number)
        self._closed.forget(oldest_bucket)
        self._cells.advance(oldest_bucket)
        closed_before = (clock_us - self._window_us) // self.options.bucket_us
        for number in self._cells.before(closed_before):
            if number in self._closed.sealed:
                continue
            self._closed.seal(number)
            for queued in self._queue:  # some were used meanwhile, by an impression that closed
                slots = queued[self._actions.alive(queued)]
                slots = slots[self._actions.get("time", slots) // self.options.bucket_us == number]
                if len(slots):
                    self._cells.add_rows(self._actions.gather(slots), 0)

    def rebuild(
        self, clock_us: int, released_us: int, counts: JoinCounts, deferred: Mapping[int, int] | None = None
    ) -> None:
        """Make memory what the state cells say, silently; for a new core, before anything else.

        Args:
            clock_us: up to which windows were closed.
            released_us: up to which late actions were looked up.
            counts: as they stood.
            deferred: see :attr:`deferred`.

        Raises:
            StateDoesNotFit: a column's type was changed since, and a value in state is not of the new one.
        """
        loose: list[tuple[int, pa.RecordBatch]] = []
        for number, content in self._cells.everything():
            if number is not None:
                self._closed.restore(number, content)
            loose += self._cells.rows(content)
        for sequence, batch in _by_element(loose):
            self.accept(batch, sequence, journal=False)
        self._check_fits()
        if clock_us != NO_TIME_US:
            self._close(clock_us)
            self._drop_decided()
            self.deferred = dict(deferred or {})
            slots = self._due(released_us)
            query, buckets = self._candidates(slots)
            wm = self._actions.get("wm", slots)[query]
            self._look_up(self._without(slots, actions_that_waited(query, buckets, wm, self.deferred)))
            self._expire(clock_us)
        self.released_us = released_us
        self.take()
        self.counts = counts
        self._closed.evict()

    def _check_fits(self) -> None:
        """Nothing that was accepted may be refused now: it would be lost, or told and counted at each rebuild."""
        for letters in self._out.dead:
            for letter in letters.to_pylist():
                if letter["reason"] == join_outputs.SCHEMA_MISMATCH:
                    raise does_not_fit(letter["detail"])

    def _drop_decided(self) -> None:
        """After a rebuild: release the actions that were decided when their impression closed."""
        actions = self._actions.live_slots()
        query, buckets, at = self._their_impressions(actions)
        if len(query):
            _, state = self._closed.gather(buckets, at, self.options.key)
            actions = actions[query]
            decided = self._actions.get("wm", actions) < state["_time"] + self._window_us
            self._actions.release(actions[decided])


def repeated_values(values: Array) -> npt.NDArray[np.bool_]:
    """Marks every value that occurs more than once."""
    order = np.argsort(values)
    equal = np.diff(values[order]) == 0
    marks = np.zeros(len(values), bool)
    marks[order[1:][equal]] = True
    marks[order[:-1][equal]] = True
    return marks


def earlier_bits(buckets: Array, at: Array, bits: Array) -> npt.NDArray[np.uint64]:
    """For each row, the bits of the rows before it on the same impression."""
    order = np.lexsort((np.arange(len(at)), at, buckets))
    before = np.zeros(len(at), np.uint64)
    same = (np.diff(buckets[order]) == 0) & (np.diff(at[order]) == 0)
    while same.any():  # a round carries bits one row on; rounds are the late actions of one impression
        carried = np.where(same, bits[order[:-1]] | before[order[:-1]], np.uint64(0))
        merged = before[order[1:]] | carried
        if (merged == before[order[1:]]).all():
            break
        before[order[1:]] = merged
    return before


def _by_element(loose: list[tuple[int, pa.RecordBatch]]) -> Iterable[tuple[int, pa.RecordBatch]]:
    """Journaled rows put together again as the elements that they came in, in order."""
    parts: dict[int, list[pa.RecordBatch]] = {}
    for sequence, batch in loose:
        parts.setdefault(sequence, []).append(batch)
    for sequence in sorted(parts):
        tables = [pa.Table.from_batches([batch.replace_schema_metadata(None)]) for batch in parts[sequence]]
        joined = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        keys = [joined.column(name).to_numpy() for name in ("_row", "_offset", "_partition", "_log")]
        yield sequence, joined.take(pa.array(np.lexsort(keys))).combine_chunks().to_batches()[0]
