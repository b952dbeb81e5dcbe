"""Backfill against an independent join in SQL over the messages themselves, day by day."""

from __future__ import annotations

from collections import Counter
from datetime import date
from pathlib import Path

import duckdb
import pytest

from cuckooflow.transforms.day_files import read_day, whole_days

ORACLE = """
create macro W() as 1800000000;
create macro H() as 21600000000;
create table raw as
    select 'impressions' as log, * from impressions union all select 'actions', * from actions;
create table shaped as
    select log, "partition" as p, "offset" as o, append_us, decode(value) as text, value,
           case when value is null or trim(text) = '' then 'empty' when not json_valid(text) then 'malformed'
                when json_type(text) != 'OBJECT' then 'not_an_object'
                when json_type(text, '$.user_id') != 'UBIGINT' then 'wrong_type' end as fault
    from raw;
create table rows as
    select *, (text->>'$.user_id')::bigint as u, (text->>'$.video_id')::bigint as v,
           (text->>'$.time')::bigint * 1000 as t, text->>'$.action' as kind
    from shaped where fault is null;
create table events as
    select *, coalesce(max(t) over before - 60000000, -9e18::bigint) as w
    from rows window before as (partition by log, p order by o rows between unbounded preceding and 1 preceding);
create table letters as
    select s.log, s.p, s.o, s.fault as reason, (
        select max(t) from rows r where r.log = s.log and r.p = s.p and r.o < s.o) as latest
    from shaped s where fault is not null;
create table ontime as select * from events where log = 'impressions' and w < t + W();
create table accepted_times as
    with recursive a as (
        select u, v, min(t) as t from ontime group by all
        union all
        select * from (select a.u, a.v, (select min(o.t) from ontime o
            where o.u = a.u and o.v = a.v and o.t > a.t + W() + H()) as t from a) where t is not null)
    select * from a;
create table ranked as
    select o.*, a.t is not null as taken, row_number() over (partition by o.u, o.v, o.t order by p, o) as copy
    from ontime o left join accepted_times a using (u, v, t);
create table shown as select * from ranked where taken and copy = 1;
create table found as
    select x.*, i.t as i, case x.kind when 'click' then 600000000 when 'long_view' then W() end as win
    from (select * from events where log = 'actions') x
    left join shown i on i.u = x.u and i.v = x.v and x.t between i.t and i.t + W();
create table judged as
    select *, case when win is null then 'unknown_action' when w >= t + W() + H() then 'too_late'
                   when i is null then 'no_impression' when t - i > win then 'outside_window'
                   when w >= i + W() + H() then 'too_late' when w >= i + W() then 'late' else 'used' end as fate
    from found;
create table decided as
    select *, case when fate in ('used', 'late') and row_number() over (
        partition by u, v, i, kind, t, fate in ('used', 'late')
        order by fate = 'late', case when fate = 'late' then w else t end, p, o) > 1
        then 'repeated' else fate end as outcome
    from judged;
"""
DAY = "strftime(make_timestamp({}), '%Y-%m-%d')"
EXPECTED = {
    "examples": f"""
        select {DAY.format("s.t")}, s.u, s.v, s.t, coalesce(bool_or(d.kind = 'click'), false)::int,
               coalesce(bool_or(d.kind = 'long_view'), false)::int,
               greatest(s.append_us, coalesce(max(d.append_us), 0))
        from shown s left join decided d on d.outcome = 'used' and d.u = s.u and d.v = s.v and d.i = s.t
        group by s.u, s.v, s.t, s.append_us""",
    "late": f"select {DAY.format('i')}, u, v, i, (kind = 'click')::int, (kind = 'long_view')::int"
    " from decided where outcome = 'late'",
    "unmatched": f"select {DAY.format('t')}, p, o, outcome from decided"
    " where outcome in ('too_late', 'no_impression', 'outside_window')",
    "dead_letters": f"""
        select {DAY.format("t")}, log, p, o, 'unknown_action' from decided where outcome = 'unknown_action'
        union all select {DAY.format("t")}, log, p, o, 'late_impression' from events
            where log = 'impressions' and w >= t + W()
        union all select {DAY.format("t")}, log, p, o, 'key_reused' from ranked where not taken
        union all select {DAY.format("latest")}, log, p, o, reason from letters""",
}
FOUND = {
    "examples": ("user_id", "video_id", "_time", "label_click", "label_long_view", "_append"),
    "late": ("user_id", "video_id", "_time", "label_click", "label_long_view"),
    "unmatched": ("_partition", "_offset", "reason"),
    "dead_letters": ("log", "partition", "offset", "reason"),
}


@pytest.mark.slow
def test_an_independent_join_gives_the_same_days(feed, backfill, tmp_path: Path) -> None:
    logs = {f"path: logs/{name}": f"path: {feed.job.path(Path('logs') / name)}" for name in feed.messages}
    job = feed.copy_to(tmp_path / "job", **logs, **{"rate: 0.8": "rate: 1.0"})
    out = tmp_path / "days"
    backfill(job.spec, out, first="2022-04-24", until="2022-05-02")
    sql = duckdb.connect(config={"threads": 1})
    for name, messages in feed.messages.items():
        sql.register(name, messages)
    sql.execute(ORACLE)
    days = whole_days(str(out))
    assert days[0] == date(2022, 4, 24)
    for kind, query in EXPECTED.items():
        found: Counter[tuple] = Counter()
        for day in days:
            table = read_day(str(out), day, kind)
            columns = [table[name].to_pylist() for name in FOUND[kind]] if len(table) else []
            found.update((day.isoformat(), *row) for row in zip(*columns, strict=True))
        expected = Counter(sql.execute(query).fetchall())
        assert found == expected, kind
        assert len(expected) > 300
