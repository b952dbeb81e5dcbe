"""What a backfill will cost, from a sample of its inputs; and how its rows are laid out, by the same sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.transforms.day_files import DAY_US
from cuckooflow.transforms.in_band import IMPRESSIONS
from cuckooflow.transforms.input_ranges import InputRange
from cuckooflow.transforms.parse import Parsed

#: Ranges of each input that a sample reads the beginning of.
SAMPLE_RANGES = 8
#: Memory of an impression whose key is settled, while it is, roughly.
_KEY_BYTES = 160
#: Rows of a block of an input without order, roughly: one task sorts so many at once.
_BLOCK_ROWS = 65_536
#: A slice may be so many minutes long; the longest that fits in memory is taken.
_SLICE_MINUTES = (1440, 720, 480, 360, 240, 180, 120, 90, 60, 45, 30, 20, 15, 10, 5, 2, 1)


@dataclass(frozen=True)
class InputSample:
    """One input, extrapolated from a sample.

    Attributes:
        log: which.
        size: bytes of it.
        rows: in it.
        row_bytes: of a row in memory.
        first_us, last_us: event times, of those that the sample saw.
        message_rows: of a message; 1 or more.
    """

    log: int
    size: int
    rows: int
    row_bytes: float
    first_us: int
    last_us: int
    message_rows: float = 1.0

    def rows_between(self, first_us: int, until_us: int) -> int:
        """Rows of these event times, were they spread evenly."""
        inside = min(until_us, self.last_us) - max(first_us, self.first_us)
        return round(self.rows * min(1.0, max(0, inside) / max(1, self.last_us - self.first_us)))

    def bytes_in(self, span_us: int) -> float:
        """Bytes in memory of the rows of so long, were they spread evenly."""
        lasts = max(1, self.last_us - self.first_us)
        return self.rows * self.row_bytes * min(1.0, span_us / lasts)


def sample_inputs(ranges: Sequence[InputRange], job: JobSpec) -> list[tuple[InputSample, tuple[Parsed, ...]]]:
    """Read a little of a few ranges of each input, the first and the last among them; and what was read."""
    samples = []
    for log in sorted({range_.log for range_ in ranges}):
        mine = [range_ for range_ in ranges if range_.log == log]
        size = sum(range_.size for range_ in mine)
        chosen = np.unique(np.linspace(0, len(mine) - 1, min(SAMPLE_RANGES, len(mine))).astype(int))
        rows = memory = 0
        read_bytes = 0.0
        times: list[int] = []
        held = []
        messages = 0
        for at in chosen.tolist():
            parsed, share = mine[at].sample(job.join.max_future_skew)
            found = parsed.rows.column("_time").to_numpy()
            read_bytes += share * mine[at].size
            held.append(parsed)
            places = [parsed.rows.column(name).to_numpy() for name in ("_partition", "_offset")]
            messages += len(np.unique(np.stack(places).astype(np.int64), axis=1).T)
            rows += len(found)
            memory += parsed.rows.nbytes
            times += [int(found.min()), int(found.max())] if len(found) else []
        if rows:
            total = int(rows * size / read_bytes)
            sample = InputSample(log, size, total, memory / rows, min(times), max(times), rows / messages)
            samples.append((sample, tuple(held)))
    return samples


@dataclass(frozen=True)
class Layout:
    """How rows are laid out; see :class:`~cuckooflow.transforms.scan_ranges.ScanOptions`."""

    slice_us: int
    key_buckets: int
    block_offsets: int


def choose_layout(samples: Sequence[InputSample], job: JobSpec, slice_bytes: int) -> Layout:
    """The longest slice of which a shard's rows fill half of ``slice_bytes``, and as many keys and messages.

    What a sample gets wrong costs time, not memory: a slice with more rows is joined in parts.
    """
    window_us = max(label.window for label in job.labels.values())
    slice_us = _SLICE_MINUTES[-1] * 60_000_000
    for minutes in _SLICE_MINUTES:
        span_us = minutes * 60_000_000 + 2 * window_us
        if 2 * sum(s.bytes_in(span_us) for s in samples) / job.join.num_shards <= slice_bytes:
            slice_us = minutes * 60_000_000
            break
    assert DAY_US % slice_us == 0
    impressions = sum(s.rows for s in samples if s.log == IMPRESSIONS)
    message_rows = max((s.message_rows for s in samples), default=1.0)
    return Layout(
        slice_us=slice_us,
        key_buckets=max(1, -(-impressions * _KEY_BYTES // slice_bytes)),
        block_offsets=max(1, int(_BLOCK_ROWS / message_rows)),
    )
