"""Messages as a job spec declares them: faults by field, the plan, and a join of Avro requests and JSON actions."""

from __future__ import annotations

import io
import json
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import fastavro
import pytest

from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.pipelines.spec_file import SpecFaults, load_spec, parse_spec
from cuckooflow.transforms.balances import imbalances, totals
from cuckooflow.transforms.day_files import read_manifest

SHOWN = {
    "type": "record",
    "name": "Request",
    "fields": [
        {"name": "request", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {
            "name": "user",
            "type": {"type": "record", "name": "User", "fields": [{"name": "id", "type": "string"}]},
        },
        {
            "name": "items",
            "type": {
                "type": "array",
                "items": {
                    "type": "record",
                    "name": "Item",
                    "fields": [
                        {"name": "id", "type": "string"},
                        {"name": "genre", "type": ["null", "string"]},
                    ],
                },
            },
        },
    ],
}
SPEC = """\
name: shop
logs:
  impressions: {path: logs/impressions}
  actions: {path: logs/actions}
messages:
  impressions: {format: avro, schema_file: shown.avsc, explode: items}
  actions: {only: [click, like]}
columns:
  impressions:
    request_id: {type: string, path: request}
    item_id: {type: string, path: "items[].id"}
    time: {type: time, unit: ms, path: at}
    user_id: {type: string, path: user.id}
    genre: {type: string, path: "items[].genre", required: false}
  actions:
    request_id: {type: string, path: about.request}
    item_id: {type: string, path: about.item}
    time: {type: time, unit: s}
    action: {type: string}
join:
  key: [request_id, item_id]
  impression_time: time
  action_time: time
  action_type: action
  max_skew: 10s
  num_shards: 2
labels:
  click: {action: click, window: 10m}
  like: {action: like, window: 30m}
features:
  - {name: user, column: user_id}
  - {name: item, column: item_id}
model: {kind: lr, labels: [like]}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "shown.avsc").write_text(json.dumps(SHOWN))
    (tmp_path / "job.yaml").write_text(SPEC)
    return tmp_path / "job.yaml"


def test_the_plan_shows_how_messages_are_read(spec: Path, cli: Any) -> None:
    done = cli("plan", spec)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for words in (
        "avro by shown.avsc an item of items all",
        "click, like; others are counted",
        "about.request",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("old", "new", "field", "words"),
    [
        ("path: user.id", "path: user.name", "columns.impressions.user_id", "no field 'name'"),
        ("path: user.id", "path: user..id", "columns.impressions.user_id", "no path"),
        ("path: user.id", "path: 'users[].id'", "columns.impressions.user_id", "items is exploded"),
        ("unit: ms, path: at", "unit: s, path: at", "columns.impressions.time", "timestamp-millis"),
        (", explode: items", "", "columns.impressions.item_id", "no list is exploded"),
        (
            "schema_file: shown.avsc",
            "schema_file: gone.avsc",
            "messages.impressions.schema_file",
            "gone.avsc",
        ),
        ("schema_file: shown.avsc, ", "", "messages.impressions", "avro_schema"),
        ("format: avro", "format: parquet", "messages.impressions.format", "'avro'"),
        ("only: [click, like]", "only: []", "messages.actions.only", "at least 1"),
        ("only:", "onli:", "messages.actions.onli", "did you mean"),
        ("path: about.item", "path: about", "messages.actions", "about for different things"),
    ],
)
def test_faults_name_the_field(spec: Path, old: str, new: str, field: str, words: str) -> None:
    assert old in SPEC
    with pytest.raises(SpecFaults) as caught:
        parse_spec(SPEC.replace(old, new), spec)
    faults = {".".join(map(str, f.location)): f"{f.received}; {f.allowed}" for f in caught.value.faults}
    assert words in faults[field]


def test_a_schema_file_without_a_schema(spec: Path) -> None:
    (spec.parent / "shown.avsc").write_text("{}")
    with pytest.raises(SpecFaults, match="Avro schema"):
        load_spec(spec)


@pytest.mark.deep
def test_requests_explode_into_impressions_and_meet_their_actions(spec: Path, cli: Any) -> None:
    job = load_spec(spec)
    writer = fastavro.parse_schema(SHOWN)
    requests, expected = [], {}
    for r in range(40):
        items = [{"id": f"i{n}", "genre": "drama" if n % 2 else None} for n in range(r % 5)]
        record = {
            "request": f"r{r}",
            "at": 1_700_000_000_000 + r * 1_000,
            "user": {"id": f"u{r % 7}"},
            "items": items,
        }
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, writer, record)
        requests.append(stream.getvalue())
        for item in items:
            expected[f"r{r}", item["id"]] = (f"u{r % 7}", item["genre"], 0, 0)
    actions, kinds = [], ("click", "scroll", "like", "view")
    for n, (request, item) in enumerate(sorted(expected)):
        kind = kinds[n % 4]
        at = 1_700_000_000 + int(request[1:]) + 5
        actions.append({"about": {"request": request, "item": item}, "time": at, "action": kind})
        user, genre, _, _ = expected[request, item]
        expected[request, item] = (user, genre, int(kind == "click"), int(kind == "like"))
    actions.append({"action": "scroll"})  # lacks what the others have, and nobody wants it
    for name, messages in (
        ("impressions", [*requests, b"\xff\xff"]),
        ("actions", [json.dumps(a).encode() for a in actions]),
    ):
        LocalLog.create(spec.parent / "logs" / name, 1, "frames")
        with LocalLogWriter(spec.parent / "logs" / name) as log:
            log.append(0, messages, 1_700_000_100_000_000)
    done = cli("run", "join", spec, "--stop-at-end")
    assert done.returncode == 0, done.stderr[-4000:]

    rows = read(job.path(job.logs.examples.path))
    got = {
        (r["request_id"], r["item_id"]): (r["user_id"], r["genre"], r["label_click"], r["label_like"])
        for r in rows
    }
    assert len(rows) == len(expected) and got == expected
    (dead,) = read(job.path(job.logs.dead_letters.path))
    assert (dead["reason"], dead["log"], dead["offset"], dead["row"]) == ("malformed", "impressions", 40, -1)
    counts = Counter(action["action"] for action in actions)
    sums = totals(read(job.path(job.logs.join_balances.path)))
    assert imbalances(sums) == []
    wanted = counts["click"] + counts["like"]
    assert sums["join"]["actions"] == sums["source"]["actions_rows"] == wanted
    assert sums["source"]["actions_of_other_types"] == len(actions) - wanted
    assert sums["join"]["impressions"] == sums["source"]["impressions_rows"] == len(expected)
    assert sums["source"]["impressions_messages_without_items"] == 8

    days = spec.parent / "days"
    done = cli("backfill", "join", spec, "--from", "2023-11-14", "--to", "2023-11-15", "--out", days)
    assert done.returncode == 0, done.stderr[-4000:]
    manifest = read_manifest(str(days), date(2023, 11, 14))
    of_stream = {n: c for n, c in sums["source"].items() if not n.endswith("_messages")}
    assert manifest is not None and manifest.inputs == of_stream
    assert f"actions_of_other_types={len(actions) - wanted} " in done.stdout
    assert " impressions_messages_without_items=8 " in done.stdout


def read(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa

    log = LocalLog.open(path)
    values = [
        v
        for p in log.partitions()
        for b in log.read_range(p, 0, log.end_offset(p))
        for v in b.values.to_pylist()
    ]
    rows: list[dict[str, Any]] = []
    for value in values:
        rows += [json.loads(value)] if value[:1] == b"{" else pa.ipc.open_stream(value).read_all().to_pylist()
    return rows
