"""A small job in a folder of its own, events for it, and what must come of them by a plain dict."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.embedding_store.api import SLOT_BITS
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.spec_file import load_spec

SPEC = Path(__file__).parent / "job.yaml"
START_MS = 1_767_225_600_000
LIKE_WINDOW_MS = 30 * 60_000
CLICK_WINDOW_MS = 10 * 60_000


@dataclass
class Films:
    """The job's folder, and the events that a test put into its logs."""

    spec: Path
    job: JobSpec
    expected: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def make_logs(self) -> None:
        for log in (self.job.logs.impressions, self.job.logs.actions):
            LocalLog.create(self.job.path(log.path), log.partitions)

    def events(
        self, requests: int, seed: int = 1, first: int = 0
    ) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        """Impressions and actions in event-time order; what they must become is added to ``expected``."""
        rng = random.Random(seed)
        impressions, actions = [], []
        for n in range(first, first + requests):
            shown_ms = START_MS + n * 4_000
            for item in rng.sample(range(40), 4):
                key = {"request_id": f"r{n}", "item_id": f"i{item}"}
                genres = [["drama", "war", "comedy"][item % 3], "all"]
                impressions.append({**key, "time": shown_ms, "user_id": f"u{n % 17}", "genres": genres})
                click = like = 0
                if item % 3 == 0 and rng.random() < 0.7:
                    clicked_ms = shown_ms + rng.randrange(0, 2 * CLICK_WINDOW_MS)
                    actions.append({**key, "time": clicked_ms, "action": "click"})
                    click = int(clicked_ms - shown_ms <= CLICK_WINDOW_MS)
                    if rng.random() < 0.7:
                        liked_ms = clicked_ms + rng.randrange(0, LIKE_WINDOW_MS)
                        actions.append({**key, "time": liked_ms, "action": "like"})
                        like = int(liked_ms - shown_ms <= LIKE_WINDOW_MS)
                self.expected[str(key["request_id"]), str(key["item_id"])] = (click, like)
        actions.sort(key=lambda action: int(str(action["time"])))
        return impressions, actions

    def append(self, impressions: list[dict[str, object]], actions: list[dict[str, object]]) -> None:
        """Append to the input logs; an impression's partition is its request's."""
        now_us = time.time_ns() // 1_000
        log = self.job.path(self.job.logs.impressions.path)
        for partition in (0, 1):
            rows = [r for r in impressions if int(str(r["request_id"])[1:]) % 2 == partition]
            if rows:
                with LocalLogWriter(log, [partition]) as writer:
                    writer.append(partition, [json.dumps(r).encode() for r in rows], now_us)
        if actions:
            with LocalLogWriter(self.job.path(self.job.logs.actions.path)) as writer:
                writer.append(0, [json.dumps(r).encode() for r in actions], now_us)

    def close_windows(self, at_ms: int, impression_partitions: tuple[int, ...] = (0, 1)) -> None:
        """Bring every partition's clock to a time, by events that nothing else is expected of."""
        shown = [
            {
                "request_id": f"r{p}-closing-{at_ms}",
                "item_id": "i0",
                "time": at_ms,
                "user_id": "u",
                "genres": ["all"],
            }
            for p in (0, 1)
        ]
        for partition in impression_partitions:
            with LocalLogWriter(self.job.path(self.job.logs.impressions.path), [partition]) as writer:
                writer.append(partition, [json.dumps(shown[partition]).encode()], time.time_ns() // 1_000)
        with LocalLogWriter(self.job.path(self.job.logs.actions.path)) as writer:
            action = {"request_id": "none", "item_id": "i0", "time": at_ms, "action": "click"}
            writer.append(0, [json.dumps(action).encode()], time.time_ns() // 1_000)

    def rows(self, log: Path) -> list[dict[str, object]]:
        """Every row in a log of Arrow or JSON messages."""
        reader = LocalLog.open(self.job.path(log))
        rows: list[dict[str, object]] = []
        for partition in reader.partitions():
            end = reader.end_offset(partition)
            for batch in reader.read_range(partition, reader.start_offset(partition), end):
                for value in batch.values:
                    message = value.as_py()
                    if message[:1] == b"{":
                        rows.append(json.loads(message))
                    else:
                        rows += [row for part in pa.ipc.open_stream(message) for row in part.to_pylist()]
        return rows

    def log_has_rows(self, log: Path) -> bool:
        """Whether the log is there and holds a message."""
        path = self.job.path(log)
        if not (path / "meta.json").exists():
            return False
        reader = LocalLog.open(path)
        return any(reader.end_offset(p) > reader.start_offset(p) for p in reader.partitions())

    def labels(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(request, item) -> (click, like) of the distinct examples, without those of ``close_windows``."""
        return {
            (str(r["request_id"]), str(r["item_id"])): (int(str(r["label_click"])), int(str(r["label_like"])))
            for r in self.rows(self.job.logs.examples.path)
            if "-closing-" not in str(r["request_id"])
        }

    def balances(self) -> dict[tuple[str, int], dict[str, int]]:
        """(stage, shard) -> its newest counts."""
        newest: dict[tuple[str, int], dict[str, int]] = {}
        for row in self.rows(self.job.logs.join_balances.path):
            newest[str(row["stage"]), int(str(row["shard"]))] = row  # type: ignore[assignment]
        return newest

    def trained_counts(self, address: Path) -> dict[int, list[int]]:
        """Slot -> ascending counts of its ids, from the store's counting table."""
        from cuckooflow.embedding_store.client import connect

        store = connect(address)
        try:
            table = store.delta("test", full=True).tables["_count"]
        finally:
            store.close()
        slots = (table.ids >> np.uint64(64 - SLOT_BITS)).astype(int)
        return {int(s): sorted(table.weights[slots == s, 0].astype(int).tolist()) for s in (0, 1, 2)}

    @staticmethod
    def expected_counts(examples: list[dict[str, object]]) -> dict[int, list[int]]:
        """The same from the examples: how often each user, item and genre occurs, by a plain Counter."""
        users, items = (Counter(e[column] for e in examples) for column in ("user_id", "item_id"))
        genres = Counter(g for e in examples for g in e["genres"])  # type: ignore[attr-defined]
        return {0: sorted(users.values()), 1: sorted(items.values()), 2: sorted(genres.values())}


@pytest.fixture
def films(tmp_path: Path) -> Films:
    spec = tmp_path / "job.yaml"
    spec.write_text(SPEC.read_text())
    return Films(spec, load_spec(spec))
