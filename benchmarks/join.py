"""Events/s through OnlineJoin: in process, of the pure core without a runner, and of a per-key DoFn.

2 million impressions of about 200 bytes, 30 % with one action (``--quick``: 300 thousand), from memory:
elements as the source makes them, keyed by 8 shards. The per-key DoFn is the one most people would write:
one element an event, keyed by the join key, the impression in state, a timer for the window; it gets
fewer events (its figure is events/s all the same) and its source is as cheap.

Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
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

IMPRESSION_COLUMNS = pa.schema(
    [
        ("request_id", pa.int64()),
        ("item_id", pa.int64()),
        ("user_id", pa.string()),
        ("context", pa.string()),
        ("tags", pa.list_(pa.int64())),
        ("age", pa.float64()),
    ]
)
ACTION_COLUMNS = pa.schema([("request_id", pa.int64()), ("item_id", pa.int64()), ("action", pa.string())])
SHARDS = 8
POLL_ROWS = 65_536
STEP_US = 1_000  # of event time between two impressions
WINDOW_US = 200_000 * STEP_US  # so that 200,000 impressions are open at once
SKEW_US = 5_000 * STEP_US
OPTIONS = JoinOptions(
    key=("request_id", "item_id"),
    action_type="action",
    labels=(Label("click", "click", WINDOW_US), Label("like", "like", WINDOW_US)),
    late_horizon_us=4 * WINDOW_US,
    max_lead_us=WINDOW_US,
    num_shards=SHARDS,
    cache_bytes=1 << 30,
    tick_us=0,
)
PER_KEY_IMPRESSIONS = 10_000


def tables(impressions: int, seed: int) -> tuple[pa.Table, pa.Table]:
    """Both logs in arrival order: event times out of order within the skew; actions after a heavy-tailed delay."""
    rng = np.random.default_rng(seed)
    base = 1_700_000_000_000_000
    times = base + np.arange(impressions) * STEP_US + rng.integers(0, SKEW_US, impressions)
    requests, items = np.arange(impressions) // 5, np.arange(impressions) * 7919 % 1_000_003
    users = pa.array(np.char.add("user-", (requests % 100_000).astype(str)))
    context = pa.array(
        np.char.mod(
            "surface=home;position=%03d;experiment=control-bucket-17;device=phone;app=4.17.2;locale=en_GB;network=wifi;",
            items % 1_000,
        )
    )
    offsets = pa.array(np.arange(impressions + 1, dtype=np.int32) * 5)
    tags = pa.ListArray.from_arrays(offsets, pa.array(rng.integers(0, 500, impressions * 5)))
    columns = [requests, items, users, context, tags, rng.random(impressions) * 60]
    shown = pa.table(columns, schema=IMPRESSION_COLUMNS).append_column("_time", pa.array(times))
    acted = np.flatnonzero(rng.random(impressions) < 0.3)
    delays = np.minimum(rng.pareto(1.5, len(acted)) * 2_000 * STEP_US, 3 * WINDOW_US).astype(np.int64)
    kinds = np.where(rng.random(len(acted)) < 0.8, "click", "like")
    done = pa.table([requests[acted], items[acted], pa.array(kinds)], schema=ACTION_COLUMNS)
    done = done.append_column("_time", pa.array(times[acted] + delays))
    # Feedback reaches its log when it happens, most of it: a tenth of a percent comes up to 3 windows late.
    behind = np.where(rng.random(len(acted)) < 0.001, rng.integers(0, 3 * WINDOW_US, len(acted)), 0)
    arrival = np.argsort(times[acted] + delays + behind, kind="stable")
    return shown, done.take(pa.array(arrival))


def with_positions(table: pa.Table, log: int) -> pa.Table:
    """The rows with all columns that the source adds."""
    times = table.column("_time").to_numpy()
    watermarks = np.maximum.accumulate(times) - SKEW_US
    before = np.concatenate(([NO_TIME_US], watermarks[:-1]))
    n = len(times)
    hashes = hash_rows([table.column(name) for name in OPTIONS.key])
    values = {
        "_log": np.full(n, log, np.int8),
        "_partition": np.zeros(n, np.int32),
        "_offset": np.arange(n),
        "_row": np.zeros(n, np.int32),
        "_wm": before,
        "_append": times,
        "_hash": hashes,
    }
    for field in ROW_COLUMNS:
        if field.name in values:
            table = table.append_column(field, pa.array(values[field.name], field.type))
    return table


def polls(shown: pa.Table, acted: pa.Table) -> list[tuple[int, pa.RecordBatch]]:
    """Elements as the poller makes them: pieces of both logs at about the same event time, by shard."""
    both = (with_positions(shown, IMPRESSIONS), with_positions(acted, ACTIONS))
    times = [table.column("_time").to_numpy() for table in both]
    marks = [np.maximum.accumulate(t) - SKEW_US for t in times]
    elements: list[tuple[int, pa.RecordBatch]] = []
    starts, chain = [0, 0], 0
    while starts[0] < len(times[0]) or starts[1] < len(times[1]):
        ends = [
            min(starts[0] + int(POLL_ROWS * len(times[0]) / (len(times[0]) + len(times[1]))), len(times[0]))
        ]
        last = ends[0] == len(times[0])
        ahead = len(times[1]) if last else int(np.searchsorted(marks[1], marks[0][ends[0] - 1]))
        ends.append(max(starts[1], ahead))
        pieces = [both[log].slice(starts[log], ends[log] - starts[log]) for log in (0, 1)]
        rows = pa.concat_tables(pieces, promote_options="default").combine_chunks()
        shards = rows.column("_hash").to_numpy() % SHARDS
        links = tuple(
            Link(log, 0, chain, int(marks[log][ends[log] - 1]) if ends[log] else NO_TIME_US) for log in (0, 1)
        )
        header = Header(links, {0: 1, 1: 1}, chain * 100_000)
        for shard in range(SHARDS):
            mine = rows.filter(pa.array(shards == shard)).combine_chunks().to_batches()[0]
            elements.append((shard, attach(mine, header)))
        starts, chain = ends, chain + 1
    ended = tuple(Link(log, 0, chain, END_TIME_US, end=True) for log in (0, 1))
    nothing = rows.slice(0, 0).combine_chunks().to_batches() or [elements[0][1].slice(0, 0)]
    last_header = Header(ended, {0: 1, 1: 1}, chain * 100_000)
    return elements + [(shard, attach(nothing[0], last_header)) for shard in range(SHARDS)]


def run_core(elements: list[tuple[int, pa.RecordBatch]]) -> dict[str, int]:
    """The core with its state cells in lists; the counts of all shards."""
    schema = ExamplesSchema(OPTIONS, IMPRESSION_COLUMNS, ACTION_COLUMNS)
    shards = {}
    for shard in range(SHARDS):
        bags = [ListBag() for _ in range(OPTIONS.state_buckets)]
        shards[shard] = JoinShard(shard, schema, CellRing(bags, ListBag(), OPTIONS.bucket_us), None)
    counts: dict[int, dict[str, int]] = {}
    for shard, batch in elements:
        for record in shards[shard].accept(batch).balances:
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
        close.set((row["_time"] + WINDOW_US) / 1e6)

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


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and answer."""
    started = time.perf_counter()
    answer = work()
    return time.perf_counter() - started, answer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="300 thousand impressions, for a check")
    parser.add_argument("--impressions", type=int)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    impressions = args.impressions or (300_000 if args.quick else 2_000_000)
    shown, acted = tables(impressions, args.seed)
    elements = polls(shown, acted)
    events = len(shown) + len(acted)
    row_bytes = shown.nbytes / len(shown)
    print(
        f"{len(shown):,} impressions of {row_bytes:.0f} bytes, {len(acted):,} actions, {len(elements)} elements"
    )
    core_s, counts = timed(lambda: run_core(elements))
    print(f"core: {events / core_s:,.0f} events/s; {counts}")
    beam_s, examples = timed(lambda: run_beam(elements))
    print(f"Beam in process: {events / beam_s:,.0f} events/s; {examples:,} examples")
    assert examples == counts["examples"], (examples, counts)
    n = 1_500 if args.quick else PER_KEY_IMPRESSIONS
    few_shown, few_acted = tables(n, args.seed)
    per_key_s, plain = timed(lambda: run_per_key(few_shown, few_acted))
    per_key = (len(few_shown) + len(few_acted)) / per_key_s
    print(
        f"per-key DoFn: {per_key:,.0f} events/s over {len(few_shown) + len(few_acted):,}; {plain:,} examples"
    )
    answer = {
        "impressions": impressions,
        "row_bytes": round(row_bytes),
        "actions": len(acted),
        "events_per_s_beam": round(events / beam_s),
        "events_per_s_core": round(events / core_s),
        "events_per_s_per_key_dofn": round(per_key),
        "late": counts["late"],
        "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    # A DoFn of __main__ travels by value, with all that its class holds; of a module, by name.
    importlib.import_module(Path(__file__).stem).main()
