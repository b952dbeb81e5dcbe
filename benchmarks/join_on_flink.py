"""The join on Flink: events/s from topics, latency, what an idle job costs, and what waits in state."""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.cpu_time import cpu_s
from benchmarks.join_events import Events, Shape, arrow_messages, events, partition_rows
from benchmarks.join_live import PARTITIONS, LiveJob, MessageKind, commands, spec, steady_rate, topics
from cuckooflow.logs.contract import LogReader
from cuckooflow.runners.cluster import LocalCluster
from cuckooflow.runners.flink_rest import FlinkRest
from cuckooflow.transforms.batch_bytes import decode_batch

PARALLELISM = 2
#: Until all that lies in the topics was joined, start-up included.
BOUND_S = 300.0
#: Of the latency: event time as it is now, and examples flow at both ends before anything is measured.
LIVE = Shape(step_us=65, window_us=20_000_000, skew_us=1_000_000)
LIVE_WARM_UP_S, LIVE_MEASURED_S = 40.0, 40.0
_TICK_S = 0.05
IDLE_SETTLE_S, IDLE_MEASURED_S = 15.0, 60.0
#: Of the state: a window in which everything waits, and pieces that give each shard slices of 256 rows or more.
WAITING = Shape(window_us=3_600_000_000, late=0.0)
WAITING_IMPRESSIONS = 200_000
_PIECE_ROWS, _PIECE_S = 4_096, 0.2
_CHECKPOINT_MS = 5_000
#: Of a checkpoint with state in RocksDB: how its metadata names the files that it shares with others.
_SHARED_FILE = re.compile(rb"/shared/([0-9a-f-]{36})")
_CHECKPOINT_TRIES = 5


