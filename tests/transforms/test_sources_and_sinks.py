"""The sources and sinks in pipelines: live in process, and as splittable DoFns on Prism."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineState
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from cuckooflow.errors import LogNotFound, MessageTooLarge, OffsetOutOfRange, SpecError
from cuckooflow.logs.contract import Position
from cuckooflow.logs.local_log import LocalLog, LocalLogReader, LocalLogWriter
from cuckooflow.logs.shared_writers import acquire_writer, release_writer
from cuckooflow.runners import prism
from cuckooflow.transforms.coders import Keyed, encode_batch
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.front_ends import Firing, PollTracker, allow_sources, stop_sources
from cuckooflow.transforms.in_band import ACTIONS, IMPRESSIONS, LOG_NAMES
from cuckooflow.transforms.in_band_clock import InBandClock
from cuckooflow.transforms.poll_core import PollOptions
from cuckooflow.transforms.ranges import read_range_header
from cuckooflow.transforms.read_examples import ExamplesOptions, ReadExamples
from cuckooflow.transforms.read_logs import LogInput, ReadLogs
from cuckooflow.transforms.sinks import WriteExamples, WriteJsonLines, example_messages, json_lines

KEY = {"k": Column(type="string"), "t": Column(type="time", unit="s")}
SCHEMAS = {
    IMPRESSIONS: EventSchema(columns=KEY, time="t", key=("k",)),
    ACTIONS: EventSchema(
        columns={**KEY, "what": Column(type="string")}, time="t", key=("k",), action_type="what"
    ),
}
OPTIONS = PollOptions(num_shards=4, max_skew_us=0, heartbeat_us=50_000, max_messages=20)
#: The stateful front end's job ends with its logs, where the runner fires timers after the input's end.
ENDS = Firing(endless=False)
needs_prism = pytest.mark.skipif(prism.find_prism() is None, reason=f"no Prism binary; {prism.INSTALL}")


def event(log: int, n: int) -> bytes:
    more = {"what": "click"} if log == ACTIONS else {}
    return json.dumps({"k": f"k{n % 17}", "t": 1_000 + n, **more}).encode()


class InOrder(beam.DoFn):
    """A keyed stateful stage, as the join is one: rows leave in chain order, with an identity each."""

    CLOCK = ReadModifyWriteStateSpec("clock", beam.coders.BytesCoder())

    def process(self, element: Keyed, clock: Any = beam.DoFn.StateParam(CLOCK)) -> Iterator[Keyed]:
        shard, batch = element
        stored = clock.read()
        in_band = InBandClock.from_bytes(stored) if stored else InBandClock()
        for rows, _ in in_band.accept(batch):
            place = [rows.column(n).to_numpy().astype("uint64") for n in ("_log", "_partition", "_offset")]
            low = (place[0] << 48) | (place[1] << 32) | place[2]
            identity = {"_id_hi": rows.column("_hash"), "_id_lo": pa.array(low)}
            yield shard, pa.RecordBatch.from_pydict({**identity, "clock": [in_band.clock_us()] * len(low)})
        clock.write(in_band.to_bytes())


class Job:
    """Logs in a folder, and the pipeline: both event logs -> keyed stage -> examples log, dead letters."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for log, partitions in ((IMPRESSIONS, 2), (ACTIONS, 1)):
            LocalLog.create(path / LOG_NAMES[log], partitions)
        self.examples = LocalLog.create(path / "examples", 2, "frames")
        self.dead = LocalLog.create(path / "dead")
        self.written = 0

    def append(self, count: int, seal: bool = False) -> None:
        for log, partitions in ((IMPRESSIONS, 2), (ACTIONS, 1)):
            with LocalLogWriter(self.path / LOG_NAMES[log]) as writer:
                for partition in range(partitions):
                    lines = [event(log, self.written + n) for n in range(count)]
                    writer.append(partition, [*lines, b"junk"], 10**15)
                if seal:
                    writer.seal()
        self.written += count

    def build(
        self,
        pipeline: beam.Pipeline,
        front_end: Any,
        options: PollOptions = OPTIONS,
        firing: Firing = ENDS,
    ) -> None:
        inputs = [LogInput(self.path / LOG_NAMES[log], SCHEMAS[log]) for log in (IMPRESSIONS, ACTIONS)]
        source = pipeline | "Read" >> ReadLogs(*inputs, options, front_end, 20_000, firing)
        rows = source.main | "InOrder" >> beam.ParDo(InOrder()).with_output_types(Keyed)
        rows | "Examples" >> WriteExamples(self.examples.path)
        source.dead | "Dead" >> WriteJsonLines(self.dead.path)

    def rows(self) -> int:
        return sum(table.num_rows for p in (0, 1) for table in messages(self.examples, p))

    def check(self, appends: int) -> None:
        """Every row of every log exactly once, each shard's in its own partition; each junk line too."""
        low = [v for p in (0, 1) for t in messages(self.examples, p) for v in t.column("_id_lo").to_pylist()]
        size = self.written + appends  # with the junk lines
        junk = {n * size // appends - 1 for n in range(1, appends + 1)} if appends == 1 else None
        assert len(low) == len(set(low)) == 3 * self.written
        for partition in (0, 1):
            for table in messages(self.examples, partition):
                shards = {h % 4 % 2 for h in table.column("_id_hi").to_pylist()}
                assert shards == {partition}
        assert self.dead.end_offset(0) == 3 * appends
        if junk is not None:
            assert {v & 0xFFFFFFFF for v in low} == set(range(size)) - junk


def messages(log: LocalLogReader, partition: int) -> list[pa.Table]:
    end = log.end_offset(partition)
    values = [v for batch in log.read_range(partition, 0, end) for v in batch.values.to_pylist()]
    return [pa.ipc.open_stream(value).read_all() for value in values]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < limit, f"waited in vain for {what}"
        time.sleep(0.02)


def run_beside(pipeline: Callable[[], Any], script: Callable[[], None]) -> None:
    """Run a pipeline here (Prism's runner wants the main thread) and, beside it, what a user does meanwhile."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            script()
        except BaseException as error:
            errors.append(error)
            stop_sources()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    pipeline()
    thread.join(120)
    if errors:
        raise errors[0]
    assert not thread.is_alive()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    allow_sources()
    yield Job(tmp_path)
    allow_sources()


def run_in_process(build: Callable[[beam.Pipeline], Any]) -> None:
    options = PipelineOptions(["--no_save_main_session", "--environment_type=beam:env:embedded_python:v1"])
    with beam.Pipeline(FnApiRunner(), options=options) as pipeline:
        build(pipeline)


def run_on_prism(build: Callable[[beam.Pipeline], Any]) -> None:
    preset = prism.preset([])
    with beam.Pipeline(preset.make_runner(), options=preset.options) as pipeline:
        build(pipeline)


Run = Callable[[Callable[[beam.Pipeline], Any]], None]
on_prism = [needs_prism, pytest.mark.prism, pytest.mark.slow]
LIVE = [
    pytest.param(run_in_process, "generator", id="in_process-generator"),
    pytest.param(run_on_prism, "splittable", marks=on_prism, id="prism-splittable"),
]
#: With a seed that ends, neither runner waits for a timer that is due later: nothing comes while the logs grow.
BOUNDED = [
    *LIVE,
    pytest.param(run_in_process, "stateful", id="in_process-stateful"),
    pytest.param(run_on_prism, "stateful", marks=on_prism, id="prism-stateful"),
]
live_front_ends = pytest.mark.parametrize(("run", "front_end"), LIVE)
front_ends = pytest.mark.parametrize(("run", "front_end"), BOUNDED)


@front_ends
def test_a_bounded_read_gives_every_row(job: Job, run: Run, front_end: str) -> None:
    job.append(50)
    options = PollOptions(num_shards=4, max_skew_us=0, max_messages=20, stop_at_end=True)
    run(lambda p: job.build(p, front_end, options))
    job.check(appends=1)


@live_front_ends
def test_the_pipeline_is_live_until_the_logs_are_sealed(job: Job, run: Run, front_end: str) -> None:
    """The keyed stage and the sink see rows while the source still runs; the next append goes through too."""

    def script() -> None:
        for n in range(1, 4):
            job.append(10)
            wait_for(lambda n=n: job.rows() == 30 * n, f"rows of append {n}")  # type: ignore[misc]
        job.append(0, seal=True)

    run_beside(lambda: run(lambda p: job.build(p, front_end)), script)
    job.check(appends=4)


@live_front_ends
def test_stopping_ends_a_source_without_end_marks(job: Job, run: Run, front_end: str) -> None:
    def script() -> None:
        job.append(10)
        wait_for(lambda: job.rows() == 30, "rows")
        stop_sources()

    run_beside(lambda: run(lambda p: job.build(p, front_end)), script)
    clocks = [c for p in (0, 1) for t in messages(job.examples, p) for c in t.column("clock").to_pylist()]
    assert max(clocks) < 1 << 60  # nothing was told that the logs have ended


@needs_prism
@pytest.mark.prism
@pytest.mark.slow
def test_on_prism_an_endless_seed_is_live_until_the_job_is_cancelled(job: Job) -> None:
    """The stateful front end as it is on Flink, whose job does not end with its logs."""
    preset = prism.preset([])
    pipeline = beam.Pipeline(preset.make_runner(), options=preset.options)
    job.build(pipeline, "stateful", firing=Firing())
    job.append(10)
    result = pipeline.run()
    try:
        wait_for(lambda: job.rows() == 30, "the first rows")
        job.append(10, seal=True)
        wait_for(lambda: job.rows() == 60, "the last rows")
        assert not PipelineState.is_terminal(result.state)
    finally:
        result.cancel()
    job.check(appends=2)


# --- examples -------------------------------------------------------------------------------


class Ranges(beam.DoFn):
    """What a trainer sees: (partition, first, last, rows, repeated, end)."""

    def process(self, element: Keyed) -> Iterator[dict[str, Any]]:
        partition, batch = element
        header = read_range_header(batch)
        assert header.range.partition == partition
        ends = {"first": list(header.range.first), "last": list(header.range.last), "end": header.end}
        yield {"p": partition, "ids": batch.column("_id_hi").to_pylist() if batch.num_rows else [], **ends}


def write_examples(path: Path, messages_: int) -> LocalLogReader:
    log = LocalLog.create(path / "examples", 2, "frames")
    with LocalLogWriter(log.path) as writer:
        for n in range(messages_):
            ids = pa.array([n * 10 + i for i in range(10)], pa.uint64())
            value = encode_batch(pa.RecordBatch.from_pydict({"_id_hi": ids, "_id_lo": ids}))
            writer.append(n % 2, [value, value, b"junk"], 1)
        writer.seal()
    return log


def check_ranges(path: Path, starts: dict[int, Position]) -> None:
    out = LocalLog.open(path / "out")
    seen = [json.loads(v) for b in out.read_range(0, 0, out.end_offset(0)) for v in b.values.to_pylist()]
    for partition in (0, 1):
        mine = [row for row in seen if row["p"] == partition]
        mine.sort(key=lambda row: (row["first"], row["last"], row["end"]))
        at = list(starts.get(partition, Position(0)))
        for row in mine:
            assert row["first"] == at
            at = row["last"]
        assert at == [15, 0] and [row["end"] for row in mine].count(True) == 1 and mine[-1]["end"]
        ids = [i for row in mine for i in row["ids"]]
        skipped = starts.get(partition, Position(0))
        first = skipped.row if skipped.offset == 0 else 10
        assert ids == [n * 10 + i for n in range(partition, 10, 2) for i in range(10)][first:]
    dead = LocalLog.open(path / "dead")
    assert dead.end_offset(0) == 10


def examples_pipeline(
    path: Path, front_end: Any, starts: dict[int, Position]
) -> Callable[[beam.Pipeline], None]:
    for name in ("out", "dead"):
        LocalLog.create(path / name)

    def build(pipeline: beam.Pipeline) -> None:
        options = ExamplesOptions(starts=starts, max_rows=7, heartbeat_us=30_000, dedupe_rows=50)
        source = pipeline | ReadExamples(path / "examples", options, front_end, poll_interval_us=10_000)
        source.main | beam.ParDo(Ranges()) | "Out" >> WriteJsonLines(path / "out")
        source.dead | "Dead" >> WriteJsonLines(path / "dead")

    return build


def test_in_process_examples_come_by_contiguous_ranges(tmp_path: Path) -> None:
    allow_sources()
    write_examples(tmp_path, 10)
    starts = {1: Position(0, 4)}
    run_in_process(examples_pipeline(tmp_path, "generator", starts))
    check_ranges(tmp_path, starts)


@needs_prism
@pytest.mark.prism
@pytest.mark.slow
def test_on_prism_examples_come_by_contiguous_ranges(tmp_path: Path) -> None:
    write_examples(tmp_path, 10)
    run_on_prism(examples_pipeline(tmp_path, "splittable", {}))
    check_ranges(tmp_path, {})


def test_a_start_that_is_not_there_is_refused_while_building(tmp_path: Path) -> None:
    write_examples(tmp_path, 4)
    with pytest.raises(OffsetOutOfRange, match="ahead of the log"):
        ReadExamples(tmp_path / "examples", ExamplesOptions(starts={0: Position(99)}))
    with pytest.raises(SpecError, match="partitions"):
        ReadExamples(tmp_path / "examples", ExamplesOptions(starts={7: Position(0)}))
    with pytest.raises(LogNotFound):
        ReadExamples(tmp_path / "nothing")
    with pytest.raises(LogNotFound):
        ReadLogs(*(LogInput(tmp_path / "nothing", SCHEMAS[log]) for log in (IMPRESSIONS, ACTIONS)))


def test_a_restriction_is_never_split_in_two_but_checkpoints() -> None:
    tracker = PollTracker(b"N")
    assert tracker.try_split(0.5) is None
    with pytest.raises(ValueError, match="neither"):
        tracker.check_done()
    assert tracker.try_claim(b"Sone")
    assert tracker.try_split(0) == (b"D", b"Sone")
    assert not tracker.try_claim(b"Stwo") and tracker.try_split(0) is None
    assert tracker.check_done() and not tracker.is_bounded()
    ended = PollTracker(b"Stwo")
    assert ended.try_claim(b"D") and ended.try_split(0) is None and ended.check_done()


# --- sinks ----------------------------------------------------------------------------------


def test_sinks_refuse_a_log_that_does_not_fit(tmp_path: Path) -> None:
    LocalLog.create(tmp_path / "lines")
    with pytest.raises(SpecError, match="frames"):
        WriteExamples(tmp_path / "lines")
    with pytest.raises(SpecError, match="partition"):
        WriteJsonLines(tmp_path / "lines", partition=1)


def test_a_large_batch_becomes_several_messages_in_order() -> None:
    batch = pa.RecordBatch.from_pydict({"a": list(range(10_000))})
    parts = example_messages(batch, message_bytes=10_000)
    assert len(parts) > 4 and max(map(len, parts)) <= 10_000
    assert [v for part in parts for v in pa.ipc.open_stream(part).read_all().column("a").to_pylist()] == list(
        range(10_000)
    )
    with pytest.raises(MessageTooLarge):
        example_messages(pa.RecordBatch.from_pydict({"a": ["x" * 5_000]}), message_bytes=1_000)


def test_records_become_lines() -> None:
    batch = pa.RecordBatch.from_pydict({"a": [1.5, float("inf")], "b": [b"x", None], "c": [["é"], []]})
    assert [json.loads(line) for line in json_lines(batch)] == [
        {"a": 1.5, "b": "x", "c": ["é"]},
        {"a": None, "b": None, "c": []},
    ]


def test_one_process_shares_a_writer(tmp_path: Path) -> None:
    LocalLog.create(tmp_path / "log")
    first, second = acquire_writer(tmp_path / "log"), acquire_writer(tmp_path / "log")
    assert first is second
    release_writer(tmp_path / "log")
    first.append(0, [b"a"], 1)
    release_writer(tmp_path / "log")
    release_writer(tmp_path / "log")
    LocalLogWriter(tmp_path / "log").close()
