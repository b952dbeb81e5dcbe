"""The join from memory: in Beam's in-process runner, the pure core without a runner, and a per-key DoFn.

Elements are as the source makes them, keyed by 8 shards. The per-key DoFn is the one most people would write:
one element an event, keyed by the join key, the impression in state, a timer for the window; its source is as cheap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.coders import PickleCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue

from benchmarks.join_events import ACTION_COLUMNS, I64, IMPRESSION_COLUMNS, Shape
from cuckooflow.embedding_store.hashing import hash_rows
from cuckooflow.transforms.balances import imbalances
from cuckooflow.transforms.coders import Keyed
from cuckooflow.transforms.in_band import (
    ACTIONS,
    END_TIME_US,
    IMPRESSIONS,
    NO_TIME_US,
    ROW_COLUMNS,
    Header,
    Link,
    attach,
)
from cuckooflow.transforms.join_options import JoinOptions, Label
from cuckooflow.transforms.join_outputs import ExamplesSchema
from cuckooflow.transforms.join_shard import JoinShard
from cuckooflow.transforms.join_state import CellRing, ListBag
from cuckooflow.transforms.online_join import OnlineJoin

SHARDS = 8
POLL_ROWS = 65_536
SHAPE = Shape()
#: Rows of one log by their numbers: (log, first, end) -> that many rows.
RowsOf = Callable[[int, int, int], pa.Table]
Elements = Iterable[tuple[int, pa.RecordBatch]]


def join_options(shape: Shape) -> JoinOptions:
    """The join of such events."""
    return JoinOptions(
        key=("request_id", "item_id"),
        action_type="action",
        labels=(Label("click", "click", shape.window_us), Label("like", "like", shape.window_us)),
        late_horizon_us=4 * shape.window_us,
        max_lead_us=shape.window_us,
        num_shards=SHARDS,
        cache_bytes=1 << 30,
        tick_us=0,
    )


OPTIONS = join_options(SHAPE)


def polls(shown: pa.Table, acted: pa.Table) -> list[tuple[int, pa.RecordBatch]]:
    """Elements as the poller makes them, of whole tables."""
    both = (shown, acted)
    times = [table.column("_time").to_numpy() for table in both]
    return list(poll_elements(lambda log, first, end: both[log].slice(first, end - first), times, SHAPE))


def poll_elements(
    rows_of: RowsOf, times: Sequence[I64], shape: Shape
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Elements as the poller makes them: pieces of both logs at about the same event time, by shard.

    Args:
        rows_of: the logs' rows, asked for in their order.
        times: of each log, (n,) the rows' event times.
    """
    marks = [np.maximum.accumulate(t) - shape.skew_us for t in times]
    starts, chain = [0, 0], 0
    share = len(times[0]) / (len(times[0]) + len(times[1]))
    while starts[0] < len(times[0]) or starts[1] < len(times[1]):
        ends = [min(starts[0] + int(POLL_ROWS * share), len(times[0]))]
        last = ends[0] == len(times[0])
        ahead = len(times[1]) if last else int(np.searchsorted(marks[1], marks[0][ends[0] - 1]))
        ends.append(max(starts[1], ahead))
        pieces = [
            _with_positions(rows_of(log, starts[log], ends[log]), log, starts[log], marks[log])
            for log in (0, 1)
        ]
        rows = pa.concat_tables(pieces, promote_options="default").combine_chunks()
        shards = rows.column("_hash").to_numpy() % SHARDS
        links = tuple(
            Link(log, 0, chain, int(marks[log][ends[log] - 1]) if ends[log] else NO_TIME_US) for log in (0, 1)
        )
        header = Header(links, {0: 1, 1: 1}, chain * 100_000)
        for shard in range(SHARDS):
            mine = rows.filter(pa.array(shards == shard)).combine_chunks()
            yield shard, attach((mine.to_batches() or [_nothing(rows)])[0], header)
        starts, chain = ends, chain + 1
    ended = tuple(Link(log, 0, chain, END_TIME_US, end=True) for log in (0, 1))
    for shard in range(SHARDS):
        yield shard, attach(_nothing(rows), Header(ended, {0: 1, 1: 1}, chain * 100_000))


def _nothing(rows: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=rows.schema)


def _with_positions(table: pa.Table, log: int, first: int, marks: I64) -> pa.Table:
    """Rows with all columns that the source adds; ``marks``: the log's watermark after each of its rows."""
    n, times = len(table), table.column("_time").to_numpy()
    values = {
        "_log": np.full(n, log, np.int8),
        "_partition": np.zeros(n, np.int32),
        "_offset": np.arange(first, first + n),
        "_row": np.zeros(n, np.int32),
        "_wm": np.concatenate(([marks[first - 1] if first else NO_TIME_US], marks[first : first + n]))[:n],
        "_append": times,
        "_hash": hash_rows([table.column(name) for name in OPTIONS.key]),
    }
    for field in ROW_COLUMNS:
        if field.name in values:
            table = table.append_column(field, pa.array(values[field.name], field.type))
    return table


