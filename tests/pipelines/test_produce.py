"""`log produce`: rows of files as a job's messages in both of its logs, in the order of their times."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cuckooflow.errors import SpecError
from cuckooflow.logs.local_log import LocalLog
from cuckooflow.pipelines import produce as produce_module
from cuckooflow.pipelines.produce import ActionRule, ProduceRequest, produce
from cuckooflow.pipelines.spec_file import load_spec

START_S = 1_700_000_000
SPEC = """
name: feed
logs:
  impressions: {path: logs/impressions, partitions: 3}
  actions: {path: logs/actions, partitions: 2}
  examples: {path: logs/examples}
columns:
  impressions:
    user: {type: string}
    item: {type: int64, path: item_id}
    shown: {type: time, unit: s, path: time_s}
  actions:
    user: {type: string}
    item: {type: int64}
    time: {type: time, unit: ms}
    action: {type: string}
join: {key: [user, item], impression_time: shown, action_time: time, action_type: action}
labels:
  click: {action: click, window: 10m}
features:
  - {name: user}
model: {kind: lr, labels: [click]}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(SPEC)
    return tmp_path / "job.yaml"


def rows(count: int) -> list[dict[str, Any]]:
    """Not in the order of their times."""
    return [
        {
            "user": f"u{n % 7}",
            "item_id": n,
            "time_s": START_S + (n * 37) % 1_000,
            "clicked": int(n % 3 == 0),
            "ms": n,
        }
        for n in range(count)
    ]


def csv_file(path: Path, given: list[dict[str, Any]]) -> Path:
    lines = [",".join(given[0]), *(",".join(map(str, row.values())) for row in given)]
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines) + "\n")
    return path


def messages(log: Path) -> dict[int, list[Any]]:
    reader = LocalLog.open(log)
    found: dict[int, list[Any]] = {}
    for partition in reader.partitions():
        pieces = reader.read_range(partition, 0, reader.end_offset(partition))
        found[partition] = [value.as_py() for piece in pieces for value in piece.values]
    return found


def test_labels_in_columns_become_actions(spec: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    given = rows(500)
    file = csv_file(tmp_path / "feed.csv.gz", given)
    done = cli("log", "produce", spec, "--impressions", file, "--action", "click=clicked+5", "--skip", 100)
    assert done.returncode == 0, done.stderr
    given = given[100:]
    clicked = [row for row in given if row["clicked"]]
    assert (
        f"impressions: {len(given)} messages appended\nactions: {len(clicked)} messages appended"
        in done.stdout
    )

    shown = {
        p: [json.loads(m) for m in found] for p, found in messages(tmp_path / "logs/impressions").items()
    }
    assert sorted(
        (m["user"], m["item_id"], m["time_s"]) for found in shown.values() for m in found
    ) == sorted((row["user"], row["item_id"], row["time_s"]) for row in given)
    acted = {p: [json.loads(m) for m in found] for p, found in messages(tmp_path / "logs/actions").items()}
    assert sorted(
        (m["user"], m["item"], m["time"], m["action"]) for found in acted.values() for m in found
    ) == sorted((row["user"], row["item_id"], (row["time_s"] + 5) * 1_000, "click") for row in clicked)
    for found, time in [*((f, "time_s") for f in shown.values()), *((f, "time") for f in acted.values())]:
        times = [m[time] for m in found]
        assert times == sorted(times)
        assert times  # no partition is left without


def test_a_key_stays_in_its_partition_in_every_run(spec: Path, tmp_path: Path) -> None:
    job = load_spec(spec)
    for _ in range(2):
        file = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(rows(50)), file)
        produce(job, ProduceRequest(impressions=file, rows=40), print)
    places = defaultdict(list)
    for partition, found in messages(tmp_path / "logs/impressions").items():
        for message in found:
            places[json.loads(message)["item_id"]].append(partition)
    assert len(places) == 40
    assert all(len(seen) == 2 and len(set(seen)) == 1 for seen in places.values())


def test_both_files_and_a_delay_that_is_a_column(spec: Path, tmp_path: Path) -> None:
    given = rows(30)
    shown, acted = tmp_path / "shown.jsonl.gz", tmp_path / "acted.jsonl"
    with gzip.open(shown, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in given)
    acted.write_text(json.dumps({"user": "u1", "item": 1, "time": START_S * 1_000, "action": "like"}) + "\n")
    rule = ActionRule.parse("click=clicked+ms")
    counts = produce(load_spec(spec), ProduceRequest(shown, acted, (rule,)), print)
    assert counts == {"impressions": 30, "actions": 11}
    found = [json.loads(m) for part in messages(tmp_path / "logs/actions").values() for m in part]
    times = {m["item"]: m["time"] for m in found if m["action"] == "click"}
    assert times == {row["item_id"]: (row["time_s"] + row["ms"]) * 1_000 for row in given if row["clicked"]}
    assert [m["item"] for m in found if m["action"] == "like"] == [1]


def test_messages_of_many_rows(spec: Path, tmp_path: Path) -> None:
    spec.write_text(spec.read_text() + "messages: {impressions: {format: arrow}}\n")
    text = spec.read_text().replace("{path: logs/impressions, partitions: 3}", "{path: logs/impressions}")
    spec.write_text(text)
    LocalLog.create(tmp_path / "logs/impressions", 1, "frames")
    file = csv_file(tmp_path / "feed.csv.gz", rows(20))
    produce(load_spec(spec), ProduceRequest(file), print)
    (message,) = messages(tmp_path / "logs/impressions")[0]
    with pa.ipc.open_stream(message) as stream:
        assert stream.read_all().num_rows == 20


class Clock:
    """A wall clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def time_ns(self) -> int:
        return int(self.now_s * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.mark.parametrize(
    ("pace", "lasts_s"),
    [({"rate": 40.0}, 400 / 40), ({"speed": 50.0}, 999 / 50), ({}, 0.0)],
    ids=["rate", "speed", "at once"],
)
def test_the_pace(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pace: Any, lasts_s: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(produce_module, "time", clock)
    file = csv_file(tmp_path / "feed.csv.gz", rows(400))
    produce(load_spec(spec), ProduceRequest(file, **pace), print)
    assert clock.now_s == pytest.approx(lasts_s, rel=0.02)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("click", "expected ACTION=COLUMN"),
        ("click=seen", "expected a column 'seen'"),
        ("click=clicked+late", "'late'"),
    ],
)
def test_what_a_file_does_not_have(
    spec: Path, tmp_path: Path, cli: Callable[..., Any], rule: str, said: str
) -> None:
    file = csv_file(tmp_path / "feed.csv.gz", rows(5))
    done = cli("log", "produce", spec, "--impressions", file, "--action", rule)
    assert done.returncode == 2
    assert said in done.stderr


def test_what_cannot_be_written_is_refused(spec: Path, tmp_path: Path) -> None:
    file = csv_file(tmp_path / "feed.csv.gz", rows(5))
    spec.write_text(spec.read_text() + "messages: {actions: {format: tf_example}}\n")
    with pytest.raises(SpecError, match="actions: expected the format json or arrow"):
        produce(load_spec(spec), ProduceRequest(file), print)
    with pytest.raises(SpecError, match=r"csv or \.jsonl file"):
        produce_module.read_rows(tmp_path / "job.yaml")
