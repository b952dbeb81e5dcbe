"""A join on Flink between topics: what is put in, what came out, and whether the two agree."""

from __future__ import annotations

import json
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from cuckooflow.logs.address import KafkaAddress
from cuckooflow.logs.contract import LogReader, LogWriter, Position
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.runners.cluster import LocalCluster
from cuckooflow.runners.flink_rest import FlinkRest
from cuckooflow.transforms.balances import imbalances, totals
from cuckooflow.transforms.examples_reader import ExamplesReader
from tests.faults.batch_join import Message, Outcome, Rules, batch_join
from tests.faults.events import Event, Stretch, stretch

SPEC = Path(__file__).parent / "job.yaml"
#: Until everything has come out: after a kill Flink waits for heartbeats, starts workers, and they import.
BOUND_S = 180
_POLL_S = 0.25
_APPENDED_AT_ONCE = 50
START_MS = 1_767_225_600_000


Refused = Callable[[str, dict[str, Any]], str | None]


def _nothing(_log: str, _row: dict[str, Any]) -> None:
    return None


class Topic:
    """All that was ever appended to a topic, read on from where the last look ended."""

    def __init__(self, address: KafkaAddress) -> None:
        self.address = address
        self._reader: LogReader | None = None
        self._at: dict[int, int] = {}
        self._messages: list[Message] = []

    def messages(self) -> list[Message]:
        reader = self._reader = self._reader or self.address.open_reader()
        for partition in reader.partitions():
            first, last = self._at.get(partition, 0), reader.end_offset(partition)
            for batch in reader.read_range(partition, first, last):
                found = zip(batch.offsets.tolist(), batch.append_us.tolist(), batch.values, strict=True)
                self._messages += [Message(partition, o, us, value.as_py()) for o, us, value in found]
            self._at[partition] = last
        return self._messages

    def rows(self) -> list[dict[str, Any]]:
        """Of a topic of JSON lines."""
        return [json.loads(message.value or b"") for message in self.messages()]

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


class Examples:
    """The examples as the trainer would read them."""

    def __init__(self, address: KafkaAddress, dedupe_rows: int) -> None:
        self._log = address.open_reader()
        self._reader = ExamplesReader(self._log, dedupe_rows)
        self._at: dict[int, Position] = {}
        self.rows: list[dict[str, Any]] = []
        self.repeated = 0

    def read(self) -> list[dict[str, Any]]:
        for partition in self._log.partitions():
            at = self._at.get(partition, Position(0))
            while True:
                batch, header = self._reader.read(partition, at)
                assert self._reader.dead_letters.num_rows == 0
                self.repeated += header.repeated
                if header.range.last == at:
                    break
                self.rows += batch.to_pylist()
                at = header.range.last
            self._at[partition] = at
        return self.rows

    def close(self) -> None:
        self._log.close()