def run_core(
    elements: Elements, options: JoinOptions = OPTIONS, took: Callable[[int, float], None] | None = None
) -> dict[str, int]:
    """The core with its state cells in lists; the counts of all shards.

    Args:
        took: told of each element how many rows it had, and the CPU seconds that they took.
    """
    schema = ExamplesSchema(options, IMPRESSION_COLUMNS, ACTION_COLUMNS)
    shards = {}
    for shard in range(SHARDS):
        bags = [ListBag() for _ in range(options.state_buckets)]
        shards[shard] = JoinShard(shard, schema, CellRing(bags, ListBag(), options.bucket_us), None)
    counts: dict[int, dict[str, int]] = {}
    for shard, batch in elements:
        begun_s = time.process_time()
        out = shards[shard].accept(batch)
        if took is not None:
            took(batch.num_rows, time.process_time() - begun_s)
        for record in out.balances:
            counts[shard] = record["counts"]
    sums = {name: sum(c[name] for c in counts.values()) for name in counts[0]}
    faults = imbalances({"join": sums})
    assert not faults, faults
    return sums


class _Emit(beam.DoFn):
    """All elements from one call, as the live source gives them; they lie in memory (see ``held``)."""

    held: list[Any] = []

    def process(self, _: bytes) -> Iterator[Any]:
        yield from _Emit.held


class _Count(beam.DoFn):
    rows = 0

    def process(self, element: Any) -> None:
        _Count.rows += element[1].num_rows


def in_process() -> beam.Pipeline:
    return beam.Pipeline(FnApiRunner(), PipelineOptions(["--no_save_main_session"]))


def run_beam(elements: list[tuple[int, pa.RecordBatch]]) -> int:
    """OnlineJoin in the in-process runner; the examples that came out."""
    _Emit.held, _Count.rows = elements, 0
    pipeline = in_process()
    source = pipeline | beam.Impulse() | beam.ParDo(_Emit()).with_output_types(Keyed)
    joined = source | OnlineJoin(OPTIONS, "benchmark", IMPRESSION_COLUMNS, ACTION_COLUMNS)
    _ = joined["examples"] | beam.ParDo(_Count())
    pipeline.run().wait_until_finish()
    _Emit.held = []
    return _Count.rows


class _PerKeyJoin(beam.DoFn):
    """The join as it is usually written: one key, one impression, one timer."""

    IMPRESSION = ReadModifyWriteStateSpec("impression", PickleCoder())
    ACTIONS = BagStateSpec("actions", PickleCoder())
    CLOSE = TimerSpec("close", TimeDomain.WATERMARK)

    def process(
        self,
        element: tuple[bytes, dict[str, Any]],
        impression: Any = beam.DoFn.StateParam(IMPRESSION),
        actions: Any = beam.DoFn.StateParam(ACTIONS),
        close: Any = beam.DoFn.TimerParam(CLOSE),
    ) -> None:
        _, row = element
        if row["_log"] == IMPRESSIONS:
            impression.write(row)
        else:
            actions.add(row)
        close.set((row["_time"] + SHAPE.window_us) / 1e6)

    @on_timer(CLOSE)
    def on_close(
        self,
        impression: Any = beam.DoFn.StateParam(IMPRESSION),
        actions: Any = beam.DoFn.StateParam(ACTIONS),
    ) -> Iterator[Any]:
        row = impression.read()
        if row is not None:
            kinds = {a["action"] for a in actions.read()}
            yield {**row, "label_click": "click" in kinds, "label_like": "like" in kinds}
        impression.clear()
        actions.clear()


class _CountOne(beam.DoFn):
    rows = 0

    def process(self, _: Any) -> None:
        _CountOne.rows += 1


def run_per_key(shown: pa.Table, acted: pa.Table) -> int:
    """The per-key DoFn in the in-process runner; the examples that came out."""
    rows = [{"_log": IMPRESSIONS, **row} for row in shown.to_pylist()]
    rows += [{"_log": ACTIONS, **row} for row in acted.to_pylist()]
    rows.sort(key=lambda row: row["_time"])
    _Emit.held = [
        TimestampedValue((f"{r['request_id']}/{r['item_id']}".encode(), r), r["_time"] / 1e6) for r in rows
    ]
    _CountOne.rows = 0
    pipeline = in_process()
    keyed = pipeline | beam.Impulse() | beam.ParDo(_Emit()).with_output_types(tuple[bytes, dict[str, Any]])
    _ = keyed | beam.ParDo(_PerKeyJoin()) | beam.ParDo(_CountOne())
    pipeline.run().wait_until_finish()
    _Emit.held = []
    return _CountOne.rows
