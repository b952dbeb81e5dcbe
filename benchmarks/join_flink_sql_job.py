"""Flink SQL's interval left join of two Kafka topics, timed; runs in an environment of its own, which has PyFlink alone.

Prints one JSON line last: ``{"events_per_s": ...}``, the rate at which the join took rows between two shares of all.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from typing import Any

from pyflink.common import Configuration
from pyflink.table import EnvironmentSettings, TableEnvironment

_TABLE = """
CREATE TABLE {name} (
  request_id BIGINT, item_id BIGINT, {columns}, `time` BIGINT,
  ts AS TO_TIMESTAMP_LTZ(`time` / 1000, 3), WATERMARK FOR ts AS ts - {skew}
) WITH (
  'connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{bootstrap}',
  'scan.startup.mode' = 'earliest-offset', 'format' = 'json'
)
"""
_SINK = """
CREATE TABLE examples (
  request_id BIGINT, item_id BIGINT, user_id STRING, context STRING, tags ARRAY<BIGINT>, age DOUBLE, `time` BIGINT,
  action STRING
) WITH (
  'connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{bootstrap}', 'format' = 'json',
  'sink.delivery-guarantee' = 'at-least-once', 'properties.linger.ms' = '20', 'properties.batch.size' = '262144',
  'properties.compression.type' = 'lz4'
)
"""
_JOIN = """
INSERT INTO examples
SELECT i.request_id, i.item_id, i.user_id, i.context, i.tags, i.age, i.`time`, a.action
FROM impressions AS i LEFT JOIN actions AS a
ON i.request_id = a.request_id AND i.item_id = a.item_id
AND a.ts BETWEEN i.ts AND i.ts + {window}
"""
_POLL_S = 0.25


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bootstrap", "impressions", "actions", "examples", "jar", "backend", "checkpoints"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("events", "window-s", "skew-s", "parallelism", "rest-port"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("first", "last", "bound-s"):
        parser.add_argument(f"--{name}", type=float, required=True)
    args = parser.parse_args()
    configuration = Configuration()
    for name, value in {
        "parallelism.default": args.parallelism,
        "pipeline.object-reuse": "true",
        "pipeline.jars": f"file://{args.jar}",
        "state.backend.type": args.backend,
        "state.backend.incremental": "true",
        "state.checkpoints.dir": f"file://{args.checkpoints}",
        "execution.checkpointing.interval": "10s",
        "rest.bind-port": args.rest_port,
        "rest.port": args.rest_port,
        "taskmanager.memory.managed.size": "1g",
        "taskmanager.memory.network.max": "256m",
        "table.exec.source.idle-timeout": "5s",
        "metrics.fetcher.update-interval": "200",
    }.items():
        configuration.set_string(name, str(value))
    settings = EnvironmentSettings.new_instance().in_streaming_mode().with_configuration(configuration)
    tables = TableEnvironment.create(settings.build())
    shown = "user_id STRING, context STRING, tags ARRAY<BIGINT>, age DOUBLE"
    for name, columns in (("impressions", shown), ("actions", "action STRING")):
        tables.execute_sql(
            _TABLE.format(
                name=name,
                columns=columns,
                topic=getattr(args, name),
                bootstrap=args.bootstrap,
                skew=_interval(args.skew_s),
            )
        )
    tables.execute_sql(_SINK.format(topic=args.examples, bootstrap=args.bootstrap))
    job = tables.execute_sql(_JOIN.format(window=_interval(args.window_s))).get_job_client()
    url = f"http://localhost:{args.rest_port}/jobs/{job.get_job_id()}"
    rate = _rate(url, args.events, args.first, args.last, args.bound_s)
    job.cancel().result()
    print(json.dumps({"events_per_s": rate}))


def _interval(seconds: int) -> str:
    """As SQL has it; Flink takes two digits of seconds alone."""
    hours, rest = divmod(seconds, 3_600)
    return f"INTERVAL '{hours // 24} {hours % 24:02}:{rest // 60:02}:{rest % 60:02}' DAY TO SECOND"


def _rate(url: str, events: int, first: float, last: float, bound_s: float) -> float:
    """Rows/s into the join between two shares of all events."""
    deadline = time.monotonic() + bound_s
    begin: tuple[float, int] | None = None
    while True:
        taken, now = _joined(_get(url)), time.monotonic()
        if begin is None and taken >= first * events:
            begin = now, taken
        if begin is not None and taken >= last * events:
            return (taken - begin[1]) / (now - begin[0])
        if now > deadline:
            if begin is None or taken == begin[1]:
                raise RuntimeError(f"expected {events} rows within {bound_s} s, the join took {taken}")
            print(f"did not finish: {taken} of {events} rows in {bound_s} s", flush=True)
            return (taken - begin[1]) / (now - begin[0])
        time.sleep(_POLL_S)


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def _joined(job: Any) -> int:
    """Rows that the vertex of the join has read; fails where the job does."""
    if job["state"] not in ("CREATED", "INITIALIZING", "RUNNING"):
        raise RuntimeError(f"expected a job that runs, it is {job['state']}")
    return max(
        int(vertex["metrics"]["read-records"])
        for vertex in job["vertices"]
        if "IntervalJoin" in vertex["name"]
    )


if __name__ == "__main__":
    main()
