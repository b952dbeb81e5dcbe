"""What a shard of a live join does until its clock has passed the reading at which a backfill handed over.

Its core takes the rows that an uninterrupted stream had taken by then, and its outputs are discarded: the
backfill has given them. Rows behind the hand-over, by their own partition's watermark, wait meanwhile. When
the clock has passed, the core is what the uninterrupted stream's is at that reading, and goes on as usual.
"""

from __future__ import annotations

import json
import struct

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.transforms.batch_bytes import decode_batch, encode_batch
from cuckooflow.transforms.hand_over import HandOver
from cuckooflow.transforms.in_band import IMPRESSIONS, LOG_NAMES
from cuckooflow.transforms.join_core import JoinCore
from cuckooflow.transforms.join_outputs import JoinCounts, JoinOutputs

_LENGTH = struct.Struct("<I")
Bools = npt.NDArray[np.bool_]


class WarmUp:
    """Between the core and the elements while it lasts. Not thread-safe.

    Attributes:
        over: whether it has.
    """

    def __init__(self, hand_over: HandOver) -> None:
        self._hand_over = hand_over
        self._refused = set(hand_over.refused)
        self._refused_offsets = np.array(sorted({offset for _, offset, _ in hand_over.refused}), np.int64)
        self._later: list[pa.RecordBatch] = []
        self._kept = JoinCounts()
        self.over = False

    def take(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of an element that the core gets now; those behind the hand-over wait."""
        behind = batch.column("_wm").to_numpy() >= self._hand_over.at_us
        if behind.any():
            self._later.append(batch.filter(pa.array(behind)).replace_schema_metadata(None))
        wanted = ~behind & (batch.column("_time").to_numpy() >= self._hand_over.since_us)
        wanted &= ~self._lost_its_key(batch, wanted)
        return batch if wanted.all() else batch.filter(pa.array(wanted))

    def _lost_its_key(self, batch: pa.RecordBatch, wanted: Bools) -> Bools:
        lost = np.zeros(batch.num_rows, np.bool_)
        candidates = wanted & (batch.column("_log").to_numpy() == IMPRESSIONS)
        candidates &= np.isin(batch.column("_offset").to_numpy(), self._refused_offsets)
        rows = np.flatnonzero(candidates)
        places = batch.select(["_partition", "_offset", "_row"]).take(pa.array(rows))
        for row, place in zip(
            rows.tolist(), zip(*(c.to_pylist() for c in places.columns), strict=True), strict=True
        ):
            lost[row] = place in self._refused
        return lost

    def step(self, core: JoinCore, clock_us: int) -> JoinOutputs:
        """Move the core's clock, not past the hand-over; what it gives that is not the backfill's."""
        at_us = self._hand_over.at_us
        core.step(min(clock_us, at_us), release=True)
        out = core.take()
        open_us = at_us - self._hand_over.window_us + 1
        until_us = self._hand_over.until_us
        kept = JoinOutputs(
            examples=_from(out.examples, open_us),
            late=_from(out.late, open_us),
            unmatched=_from(out.unmatched, until_us),
            dead=[b for batch in out.dead for b in _letters_from(batch, open_us, until_us)],
        )
        self._count(kept)
        return kept

    def _count(self, kept: JoinOutputs) -> None:
        n = {name: sum(b.num_rows for b in getattr(kept, name)) for name in ("examples", "late", "unmatched")}
        dead = [log for batch in kept.dead for log in batch.column("log").to_pylist()]
        dead_impressions = dead.count(LOG_NAMES[IMPRESSIONS])
        dead_actions = len(dead) - dead_impressions
        counts = self._kept
        counts.impressions += n["examples"] + dead_impressions
        counts.examples += n["examples"]
        counts.impressions_dead += dead_impressions
        counts.actions += n["late"] + n["unmatched"] + dead_actions
        counts.late += n["late"]
        counts.unmatched += n["unmatched"]
        counts.actions_dead += dead_actions

    def end(self, core: JoinCore) -> list[pa.RecordBatch]:
        """The clock has passed: count anew from what waits, and give the rows that waited to be accepted."""
        core.counts = self._kept
        core.counts.impressions += core.impressions_waiting
        core.counts.actions += core.actions_waiting
        later, self._later = self._later, []
        self.over = True
        return later

    def to_bytes(self) -> bytes:
        """What it holds, and whether it is over."""
        head = json.dumps({"over": self.over, "kept": self._kept.to_dict()}).encode()
        parts = [head, *(encode_batch(batch) for batch in self._later)]
        return b"".join(_LENGTH.pack(len(part)) + part for part in parts)

    def restore(self, blob: bytes) -> None:
        """What :meth:`to_bytes` gave."""
        parts, at = [], 0
        while at < len(blob):
            (length,) = _LENGTH.unpack_from(blob, at)
            parts.append(blob[at + _LENGTH.size : at + _LENGTH.size + length])
            at += _LENGTH.size + length
        head = json.loads(parts[0])
        self.over, self._kept = head["over"], JoinCounts(**head["kept"])
        self._later = [decode_batch(part) for part in parts[1:]]


def _from(batches: list[pa.RecordBatch], time_us: int) -> list[pa.RecordBatch]:
    """Rows with this event time or a later one."""
    kept = (batch.filter(pa.array(batch.column("_time").to_numpy() >= time_us)) for batch in batches)
    return [batch for batch in kept if batch.num_rows]


def _letters_from(letters: pa.RecordBatch, open_us: int, until_us: int) -> list[pa.RecordBatch]:
    """Dead letters of impressions that were open, and of actions past the last day."""
    times = np.array([json.loads(value)["_time"] for value in letters.column("value").to_pylist()], np.int64)
    shown = np.array([log == LOG_NAMES[IMPRESSIONS] for log in letters.column("log").to_pylist()], np.bool_)
    kept = letters.filter(pa.array(times >= np.where(shown, open_us, until_us)))
    return [kept] if kept.num_rows else []