class LiveJoin:
    """A join between topics of its own.

    Args:
        folder: of the job.
        changes: to the text of its spec.
        rules: the times that these changes make.
        seed: of its events, printed with every stretch.

    Attributes:
        exact: whether the last :meth:`check` held; a test that begins sets it to false.
    """

    def __init__(
        self,
        folder: Path,
        cli: Callable[..., Any],
        cluster: LocalCluster,
        changes: Mapping[str, str] | None = None,
        rules: Rules | None = None,
        seed: int = 1,
    ) -> None:
        self.cluster, self._cli = cluster, cli
        self.rules = rules or Rules()
        mark = uuid.uuid4().hex[:8]
        addresses = cluster.addresses()
        assert addresses.kafka and addresses.flink_rest
        text = SPEC.read_text().replace("BOOTSTRAP", addresses.kafka).replace("MARK", mark)
        for old, new in (changes or {}).items():
            assert old in text, old
            text = text.replace(old, new)
        folder.mkdir(parents=True)
        self.spec = folder / "job.yaml"
        self.spec.write_text(text.replace("name: faults", f"name: faults_{mark}"))
        self.job = load_spec(self.spec)
        self.name = f"{self.job.name}-join"
        self.rest = FlinkRest(addresses.flink_rest)
        self.topics = {
            name: Topic(self._address(name))
            for name in ("impressions", "actions", "late", "unmatched", "dead_letters", "join_balances")
        }
        self._writers: dict[str, LogWriter] = {}
        for name in ("impressions", "actions"):
            self.topics[name].address.create_missing().close()
        self._examples: Examples | None = None
        self._seed, self._requests, self._now_ms = seed, 0, START_MS
        self.exact = True

    def _address(self, name: str) -> KafkaAddress:
        address = self.job.address(getattr(self.job.logs, name))
        assert isinstance(address, KafkaAddress)
        # Of the test's own clients: kafka-python leaves sockets to the collector when a broker is away.
        return address.model_copy(update={"library": "confluent-kafka"})

    # --- the job's life

    def command(self, *words: object) -> str:
        done = self._cli(*words, "--cluster", self.cluster.folder)
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        return str(done.stdout)

    def start(self, *beam_args: str) -> None:
        self.command("run", "join", self.spec, "--runner", "flink", "--detach", *_FAST, *beam_args)

    def resume(self, *beam_args: str) -> str:
        return self.command("job", "resume", "join", self.spec, "--detach", *_FAST, *beam_args)

    def change_spec(self, changes: Mapping[str, str]) -> None:
        """Change the text of the job's spec."""
        text = self.spec.read_text()
        for old, new in changes.items():
            assert old in text, old
            text = text.replace(old, new)
        self.spec.write_text(text)
        self.job = load_spec(self.spec)

    def cancel(self) -> None:
        for job in self.rest.jobs():
            if job.name == self.name and not job.ended:
                self.rest.cancel(job.id)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        for topic in self.topics.values():
            topic.close()
        if self._examples is not None:
            self._examples.close()

    # --- in

    def next_stretch(self, requests: int = 60) -> Stretch:
        """New events, of keys and of a time that none had before."""
        made = stretch(self._seed + self._requests, self._requests, requests, self._now_ms)
        print(f"seed={self._seed + self._requests} first_request={self._requests} requests={requests}")
        self._requests += requests
        self._now_ms = made.end_ms + 1_000
        return made

    def skip_to(self, now_ms: int) -> None:
        """Let the next stretch begin at this event time, or later."""
        self._now_ms = max(self._now_ms, now_ms)

    def append(self, made: Stretch) -> None:
        """Partition by partition, a piece of each in turn."""
        parts = [("impressions", p, events) for p, events in made.shown.items()]
        parts += [("actions", p, events) for p, events in made.done.items()]
        for at in range(0, max(len(events) for _, _, events in parts), _APPENDED_AT_ONCE):
            for log, partition, events in parts:
                piece = events[at : at + _APPENDED_AT_ONCE]
                if piece:
                    self.send(log, partition, piece)

    def send(
        self, log: str, partition: int, events: Sequence[Event | bytes | None], append_us: int | None = None
    ) -> int:
        """Append messages; the first one's offset."""
        if log not in self._writers:
            self._writers[log] = self.topics[log].address.open_writer()
        lines = [json.dumps(event).encode() if isinstance(event, dict) else event for event in events]
        now_us = time.time_ns() // 1_000 if append_us is None else append_us
        return self._writers[log].append(partition, pa.array(lines, pa.binary()), now_us)

    # --- out

    def examples(self) -> list[dict[str, Any]]:
        """So far, without repeats."""
        if self._examples is None:
            self._examples = Examples(self._address("examples"), self.job.training.dedupe_rows)
        return self._examples.read()

    def labelled(self) -> dict[tuple[str, str], tuple[int, float, int]]:
        """(request, item) -> labels of each example; there is one of each."""
        rows = self.examples()
        found = {
            (r["request_id"], r["item_id"]): (r["label_click"], r["label_watch"], r["label_views"])
            for r in rows
        }
        assert len(found) == len(rows), "an example came twice through the reader"
        return found

    def outcome(self) -> Outcome:
        """What the join has given, each row once however often a sink had to write it."""
        out = Outcome(examples=self.labelled())
        late = {(row["_id_hi"], row["_id_lo"]): row for row in self.topics["late"].rows()}
        out.late = Counter(
            (r["request_id"], r["item_id"], r["label_click"], r["label_watch"], r["label_views"])
            for r in late.values()
        )
        out.unmatched = {(row["_partition"], row["_offset"]) for row in self.topics["unmatched"].rows()}
        logs = {self.topics[name].address.topic: name for name in ("impressions", "actions")}
        for row in self.topics["dead_letters"].rows():
            name = logs.get(row["log"], row["log"])
            out.dead[name, row["partition"], row["offset"]] = row["reason"]
        out.counts = self.balances().get("join", {})
        return out

    def balances(self) -> dict[str, dict[str, int]]:
        """Stage -> its counts, as last reported."""
        return totals(self.topics["join_balances"].rows())

    def has_read(self) -> bool:
        """Whether the join has read all that lies in its two topics."""
        source = self.balances().get("source", {})
        return all(
            source.get(f"{log}_messages", 0) == len(self.topics[log].messages())
            for log in ("impressions", "actions")
        )

    def counter(self, name: str) -> int:
        """One of the join's metrics on Flink, over all subtasks, since the job's last restart."""
        (address,) = (part.address for part in self.cluster.status() if part.name == "taskmanager")
        with urllib.request.urlopen(f"http://{address}", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        job = self.rest.job(self.name).id
        found = [line for line in lines if f"_cuckooflow_{name}{{" in line and f'job_id="{job}"' in line]
        return sum(int(float(line.rpartition(" ")[2])) for line in found)

    def expected(self, all_closed: bool = False, refused: Refused = _nothing) -> Outcome:
        """The independent batch join of what lies in the topics."""
        impressions, actions = (self.topics[name].messages() for name in ("impressions", "actions"))
        return batch_join(impressions, actions, self.rules, all_closed, refused)

    def check(
        self,
        begin_s: float | None = None,
        all_closed: bool = False,
        bound_s: float = BOUND_S,
        refused: Refused = _nothing,
    ) -> Outcome:
        """Wait until everything came out; fail with what is missing or wrong.

        Args:
            begin_s: by the monotonic clock; how long after it the examples were whole is printed.
            all_closed, refused: see :func:`~tests.faults.batch_join.batch_join`.
        """
        expected = self.expected(all_closed, refused)
        deadline = time.monotonic() + bound_s
        while self.labelled() != expected.examples and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if begin_s is not None:
            print(f"examples_whole_after_s={time.monotonic() - begin_s:.1f}")
        while self.outcome() != expected and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        found = self.outcome()
        for name in ("examples", "late", "unmatched", "dead", "counts"):
            assert getattr(found, name) == getattr(expected, name), f"{name} differ after {bound_s:g} s"
        self._check_source(expected)
        self.exact = True
        repeated = 0 if self._examples is None else self._examples.repeated
        print(
            f"examples={len(found.examples)} late={sum(found.late.values())} dead={len(found.dead)} repeats={repeated}"
        )
        return found

    def _check_source(self, expected: Outcome) -> None:
        sums = self.balances()
        assert imbalances(sums) == []
        source, join = sums["source"], sums["join"]
        for log in ("impressions", "actions"):
            assert source[f"{log}_messages"] == len(self.topics[log].messages())
            assert source[f"{log}_rows"] == join[log] == expected.counts[log]


#: Checkpoints every second, so that a test need not wait for one.
_FAST = ("--checkpointing_interval=1000", "--parallelism=2")
