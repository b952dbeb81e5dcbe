"""What a source tells its operator now and then: lag, watermarks, and which partitions stand still."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cuckooflow.logs.contract import FilesReader
from cuckooflow.transforms.in_band import LOG_NAMES, NO_TIME_US
from cuckooflow.transforms.log_watch import LogWatch
from cuckooflow.transforms.poll_state import PartitionState, Place


def source_figures(
    partitions: Mapping[Place, PartitionState],
    watches: Mapping[int, LogWatch],
    paused: set[Place],
    idle: Callable[[PartitionState], bool],
    now_us: int,
) -> dict[str, int]:
    """Names of :mod:`~cuckooflow.transforms.metric_names` -> value.

    A partition that has ended has no lag, and is no part of its log's watermark. The lag of a log whose broker is
    away is not known, and left out, as is that of files in messages. A partition that is not at its end costs a question to its broker.

    Args:
        partitions: of both logs.
        watches: of the logs.
        paused: those that are too far ahead.
        idle: whether a partition counts as idle.
        now_us: the wall clock.
    """
    figures: dict[str, int] = {}
    for log, watch in watches.items():
        name = f"source_{LOG_NAMES[log]}"
        mine = {p: state for (of, p), state in partitions.items() if of == log and not state.ended}
        figures[f"{name}_unavailable_s"] = watch.away_us(now_us) // 1_000_000
        figures[f"{name}_paused_partitions"] = sum((log, p) in paused for p in mine)
        figures[f"{name}_idle_partitions"] = sum(map(idle, mine.values()))
        known = {p: state.watermark_us for p, state in mine.items() if state.watermark_us != NO_TIME_US}
        figures[f"{name}_timeless_partitions"] = len(mine) - len(known)
        for p, watermark_us in known.items():
            figures[f"{name}_partition_{p}_watermark_lag_ms"] = (now_us - watermark_us) // 1_000
        if known and len(known) == len(mine):
            oldest = min(known, key=lambda p: (known[p], p))
            figures[f"{name}_oldest_partition"] = oldest
            figures[f"{name}_watermark_lag_ms"] = (now_us - known[oldest]) // 1_000
        if isinstance(watch.reader, FilesReader):
            left = {p: watch.files_left(p, state.next_offset, now_us) for p, state in mine.items()}
            if None not in left.values():
                figures[f"{name}_lag_files"] = sum(count or 0 for count in left.values())
            continue
        lags = {p: _lag(watch, p, state, now_us) for p, state in mine.items()}
        seen = {p: lag for p, lag in lags.items() if lag is not None}
        for p, lag in seen.items():
            figures[f"{name}_partition_{p}_lag_messages"] = lag
        if len(seen) == len(mine):
            figures[f"{name}_lag_messages"] = sum(seen.values())
    return figures


def _lag(watch: LogWatch, partition: int, state: PartitionState, now_us: int) -> int | None:
    if state.at_end:
        return 0
    end = watch.end_offset(partition, now_us)
    if end is None:
        return None
    return (end if state.stop_offset is None else min(end, state.stop_offset)) - state.next_offset
