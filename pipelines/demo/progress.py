"""What the running system tells about itself, read from outside: its logs, its snapshots, its scorer, its store.

Nothing here is asked of the processes by a private way: a user's own monitoring could do the same.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cuckooflow.embedding_store.client import connect
from cuckooflow.errors import LogNotFound, NoSnapshot, ScorerUnavailable, StoreError
from cuckooflow.logs.address import LogAddress, to_address
from cuckooflow.logs.contract import LogReader
from cuckooflow.models.progressive import LabelMetrics
from cuckooflow.models.snapshots import Manifest, list_manifests
from cuckooflow.pipelines.demo.job import LABEL
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.serving.client import ScorerClient
from cuckooflow.transforms.in_band import NO_TIME_US

#: Between two looks at logs, snapshots and scorer. Adds up to itself to the freshness that is seen.
LOOK_S = 0.1
#: Between two looks at the store's tables.
STORE_LOOK_S = 1.0
#: Progressive figures on screen are those of the last so many records.
RECORDS_SHOWN = 60


class JsonTail:
    """Reads what is new in a log of JSON lines, in all its partitions; the log may not be there yet."""

    def __init__(self, place: LogAddress | str | os.PathLike[str]) -> None:
        self._address = to_address(place)
        self._reader: LogReader | None = None
        self._at: dict[int, int] = {}

    def take(self) -> list[dict[str, Any]]:
        """Every record that came since the last call."""
        if self._reader is None:
            try:
                self._reader = self._address.open_reader()
            except LogNotFound:
                return []
        found: list[dict[str, Any]] = []
        for partition in self._reader.partitions():
            while True:
                batch = self._reader.read(partition, self._at.get(partition, 0))
                self._at[partition] = batch.next_offset
                if not len(batch):
                    break
                found += [json.loads(value) for value in batch.values.to_pylist()]
        return found


@dataclass(frozen=True)
class ServedVersion:
    """A version of the model that the scorer was seen to serve.

    Attributes:
        sequence: the snapshot's number.
        seen_us: when the scorer first told it, microseconds since the epoch.
        event_time_us: newest event time that it was trained on.
        freshness_s: seconds from the append of an action to here, for the manifest's sample.
    """

    sequence: int
    seen_us: int
    event_time_us: int
    freshness_s: tuple[float, ...]


@dataclass(frozen=True)
class TableSize:
    """Rows and bytes of the store's tables at one moment, microseconds since the epoch."""

    at_us: int
    rows: dict[str, int]
    bytes: dict[str, int]


@dataclass
class Observed:
    """Everything seen so far. Lists only grow.

    Attributes:
        joined: what the join counted, over all its shards, by ``stage.name``.
        joined_over_time: (microseconds, the same) at each look that brought news.
        dead: log -> its rows that became dead letters, in parsing or in the join.
        records: progressive metrics records of the trainer.
        manifests: every published snapshot.
        served: every version that the scorer was seen to serve.
        tables: the store's tables over time.
    """

    joined: dict[str, int] = field(default_factory=dict)
    joined_over_time: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    dead: dict[str, int] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    manifests: dict[int, Manifest] = field(default_factory=dict)
    served: list[ServedVersion] = field(default_factory=list)
    tables: list[TableSize] = field(default_factory=list)

    @property
    def served_us(self) -> int:
        """Newest event time in the served model; NO_TIME_US before the first."""
        return self.served[-1].event_time_us if self.served else NO_TIME_US

    def recent(self) -> LabelMetrics:
        """Progressive figures of the newest records."""
        figures = LabelMetrics()
        for record in self.records[-RECORDS_SHOWN:]:
            figures.merge(LabelMetrics.from_json(record))
        return figures

    def freshness_s(self, last: int | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
        """All freshness samples, or those of the last so many versions."""
        versions = self.served if last is None else self.served[-last:]
        return np.array([sample for version in versions for sample in version.freshness_s])


class Observer:
    """Looks at a running job from threads of its own. Use as a context manager.

    Args:
        job: which.
        scorer: a client of its scorer.
        store_address: file that holds the store's address.
        clock_us: now, microseconds since the epoch.
    """

    def __init__(
        self, job: JobSpec, scorer: ScorerClient, store_address: Path, clock_us: Callable[[], int]
    ) -> None:
        self.observed = Observed()
        self._job = job
        self._scorer = scorer
        self._store_address = store_address
        self._clock_us = clock_us
        self._balances = JsonTail(job.address(job.logs.join_balances))
        self._dead = JsonTail(job.address(job.logs.dead_letters))
        self._metrics = JsonTail(job.address(job.logs.train_metrics))
        self._by_shard: dict[tuple[str, int], dict[str, int]] = {}
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._guard, args=(look, every), name=look.__name__, daemon=True)
            for look, every in ((self._look, LOOK_S), (self._look_at_store, STORE_LOOK_S))
        ]

    def check(self) -> None:
        """Raise what ended a look, if anything did."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Observer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _guard(self, look: Callable[[], None], every_s: float) -> None:
        try:
            while not self._stop.wait(every_s):
                look()
        except BaseException as error:  # handed to the thread that watches
            self._error = error

    def _look(self) -> None:
        observed = self.observed
        observed.records += [
            r for r in self._metrics.take() if r["kind"] == "progressive" and r["label"] == LABEL
        ]
        for letter in self._dead.take():
            observed.dead[letter["log"]] = observed.dead.get(letter["log"], 0) + 1
        self._look_at_join()
        newest = max(observed.manifests, default=0)
        for manifest in list_manifests(self._job.path(self._job.snapshots.dir), after=newest):
            observed.manifests[manifest.sequence] = manifest
        sequence = self._served_version()
        last = observed.served[-1].sequence if observed.served else 0
        if sequence is not None and sequence > last and sequence in observed.manifests:
            self._note_served(last, sequence)

    def _look_at_join(self) -> None:
        records = self._balances.take()
        for record in records:
            self._by_shard[(record["stage"], record["shard"])] = record["counts"]
        if records:
            joined: dict[str, int] = {}
            for (stage, _), counts in self._by_shard.items():
                for name, count in counts.items():
                    joined[f"{stage}.{name}"] = joined.get(f"{stage}.{name}", 0) + count
            self.observed.joined = joined
            self.observed.joined_over_time.append((self._clock_us(), joined))

    def _served_version(self) -> int | None:
        """The number of the snapshot that the scorer serves; None before the first."""
        try:
            return self._scorer.version() or None
        except (NoSnapshot, ScorerUnavailable):
            return None

    def _note_served(self, last: int, sequence: int) -> None:
        now_us = self._clock_us()
        new = [m for number, m in self.observed.manifests.items() if last < number <= sequence]
        times = [m.event_time_us for m in new if m.event_time_us is not None]
        self.observed.served.append(
            ServedVersion(
                sequence=sequence,
                seen_us=now_us,
                event_time_us=max([self.observed.served_us, *times]),
                freshness_s=tuple((now_us - arrival) / 1e6 for m in new for arrival in m.arrivals_us),
            )
        )

    def _look_at_store(self) -> None:
        try:
            store = connect(self._store_address, retry_s=0)
            stats = store.stats()
        except (StoreError, OSError):
            return  # it was just killed, on purpose; the next look finds the restarted one
        tables = stats["tables"]
        assert isinstance(tables, dict)
        self.observed.tables.append(
            TableSize(
                at_us=self._clock_us(),
                rows={name: int(of["rows"]) for name, of in tables.items()},
                bytes={name: int(of["bytes"]) for name, of in tables.items()},
            )
        )
        store.close()
