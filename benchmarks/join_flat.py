"""What an event costs the join's core as the stream goes on, and as the window grows.

The rows of a long stream are those of a block, over and over, later each time and with other keys, and are made as they
are asked for: they and their making count nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from benchmarks.join_events import I64, Shape, events
from benchmarks.join_in_process import SHAPE, join_options, poll_elements, run_core

BLOCK = 500_000
#: Events of a short and a long stream; and the windows, at 1,000 impressions/s.
STREAMS = (1_000_000, 20_000_000)
WINDOWS_S = (60, 3_600)
#: A stream past its window goes on for so many events, which are those that count.
MEASURED = 2_000_000
_ACTED = 1.3  # events for each impression


class LongStream:
    """So many impressions and their actions, both logs in the order in which they arrive.

    Args:
        impressions: a multiple of the block's, else the next one.
    """

    def __init__(self, impressions: int, seed: int, shape: Shape, block: int = BLOCK) -> None:
        made = events(block, seed, shape)
        self._tables = (made.shown, made.done)
        self._block, self._span_us = block, block * shape.step_us
        blocks = np.arange(-(-impressions // block))
        self._which: list[I64] = []
        self.times: list[I64] = []
        for table, arrival_us in ((made.shown, made.shown_us), (made.done, made.done_us)):
            shift = np.repeat(blocks * self._span_us, len(table))
            order = np.argsort(np.tile(arrival_us, len(blocks)) + shift, kind="stable")
            self._which.append(order)
            self.times.append((np.tile(table.column("_time").to_numpy(), len(blocks)) + shift)[order])

    def rows(self, log: int, first: int, end: int) -> pa.Table:
        """Rows ``first <= row < end`` of a log."""
        block, row = np.divmod(self._which[log][first:end], len(self._tables[log]))
        table = self._tables[log].take(pa.array(row))
        requests = table.column("request_id").to_numpy() + block * self._block
        table = table.set_column(0, "request_id", pa.array(requests))
        at = table.schema.get_field_index("_time")
        return table.set_column(at, "_time", pa.array(self.times[log][first:end]))


@dataclass
class _Costs:
    """CPU seconds by how many events came before."""

    rows: list[int]
    seconds: list[float]

    def us(self, first: int = 0, last: int | None = None) -> float:
        """Of an event, between two numbers of events; default: of all, the end of the stream included."""
        after = np.cumsum(self.rows)
        chosen = (after > first) & (after <= last) if last is not None else after > first
        return float(np.array(self.seconds)[chosen].sum() / np.array(self.rows)[chosen].sum() * 1e6)


def costs(impressions: int, seed: int, shape: Shape) -> _Costs:
    """Of every element of a stream."""
    stream, found = LongStream(impressions, seed, shape), _Costs([], [])

    def took(rows: int, seconds: float) -> None:
        found.rows.append(rows)
        found.seconds.append(seconds)

    run_core(poll_elements(stream.rows, stream.times, shape), join_options(shape), took)
    return found


def flatness(seed: int) -> tuple[list[float], list[float]]:
    """Microseconds of CPU for an event: of whole streams, and, of one past its window, in a short and a long window."""
    streams = [costs(int(events_ / _ACTED), seed, SHAPE).us() for events_ in STREAMS]
    windows = []
    for window_s in WINDOWS_S:
        shape = replace(SHAPE, window_us=window_s * 1_000_000)
        full = int(2 * shape.window_us / shape.step_us * _ACTED)
        of_window = costs(int((full + MEASURED) / _ACTED), seed, shape)
        windows.append(of_window.us(full, full + MEASURED))
    return streams, windows
