"""One shard of the join, with its clock, its pacing and its balance: all of OnlineJoin but Beam.

What a shard does with an element: chain order, rows into the core, clock, and, by the poller's clock that
the element carries, a tick for late actions and a balance record. What it must find again after a
restart is :meth:`JoinShard.save`, written with every change.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from cuckooflow.transforms import join_outputs
from cuckooflow.transforms.balances import JOIN, balance_record
from cuckooflow.transforms.hand_over import HandOver
from cuckooflow.transforms.in_band import END_TIME_US, IMPRESSIONS, NO_TIME_US
from cuckooflow.transforms.in_band_clock import InBandClock
from cuckooflow.transforms.join_eager import new_core
from cuckooflow.transforms.join_outputs import ExamplesSchema, JoinCounts, JoinOutputs, dead_rows
from cuckooflow.transforms.join_state import CellRing, ShardMeta, packed, unpacked
from cuckooflow.transforms.warm_up import WarmUp

#: Buckets of closed impressions that a tick reads back from state for late actions; the others' actions wait.
COLD_READS_OF_A_TICK = 1


@dataclass
class ShardOutputs:
    """What one call gave out.

    Attributes:
        counted: name of a counter -> by how much this call moved it.
    """

    rows: JoinOutputs
    polled_us: int
    balances: list[dict[str, Any]] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)


class JoinShard:
    """Not thread-safe; hold the shard's lock.

    Args:
        shard: its number.
        schema: the job's columns, and the options.
        cells: the shard's state.
        saved: what :meth:`save` gave, to go on from; None for a new shard.
        hand_over: what a backfill has given already; None: nothing.

    Attributes:
        token: of the state that memory equals; None while it is being changed, so that a change that
            fails half-way is not taken for what state says.
        cells: see above.
        recheck_at_us: wall clock of the pending re-check, 0 for none. Not state: the timer is.
        end_armed: whether the timer for the end of the input is set.
    """

    def __init__(
        self,
        shard: int,
        schema: ExamplesSchema,
        cells: CellRing,
        saved: tuple[ShardMeta, bytes] | None,
        hand_over: HandOver | None = None,
    ) -> None:
        self.shard = shard
        self.cells = cells
        self.token: str | None = None
        self.recheck_at_us = 0
        self.end_armed = False
        self._schema = schema
        self._options = schema.options
        self._core = new_core(schema, cells)
        self._clock = InBandClock(self._options.held_elements_max)
        self._meta = ShardMeta("", NO_TIME_US, NO_TIME_US, 0, 0, 0)
        self._reported: dict[str, int] = {}
        self._warm_up = None if hand_over is None else WarmUp(hand_over)
        self._hand_over_us = NO_TIME_US if hand_over is None else hand_over.at_us
        if saved is not None:
            self._meta, blob = saved
            self.cells.resume(self._meta.cells)
            if self._warm_up is not None:
                warm_up, blob = unpacked(blob)
                self._warm_up.restore(warm_up)
            self._clock = InBandClock.from_bytes(blob)
            counts = JoinCounts(**self._meta.counts)
            self._core.rebuild(self._meta.clock_us, self._meta.released_us, counts, self._meta.deferred)
            self.token = self._meta.token
        self._hot_hits, self._cold_reads = self._core.hot_hits, self._core.cold_reads
        self._cold_reads_of_tick = 0

    @property
    def held(self) -> int:
        """Elements that wait for their turn."""
        return self._clock.held

    @property
    def over(self) -> bool:
        """Whether every window is closed and everything was given out."""
        return self._meta.clock_us == END_TIME_US

    @property
    def late_queued(self) -> int:
        """Late actions that wait to be looked up."""
        return self._core.late_queued

    @property
    def late_deferred(self) -> bool:
        """Whether late actions that are due wait for a later tick."""
        return bool(self._core.deferred)

    @property
    def cold_reads(self) -> int:
        """Buckets read back from state since memory was made."""
        return self._core.cold_reads

    @property
    def unreported(self) -> bool:
        """Whether the balance has changed since its last record."""
        return self._counts() != self._reported

    def save(self) -> tuple[ShardMeta, bytes]:
        """What state must hold for memory to be as it now is, under a fresh token."""
        meta = self._meta
        meta.token = self.token = uuid.uuid4().hex
        meta.released_us = self._core.released_us
        meta.deferred = dict(self._core.deferred)
        meta.counts = self._core.counts.to_dict()
        meta.cells = self.cells.save()
        blob = self._clock.to_bytes()
        return meta, blob if self._warm_up is None else packed(self._warm_up.to_bytes(), blob)

    def accept(self, element: pa.RecordBatch) -> ShardOutputs:
        """Take an element.

        Raises:
            ChainOverflow, ChainBroken: from the clock.
        """
        self.token = None
        polled_us = self._meta.polled_us
        for batch, header in self._clock.accept(element):
            self._accept(batch)
            polled_us = max(polled_us, header.polled_us)
        self._meta.polled_us = polled_us
        tick = polled_us - self._meta.tick_us >= self._options.tick_us
        if tick:
            self._meta.tick_us = polled_us
        ended_before = self._meta.clock_us == END_TIME_US
        return self._step(
            self._clock.clock_us(), tick, report=self._due() or (self._clock.ended and not ended_before)
        )

    def _accept(self, batch: pa.RecordBatch) -> None:
        if self._warm_up is not None and not self._warm_up.over:
            batch = self._warm_up.take(batch)
        self._core.accept(batch, self._meta.sequence)
        self._meta.sequence += 1

    def recheck(self) -> ShardOutputs:
        """The input pauses: look up the late actions that are queued, report the balance."""
        self.token = None
        self.recheck_at_us = 0
        return self._step(self._clock.clock_us(), release=True, report=self.unreported)

    def finish(self) -> ShardOutputs:
        """The runner says that nothing will follow.

        If every partition has said so too, but an element before its word was lost, the rows that
        waited for that element are dead letters and everything is given out. If not, the job was
        stopped: nothing drains, only the balance is reported.
        """
        self.token = None
        dead: list[pa.RecordBatch] = []
        clock_us = self._clock.clock_us()
        if self._clock.held and self._clock.end_heard:
            dead = self._give_up(self._clock.release_held())
            clock_us = END_TIME_US
        out = self._step(clock_us, clock_us == END_TIME_US, report=True)
        out.rows.dead[:0] = dead
        return out

    def _give_up(self, held: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
        dead = []
        counts = self._core.counts
        for batch in held:
            for log in sorted(set(batch.column("_log").to_pylist())):
                rows = batch.filter(pa.compute.equal(batch.column("_log"), log))
                declared = self._schema.impressions if log == IMPRESSIONS else self._schema.actions
                values = rows.select([n for n in declared.names if n in rows.schema.names])
                names = ("partition", "offset", "row", "append", "time")
                columns = {name: rows.column(f"_{name}").to_numpy() for name in names}
                dead.append(dead_rows(log, columns, values, join_outputs.CHAIN_GAP))
                if log == IMPRESSIONS:
                    counts.impressions += rows.num_rows
                    counts.impressions_dead += rows.num_rows
                else:
                    counts.actions += rows.num_rows
                    counts.actions_dead += rows.num_rows
        return dead

    def _step(self, clock_us: int, release: bool, report: bool) -> ShardOutputs:
        before = JoinOutputs()
        if self._warm_up is not None and not self._warm_up.over:
            before = self._warm_up.step(self._core, clock_us)
            if clock_us < self._hand_over_us:
                self._meta.clock_us = clock_us
                return ShardOutputs(before, self._meta.polled_us)
            for batch in self._warm_up.end(self._core):
                self._accept(batch)
        self._core.step(clock_us, release, COLD_READS_OF_A_TICK)
        self._meta.clock_us = clock_us
        out = ShardOutputs(
            before.and_then(self._core.take()), self._meta.polled_us, counted=self._looked(release)
        )
        if report:
            self._reported = self._counts()
            self._meta.balance_us = self._meta.polled_us
            final = clock_us == END_TIME_US
            shown_us = self._clock.clock_us()
            out.balances.append(
                balance_record(
                    *(JOIN, self.shard, self._reported, shown_us, self._meta.polled_us, final),
                    self._figures(),
                )
            )
        return out

    def _looked(self, tick: bool) -> dict[str, int]:
        """How closed impressions were found since the last call; a tick's reads are those up to its end."""
        hits, reads = self._core.hot_hits - self._hot_hits, self._core.cold_reads - self._cold_reads
        self._hot_hits, self._cold_reads = self._core.hot_hits, self._core.cold_reads
        before, self._cold_reads_of_tick = self._cold_reads_of_tick, self._cold_reads_of_tick + reads
        beyond = max(0, self._cold_reads_of_tick - 1) - max(0, before - 1)
        if tick:
            self._cold_reads_of_tick = 0
        return {
            "join_ticks": int(tick),
            "join_hot_hits": hits,
            "join_cold_reads": reads,
            "join_cold_reads_beyond_one_a_tick": beyond,
        }

    def _figures(self) -> dict[str, int]:
        return {
            "join_elements_held": self._clock.held,
            "join_late_queued": self._core.late_queued,
            "join_hot_bytes": self._core.hot_bytes,
        }

    def _due(self) -> bool:
        return self._meta.polled_us - self._meta.balance_us >= self._options.balance_interval_us

    def _counts(self) -> dict[str, int]:
        waiting = {
            "impressions_waiting": self._core.impressions_waiting,
            "actions_waiting": self._core.actions_waiting,
        }
        return self._core.counts.to_dict() | waiting
