"""The events of the join's benchmarks, as tables and as messages.

Impressions of about 200 bytes, 30 % of them with one action after a heavy-tailed delay; event times lie out of order
within the allowed skew. Of the actions a share arrives after its impression's window has closed: late, and a late
example each where the action itself lies inside the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.transforms.batch_bytes import encode_batch

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
ACTED_SHARE = 0.3
ITEMS_OF_A_REQUEST = 5
BEGIN_US = 1_700_000_000_000_000

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """How events lie in time.

    Attributes:
        step_us: of event time between two impressions.
        window_us: of both labels.
        skew_us: how far out of order event times are.
        late: share of the actions that arrive after the close.
        begin_us: event time of the first impression.
    """

    step_us: int = 1_000
    window_us: int = 200_000_000  # so that 200,000 impressions are open at once
    skew_us: int = 5_000_000
    late: float = 0.05
    begin_us: int = BEGIN_US


@dataclass(frozen=True)
class Events:
    """Both logs in the order in which they arrive; ``_time`` is the event time, microseconds since the epoch.

    Attributes:
        shown_us, done_us: when each arrives, microseconds on the same clock as the event times, ascending.
    """

    shown: pa.Table
    done: pa.Table
    shown_us: I64
    done_us: I64

    @property
    def count(self) -> int:
        """Of both logs."""
        return len(self.shown) + len(self.done)


def events(impressions: int, seed: int, shape: Shape = Shape()) -> Events:
    """So many impressions and their actions."""
    rng = np.random.default_rng(seed)
    at = np.arange(impressions) * shape.step_us
    arrival = shape.begin_us + at + shape.skew_us
    times = shape.begin_us + at + rng.integers(0, shape.skew_us, impressions)
    requests = np.arange(impressions) // ITEMS_OF_A_REQUEST
    items = np.arange(impressions) * 7919 % 1_000_003
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
    acted = np.flatnonzero(rng.random(impressions) < ACTED_SHARE)
    window = shape.window_us
    delays = np.minimum(rng.pareto(1.5, len(acted)) * window / 100, 3 * window).astype(np.int64)
    kinds = np.where(rng.random(len(acted)) < 0.8, "click", "like")
    done = pa.table([requests[acted], items[acted], pa.array(kinds)], schema=ACTION_COLUMNS)
    done = done.append_column("_time", pa.array(times[acted] + delays))
    # Feedback reaches its log when it happens, at the earliest when its impression does; the late ones after the close.
    reached = np.maximum(times[acted] + delays, arrival[acted])
    closed = times[acted] + window + 2 * shape.skew_us + rng.integers(0, 2 * window, len(acted))
    reached = np.where(rng.random(len(acted)) < shape.late, np.maximum(closed, reached), reached)
    order = np.argsort(reached, kind="stable")
    return Events(shown, done.take(pa.array(order)), arrival, reached[order])


def partition_rows(table: pa.Table, partitions: int) -> list[I64]:
    """The rows of each partition: a request's go to one."""
    of = table.column("request_id").to_numpy() % partitions
    return [np.flatnonzero(of == partition) for partition in range(partitions)]


def arrow_messages(table: pa.Table, rows: int) -> list[bytes]:
    """Messages of so many rows each; the last one may have fewer. The event time's column is ``time``."""
    named = table.rename_columns(["time" if n == "_time" else n for n in table.column_names])
    whole = named.combine_chunks().to_batches()
    return [encode_batch(batch.slice(at, rows)) for batch in whole for at in range(0, len(batch), rows)]


def json_messages(table: pa.Table) -> list[bytes]:
    """A message for each row, with the event time as ``time``."""
    named = table.rename_columns(["time" if n == "_time" else n for n in table.column_names])
    with duckdb.connect() as database:
        database.register("named", named)
        lines = database.sql("SELECT CAST(to_json(named) AS VARCHAR) AS line FROM named").to_arrow_table()
    return lines.column("line").cast(pa.binary()).to_pylist()
