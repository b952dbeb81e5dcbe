"""A join as it is submitted: a job spec, its logs filled with events, and what its balances say of its speed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import yaml

from benchmarks.join_events import Events, Shape, arrow_messages, json_messages, partition_rows
from cuckooflow.logs.address import KafkaAddress, LogAddress
from cuckooflow.logs.contract import LogReader
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.transforms.balances import imbalances, totals

MessageKind = Literal["arrow", "json"]
PARTITIONS = 8
SHARDS = 8
ROWS_OF_A_MESSAGE = 1_024
#: Between these shares of all events the rate is taken: neither start-up nor what is left at the end counts.
FIRST, LAST = 0.2, 0.9
#: Messages that are handed over at once.
_CHUNK_BYTES = 2 << 20
_POLL_S = 0.25
_SUBMIT_TIMEOUT_S = 180.0
_ROOT = Path(__file__).resolve().parent.parent

INPUTS = ("impressions", "actions")
OUTPUTS = ("examples", "late", "unmatched", "dead_letters", "join_balances")


def topics(bootstrap: str, library: str = "kafka-python", partitions: int = PARTITIONS) -> dict[str, Any]:
    """New topics for all logs of a job, as its spec names them."""
    mark = uuid.uuid4().hex[:8]

    def log(name: str) -> dict[str, Any]:
        of_one = name not in (*INPUTS, "examples")
        address = {"bootstrap": bootstrap, "topic": f"{name}-{mark}", "library": library}
        return {"kafka": {**address, "partitions": 1 if of_one else partitions}}

    return {name: log(name) for name in (*INPUTS, *OUTPUTS)}


def folders() -> dict[str, Any]:
    """Local logs for all logs of a job, as its spec names them."""
    return {
        name: {"path": f"logs/{name}", "partitions": PARTITIONS if name in (*INPUTS, "examples") else 1}
        for name in (*INPUTS, *OUTPUTS)
    }


def spec(
    logs: dict[str, Any],
    shape: Shape,
    kind: MessageKind,
    emit: str = "complete",
    name: str = "bench",
    shards: int = SHARDS,
) -> dict[str, Any]:
    """The job of :mod:`benchmarks.join_events`."""
    key = {
        "request_id": {"type": "int64"},
        "item_id": {"type": "int64"},
        "time": {"type": "time", "unit": "us"},
    }
    shown = {"user_id": "string", "context": "string", "tags": "list<int64>", "age": "float64"}
    window = f"{shape.window_us // 1_000}ms"
    return {
        "name": f"{name}_{uuid.uuid4().hex[:6]}",
        "logs": logs,
        "messages": {log: {"format": kind} for log in INPUTS},
        "columns": {
            "impressions": key | {column: {"type": type_} for column, type_ in shown.items()},
            "actions": key | {"action": {"type": "string"}},
        },
        "join": {
            "key": ["request_id", "item_id"],
            "impression_time": "time",
            "action_time": "time",
            "action_type": "action",
            "emit": emit,
            "late_horizon": f"{4 * shape.window_us // 1_000}ms",
            "max_skew": f"{shape.skew_us // 1_000}ms",
            "max_lead": window,
            "num_shards": shards,
        },
        "labels": {label: {"action": label, "window": window} for label in ("click", "like")},
        "features": [{"name": "user", "column": "user_id"}],
        "model": {"kind": "lr", "labels": ["click"]},
    }


class LiveJob:
    """A job's folder and its logs, which are created.

    Args:
        folder: of the job, made here.
        body: of :func:`spec`.
    """

    def __init__(self, folder: Path, body: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        self.spec = folder / "job.yaml"
        self.spec.write_text(yaml.safe_dump(body))
        self.job = load_spec(self.spec)
        self._balances: LogReader | None = None
        self._read_to = 0
        self._records: list[tuple[int, dict[str, Any]]] = []
        for name in (*INPUTS, *OUTPUTS):
            self.address(name).create_missing("lines" if name == "join_balances" else "frames").close()

    @property
    def name(self) -> str:
        """As Flink knows it."""
        return f"{self.job.name}-join"

    @property
    def partitions(self) -> int:
        """Of the logs of events."""
        return self.address("impressions").partitions

    def address(self, log: str, library: str | None = None) -> LogAddress:
        """Of one of its logs; ``library``: by which a client of the benchmark's own reaches a topic."""
        address = self.job.address(getattr(self.job.logs, log))
        if library is not None and isinstance(address, KafkaAddress):
            return address.model_copy(update={"library": library})
        return address

    def fill(self, events: Events, kind: MessageKind) -> None:
        """Append all events to the input logs, a request's to one partition."""
        for log, table in (("impressions", events.shown), ("actions", events.done)):
            writer = self.address(log, "confluent-kafka").open_writer()
            for partition, rows in enumerate(partition_rows(table, self.partitions)):
                part = table.take(pa.array(rows))
                messages = arrow_messages(part, ROWS_OF_A_MESSAGE) if kind == "arrow" else json_messages(part)
                now_us = time.time_ns() // 1_000
                for sent in [writer.send(partition, chunk, now_us) for chunk in _chunks(messages)]:
                    sent.wait()
            writer.close()

    def balances(self) -> list[tuple[int, dict[str, Any]]]:
        """(when it was written, record) of all records so far."""
        if self._balances is None:
            self._balances = self.address("join_balances").open_reader()
        end = self._balances.end_offset(0)
        for batch in self._balances.read_range(0, self._read_to, end):
            found = zip(batch.append_us.tolist(), batch.values.to_pylist(), strict=True)
            self._records += [(us, json.loads(value)) for us, value in found]
        self._read_to = end
        return self._records

    def await_joined(self, events: int, bound_s: float) -> None:
        """Until the join has taken so many rows.

        Raises:
            RuntimeError: not within the bound, or the balances do not add up.
        """
        deadline = time.monotonic() + bound_s
        while True:
            sums = totals(record for _, record in self.balances())
            taken = sum(sums.get("join", {}).get(log, 0) for log in INPUTS)
            if taken >= events:
                break
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"expected {events} rows to be joined within {bound_s:g} s, found {taken}: {sums}"
                )
            time.sleep(_POLL_S)
        faults = imbalances({"join": sums["join"]})
        dead = {name: rows for name, rows in sums["join"].items() if name.endswith("_dead") and rows}
        if faults or dead or taken != events:
            raise RuntimeError(f"expected {events} rows without a dead one, found {taken}: {faults} {dead}")

    def close(self) -> None:
        """Let go of the logs."""
        if self._balances is not None:
            self._balances.close()
            self._balances = None


