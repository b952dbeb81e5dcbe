"""ShowBalances: a stage's balances, summed over its shards, as gauges.

One key takes the records of all shards, so one task alone sets the gauges, and what it knows survives a restart
in its state: the sums are those of the whole job, whichever process holds a shard.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from cuckooflow.transforms.balances import balance_figures, balance_records
from cuckooflow.transforms.metrics import counter, show


class ShowBalances(beam.PTransform):
    """Records of one stage, see :mod:`~cuckooflow.transforms.balances`, to the gauges of that stage.

    Output: nothing.

    Args:
        stage: of the records.
        now_us: the wall clock, against which the in-band clock lags.
    """

    def __init__(self, stage: str, now_us: Callable[[], int] | None = None) -> None:
        super().__init__()
        self._stage = stage
        self._now_us = now_us or _wall_clock_us

    def expand(self, records: Any) -> Any:
        fn = _ShowFn(self._stage, self._now_us)
        return (
            records
            | "Key" >> beam.Map(_keyed).with_output_types(tuple[int, bytes])
            | "Show" >> beam.ParDo(fn)
        )


def _keyed(record: Mapping[str, Any]) -> tuple[int, bytes]:
    return 0, json.dumps(record, separators=(",", ":")).encode()


def _wall_clock_us() -> int:
    return time.time_ns() // 1_000


class _ShowFn(beam.DoFn):
    NEWEST = ReadModifyWriteStateSpec("newest", BytesCoder())

    def __init__(self, stage: str, now_us: Callable[[], int]) -> None:
        self._stage = stage
        self._now_us = now_us

    def process(self, element: tuple[int, bytes], newest: Any = beam.DoFn.StateParam(NEWEST)) -> None:
        """Put a shard's record in the place of its last, and tell the sums."""
        record = json.loads(element[1])
        blob = newest.read()
        by_shard: dict[str, Any] = {} if blob is None else json.loads(blob)
        shard = str(record["shard"])
        if shard in by_shard and by_shard[shard]["polled_us"] > record["polled_us"]:
            return  # of an earlier poll, overtaken on its way
        by_shard[shard] = record
        newest.write(json.dumps(by_shard, separators=(",", ":")).encode())
        counter(balance_records(self._stage)).inc()
        figures = balance_figures(self._stage, by_shard.values())
        clocks = [one["clock_us"] for one in by_shard.values() if not one["final"]]
        if clocks and None not in clocks:
            figures[f"{self._stage}_clock_lag_ms"] = (self._now_us() - min(clocks)) // 1_000
        show(figures)
