"""Five minutes of inverted labels: nothing more is published, replicas go back, the training goes back and leaves them out."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from cuckooflow.embedding_store.api import SLOT_BITS
from cuckooflow.embedding_store.checkpoint_files import checkpoints
from cuckooflow.embedding_store.client import connect
from cuckooflow.logs.contract import Position
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.models.progressive import LabelMetrics
from cuckooflow.models.snapshots import list_manifests, read_manifest, sequences
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.options import store_addresses, store_folder
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.pipelines.supervisor import Supervisor, address_files
from cuckooflow.serving.client import ScorerClient

pytestmark = [pytest.mark.slow, pytest.mark.deep]
Cli = Callable[..., Any]
Wait = Callable[..., None]

SPEC = """
name: news
logs:
  impressions: {path: logs/impressions}
  actions: {path: logs/actions}
  examples: {path: logs/examples, partitions: 2}
columns:
  impressions:
    request_id: {type: string}
    time: {type: time, unit: ms}
    user_id: {type: string}
    item_id: {type: string}
  actions:
    request_id: {type: string}
    time: {type: time, unit: ms}
    action: {type: string}
join:
  key: [request_id]
  impression_time: time
  action_time: time
  action_type: action
  late_horizon: 1m
  max_skew: 1s
  idle_after: 7d  # the events are old: an idle partition would set its clock to today
  num_shards: 2
labels:
  click: {action: click, window: 1m}
features:
  - {name: user, column: user_id}
  - {name: item, column: item_id}
model: {kind: lr, labels: [click], linear: {kind: adagrad, learning_rate: 0.3}}
training: {batch_size: 64, max_delay: 500ms, metrics_window: 1m, metrics_interval: 200ms, counting: true}
store: {checkpoint_interval: 1s, checkpoint_history: 4m, buckets: 8}
snapshots:
  interval: 500ms
  full_interval: 1h
  gate: {click: {rows: 2000, auc_min: 0.7}}
