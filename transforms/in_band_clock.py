"""A shard's clock, from what its elements say.

Each element has links: for some partitions, a contiguous chain number and the watermark after its
rows. A shard may receive elements in any order; :class:`InBandClock` holds back those that come
before their turn and gives them out in chain order, and its clock is the lowest watermark over all
partitions of both logs. Before every partition was heard there is no clock.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import pyarrow as pa

from cuckooflow.errors import ChainBroken, ChainOverflow
from cuckooflow.transforms.batch_bytes import decode_batch, encode_batch
from cuckooflow.transforms.in_band import END_TIME_US, LOG_NAMES, NO_TIME_US, Header, read_header

_LENGTH = struct.Struct("<I")


class InBandClock:
    """Chain order and event time of one shard. Not thread-safe.

    Args:
        max_held: elements that may wait for their turn at once, default 256. Costs their memory.
    """

    def __init__(self, max_held: int = 256) -> None:
        if max_held < 0:
            raise ValueError(f"expected max_held of 0 or more, received {max_held}")
        self.max_held = max_held
        self.repeated = 0
        self._clock_us = NO_TIME_US
        self._partitions: dict[int, int] = {}
        self._next: dict[tuple[int, int], int] = {}
        self._watermarks: dict[tuple[int, int], int] = {}
        self._ended: set[tuple[int, int]] = set()
        self._held: list[tuple[pa.RecordBatch, Header]] = []

    def accept(self, element: pa.RecordBatch) -> list[tuple[pa.RecordBatch, Header]]:
        """Take an element; what is now in its turn, in order. The clock has moved past all of it.

        An element whose links were all heard before is dropped and counted in :attr:`repeated`.

        Returns:
            ``(batch, header)`` pairs: the element itself and what waited for it, or nothing.

        Raises:
            ChainOverflow: more than ``max_held`` elements would wait.
            ChainBroken: the element contradicts what was heard before.
        """
        header = read_header(element)
        self._check_together(header.partitions)
        turn = self._turn(header)
        if turn < 0:
            self.repeated += 1
            return []
        if turn > 0:
            if len(self._held) >= self.max_held:
                raise ChainOverflow(
                    f"expected at most {self.max_held} elements out of order, received one more; "
                    f"waiting for {self._gaps()}; raise max_held, or look for the lost element"
                )
            self._held.append((element, header))
            return []
        ready = [(element, header)]
        self._take(header)
        moved = bool(self._held)
        while moved:
            moved = False
            for i, (_, held) in enumerate(self._held):
                turn = self._turn(held)
                if turn > 0:
                    continue
                entry = self._held.pop(i)
                if turn == 0:
                    self._take(held)
                    ready.append(entry)
                else:
                    self.repeated += 1
                moved = True
                break
        return ready

    def clock_us(self) -> int:
        """The lowest watermark over all partitions of both logs; it never goes back.

        ``NO_TIME_US`` before every one was heard, ``END_TIME_US`` after every one has ended. While a partition
        that was added is not heard yet, it stands.
        """
        if self._partitions and len(self._watermarks) == sum(self._partitions.values()):
            self._clock_us = max(self._clock_us, min(self._watermarks.values()))
        return self._clock_us

    @property
    def ended(self) -> bool:
        """Whether every partition has said that nothing will follow."""
        return bool(self._partitions) and len(self._ended) == sum(self._partitions.values())

    @property
    def end_heard(self) -> bool:
        """Whether every partition has said so, in elements that still wait for their turn too."""
        said = {(n.log, n.partition) for _, header in self._held for n in header.links if n.end}
        return bool(self._partitions) and len(said | self._ended) == sum(self._partitions.values())

    @property
    def held(self) -> int:
        """Elements that wait for their turn."""
        return len(self._held)

    @property
    def held_rows(self) -> int:
        """Rows in the elements that wait for their turn."""
        return sum(batch.num_rows for batch, _ in self._held)

    def release_held(self) -> list[pa.RecordBatch]:
        """Give up on the gap: the elements that wait, which are forgotten here."""
        held, self._held = [batch for batch, _ in self._held], []
        return held

    def to_bytes(self) -> bytes:
        """Everything, held elements included."""
        body = {
            "max_held": self.max_held,
            "repeated": self.repeated,
            "clock_us": self.clock_us(),
            "partitions": list(self._partitions.items()),
            "chains": [
                [*key, chain, self._watermarks[key], int(key in self._ended)]
                for key, chain in self._next.items()
            ],
        }
        parts = [json.dumps(body, separators=(",", ":")).encode()]
        parts += [encode_batch(batch) for batch, _ in self._held]
        return b"".join(_LENGTH.pack(len(part)) + part for part in parts)

    @classmethod
    def from_bytes(cls, blob: bytes) -> InBandClock:
        """What :meth:`to_bytes` wrote."""
        parts: list[bytes] = []
        at = 0
        while at < len(blob):
            (length,) = _LENGTH.unpack_from(blob, at)
            parts.append(blob[at + _LENGTH.size : at + _LENGTH.size + length])
            at += _LENGTH.size + length
        body = json.loads(parts[0])
        clock = cls(body["max_held"])
        clock.repeated = body["repeated"]
        clock._clock_us = body["clock_us"]
        clock._partitions = dict(body["partitions"])
        for log, partition, chain, watermark_us, end in body["chains"]:
            clock._next[log, partition] = chain
            clock._watermarks[log, partition] = watermark_us
            if end:
                clock._ended.add((log, partition))
        for part in parts[1:]:
            batch = decode_batch(part)
            clock._held.append((batch, read_header(batch)))
        return clock

    def _turn(self, header: Header) -> int:
        """0: its turn; above: too early; below: heard before."""
        ahead = [n.chain - self._next.get((n.log, n.partition), 0) for n in header.links]
        if not ahead or all(d == 0 for d in ahead):
            return 0
        if all(d < 0 for d in ahead):
            return -1
        if any(d < 0 for d in ahead):
            raise ChainBroken(
                f"expected an element of the one source of this job, received one whose links are partly "
                f"heard and partly not ({header.links}); do two sources write to one join?"
            )
        return 1

    def _check_together(self, counts: Mapping[int, int]) -> None:
        """A log's partitions may become more, so of two headers one has the newer counts."""
        if not self._partitions:
            self._partitions = dict(counts)
        more = {log: counts[log] - count for log, count in self._partitions.items() if log in counts}
        if counts.keys() != self._partitions.keys() or min(more.values()) < 0 < max(more.values()):
            raise ChainBroken(
                f"expected partitions {self._partitions} (log: count) or more, received {dict(counts)}; do two "
                "sources write to one join?"
            )

    def _take(self, header: Header) -> None:
        # In its turn, not when it came: the clock must not wait for partitions whose first link is held back.
        grown = {log: max(n, self._partitions[log]) for log, n in header.partitions.items()}
        if grown != self._partitions:
            self.clock_us()
            self._partitions = grown
        for link in header.links:
            key = (link.log, link.partition)
            if not 0 <= link.partition < self._partitions.get(link.log, 0):
                raise ChainBroken(f"expected partitions {self._partitions} (log: count), received {link}")
            self._next[key] = link.chain + 1
            watermark_us = END_TIME_US if link.end else link.watermark_us
            self._watermarks[key] = max(self._watermarks.get(key, NO_TIME_US), watermark_us)
            if link.end:
                self._ended.add(key)

    def _gaps(self) -> str:
        wanted = {(n.log, n.partition) for _, held in self._held for n in held.links}
        return ", ".join(
            f"{LOG_NAMES[log]}/{partition} element {self._next.get((log, partition), 0)}"
            for log, partition in sorted(wanted)
        )
