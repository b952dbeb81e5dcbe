"""A job whose logs are topics: join, preview, train; a join in SQL over the same events is the oracle."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from cuckooflow.logs.address import KafkaAddress
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.runners.cluster import LocalCluster
from tests.pipelines.commands import process
from tests.recreated_topic import recreate

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
LIBRARIES = ("kafka-python", "confluent-kafka")
REQUESTS = 300
Rows = list[dict[str, Any]]


class TopicJob:
    """The job of ``films``, its events, examples and dead letters in topics of its own."""

    def __init__(
        self, films: Any, bootstrap: str, library: str, changes: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self.films = films
        mark = uuid.uuid4().hex[:8]

        def log(name: str, partitions: int) -> str:
            place = f"bootstrap: '{bootstrap}', topic: {name}-{mark}, partitions: {partitions}"
            return f"{{kafka: {{{place}, library: {library}, group: lag-{mark}}}}}"

        text = films.spec.read_text()
        for old, new in (
            ("{path: logs/impressions, partitions: 2}", log("impressions", 2)),
            ("{path: logs/actions}", log("actions", 1)),
            (
                "{path: logs/examples, partitions: 2}",
                f"{log('examples', 2)}\n  dead_letters: {log('dead', 1)}",
            ),
            *changes,
        ):
            assert old in text, old
            text = text.replace(old, new, 1)
        films.spec.write_text(text)
        self.job = load_spec(films.spec)
        self.group = f"lag-{mark}"
        self.impressions, self.actions, self.examples, self.dead = (
            self.address(name) for name in ("impressions", "actions", "examples", "dead_letters")
        )

    def address(self, log: str) -> KafkaAddress:
        address = self.job.address(getattr(self.job.logs, log))
        assert isinstance(address, KafkaAddress)
        return address

    def create(self) -> None:
        for address in (self.impressions, self.actions):
            address.create_missing().close()

    def append(self, impressions: Rows, actions: Rows, junk: bool = False) -> None:
        now_us = time.time_ns() // 1_000
        for address, rows in ((self.impressions, impressions), (self.actions, actions)):
            writer = address.open_writer()
            for partition in range(address.partitions):
                mine = [r for r in rows if int(str(r["request_id"])[1:]) % address.partitions == partition]
                lines = [json.dumps(r).encode() for r in mine]
                if junk:
                    lines += [b"nonsense", b'{"request_id": "r0"']
                for at in range(0, len(lines), 50):
                    writer.append(partition, pa.array(lines[at : at + 50], pa.binary()), now_us)
            if junk:
                writer.append(0, pa.array([None], pa.binary()), now_us)
            writer.close()

    @staticmethod
    def messages(address: KafkaAddress) -> list[tuple[int, int, bytes]]:
        reader = address.open_reader()
        found = []
        for partition in reader.partitions():
            for batch in reader.read_range(partition, 0, reader.end_offset(partition)):
                found += [
                    (partition, int(o), v.as_py()) for o, v in zip(batch.offsets, batch.values, strict=True)
                ]
        return found

    def example_rows(self) -> Rows:
        return [
            row
            for _, _, message in self.messages(self.examples)
            for row in pa.ipc.open_stream(message).read_all().to_pylist()
        ]

    def recreate_examples(self, wait_for: Callable[..., None]) -> None:
        """Delete the topic and make it anew, with the same messages at the same places."""
        messages = self.messages(self.examples)
        recreate(self.examples, wait_for)
        writer = self.examples.open_writer()
        for partition, _, message in messages:
            writer.append(partition, [message], 1)
        writer.close()

    def ends(self) -> dict[str, list[int]]:
        addresses = (self.impressions, self.actions)
        readers = [address.open_reader() for address in addresses]
        return {r.name: [r.end_offset(p) for p in r.partitions()] for r in readers}


def sql_join(
    impressions: Rows, actions: Rows, click_ms: int = 600_000, like_ms: int = 1_800_000
) -> set[tuple[Any, ...]]:
    """(request, item, click, like) of every impression, joined by duckdb."""
    shown, done = (
        pa.Table.from_pylist([{k: v for k, v in row.items() if k != "genres"} for row in rows])
        for rows in (impressions, actions)
    )
    with duckdb.connect() as db:
        db.register("shown", shown)
        db.register("done", done)
        found = db.execute(
            f"""
            select s.request_id, s.item_id,
              max(case when d.action = 'click' and d.time - s.time between 0 and {click_ms} then 1 else 0 end),
              max(case when d.action = 'like' and d.time - s.time between 0 and {like_ms} then 1 else 0 end)
            from shown s left join done d on s.request_id = d.request_id and s.item_id = d.item_id
            group by all
            """
        ).fetchall()
    return set(found)


def labelled(rows: Rows) -> list[tuple[Any, ...]]:
    return [(r["request_id"], r["item_id"], int(r["label_click"]), int(r["label_like"])) for r in rows]


@pytest.mark.parametrize("library", ["kafka-python", pytest.param("confluent-kafka", marks=pytest.mark.deep)])
def test_join_and_train_over_topics(
    films, cli, kafka: str, wait_for: Callable[..., None], library: str
) -> None:
    topics = TopicJob(films, kafka, library)
    impressions, actions = films.events(REQUESTS)
    topics.create()
    topics.append(impressions, actions, junk=True)

    before = topics.ends()
    done = cli("preview", films.spec, "--rows", 100)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "100 examples" in done.stdout and "malformed" in done.stdout
    assert topics.ends() == before and not (films.job.dir / "logs").exists()

    done = cli("run", "join", films.spec, "--stop-at-end")
    assert done.returncode == 0, done.stderr[-4000:]
    expected = sql_join(impressions, actions)
    rows = topics.example_rows()
    assert len(rows) == len(expected) and set(labelled(rows)) == expected
    dead = [json.loads(message) for _, _, message in topics.messages(topics.dead)]
    assert sorted(d["reason"] for d in dead) == ["malformed"] * 6 + ["tombstone"] * 2
    originals = {
        (n, *m) for n, a in enumerate((topics.impressions, topics.actions)) for m in topics.messages(a)
    }
    names = [topics.impressions.topic, topics.actions.topic]
    assert all(
        (names.index(d["log"]), d["partition"], d["offset"], d["value"].encode() if "value" in d else None)
        in originals
        for d in dead
    )

    address = topics.job.path(topics.job.store.data) / "address"
    with process("store", "serve", films.spec):
        wait_for(address.exists, "the store's address")
        for _ in range(2):  # the second finds that the store stands at the end
            done = cli("run", "train", films.spec, "--stop-at-end")
            assert done.returncode == 0, done.stderr[-4000:]
            assert films.trained_counts(address) == films.expected_counts(rows)

        topics.recreate_examples(wait_for)
        done = cli("run", "train", films.spec, "--stop-at-end")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "it was recreated" in done.stderr or "the log was recreated" in done.stderr
        assert films.trained_counts(address) == films.expected_counts(rows)

    from kafka.admin import KafkaAdminClient

    client = KafkaAdminClient(bootstrap_servers=kafka)
    told = {
        (o.topic, o.partition): at.offset
        for o, at in client.list_group_offsets(topics.group)[topics.group].items()
    }
    client.close()
    assert set(names) <= {topic for topic, _ in told}


def test_a_second_join_is_refused_where_the_reader_would_not_see_its_repeats(films, cli, kafka: str) -> None:
    topics = TopicJob(
        films, kafka, "kafka-python", (("{batch_size: 64,", "{batch_size: 64, dedupe_rows: 50,"),)
    )
    topics.create()
    topics.append(*films.events(100))
    assert cli("run", "join", films.spec, "--stop-at-end").returncode == 0
    before = topics.messages(topics.examples)
    done = cli("run", "join", films.spec, "--stop-at-end")
    assert done.returncode == 1
    assert "ReplayTooLong" in done.stderr and "training.dedupe_rows to" in done.stderr
    assert "Traceback" not in done.stderr
    assert topics.messages(topics.examples) == before


def test_logs_by_hand_on_a_topic(cli, kafka: str) -> None:
    log = f"kafka://{kafka}/by-hand-{uuid.uuid4().hex}"
    assert cli("log", "create", log, "--partitions", 2).returncode == 0
    lines = [json.dumps({"n": n}) for n in range(3)]
    done = cli("log", "append", log, "--partition", 1, stdin="\n".join(lines) + "\n")
    assert "3 messages" in done.stdout, done.stderr
    assert cli("log", "read", log, "--partition", 1, "--offset", 1).stdout.splitlines() == lines[1:]
    assert cli("log", "read", log).stdout == ""
    assert cli("log", "append", log, "--partition", 2, stdin="x\n").returncode == 2
    assert cli("log", "create", log).returncode == 1
    done = cli("log", "read", f"{log}?client.sasl.password=hush&partition=2")
    assert done.returncode == 2 and "hush" not in done.stderr + done.stdout


@pytest.mark.fault
@pytest.mark.deep
@pytest.mark.usefixtures("kafka")  # which says why, where there is no broker to be had
@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_closes_early_while_the_broker_is_away(
    films,
    wait_for: Callable[..., None],
    library: str,
    tmp_path: Path,
) -> None:
    """Events of the present: a broker that is away for longer than idleness takes must not count as idle."""
    cluster = LocalCluster(tmp_path / "killed")
    try:
        bootstrap = cluster.up(["kafka"]).kafka
        topics = TopicJob(
            films,
            bootstrap or "",
            library,
            (
                ("idle_after: 7d", "idle_after: 8s"),
                ("max_skew: 10s", "max_skew: 1s"),
                ("window: 10m", "window: 6s"),
                ("window: 30m", "window: 6s"),
                ("late_horizon: 1h", "late_horizon: 1m"),
            ),
        )
        topics.create()
        now_ms = time.time_ns() // 1_000_000
        shown = [
            {"request_id": f"r{n}", "item_id": "i", "time": now_ms + n, "user_id": "u", "genres": ["all"]}
            for n in range(40)
        ]
        acted = [
            {"request_id": f"r{n}", "item_id": "i", "time": now_ms + n + 1_000, "action": "like"}
            for n in range(0, 40, 2)
        ]
        expected = sql_join(shown, acted, 6_000, 6_000)
        with process("run", "join", films.spec):
            topics.append(shown, [])
            wait_for(lambda: films.log_has_rows(topics.job.logs.join_balances.path), "the join has begun")
            os.kill(cluster.pid("kafka"), signal.SIGKILL)
            killed_s = time.monotonic()
            wait_for(lambda: time.monotonic() - killed_s > 20, "the broker was away for 20 s")
            cluster.start("kafka")
            topics.append([], acted)
            wait_for(lambda: len(topics.example_rows()) == len(expected), "all examples", 120)
            print(f"library={library} all_examples_after_s={time.monotonic() - killed_s - 20:.1f}")
        rows = topics.example_rows()
        assert len(rows) == len(expected) and set(labelled(rows)) == expected
    finally:
        cluster.down()