serving: {listen: "127.0.0.1:0"}
"""
START_MS = 1_767_225_600_000
MINUTE_MS = 60_000
EVERY_MS = 100
ITEMS, USERS = 20, 50
BOUND_S = 90


@dataclass
class News:
    """A job whose labels can be learned: readers click nine in ten of the even items, one in ten of the others."""

    spec: Path
    job: JobSpec
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    shown: int = 0
    clock_ms: int = START_MS
    _examples: dict[int, dict[str, tuple[int, dict[str, Any]]]] = field(default_factory=dict)
    _read: dict[int, int] = field(default_factory=dict)

    def show(self, minutes: float, inverted: bool = False) -> None:
        """Append that much event time, without the clicks that close its windows."""
        impressions, actions = [], []
        for _ in range(int(minutes * MINUTE_MS / EVERY_MS)):
            item, self.clock_ms, self.shown = (
                self.rng.randrange(ITEMS),
                self.clock_ms + EVERY_MS,
                self.shown + 1,
            )
            name, user = f"r{self.shown}", f"u{self.rng.randrange(USERS)}"
            impressions.append(
                {"request_id": name, "time": self.clock_ms, "user_id": user, "item_id": f"i{item}"}
            )
            click = self.rng.random() < (0.9 if item % 2 == 0 else 0.1)
            if click != inverted:
                at = self.clock_ms + self.rng.randrange(1_000, 30_000)
                actions.append({"request_id": name, "time": at, "action": "click"})
        self._append(impressions, sorted(actions, key=lambda action: int(str(action["time"]))))

    def close_windows(self) -> None:
        """Bring both clocks past every window, with one more impression, which is closed by what comes later."""
        self.clock_ms += 2 * MINUTE_MS
        name, self.shown = f"r{self.shown + 1}", self.shown + 1
        shown = {"request_id": name, "time": self.clock_ms, "user_id": "u0", "item_id": "i1"}
        self._append([shown], [{"request_id": "none", "time": self.clock_ms, "action": "click"}])

    def _append(self, impressions: list[dict[str, object]], actions: list[dict[str, object]]) -> None:
        now_us = time.time_ns() // 1_000
        for log, rows in ((self.job.logs.impressions, impressions), (self.job.logs.actions, actions)):
            with LocalLogWriter(self.job.path(log.path)) as writer:  # type: ignore[union-attr]
                writer.append(0, [json.dumps(row).encode() for row in rows], now_us)

    def examples(self) -> dict[int, list[tuple[int, dict[str, Any]]]]:
        """Partition -> (offset, row) of its examples, in order, each the first time it stands there."""
        log = LocalLog.open(self.job.path(self.job.logs.examples.path))  # type: ignore[union-attr]
        for partition in log.partitions():
            first = self._examples.setdefault(partition, {})
            end = log.end_offset(partition)
            for batch in log.read_range(partition, self._read.get(partition, 0), end):
                for offset, value in zip(batch.offsets, batch.values, strict=True):
                    for part in pa.ipc.open_stream(value.as_py()):
                        for row in part.select(["request_id", "user_id", "item_id"]).to_pylist():
                            first.setdefault(row["request_id"], (int(offset), row))
            self._read[partition] = end
        return {partition: list(first.values()) for partition, first in self._examples.items()}

    def ends(self) -> dict[int, int]:
        log = LocalLog.open(self.job.path(self.job.logs.examples.path))  # type: ignore[union-attr]
        return {partition: log.end_offset(partition) for partition in log.partitions()}

    def all_trained(self, rows: int) -> bool:
        """Whether so many examples are in the log, and the store stands at its end."""
        if not self.job.path(self.job.logs.examples.path).exists():  # type: ignore[union-attr]
            return False
        if sum(map(len, self.examples().values())) < rows:
            return False
        store = connect(store_addresses(self.job))
        try:
            marks = store.marks(self.job.address(self.job.logs.examples).name)
        finally:
            store.close()
        return all(min(marks.get(p, [Position(0)])) >= Position(end) for p, end in self.ends().items())

    def counts(self) -> dict[int, list[int]]:
        """Slot -> how often each of its ids was trained, ascending."""
        store = connect(store_addresses(self.job))
        try:
            table = store.delta("test", full=True).tables["_count"]
        finally:
            store.close()
        of_slot = (table.ids >> np.uint64(64 - SLOT_BITS)).astype(int)
        return {slot: sorted(table.weights[of_slot == slot, 0].astype(int).tolist()) for slot in (0, 1)}

    def figures(self) -> list[dict[str, Any]]:
        """The records of progressive figures so far."""
        log = LocalLog.open(self.job.path(self.job.logs.train_metrics.path))  # type: ignore[union-attr]
        return [
            json.loads(value.as_py())
            for partition in log.partitions()
            for batch in log.read_range(partition, 0, log.end_offset(partition))
            for value in batch.values
        ]

    @property
    def snapshots(self) -> Path:
        return self.job.path(self.job.snapshots.dir)

    def holds_all(self, version: int) -> bool:
        """Whether a snapshot was taken when the store stood at the end of the examples."""
        marks = read_manifest(self.snapshots, version).marks[self.job.address(self.job.logs.examples).name]
        return all(marks.get(p, Position(0)) >= Position(end) for p, end in self.ends().items())

    def newest_until(self, second: int) -> int:
        """The last snapshot that was taken before a moment."""
        return [m.sequence for m in list_manifests(self.snapshots) if m.created_us < second * 1_000_000][-1]


def auc(records: list[dict[str, Any]], first_ms: int, last_ms: int) -> float:
    """Of the rows with event times in whole minutes from the first moment to the last."""
    found = LabelMetrics()
    for record in records:
        if first_ms * 1_000 <= record["window_start_us"] < last_ms * 1_000:
            found.merge(LabelMetrics.from_json(record))
    assert found.rows > 0
    return found.auc()


def expected(examples: list[dict[str, Any]]) -> dict[int, list[int]]:
    return {
        slot: sorted(Counter(row[column] for row in examples).values())
        for slot, column in enumerate(("user_id", "item_id"))
    }


@dataclass
class Replica:
    """A scorer's process as its clients see it."""

    url: str
    client: ScorerClient

    def scores(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Of every reader and item."""
        rows = [{"user_id": f"u{u}", "item_id": f"i{i}"} for u in range(USERS) for i in range(ITEMS)]
        return np.array(self.client.predict(rows).values)

    def auc(self) -> float:
        """Of what it says against what readers like."""
        return float(roc_auc_score([i % 2 == 0 for _ in range(USERS) for i in range(ITEMS)], self.scores()))

    def metric(self, name: str) -> float:
        page = httpx.get(f"{self.url}/metrics", trust_env=False).text
        (line,) = [line for line in page.splitlines() if line.startswith(f"{name} ")]
        return float(line.split()[1])

    def event_time_ms(self) -> int:
        return int(self.client.status()["snapshot"]["event_time_us"]) // 1_000


@pytest.fixture
def news(tmp_path: Path) -> News:
    spec = tmp_path / "job.yaml"
    spec.write_text(SPEC)
    return News(spec, load_spec(spec))


@pytest.fixture
def replicas(news: News, wait_for: Wait) -> Iterator[list[Replica]]:
    """Two processes: the job's, and one that was told the folder alone."""
    address = news.spec.parent / "second.address"
    words = ("--name", "news", "--snapshots", str(news.snapshots), "--listen", "127.0.0.1:0")
    second = subprocess.Popen(
        [sys.executable, "-m", "cuckooflow.serving.serve", *words, "--address-file", str(address)]
    )
    try:
        with Supervisor(news.spec, news.job, roles=("serve",)) as first:
            first.wait_ready(BOUND_S)
            wait_for(address.exists, "the second scorer's address")
            urls = [f"http://{file.read_text().strip()}" for file in (address_files(news.job)[1], address)]
            clients = [ScorerClient(url, "news") for url in urls]
            yield [Replica(url, client) for url, client in zip(urls, clients, strict=True)]
            for client in clients:
                client.close()
    finally:
        second.kill()
        second.wait(10)


def training(news: News) -> Supervisor:
    """What ``up`` starts, but for the scorer, which goes on."""
    return Supervisor(news.spec, news.job, roles=("store", "join", "train"))


def test_the_gate_closes_and_all_of_it_is_taken_back(
    news: News, replicas: list[Replica], cli: Cli, wait_for: Wait
) -> None:
    def follow(what: str) -> None:
        newest = (news.clock_ms - 2 * MINUTE_MS) // 1_000
        wait_for(lambda: all(r.event_time_ms() // 1_000 == newest for r in replicas), what, BOUND_S)

    with training(news) as processes:
        news.show(minutes=8)
        news.close_windows()
        wait_for(lambda: news.all_trained(4_800), "eight good minutes are trained", BOUND_S)
        wait_for(lambda: checkpoints(store_folder(news.job)), "a checkpoint")
        for replica in replicas:
            replica.client.wait_ready(BOUND_S)
        follow("replicas serve them")
        wait_for(lambda: all(news.holds_all(r.client.version()) for r in replicas), "they serve all", BOUND_S)
        good = [r.scores() for r in replicas]
        assert min(r.auc() for r in replicas) > 0.95
        assert auc(news.figures(), START_MS + 4 * MINUTE_MS, news.clock_ms) > 0.85
        assert not (news.snapshots / "gate_closed.json").exists()
        right_until = int(time.time()) + 1
        wait_for(lambda: time.time() > right_until, "the wrong labels begin in another second")
        begin, before_ms = news.ends(), news.clock_ms

        # The first of them are too few to tell, and reach the replicas.
        news.show(minutes=1.2, inverted=True)
        wait_for(lambda: all(r.event_time_ms() >= before_ms for r in replicas), "some are served", BOUND_S)
        # The last tick may come after the snapshot with its rows: another one follows, with nothing new.
        sound = news.newest_until(right_until)
        assert all(r.client.version() > sound for r in replicas)
        news.show(minutes=3.8, inverted=True)
        news.close_windows()
        bad_rows = 1 + 5 * 600  # with the impression that closed the windows before
        wait_for(lambda: news.all_trained(4_800 + bad_rows), "five wrong minutes are trained", BOUND_S)
        wait_for(lambda: (news.snapshots / "gate_closed.json").exists(), "the gate is closed", BOUND_S)
        end, after_ms, published = news.ends(), news.clock_ms, sequences(news.snapshots)
        listed = cli("snapshot", "list", news.spec).stdout
        assert "the gate is closed since" in listed and "click: auc 0." in listed and "below 0.7" in listed
        assert [r.metric("cuckooflow_publish_gate_closed") for r in replicas] == [1, 1]
        assert "event=publish_gate_closed" in processes.log_file("train").read_text()
        assert auc(news.figures(), before_ms, after_ms) < 0.5

        moment = datetime.fromtimestamp(right_until, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        done = cli("snapshot", "rollback", news.spec, "--before", moment, "--reason", "inverted labels")
        assert done.returncode == 0, done.stderr
        wait_for(lambda: all(r.client.version() == sound for r in replicas), "all are back")
        for replica, scores in zip(replicas, good, strict=True):
            np.testing.assert_array_equal(replica.scores(), scores)
            assert replica.metric("cuckooflow_snapshot_pinned") == sound

        # The labels are right again; the model is not, and nothing is published of it.
        news.show(minutes=2)
        news.close_windows()
        rows = 4_800 + bad_rows + 1 + 1_200
        wait_for(lambda: news.all_trained(rows), "two right minutes are trained", BOUND_S)
        damaged = news.figures()
        assert sequences(news.snapshots) == published
        assert [r.metric("cuckooflow_publish_gate_closed") for r in replicas] == [1, 1]

    skips = [f"{partition}:{begin[partition]}-{end[partition] - 1}" for partition in begin]
    words = [word for skip in skips for word in ("--skip", skip)]
    done = cli("train", "rewind", news.spec, "--before", moment, *words)
    assert done.returncode == 0, done.stderr
    kept, left_out = [], []
    with training(news) as processes:
        wait_for(lambda: news.all_trained(rows), "everything else is trained again", BOUND_S)
        news.show(minutes=4)
        news.close_windows()
        rows += 1 + 2_400
        wait_for(lambda: news.all_trained(rows), "four more right minutes are trained", BOUND_S)
        wait_for(lambda: not (news.snapshots / "gate_closed.json").exists(), "the gate opens", BOUND_S)
        wait_for(lambda: sequences(news.snapshots)[-1] > published[-1], "something is published", BOUND_S)
        assert "event=publish_gate_opened" in processes.log_file("train").read_text()
        for partition, examples in news.examples().items():
            for offset, row in examples:
                (left_out if begin[partition] <= offset < end[partition] else kept).append(row)
        assert len(left_out) == bad_rows and len(kept) == rows - bad_rows
        assert news.counts() == expected(kept)

        again = news.figures()[len(damaged) :]
        same_rows = (after_ms, after_ms + 3 * MINUTE_MS)
        assert auc(again, *same_rows) > 0.85
        assert auc(again, *same_rows) > auc(damaged, *same_rows) + 0.1
        assert not [r for r in again if before_ms <= r["window_start_us"] // 1_000 < after_ms - 2 * MINUTE_MS]
        assert all(r.client.version() == sound for r in replicas)
        assert cli("snapshot", "unpin", news.spec).returncode == 0
        follow("replicas follow the newest again")
        assert min(r.auc() for r in replicas) > 0.95
        assert [r.metric("cuckooflow_publish_gate_closed") for r in replicas] == [0, 0]
        assert [r.metric("cuckooflow_snapshot_pinned") for r in replicas] == [0, 0]
