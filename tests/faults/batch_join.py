"""What must come of the messages in two topics, joined as a batch in SQL: the oracle of the fault tests.

The rules are those of the design: a partition's watermark before a row is the latest event time before it in the
same partition minus the skew; a row is late by that watermark alone; a late action is looked up once the clock is past
its watermark.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

#: An event time further past its append time is refused.
FUTURE_MS = 3_600_000


class Message(NamedTuple):
    """A message as it lies in its topic."""

    partition: int
    offset: int
    append_us: int
    value: bytes | None


@dataclass(frozen=True)
class Rules:
    """The times of the join, in milliseconds."""

    click_ms: int = 10 * 60_000
    watch_ms: int = 30 * 60_000
    horizon_ms: int = 86_400_000
    skew_ms: int = 10_000


@dataclass
class Outcome:
    """What the join gives.

    Attributes:
        examples: (request, item) -> (click, watch seconds, views).
        late: (request, item, click, watch seconds, views) of each late example, with how many there are.
        unmatched: positions (partition, offset) of actions.
        dead: (log, partition, offset) -> reason.
        counts: the join's balance.
    """

    examples: dict[tuple[str, str], tuple[int, float, int]] = field(default_factory=dict)
    late: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    unmatched: set[tuple[int, int]] = field(default_factory=set)
    dead: dict[tuple[str, int, int], str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


_JOIN = """
create table shown_at as select *, coalesce(max(time) over before - {skew}, -1) as wm from shown
    window before as (partition by part order by pos rows between unbounded preceding and 1 preceding);
create table done_at as select *, coalesce(max(time) over before - {skew}, -1) as wm,
      case action when 'click' then {click} else {watch} end as span from done
    window before as (partition by part order by pos rows between unbounded preceding and 1 preceding);
create table clock as select case when {all_closed} then 4611686018427387904 else min(latest) - {skew} end as stands from (
    select max(time) as latest from shown group by part union all select max(time) from done group by part);
create table decided as select * from done_at
    where time + {window} <= (select stands from clock) and wm < (select stands from clock);
create table in_time as select * from shown_at where wm < time + {window};
create table accepted as select request_id, item_id, min(time) as time from in_time
    group by all having min(time) + {window} <= (select stands from clock);
create table pairs as select d.*, i.time as shown_ms, d.wm < i.time + {window} as on_time from decided d
    join accepted i using (request_id, item_id) where d.time - i.time between 0 and d.span;
create table ranked as select *, row_number() over (
      partition by request_id, item_id, action, time order by on_time desc, wm, part, pos) as nth
    from pairs where wm < shown_ms + {window} + {horizon};
"""
_QUERIES = {
    "examples": """
        select i.request_id, i.item_id, coalesce(max((r.action = 'click')::int), 0),
               coalesce(sum(case when r.action = 'watch' then r.seconds end), 0),
               count(case when r.action = 'watch' then 1 end)
        from accepted i left join (select * from ranked where on_time and nth = 1) r using (request_id, item_id)
        group by all""",
    "late": """
        select request_id, item_id, (action = 'click')::int, case action when 'watch' then seconds else 0 end,
               (action = 'watch')::int from ranked where not on_time and nth = 1""",
    "unmatched": "select part, pos from decided except select part, pos from ranked",
    "late_impression": "select part, pos from shown_at except select part, pos from in_time",
    "key_reused": """
        select s.part, s.pos from in_time s join accepted i using (request_id, item_id)
        where s.time != i.time and s.time + {window} <= (select stands from clock)""",
    "impressions_repeated": """
        select (select count(*) from in_time s join accepted i using (request_id, item_id) where s.time = i.time)
             - (select count(*) from accepted)""",
    "impressions_waiting": "select count(*) from in_time where time + {window} > (select stands from clock)",
    "actions_waiting": "select (select count(*) from done_at) - (select count(*) from decided)",
    "used": "select count(*) from ranked where on_time and nth = 1",
    "actions_repeated": "select count(*) from ranked where nth > 1",
}


def batch_join(
    impressions: Iterable[Message],
    actions: Iterable[Message],
    rules: Rules,
    all_closed: bool = False,
    refused: Callable[[str, dict[str, Any]], str | None] = lambda _log, _row: None,
) -> Outcome:
    """Join what lies in the two topics.

    Args:
        all_closed: idle partitions have moved the clock past every window; else it stands where the slowest
            partition's events have brought it.
        refused: why a row of a log is refused by what a job declares; None: it is not.
    """
    out = Outcome()
    shown = _table(impressions, "impressions", ("user_id",), refused, out)
    done = _table(actions, "actions", ("action", "seconds"), refused, out)
    times = {
        "skew": rules.skew_ms,
        "click": rules.click_ms,
        "watch": rules.watch_ms,
        "window": max(rules.click_ms, rules.watch_ms),
        "horizon": rules.horizon_ms,
        "all_closed": str(all_closed).lower(),
    }
    with duckdb.connect() as db:
        db.register("shown", shown)
        db.register("done", done)
        db.execute(_JOIN.format(**times))
        found = {name: db.execute(query.format(**times)).fetchall() for name, query in _QUERIES.items()}
    out.examples = {(r, i): (click, float(watch), views) for r, i, click, watch, views in found["examples"]}
    out.late = Counter((r, i, click, float(watch), views) for r, i, click, watch, views in found["late"])
    out.unmatched = set(found["unmatched"])
    refused = {name: len(found[name]) for name in ("late_impression", "key_reused")}
    for reason in refused:
        out.dead |= {("impressions", *position): reason for position in found[reason]}
    numbers = ("impressions_repeated", "impressions_waiting", "actions_waiting", "used", "actions_repeated")
    out.counts = {name: int(found[name][0][0]) for name in numbers} | {
        "impressions": shown.num_rows,
        "examples": len(out.examples),
        "impressions_dead": sum(refused.values()),
        "actions": done.num_rows,
        "late": sum(out.late.values()),
        "unmatched": len(out.unmatched),
        "actions_dead": 0,
    }
    return out


def _table(
    messages: Iterable[Message],
    log: str,
    columns: tuple[str, ...],
    refused: Callable[[str, dict[str, Any]], str | None],
    out: Outcome,
) -> pa.Table:
    """The rows that are to be joined; what is refused before goes to ``out.dead``."""
    rows = []
    for message in messages:
        try:
            row = json.loads(message.value or b"")
        except (ValueError, RecursionError):
            reason = "tombstone" if message.value is None else "malformed"
            out.dead[log, message.partition, message.offset] = reason
            continue
        why = refused(log, row)
        if row["time"] > message.append_us / 1_000 + FUTURE_MS:
            why = "future_time"
        if why is not None:
            out.dead[log, message.partition, message.offset] = why
            continue
        names = ("request_id", "item_id", "time", *columns)
        rows.append({"part": message.partition, "pos": message.offset} | {n: row.get(n) for n in names})
    types = {"part": pa.int64(), "pos": pa.int64(), "time": pa.int64(), "seconds": pa.float64()}
    names = ("part", "pos", "request_id", "item_id", "time", *columns)
    return pa.Table.from_pylist(rows, schema=pa.schema([(n, types.get(n, pa.string())) for n in names]))