class FlinkBench:
    """A cluster, and jobs on it one after another.

    Args:
        cluster: with all parts up.
        folder: of the jobs.
        library: by which the jobs reach Kafka.
        beam_args: for every job.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        folder: Path,
        library: str = "kafka-python",
        beam_args: tuple[str, ...] = (),
    ) -> None:
        addresses = cluster.addresses()
        assert addresses.kafka and addresses.flink_rest
        self.kafka = addresses.kafka
        self._cluster, self._folder = cluster, folder
        self._library, self._beam_args = library, beam_args
        self._rest = FlinkRest(addresses.flink_rest)

    def job(self, shape: Shape, kind: MessageKind, emit: str = "complete") -> LiveJob:
        """A new one, with topics of its own."""
        body = spec(topics(self.kafka, self._library), shape, kind, emit)
        return LiveJob(self._folder / str(body["name"]), body)

    @contextmanager
    def running(self, job: LiveJob, *beam_args: str) -> Iterator[None]:
        """The job runs within."""
        words = (f"--parallelism={PARALLELISM}", *self._beam_args, *beam_args)
        commands(
            "run",
            "join",
            job.spec,
            "--runner",
            "flink",
            "--detach",
            "--cluster",
            self._cluster.folder,
            *words,
        )
        try:
            yield
        finally:
            self._rest.cancel(self._rest.job(job.name).id)
            job.close()

    def events_per_s(self, made: Events, shape: Shape, kind: MessageKind) -> float:
        """Of a join that finds all events in its topics, between two marks."""
        job = self.job(shape, kind)
        job.fill(made, kind)
        with self.running(job):
            job.await_joined(made.count, BOUND_S)
            records = job.balances()
        return steady_rate(records, made.count)

    def latencies_s(self, seed: int) -> np.ndarray:
        """From the later one of impression and action in Kafka to the positive example read, of each example."""
        run_s = LIVE_WARM_UP_S + LIVE_MEASURED_S
        made = events(int((run_s + 2) * 1e6 / LIVE.step_us), seed, LIVE)
        job = self.job(LIVE, "arrow", emit="eager")
        with self.running(job):
            feeder = Feeder(job, made)
            tail = Tail(job.address("examples").open_reader())
            feeder.start()
            begin = time.monotonic()
            while time.monotonic() - begin < run_s:
                tail.look(measured=time.monotonic() - begin > LIVE_WARM_UP_S)
            feeder.stop()
            tail.close()
        print(f"fed {feeder.fed_per_s:,.0f} events/s, at most {feeder.behind_s:.2f} s behind")
        return np.concatenate(tail.latencies_s)

    def idle_core_fraction(self, seed: int) -> float:
        """Of one core, what all processes of a job without input take; Kafka is told beside it."""
        shape = Shape()
        few = events(PARTITIONS * 1_000, seed, shape)
        job = self.job(shape, "arrow")
        job.fill(few, "arrow")
        with self.running(job):
            job.await_joined(few.count, BOUND_S)
            time.sleep(IDLE_SETTLE_S)
            pids = self.pids()
            before, begin = {name: cpu_s(of) for name, of in pids.items()}, time.monotonic()
            time.sleep(IDLE_MEASURED_S)
            took_s = time.monotonic() - begin
            used = {name: (cpu_s(of) - before[name]) / took_s for name, of in pids.items()}
        print("idle, of a core: " + ", ".join(f"{name} {share:.4f}" for name, share in used.items()))
        return sum(share for name, share in used.items() if name != "kafka")

    def state_bytes_ratio(self, seed: int) -> float:
        """Bytes of the job's checkpoint for each impression that waits, over its size in Arrow."""
        made = events(WAITING_IMPRESSIONS, seed, WAITING)
        job = self.job(WAITING, "arrow")
        with self.running(job, f"--checkpointing_interval={_CHECKPOINT_MS}"):
            writer = job.address("impressions", "confluent-kafka").open_writer()
            for at in range(0, len(made.shown), _PIECE_ROWS):
                begin = time.monotonic()
                piece = made.shown.slice(at, _PIECE_ROWS)
                for partition, rows in enumerate(partition_rows(piece, PARTITIONS)):
                    writer.append(partition, arrow_messages(piece.take(pa.array(rows)), len(rows)), _now_us())
                time.sleep(max(0.0, _PIECE_S - (time.monotonic() - begin)))
            writer.close()
            job.await_joined(len(made.shown), BOUND_S)
            size = self._next_checkpoint_bytes(job)
        row = made.shown.nbytes / len(made.shown)
        print(
            f"state: {size / len(made.shown):.0f} bytes in a checkpoint for each waiting impression of {row:.0f}"
        )
        return size / made.shown.nbytes

    def _next_checkpoint_bytes(self, job: LiveJob) -> int:
        """Of the first checkpoint that begins from now on."""
        id_, begin_ms = self._rest.job(job.name).id, time.time_ns() // 1_000_000
        deadline = time.monotonic() + BOUND_S
        while True:
            latest = self._rest.get(f"/jobs/{id_}/checkpoints")["latest"]["completed"]
            if latest and latest["trigger_timestamp"] >= begin_ms:
                return int(latest["state_size"])
            if time.monotonic() > deadline:
                raise RuntimeError(f"expected a checkpoint within {BOUND_S:g} s, none was completed")
            time.sleep(0.5)

    def checkpoint(self, job: LiveJob) -> tuple[int, int]:
        """Bytes that the newest checkpoint of a job refers to, and those of them that are RocksDB's own log of changes.

        Both are 0 while there is none. RocksDB's MANIFEST says which files make its data; it grows with every
        checkpoint until the state is opened anew, and lies among the checkpoint's shared files.
        """
        for _ in range(_CHECKPOINT_TRIES):
            newest = self._rest.newest_checkpoint(self._rest.job(job.name).id)
            if newest is None or newest.path is None:
                break
            folder = Path(newest.path.removeprefix("file:"))
            try:
                named = set(_SHARED_FILE.findall((folder / "_metadata").read_bytes()))
                files = [folder.parent / "shared" / name.decode() for name in named]
                # The metadata holds what is small itself.
                logs = [file.stat().st_size for file in files if file.exists() and _is_manifest(file)]
            except FileNotFoundError:  # a newer one has taken its place meanwhile
                continue
            return newest.size_bytes, sum(logs)
        return 0, 0

    def pids(self) -> dict[str, list[int]]:
        """Of the cluster's parts; the workers' with the pool's own."""
        parts = ("taskmanager", "jobmanager", "jobserver", "kafka")
        pids = {part: [self._cluster.pid(part)] for part in parts}
        return pids | {"workers": [self._cluster.pid("workers"), *self._cluster.worker_pids()]}


