"""The backfill of topics on a real broker: the same rows as from local logs, and the hand-over to a live join."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cuckooflow.logs.address import KafkaAddress

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
AT = "2022-04-28T20:15:00"
KINDS = ("examples", "late", "unmatched", "dead_letters")


def to_topic(bootstrap: str, name: str, messages: pa.Table, partitions: int) -> KafkaAddress:
    """The messages in a topic of its own, at the append times that they had."""
    address = KafkaAddress(bootstrap=bootstrap, topic=f"{name}-{uuid.uuid4().hex[:8]}", partitions=partitions)
    address.create().close()
    writer = address.open_writer()
    for partition in range(partitions):
        mine = messages.filter(pc.equal(messages["partition"], partition)).combine_chunks()
        times = np.asarray(mine["append_us"])
        for part in np.split(np.arange(len(mine)), np.flatnonzero(np.diff(times)) + 1):
            if len(part):
                writer.send(partition, mine["value"].chunk(0).take(pa.array(part)), int(times[part[0]]))
        writer.append(partition, [], 0)
    writer.close()
    return address


@pytest.fixture(scope="module")
def on_kafka(feed, kafka: str, tmp_path_factory):
    """The job, reading its inputs from topics."""
    logs = {}
    for name, messages in feed.messages.items():
        partitions = getattr(feed.job.logs, name).partitions
        address = to_topic(kafka, name, messages, partitions)
        old = f"{name}: {{path: logs/{name}, partitions: {partitions}}}"
        logs[old] = (
            f"{name}: {{kafka: {{bootstrap: '{kafka}', topic: {address.topic}, partitions: {partitions}}}}}"
        )
    return feed.copy_to(tmp_path_factory.mktemp("kafka") / "job", **logs)


def without_log_names(rows):
    """Dead letters name their log: a topic of another name is another log."""
    import json
    from collections import Counter

    shown: Counter[str] = Counter()
    for line, count in rows.items():
        body = json.loads(line)
        if "log" in body:
            body["log"] = body["log"].split("-")[0]
        shown[json.dumps(body, sort_keys=True)] += count
    return shown


def test_topics_give_the_rows_that_local_logs_give(
    on_kafka, backfill, streamed, day_rows, run, tmp_path: Path
) -> None:
    out = tmp_path / "days"
    at_us = int(np.datetime64(AT, "us").astype(np.int64))
    days = {"first": "2022-04-24", "until": "2022-04-29"}
    backfill(on_kafka.spec, out, **days, hand_over_us=at_us, range_messages=3_000)
    done = run("run", "join", on_kafka.spec, "--stop-at-end", "--hand-over", out / "hand_over.json")
    assert done.returncode == 0, done.stderr[-4000:]
    for kind in KINDS:
        found = without_log_names(day_rows(out, kind)) + without_log_names(on_kafka.log_rows(kind))
        assert found == without_log_names(streamed[kind]), kind