def steady_rate(
    records: Iterable[tuple[int, dict[str, Any]]], events: int, first: float = FIRST, last: float = LAST
) -> float:
    """Events/s that the join's shards took between two shares of all events.

    Args:
        records: (when it was written in microseconds, balance record), as :meth:`LiveJob.balances`.
        events: of both logs together.

    >>> one = {"stage": "join", "shard": 0, "counts": {"impressions": 20, "actions": 0}}
    >>> steady_rate([(0, one), (500_000, one | {"counts": {"impressions": 80, "actions": 10}})], 100)
    140.0
    """
    taken: dict[int, int] = {}
    marks: list[tuple[int, int]] = []
    for us, record in sorted((entry for entry in records if entry[1]["stage"] == "join"), key=lambda e: e[0]):
        taken[record["shard"]] = sum(record["counts"][log] for log in INPUTS)
        marks.append((us, sum(taken.values())))
    begin = next(mark for mark in marks if mark[1] >= first * events)
    end = next(mark for mark in marks if mark[1] >= last * events)
    if end[0] <= begin[0]:
        raise RuntimeError(
            f"expected {events} events to take longer than one report of the balances; take more"
        )
    return (end[1] - begin[1]) * 1e6 / (end[0] - begin[0])


def commands(*words: object) -> None:
    """Run cuckooflow's command line.

    Raises:
        RuntimeError: it failed.
    """
    program = Path(sys.executable).parent / "cuckooflow"
    done = subprocess.run(
        [str(program), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=_SUBMIT_TIMEOUT_S,
        cwd=_ROOT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"cuckooflow {' '.join(map(str, words))}: {(done.stdout + done.stderr)[-4_000:]}")


def _chunks(messages: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
    step = max(1, _CHUNK_BYTES // max(1, len(messages[0]))) if messages else 1
    for at in range(0, len(messages), step):
        yield messages[at : at + step]
