"""One poller over all partitions of both logs: what to read, in which order, and what time it is.

Per partition it keeps where to read on and the watermark, a function of that partition's prefix
alone: the largest event time seen minus the allowed skew. Each poll reads a bounded piece of every
partition that is not paused, parses it, and makes at most one element a shard, which carries the
shard's rows of all partitions and their links. Clocks are passed in; nothing here knows Beam.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.errors import LogError
from cuckooflow.logs.contract import LogReader, OnceReader
from cuckooflow.transforms.balances import SOURCE, balance_figures, balance_records
from cuckooflow.transforms.hand_over import HandOver
from cuckooflow.transforms.in_band import (
    ACTIONS,
    IMPRESSIONS,
    LOG_NAMES,
    NO_TIME_US,
    Header,
    Link,
)
from cuckooflow.transforms.log_watch import LogWatch
from cuckooflow.transforms.once_inputs import check_once, labelled, take_receipts
from cuckooflow.transforms.parse import parse_messages
from cuckooflow.transforms.poll_elements import Element, shard_elements
from cuckooflow.transforms.poll_heartbeats import Heartbeats
from cuckooflow.transforms.poll_options import PollOptions
from cuckooflow.transforms.poll_sources import PollSource, check_together
from cuckooflow.transforms.poll_state import PartitionState
from cuckooflow.transforms.replay_pace import ReplayPace
from cuckooflow.transforms.source_counts import SourceCounts
from cuckooflow.transforms.source_figures import source_figures

__all__ = ["PartitionState", "PollCore", "PollOptions", "PollSource", "Polled"]

_LOGGER = logging.getLogger(__name__)
I64 = npt.NDArray[np.int64]
#: What a partition may read of a poll, however many there are.
_SHARE_BYTES_MIN = 1 << 20
#: A call that takes less says nothing of its broker, however soon a partition is idle.
_SLOW_US_MIN = 250_000


@dataclass(frozen=True)
class Polled:
    """What a poll gave.

    Attributes:
        elements: at most one ``(shard, batch)`` a shard.
        dead: dead letters, a batch for each partition that had some.
        rows: rows in the elements.
        progressed: whether anything was read or ended; else the caller may wait a little.
        paused: partitions, as (log, partition), that are too far ahead.
        balances: records of what was read, see :mod:`~cuckooflow.transforms.balances`.
        counted, figures: see :class:`~cuckooflow.transforms.pollers.PollAnswer`.
        receipts: log -> ids to acknowledge by; logs that are read once are there while something of them waits.
    """

    elements: list[Element]
    dead: list[pa.RecordBatch]
    rows: int
    progressed: bool
    paused: tuple[tuple[int, int], ...] = ()
    balances: Sequence[dict[str, Any]] = ()
    counted: Mapping[str, int] = field(default_factory=dict)
    figures: Mapping[str, int] = field(default_factory=dict)
    receipts: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


class PollCore:
    """See the module. Not thread-safe.

    Args:
        impressions, actions: the two logs.
        options: see :class:`PollOptions`.
        state: what :meth:`state` gave; None begins at each partition's first offset.
        hand_over: where a backfill ended; None: nowhere. Without a state, partitions begin where it says, and
            what a backfill has refused is not refused again.

    Raises:
        SpecError: the two schemas do not go together.
        LogError: the state belongs to another log, or lies past a log's end.
    """

    def __init__(
        self,
        impressions: PollSource,
        actions: PollSource,
        options: PollOptions | None = None,
        state: bytes | None = None,
        hand_over: HandOver | None = None,
    ) -> None:
        check_together(impressions.schema, actions.schema)
        options = options or PollOptions()
        for source in (impressions, actions):
            check_once(source.reader, options, hand_over)
        self.options = options
        self._sources: Mapping[int, PollSource] = {IMPRESSIONS: impressions, ACTIONS: actions}
        self._once = {
            log: source.reader
            for log, source in self._sources.items()
            if isinstance(source.reader, OnceReader)
        }
        self._incarnations = {log: source.reader.incarnation() for log, source in self._sources.items()}
        self._watches = {
            log: LogWatch(
                source.reader, options.unavailable_for_us, max(options.idle_after_us // 4, _SLOW_US_MIN)
            )
            for log, source in self._sources.items()
        }
        self._heartbeats = Heartbeats(options)
        self._figures_told_us: int | None = None
        self._turn = 0
        self._idle: list[PartitionState] = []  # as this poll found
        self._hand_over = hand_over
        self._pace = None if options.replay_speed is None else ReplayPace(options.replay_speed)
        self._read_counts = SourceCounts(options.balance_interval_us)
        if state is None:
            self._partitions = {
                (log, partition): self._begin(log, partition, source.reader)
                for log, source in self._sources.items()
                for partition in source.reader.partitions()
            }
            if options.stop_at_end:
                for (log, partition), now in self._partitions.items():
                    now.stop_offset = self._sources[log].reader.end_offset(partition)
        else:
            self._partitions = self._restored(state)
        self._counts = {
            log: sum(1 for of_log, _ in self._partitions if of_log == log) for log in self._sources
        }

    @property
    def ended(self) -> bool:
        """Whether every partition's end link was sent: nothing will follow."""
        return all(now.ended for now in self._partitions.values())

    def poll(self, now_us: int) -> Polled:
        """Read what is there, up to the bounds, and make the elements.

        Args:
            now_us: the wall clock, microseconds since the epoch. It goes into the headers and decides
                when a heartbeat is due and, in live mode, when a partition is idle; nothing else.

        Raises:
            LogError: a log cannot be read on.
        """
        if self.ended:
            return Polled([], [], 0, False)
        for watch in self._watches.values():
            watch.begin_poll()
        self._discover(now_us)
        paused = self._paused()
        parts: dict[int, list[pa.RecordBatch]] = {IMPRESSIONS: [], ACTIONS: []}
        dead: list[pa.RecordBatch] = []
        progressed = False
        self._idle.clear()
        left, left_bytes = self.options.max_messages, self.options.max_poll_bytes
        keys = list(self._partitions)
        share = max(_SHARE_BYTES_MIN, left_bytes // len(keys))
        self._turn = (self._turn + 1) % len(keys)
        for log, watch in self._watches.items():
            wanted = [k for k in keys if k[0] == log and k not in paused and not self._partitions[k].ended]
            offsets = {partition: self._partitions[log, partition].next_offset for _, partition in wanted}
            watch.prefetch(offsets, min(self.options.max_bytes, share))
        if self._pace is not None:
            self._read_ahead(self._pace, [key for key in keys if key not in paused], share, now_us)
        for key in keys[self._turn :] + keys[: self._turn]:
            now = self._partitions[key]
            if now.ended or key in paused or left <= 0 or left_bytes <= 0:
                continue
            most_bytes = min(self.options.max_bytes, share, left_bytes)
            begin = now.next_offset
            rows, letters, messages, size = self._read(key, now, left, most_bytes, now_us)
            left -= messages
            left_bytes -= size
            progressed |= now.next_offset != begin
            if rows is not None and rows.num_rows:
                parts[key[0]].append(rows)
            if letters is not None and letters.num_rows:
                dead.append(letters)
        # Not with every poll: an idle job would send elements without rows all the time.
        if any(parts.values()):
            self._heartbeats.note_rows(now_us)
        if not self._is_doubtful() and (any(parts.values()) or self._heartbeats.is_due(now_us)):
            for now in self._idle:
                now.watermark_us = max(now.watermark_us, now_us - self.options.max_skew_us)
        links = self._links()
        progressed |= any(link.end for link in links)
        elements = self._elements(parts, links, now_us)
        for log, watch in self._watches.items():
            watch.report(
                {p: now.next_offset for (of, p), now in self._partitions.items() if of == log}, now_us
            )
        if self._is_doubtful():
            for now in self._partitions.values():
                now.idle_since_us = None
        rows_out = sum(batch.num_rows for _, batch in elements)
        receipts = take_receipts(self._once, self._read_counts)
        balances = self._read_counts.report(now_us, self.ended)
        figures = self._figures(paused, now_us) | balance_figures(SOURCE, balances)
        counted = self._read_counts.take() | {balance_records(SOURCE): len(balances)}
        return Polled(
            elements, dead, rows_out, progressed, tuple(sorted(paused)), balances, counted, figures, receipts
        )

    def state(self) -> bytes:
        """Where the poller stands, to go on from later."""
        body = {
            "incarnations": list(self._incarnations.items()),
            "num_shards": self.options.num_shards,
            "last_element_us": self._heartbeats.spoken_us,
            "partitions": PartitionState.dump(self._partitions),
            "counts": self._read_counts.counts,
            "once": {log: reader.state() for log, reader in self._once.items()},
        }
        return json.dumps(body, separators=(",", ":")).encode()

    def _figures(self, paused: set[tuple[int, int]], now_us: int) -> dict[str, int]:
        told_us = self._figures_told_us
        if told_us is not None and now_us - told_us < self.options.figures_interval_us and not self.ended:
            return {}
        self._figures_told_us = now_us
        return source_figures(
            self._partitions, self._watches, paused, lambda now: self._is_idle(now, now_us), now_us
        )

    def _discover(self, now_us: int) -> None:
        """Take up partitions that were added to a log since it was opened.

        One begins at its first offset. Its watermark is the lowest that the others have told: no shard's clock
        is past it, none has to go back, and what is earlier in it is late by its own watermark.
        """
        if self.options.stop_at_end:
            return  # what was not there when the job started lies past every end
        for log, watch in self._watches.items():
            for partition in range(self._counts[log], len(watch.partitions())):
                first = watch.start_offset(partition, now_us)
                if first is None:
                    break  # at a later poll
                told = [p.told_us for p in self._partitions.values() if not p.ended]
                clock_us = min((NO_TIME_US if us is None else us for us in told), default=NO_TIME_US)
                self._partitions[log, partition] = PartitionState(first, clock_us)
                self._counts[log] += 1
                _LOGGER.warning(
                    "log=%s partition=%d added, read from offset=%d", LOG_NAMES[log], partition, first
                )

    def _begin(self, log: int, partition: int, reader: LogReader) -> PartitionState:
        if self._hand_over is None:
            return PartitionState(reader.start_offset(partition))
        expected = self._hand_over.incarnations.get(log, self._incarnations[log])
        if expected != self._incarnations[log]:
            raise LogError(
                f"expected the {LOG_NAMES[log]} log of incarnation {expected}, which was backfilled, found "
                f"{self._incarnations[log]}: it was recreated; make the backfill of this one"
            )
        first = (reader.start_offset(partition), NO_TIME_US)
        return PartitionState(*self._hand_over.starts.get((log, partition), first))

    def _restored(self, state: bytes) -> dict[tuple[int, int], PartitionState]:
        body = json.loads(state)
        for log, incarnation in body["incarnations"]:
            if incarnation != self._incarnations[log]:
                raise LogError(
                    f"expected the {LOG_NAMES[log]} log of incarnation {incarnation}, found "
                    f"{self._incarnations[log]}: it was recreated; start the job anew, without its state"
                )
        if body["num_shards"] != self.options.num_shards:
            raise LogError(
                f"expected num_shards {body['num_shards']}, received {self.options.num_shards}: it is fixed "
                "for the life of a job"
            )
        self._heartbeats = Heartbeats(self.options, body["last_element_us"])
        self._read_counts = SourceCounts(self.options.balance_interval_us, body["counts"])
        found = PartitionState.load(body["partitions"])
        for log, once in self._once.items():
            once.restore(body["once"][str(log)])
        for (log, partition), now in found.items():
            if log in self._once:
                continue
            end = self._sources[log].reader.end_offset(partition)
            if now.next_offset > end:
                raise LogError(
                    f"expected {LOG_NAMES[log]}/{partition} to reach offset {now.next_offset}, it ends at {end}: "
                    "it has lost messages; start the job anew, knowing what is missing"
                )
        return found

    def _paused(self) -> set[tuple[int, int]]:
        """Partitions too far ahead of the slowest one that has more to read.

        One that has been read to its end holds the clock but pauses nobody: to wait for it would stop
        a job whose writer waits for the job.
        """
        behind = [p.watermark_us for p in self._partitions.values() if not p.ended and not p.at_end]
        if not behind or min(behind) == NO_TIME_US:
            return set()
        limit = min(behind) + self.options.max_lead_us
        return {key for key, p in self._partitions.items() if not p.ended and p.watermark_us > limit}

    def _read(
        self, key: tuple[int, int], now: PartitionState, left: int, most_bytes: int, now_us: int
    ) -> tuple[pa.RecordBatch | None, pa.RecordBatch | None, int, int]:
        """A piece of one partition: its rows with ``_wm``, its dead letters, how many messages and bytes."""
        log, partition = key
        source = self._sources[log]
        most = left if now.stop_offset is None else min(left, now.stop_offset - now.next_offset)
        if most <= 0:
            now.at_end = True
            return None, None, 0, 0
        if self._pace is not None and self._pace.holds(key):
            batch = self._pace.due(key, now_us)
        else:
            batch = self._watches[log].read(partition, now.next_offset, most, most_bytes, now_us)
        if batch is None:  # neither at its end nor idle: its broker is away, or its time has not come
            now.at_end, now.idle_since_us = False, None
            return None, None, 0, 0
        if now.stop_offset is not None:
            batch = batch.until(now.stop_offset)
        now.at_end = batch.next_offset == now.next_offset
        if now.at_end:
            # Something is there that is not to be read yet, or who writes could not.
            if batch.held_back or self._is_doubtful():
                now.idle_since_us = None
            else:
                self._note_idle(now, now_us)
            return None, None, 0, 0
        now.idle_since_us = None
        now.next_offset = batch.next_offset
        if not len(batch):  # a hole
            return None, None, 0, 0
        parsed = parse_messages(
            batch, log, source.reader.name, source.schema, self.options.max_future_skew_us
        )
        rows, dead = parsed.rows, parsed.dead
        if self._hand_over is not None and dead.num_rows:
            dead = self._hand_over.not_backfilled(rows, dead, now.watermark_us, self.options.max_skew_us)
        self._read_counts.add(log, len(batch), parsed)
        if batch.labels is not None:
            rows, dead = labelled(rows, "_offset", batch), labelled(dead, "offset", batch)
        if rows.num_rows:
            after = np.maximum.accumulate(rows.column("_time").to_numpy()) - self.options.max_skew_us
            after = np.maximum(after, now.watermark_us)
            before = np.concatenate(([now.watermark_us], after[:-1]))
            rows = rows.set_column(rows.schema.get_field_index("_wm"), "_wm", pa.array(before))
            now.watermark_us = int(after[-1])
        return rows, dead, len(batch), batch.values.nbytes

    def _read_ahead(self, pace: ReplayPace, keys: Sequence[tuple[int, int]], share: int, now_us: int) -> None:
        """Have the next messages of every partition, so that the earliest event is known."""
        for log, partition in keys:
            now, source = self._partitions[log, partition], self._sources[log]
            if now.ended or pace.holds((log, partition)):
                continue
            most_bytes = min(self.options.max_bytes, share)
            batch = self._watches[log].read(
                partition, now.next_offset, self.options.max_messages, most_bytes, now_us
            )
            if batch is not None and len(batch):
                rows = parse_messages(batch, log, source.reader.name, source.schema).rows
                offsets, times_us = (rows.column(name).to_numpy() for name in ("_offset", "_time"))
                pace.hold((log, partition), batch, offsets, times_us)
        pace.begin(now_us)

    def _is_doubtful(self) -> bool:
        return any(watch.is_doubtful for watch in self._watches.values())

    def _note_idle(self, now: PartitionState, now_us: int) -> None:
        if not self.options.live:
            return
        if now.idle_since_us is None:
            now.idle_since_us = now_us
        elif self._is_idle(now, now_us):
            self._idle.append(now)

    def _is_idle(self, now: PartitionState, now_us: int) -> bool:
        since_us = now.idle_since_us
        return self.options.live and since_us is not None and now_us - since_us >= self.options.idle_after_us

    def _links(self) -> tuple[Link, ...]:
        """Links of the partitions with news since their last link; the same ones go to every shard."""
        links = []
        for (log, partition), now in self._partitions.items():
            if now.ended:
                continue
            end = now.at_end and self._is_over(log, partition, now)
            if end or now.told_us != now.watermark_us:
                links.append(Link(log, partition, now.chain, now.watermark_us, end))
                now.chain += 1
                now.told_us = now.watermark_us
                now.ended = end
        return tuple(links)

    def _is_over(self, log: int, partition: int, now: PartitionState) -> bool:
        if now.stop_offset is not None:
            return now.next_offset >= now.stop_offset
        reader = self._sources[log].reader
        # Sealed first: what was appended before the seal is then seen by the look at the end.
        return reader.sealed(partition) and reader.end_offset(partition) == now.next_offset

    def _elements(
        self, parts: Mapping[int, list[pa.RecordBatch]], links: tuple[Link, ...], now_us: int
    ) -> list[Element]:
        if not any(parts.values()) and not links and not self._heartbeats.is_due(now_us):
            return []
        self._heartbeats.spoken_us = now_us
        # A copy: elements wait for their turn, and the log may get more partitions meanwhile.
        return shard_elements(parts, Header(links, dict(self._counts), now_us), self.options.num_shards)
