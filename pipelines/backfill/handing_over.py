"""The hand-over that a backfill writes for the live join that goes on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.errors import HandOverTooEarly
from cuckooflow.pipelines.backfill.request import BackfillRequest
from cuckooflow.transforms.backfill_tasks import VERDICT_SCHEMA, BackfillOptions
from cuckooflow.transforms.day_files import day_start_us
from cuckooflow.transforms.hand_over import HandOver, since_us
from cuckooflow.transforms.in_band import LOG_NAMES, NO_TIME_US
from cuckooflow.transforms.pieces import Catalogue, concatenated

#: The file in the folder of the days.
HAND_OVER = "hand_over.json"


def make_hand_over(
    request: BackfillRequest,
    options: BackfillOptions,
    partitions: Mapping[tuple[int, int], str],
    scanned: Catalogue,
    latest_us: npt.NDArray[np.int64],
    verdicts: Catalogue,
) -> HandOver:
    """Where each partition is read from, and what lost its key before.

    Args:
        partitions: (log, partition) -> incarnation of the log, "" where the positions are no log's; all
            partitions that the live join will wait for.
        latest_us: for each block, the latest event time before it.

    Raises:
        HandOverTooEarly: some partition's watermark had not reached the time.
    """
    assert request.hand_over_us is not None
    at_us = request.hand_over_us
    join = options.schema.options
    since = since_us(at_us, join.window_us, join.late_horizon_us)
    starts: dict[tuple[int, int], tuple[int, int]] = {}
    ends = dict.fromkeys(partitions, NO_TIME_US)
    order = sorted(range(len(scanned.blocks)), key=lambda i: scanned.blocks[i].first)
    for i in order:
        block = scanned.blocks[i]
        place = (block.log, block.partition)
        if block.latest_us == NO_TIME_US:
            continue
        ends[place] = max(ends.get(place, NO_TIME_US), block.latest_us - options.max_skew_us)
        if block.latest_us >= since and place not in starts:
            before = int(latest_us[i])
            starts[place] = (block.first, before if before == NO_TIME_US else before - options.max_skew_us)
    behind = [f"{LOG_NAMES[log]}/{p}" for (log, p), end in sorted(ends.items()) if end < at_us]
    if behind:
        raise HandOverTooEarly(
            f"expected the watermark of every partition to have reached {at_us} us, that of {', '.join(behind)} "
            f"has not (the lowest is at {min(ends.values())} us); hand over earlier, or wait for their events"
        )
    incarnations = {log: name for (log, _), name in partitions.items() if name}
    return HandOver(
        at_us=at_us,
        until_us=day_start_us(request.until),
        window_us=join.window_us,
        late_horizon_us=join.late_horizon_us,
        key=join.key,
        starts=starts,
        incarnations=incarnations,
        refused=_refused(options, verdicts, since, at_us - join.window_us),
    )


def _refused(
    options: BackfillOptions, verdicts: Catalogue, since: int, closed_us: int
) -> tuple[tuple[int, int, int], ...]:
    """Impressions since some time that lost their key, of those whose window had closed."""
    pieces = verdicts.where(verdicts.pieces["place"] >= since // options.scan.slice_us)
    found = concatenated((rows for rows, _ in pieces.read()), VERDICT_SCHEMA)
    times = found.column("_time").to_numpy()
    found = found.filter(pa.array((times >= since) & (times <= closed_us)))
    return tuple(zip(*(found.column(n).to_pylist() for n in VERDICT_SCHEMA.names[:3]), strict=True))