def _is_manifest(file: Path) -> bool:
    with file.open("rb") as opened:
        return b"leveldb.BytewiseComparator" in opened.read(64)


@contextmanager
def flink_bench(
    folder: Path | None, library: str = "kafka-python", beam_args: tuple[str, ...] = ()
) -> Iterator[FlinkBench]:
    """On a cluster in ``folder``, which is left as it was; None: one of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="cuckooflow-bench-") as work:
        cluster = LocalCluster(folder or Path(work) / "cluster")
        cluster.up()
        try:
            yield FlinkBench(cluster, Path(work), library, beam_args)
        finally:
            if folder is None:
                cluster.down()


class Feeder(threading.Thread):
    """Appends events when they are due, as of now.

    Attributes:
        behind_s: the most that it was late by.
        fed_per_s: the rate that it kept.
        fed: events so far.
    """

    def __init__(self, job: LiveJob, made: Events) -> None:
        super().__init__(daemon=True)
        self._made, self._stop_asked = made, threading.Event()
        self._writers = [
            (job.address(log, "confluent-kafka").open_writer(), log, table, arrival)
            for log, table, arrival in (
                ("impressions", made.shown, made.shown_us),
                ("actions", made.done, made.done_us),
            )
        ]
        self._partitions = job.partitions
        self.behind_s = self.fed_per_s = 0.0
        self.fed = 0

    def run(self) -> None:
        begin_us = _now_us()
        origin_us = int(self._made.shown_us[0])
        done = [0, 0]
        for tick in range(1, 1 << 30):
            due_us = begin_us + int(tick * _TICK_S * 1e6)
            self._stop_asked.wait(max(0.0, (due_us - _now_us()) / 1e6))
            if self._stop_asked.is_set():
                break
            for which, (writer, _, table, arrival) in enumerate(self._writers):
                until = int(np.searchsorted(arrival, origin_us + due_us - begin_us))
                piece = table.slice(done[which], until - done[which])
                times = piece.column("_time").to_numpy() + (begin_us - origin_us)
                piece = piece.set_column(piece.schema.get_field_index("_time"), "_time", pa.array(times))
                for partition, rows in enumerate(partition_rows(piece, self._partitions)):
                    if len(rows):
                        writer.send(
                            partition, arrow_messages(piece.take(pa.array(rows)), len(rows)), _now_us()
                        )
                self.fed += until - done[which]
                done[which] = until
            self.behind_s = max(self.behind_s, (_now_us() - due_us) / 1e6)
            self.fed_per_s = self.fed * 1e6 / (_now_us() - begin_us)

    def stop(self) -> None:
        """End it."""
        self._stop_asked.set()
        self.join()
        for writer, *_ in self._writers:
            writer.close()


class Tail:
    """Reads examples as they become readable, and for positives how long that took."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._at = {partition: reader.end_offset(partition) for partition in reader.partitions()}
        self.latencies_s: list[np.ndarray] = []

    def look(self, measured: bool) -> None:
        """Take what is there."""
        self._reader.prefetch(self._at, 8 << 20)  # type: ignore[attr-defined]
        found = {partition: self._reader.read(partition, at) for partition, at in self._at.items()}
        now_us = _now_us()
        for partition, batch in found.items():
            self._at[partition] = batch.next_offset
            for value in batch.values if measured else ():
                rows = decode_batch(value.as_py())
                positive = rows.column("label_click").to_numpy() + rows.column("label_like").to_numpy() > 0
                there_us = rows.column("_append").to_numpy()[positive]
                self.latencies_s.append((now_us - there_us) / 1e6)
        time.sleep(0.01)

    def close(self) -> None:
        """Let go of the log."""
        self._reader.close()


def _now_us() -> int:
    return time.time_ns() // 1_000
