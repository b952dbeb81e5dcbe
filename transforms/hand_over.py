"""Hand-over from a backfill to a live join, at one reading of the clock.

A backfill with a hand-over at ``T`` gives what an uninterrupted stream has given when its clock reads ``T``;
the live join gives the rest. To know what that stream then knows, the live join reads from a little before
``T`` on (see :mod:`~cuckooflow.transforms.warm_up`). Where the backfill's last day ends is the one other
border: what an earlier arrival gives for an event of a later day is the live join's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from cuckooflow.errors import SpecError
from cuckooflow.transforms.in_band import LOG_NAMES
from cuckooflow.transforms.join_options import JoinOptions

_FORMAT = 1


@dataclass(frozen=True)
class HandOver:
    """What a live join must know to go on where a backfill ended.

    Attributes:
        at_us: the reading ``T`` of the clock.
        until_us: where the backfill's last day ends, not before ``T``.
        window_us, late_horizon_us, key: of the join; another join cannot go on.
        starts: (log, partition) -> where to read from, and the partition's watermark there.
        incarnations: log -> incarnation of the log that these offsets belong to; none for files.
        refused: impressions since :attr:`since_us` that had lost their key by ``T``, as
            (partition, offset, row): what they lost it to may lie before.
    """

    at_us: int
    until_us: int
    window_us: int
    late_horizon_us: int
    key: tuple[str, ...]
    starts: Mapping[tuple[int, int], tuple[int, int]]
    incarnations: Mapping[int, str] = field(default_factory=dict)
    refused: tuple[tuple[int, int, int], ...] = ()

    @property
    def since_us(self) -> int:
        """Rows with an earlier event time do not matter any more when the clock reads ``T``."""
        return since_us(self.at_us, self.window_us, self.late_horizon_us)

    def check(self, options: JoinOptions) -> None:
        """Refuse to go on with another join.

        Raises:
            SpecError: naming both.
        """
        mine = (options.window_us, options.late_horizon_us, options.key)
        theirs = (self.window_us, self.late_horizon_us, self.key)
        if mine != theirs:
            raise SpecError(
                f"expected the join that was backfilled (window us, late horizon us, key) = {theirs}, received "
                f"{mine}; hand over to the job spec of the backfill"
            )

    def not_backfilled(
        self, rows: pa.RecordBatch, dead: pa.RecordBatch, watermark_us: int, max_skew_us: int
    ) -> pa.RecordBatch:
        """Those of a partition's refused messages before which its watermark had reached the hand-over.

        Args:
            rows, dead: parsed and refused ones of the same messages, each in order.
            watermark_us: the partition's before them.
            max_skew_us: see :class:`~cuckooflow.transforms.poll_options.PollOptions`.
        """
        latest = np.maximum.accumulate(rows.column("_time").to_numpy()) - max_skew_us
        before = np.maximum(np.concatenate(([watermark_us], latest)), watermark_us)
        at = np.searchsorted(rows.column("_offset").to_numpy(), dead.column("offset").to_numpy())
        return dead.filter(pa.array(before[at] >= self.at_us))

    def to_bytes(self) -> bytes:
        """As JSON."""
        body = {
            "format": _FORMAT,
            "at_us": self.at_us,
            "until_us": self.until_us,
            "window_us": self.window_us,
            "late_horizon_us": self.late_horizon_us,
            "key": self.key,
            "starts": [[LOG_NAMES[log], p, *start] for (log, p), start in self.starts.items()],
            "incarnations": {LOG_NAMES[log]: name for log, name in self.incarnations.items()},
            "refused": self.refused,
        }
        return json.dumps(body).encode()

    @classmethod
    def from_bytes(cls, blob: bytes) -> HandOver:
        """What :meth:`to_bytes` wrote.

        Raises:
            SpecError: it is no hand-over.
        """
        try:
            body = json.loads(blob)
            assert body.pop("format") == _FORMAT
            body["key"] = tuple(body["key"])
            body["starts"] = {(LOG_NAMES.index(n), p): (o, w) for n, p, o, w in body["starts"]}
            body["incarnations"] = {LOG_NAMES.index(n): name for n, name in body["incarnations"].items()}
            body["refused"] = tuple(tuple(entry) for entry in body["refused"])
            return cls(**body)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise SpecError(
                f"expected a hand-over that a backfill wrote, received something else: {error}"
            ) from None


def since_us(at_us: int, window_us: int, late_horizon_us: int) -> int:
    """The earliest event time that matters when the clock reads ``at_us``.

    An impression that is still open then is at most a window old; the one that has its key before it at most a
    window and the horizon older.
    """
    return at_us - 2 * window_us - late_horizon_us
