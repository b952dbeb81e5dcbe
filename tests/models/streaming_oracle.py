"""Rows of an examples log, and what streaming features say of them, by duckdb over the whole log."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa

from cuckooflow.embedding_store.hashing import hash_column
from cuckooflow.models.features import FeatureSpec

SECOND = 1_000_000
HOUR_S = 3600
LAG_S = 100
FEATURES = tuple(
    FeatureSpec.model_validate(given)
    for given in (
        {"name": "user"},
        {"name": "video"},
        {"name": "clicks", "kind": "rate", "by": ["user"], "label": "click", "half_life": "1h"},
        {"name": "clicks_tab", "kind": "rate", "by": ["user", "tab"], "label": "click", "half_life": "5m"},
        {"name": "views", "kind": "rate", "by": ["user"], "label": "view", "half_life": "10m"},
        {"name": "seen", "kind": "count", "by": ["video"]},
        {"name": "warm", "kind": "count", "by": ["video"], "label": "click", "half_life": "1h"},
        {"name": "age", "kind": "age", "by": ["video"]},
        {"name": "since", "kind": "since_last", "by": ["user"]},
        {"name": "liked", "kind": "recent", "by": ["user"], "column": "video", "label": "click", "max_length": 3},
        {"name": "passed", "kind": "recent", "by": ["user"], "column": "video", "label": "click", "when": "negative",
         "max_length": 2, "like": "video"},
        {"name": "shown", "kind": "recent", "by": ["tab", "user"], "column": "video", "max_length": 4},
    )
)  # fmt: skip


def rows_of(rng: np.random.Generator, n: int, disorder_s: int) -> pa.RecordBatch:
    """Rows of one partition; times may go back by ``disorder_s``."""
    time = np.sort(rng.integers(0, 4 * HOUR_S, n)) + rng.integers(-disorder_s, disorder_s + 1, n)
    late = rng.random(n) < 0.1
    time = np.where(late, np.maximum(time - 600, 0), time) + 10_000
    click, view = rng.random(n) < 0.4, rng.random(n) < 0.3
    rate = np.where(~click & ~view & ~late, 0.5, 1.0).astype(np.float32)
    users = [None if u == 7 else f"u{u}" for u in rng.zipf(1.5, n) % 9]
    return pa.record_batch(
        {
            "user": pa.array(users, pa.string()),
            "video": pa.array(rng.integers(0, 30, n)),
            "tab": pa.array(rng.integers(0, 3, n)),
            "label_click": pa.array(click.astype(np.uint8)),
            "label_view": pa.array(view.astype(np.uint8), mask=rng.random(n) < 0.1),
            "_kind": pa.array(late.astype(np.int8)),
            "_rate": pa.array(rate),
            "_time": pa.array(time * SECOND),
            "_offset": pa.array(np.arange(n)),
        }
    )


#: The features by definition: what each earlier visible example adds, over a join of the log with itself.
ORACLE = """
with log as (
  select *, max(_time) over (order by _offset) as clock,
    case when _kind = 0 and label_click = 0 and coalesce(label_view, 0) = 0 then 1 / _rate else 1 end as weight
  from rows
), pairs as (
  select r._offset as at, r._time as now, q.*
  from log r join log q on q._offset < r._offset and q.clock + $lag <= r.clock and {same}
)
select r._offset, {value}
from (select _offset from log) r left join pairs p on p.at = r._offset group by r._offset order by r._offset
"""
PRIMARY = "case when _kind = 0 then weight else 0 end"


def asked(rows: pa.RecordBatch, same: list[str], value: str) -> list[object]:
    con = duckdb.connect()
    con.register("rows", pa.Table.from_batches([rows]))
    keys = " and ".join(f"q.{key} is not distinct from r.{key}" for key in same)
    sql = ORACLE.format(same=keys, value=value).replace("$lag", str(LAG_S * SECOND))
    return [row[1] for row in con.execute(sql).fetchall()]


def sums(listed: list[object], half_life_s: int) -> list[float]:
    """The decayed sums of listed entries, in plain Python."""
    found = []
    for entries in listed:
        used = [e for e in entries or [] if e["u"] is not None]
        if not used or used[0]["n"] < min(e["u"] for e in used):
            found.append(0.0)
            continue
        as_of = max(used[0]["n"], *(e["u"] for e in used))
        half = half_life_s * SECOND
        found.append(sum(e["a"] * (0.5 ** ((as_of - e["t"]) / half) if half else 1.0) for e in used))
    return found


def entries(amount: str, counted: str) -> str:
    update = f"(case when {counted} then p._time end)"
    return f"list(struct_pack(a := ({amount})::double, t := p._time, n := now, u := {update}) order by p._offset)"


def check(batch: pa.RecordBatch, rows: pa.RecordBatch) -> None:
    # A row of the user's table is touched by whatever adds to one of its sums.
    by_user = "_kind = 0 or label_click = 1 or label_view = 1"
    by_tab = "_kind = 0 or label_click = 1"
    click, shown = "case when label_click = 1 then weight else 0 end", PRIMARY
    view = "case when label_view = 1 then weight else 0 end"
    view_known = "case when _kind = 0 and label_view is not null then weight else 0 end"
    for column, keys, amount, counted, half_life_s in (
        ("@clicks.positive", ["user"], click, by_user, 3600),
        ("@clicks.shown", ["user"], shown, by_user, 3600),
        ("@views.positive", ["user"], view, by_user, 600),
        ("@views.shown", ["user"], view_known, by_user, 600),
        ("@clicks_tab.positive", ["user", "tab"], click, by_tab, 300),
        ("@clicks_tab.shown", ["user", "tab"], shown, by_tab, 300),
        ("@seen", ["video"], shown, by_tab, 0),
        ("@warm", ["video"], click, by_tab, 3600),
    ):
        expected = sums(asked(rows, keys, entries(amount, counted)), half_life_s)
        found = batch.column(column).to_numpy(zero_copy_only=False)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=column)
        assert max(expected) > 1
    for column, key, pick, counted in (
        ("@age", "video", "min", by_tab),
        ("@since", "user", "max", by_user),
    ):
        touched = f"case when {counted} then p._time end"
        values = f"case when max(now) >= min({touched}) then struct_pack(n := max(now), t := {pick}({touched})) end"
        expected = [
            None if e is None or e["t"] is None else e["n"] - e["t"] for e in asked(rows, [key], values)
        ]
        assert batch.column(column).to_pylist() == expected
        assert len({e for e in expected if e is not None}) > 5
    for column, keys, wanted, length in (
        ("@liked", ["user"], "label_click = 1", 3),
        ("@passed", ["user"], "label_click = 0 and _kind = 0", 2),
        ("@shown", ["tab", "user"], "_kind = 0", 4),
    ):
        entry = "struct_pack(v := p.video, seen := p._time <= now)"
        listed = f"list({entry} order by p._time desc, p._offset desc) filter ({wanted})"
        # A table keeps the newest of all; what is later than asked is left out of those.
        expected = [[x["v"] for x in (e or [])[:length] if x["seen"]] for e in asked(rows, keys, listed)]
        hashes = [[int(hash_column(pa.array([v]))[0]) for v in e] for e in expected]
        assert batch.column(column).to_pylist() == hashes, column
