"""From an action in Kafka to a prediction that it has changed: the whole way, with every part a process of its own.

Among the events that flow, probes: a user that nobody has seen is shown something, acts two seconds later, and the
scorer is asked every twentieth of a second for that user and for one who never acts. Both are predicted alike until the
action has come through.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.freshness_scorer import process, told_address
from benchmarks.join_events import ACTION_COLUMNS, IMPRESSION_COLUMNS, Shape, arrow_messages, events
from benchmarks.join_live import LiveJob, commands, spec, topics
from benchmarks.join_on_flink import PARALLELISM, Feeder
from cuckooflow.pipelines.supervisor import address_files
from cuckooflow.runners.cluster import LocalCluster
from cuckooflow.runners.flink_rest import FlinkRest
from cuckooflow.serving.client import ScorerClient

#: 5 thousand events/s, three actions for ten impressions.
SHAPE = Shape(step_us=260, window_us=20_000_000, skew_us=1_000_000)
SHARDS_OF_STORE = 2
#: Of the logs, and shards of the join: as many as work at once. More cost every poll and every bundle their share.
PARTITIONS = PARALLELISM
READY_S = 180.0
WARM_UP_S, MEASURED_S, LEFT_S = 60.0, 60.0, 30.0
_PROBE_EVERY_S, _ACTS_AFTER_S, _ASK_EVERY_S = 0.25, 2.0, 0.05
#: Two rows alike in all but the user differ by less until one of the users was learned.
_SAME = 1e-6
_FIRST_PROBE = 1 << 40
_PROGRAM = Path(sys.executable).parent / "cuckooflow"
_SHOWN = {"item_id": 1, "context": "probe", "tags": [1], "age": 30.0}

Say = Callable[[str], None]


def freshness_s(cluster_folder: Path | None, say: Say) -> np.ndarray:
    """Seconds of each probe."""
    with tempfile.TemporaryDirectory(prefix="cuckooflow-bench-") as work:
        cluster = LocalCluster(cluster_folder or Path(work) / "cluster")
        cluster.up()
        try:
            addresses = cluster.addresses()
            assert addresses.kafka and addresses.flink_rest
            job = LiveJob(Path(work) / "job", _spec(addresses.kafka))
            made = events(
                int((WARM_UP_S + MEASURED_S + LEFT_S + 10) * 1e6 / SHAPE.step_us), seed=1, shape=SHAPE
            )
            with _system(job, cluster, FlinkRest(addresses.flink_rest)) as address:
                feeder = Feeder(job, made)
                feeder.start()
                try:
                    found = _probe(job, address, say)
                finally:
                    feeder.stop()
            say(f"fed {feeder.fed_per_s:,.0f} events/s, at most {feeder.behind_s:.2f} s behind")
            job.close()
            return found
        finally:
            if cluster_folder is None:
                cluster.down()


def _spec(bootstrap: str) -> dict[str, Any]:
    logs = topics(bootstrap, partitions=PARTITIONS)
    body = spec(logs, SHAPE, "arrow", emit="eager", name="fresh", shards=PARTITIONS)
    return body | {
        "features": [
            {"name": "user", "column": "user_id"},
            {"name": "item", "column": "item_id"},
            {"name": "tags", "column": "tags", "pooling": "mean", "max_length": 5},
            {"name": "age", "kind": "number", "column": "age"},
        ],
        "model": {"kind": "deepfm", "labels": ["click"], "dim": 16, "hidden": [64, 32], "init_stddev": 0.0},
        "training": {"batch_size": 256, "max_delay": "250ms"},
        "store": {"shards": SHARDS_OF_STORE},
        "snapshots": {"interval": "500ms"},
        "serving": {"listen": "127.0.0.1:0"},
    }


@contextmanager
def _system(job: LiveJob, cluster: LocalCluster, rest: FlinkRest) -> Iterator[str]:
    """Shards, join, training and scorer, once the scorer answers: its host:port."""
    folder = job.spec.parent
    with ExitStack() as stack:
        for shard in range(SHARDS_OF_STORE):
            words = ("store", "serve", job.spec, "--shard", shard, "--of", SHARDS_OF_STORE)
            stack.enter_context(process(folder / "log", _PROGRAM, *words))
        for pipeline in ("join", "train"):
            words = ("run", pipeline, job.spec, "--runner", "flink", "--detach", "--cluster", cluster.folder)
            commands(*words, f"--parallelism={PARALLELISM}")
            stack.callback(lambda name: rest.cancel(rest.job(name).id), f"{job.job.name}-{pipeline}")
        scorer = stack.enter_context(process(folder / "log", _PROGRAM, "serve", job.spec))
        yield told_address(address_files(job.job)[1], scorer)


def _probe(job: LiveJob, address: str, say: Say) -> np.ndarray:
    acted: dict[int, float] = {}
    took_s: list[float] = []
    ended = threading.Event()
    probes = threading.Thread(target=_act, args=(job, acted, ended), daemon=True)
    begin = time.monotonic()
    with ScorerClient(f"http://{address}", job.job.name) as client:
        client.wait_ready(READY_S)
        time.sleep(max(0.0, begin + WARM_UP_S - time.monotonic()))
        probes.start()
        until = time.monotonic() + MEASURED_S
        while time.monotonic() < until + LEFT_S:
            if time.monotonic() >= until:
                ended.set()
            acting = probes.is_alive()
            waiting = list(acted)
            if not acting and not waiting:
                break
            users = ["no one", "nobody", *(f"probe-{number}" for number in waiting)]
            one, other, *scores = client.predict([_SHOWN | {"user_id": user} for user in users]).values
            if abs(one - other) > _SAME:
                raise RuntimeError(
                    f"expected two unknown users to be predicted alike, received {one} and {other}"
                )
            now = time.monotonic()
            for number, score in zip(waiting, scores, strict=True):
                if abs(score - other) > _SAME:
                    took_s.append(now - acted.pop(number))
            time.sleep(_ASK_EVERY_S)
    probes.join()
    if acted:
        raise RuntimeError(
            f"expected all {len(took_s) + len(acted)} probes to be learned, {len(acted)} were not"
        )
    found = np.array(took_s)
    say(
        f"{len(found)} probes: median {np.median(found):.2f} s, 99 % within {np.quantile(found, 0.99):.2f} s, "
        f"worst {found.max():.2f} s"
    )
    return found


def _act(job: LiveJob, acted: dict[int, float], ended: threading.Event) -> None:
    """Show something to a new user every so often, and have each of them click later; when, goes into ``acted``."""
    writers = {log: job.address(log, "confluent-kafka").open_writer() for log in ("impressions", "actions")}
    shown: list[tuple[float, int]] = []
    number = _FIRST_PROBE
    while shown or not ended.is_set():
        now = time.monotonic()
        if not ended.is_set():
            _append(
                writers["impressions"], number, IMPRESSION_COLUMNS, {"user_id": f"probe-{number}", **_SHOWN}
            )
            shown.append((now, number))
            number += 1
        while shown and now - shown[0][0] >= _ACTS_AFTER_S:
            _, of = shown.pop(0)
            _append(writers["actions"], of, ACTION_COLUMNS, {"item_id": _SHOWN["item_id"], "action": "click"})
            acted[of] = time.monotonic()
        time.sleep(_PROBE_EVERY_S)
    for writer in writers.values():
        writer.close()


def _append(writer: Any, number: int, columns: pa.Schema, row: dict[str, object]) -> None:
    """One event of a probe, as of now, acknowledged."""
    now_us = time.time_ns() // 1_000
    table = pa.Table.from_pylist([{"request_id": number, **row}], schema=columns)
    message = table.append_column("_time", pa.array([now_us]))
    writer.append(number % PARTITIONS, arrow_messages(message, 1), now_us)
