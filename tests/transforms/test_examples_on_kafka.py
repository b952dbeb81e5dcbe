"""The examples log on a broker: written by bundles, read by position, its shape and retention held."""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from cuckooflow.errors import LogRecreated, MessageTooLarge, PartitionsChanged, RetentionTooShort
from cuckooflow.logs.address import KafkaAddress
from cuckooflow.logs.contract import Position
from cuckooflow.runners import direct
from cuckooflow.transforms.coders import Keyed
from cuckooflow.transforms.examples_reader import ExamplesReader
from cuckooflow.transforms.read_examples import ExamplesOptions, ExamplesPoller
from cuckooflow.transforms.retention_check import check_retention
from cuckooflow.transforms.sinks import WriteExamples, WriteJsonLines
from tests.recreated_topic import recreate

pytestmark = pytest.mark.cluster
LIBRARIES = ("kafka-python", "confluent-kafka")


@pytest.fixture(params=LIBRARIES)
def address(kafka: str, request: pytest.FixtureRequest) -> KafkaAddress:
    """Of an examples topic with 3 partitions that is not there yet."""
    name = f"examples-{uuid.uuid4().hex}"
    quick = {"metadata_max_age_ms": 100} if request.param == "kafka-python" else {}
    return KafkaAddress(bootstrap=kafka, topic=name, partitions=3, library=request.param, client=quick)


def rows(first: int, count: int) -> pa.RecordBatch:
    ids = pa.array(range(first, first + count), pa.uint64())
    return pa.RecordBatch.from_pydict({"_id_hi": ids, "_id_lo": ids})


class Emit(beam.DoFn):
    """Elements as a join emits them, the second one's only when told."""

    GATE = threading.Event()

    def process(self, _: Any) -> Any:
        for shard in range(5):
            yield shard, rows(1_000 * shard, 10)
        assert Emit.GATE.wait(60)
        for shard in range(5):
            yield shard, rows(1_000 * shard + 5, 10)


def ids(address: KafkaAddress, dedupe_rows: int) -> dict[int, list[int]]:
    reader = ExamplesReader(address.open_reader(), dedupe_rows)
    found = {}
    for partition in range(3):
        batch, _ = reader.read(partition, Position(0))
        found[partition] = batch.column("_id_hi").to_pylist() if batch.num_rows else []
    return found


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)


def said(error: BaseException) -> str:
    """With its causes: the in-process runner wraps what a worker raises."""
    return "".join(traceback.format_exception(error))


def test_what_a_bundle_sends_leaves_at_once_and_is_there_when_it_ends(address: KafkaAddress) -> None:
    address.create_missing().close()
    Emit.GATE.clear()

    def run() -> None:
        preset = direct.preset([])
        with beam.Pipeline(FnApiRunner(), options=preset.options) as pipeline:
            elements = pipeline | beam.Impulse() | beam.ParDo(Emit()).with_output_types(Keyed)
            elements | WriteExamples(address)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        # The bundle has not ended, and the first elements are readable: a job in process is one bundle.
        wait_for(lambda: sum(map(len, ids(address, 0).values())) == 50, "the first elements")
    finally:
        Emit.GATE.set()
        thread.join(60)
    assert not thread.is_alive()
    once = [1_000 * shard + n for shard in range(5) for n in range(15)]
    found = ids(address, 100)
    assert sorted(i for part in found.values() for i in part) == once
    assert all(i // 1_000 % 3 == partition for partition, part in found.items() for i in part)
    assert sum(map(len, ids(address, 0).values())) == 100


def test_a_batch_over_the_topics_bound_is_split_and_a_row_over_it_is_refused(kafka: str) -> None:
    small = KafkaAddress(
        bootstrap=kafka, topic=f"small-{uuid.uuid4().hex}", config={"max.message.bytes": "30000"}
    )
    reader = small.create_missing()
    for column, fits in (([os.urandom(1_000).hex()] * 200, True), (["x" * 40_000], False)):
        batch = pa.RecordBatch.from_pydict({"text": column})
        preset = direct.preset([])
        pipeline = beam.Pipeline(FnApiRunner(), options=preset.options)
        pipeline | beam.Create([(0, batch)]).with_output_types(Keyed) | WriteExamples(small)
        if fits:
            pipeline.run().wait_until_finish()
        else:
            with pytest.raises(Exception, match="an example of at most") as caught:
                pipeline.run().wait_until_finish()
            assert MessageTooLarge.__name__ in said(caught.value)
    messages = reader.read(0, 0).values.to_pylist()
    assert len(messages) > 10 and max(map(len, messages)) <= 30_000
    assert sum(pa.ipc.open_stream(m).read_all().num_rows for m in messages) == 200


def test_a_dead_letter_over_the_topics_bound_says_where_its_bytes_lie(kafka: str) -> None:
    from cuckooflow.transforms.dead_letters import DEAD_LETTER_SCHEMA

    small = KafkaAddress(
        bootstrap=kafka, topic=f"dead-{uuid.uuid4().hex}", config={"max.message.bytes": "5000"}
    )
    reader = small.create_missing()
    letter = {"log": "clicks", "partition": 3, "offset": 77, "row": -1, "reason": "malformed"}
    batch = pa.RecordBatch.from_pylist(
        [{**letter, "value": b"{" * size, "detail": "", "append": 5} for size in (10, 9_000)],
        schema=DEAD_LETTER_SCHEMA,
    )
    preset = direct.preset([])
    with beam.Pipeline(FnApiRunner(), options=preset.options) as pipeline:
        pipeline | beam.Create([batch]) | WriteJsonLines(small)
    short, long = (json.loads(value) for value in reader.read(0, 0).values.to_pylist())
    assert short["value"] == "{" * 10
    assert "value" not in long and long["value_left_out"] == 9_000
    assert (long["log"], long["partition"], long["offset"]) == ("clicks", 3, 77)


def test_another_number_of_partitions_is_refused_by_name(address: KafkaAddress) -> None:
    reader = address.create_missing()
    poller = ExamplesPoller(ExamplesReader(reader, 10), ExamplesOptions())
    poller.poll(0)
    state = poller.state()
    wrong = address.model_copy(update={"partitions": 2})
    with pytest.raises(PartitionsChanged, match="2 partitions, found 3"):
        WriteExamples(wrong)
    writes = WriteExamples(address)

    from kafka.admin import KafkaAdminClient

    client = KafkaAdminClient(bootstrap_servers=address.bootstrap)
    client.create_partitions({address.topic: 5})
    client.close()
    wait_for(lambda: len(address.open_reader().partitions()) == 5, "five partitions")
    for refused in (
        lambda: WriteExamples(address),
        lambda: ExamplesPoller(ExamplesReader(address.open_reader(), 10), ExamplesOptions(), state),
        lambda: _run(writes),
    ):
        with pytest.raises(Exception, match="3 partitions") as caught:
            refused()
        assert PartitionsChanged.__name__ in said(caught.value)
    if address.library == "kafka-python":  # the other looks every ten seconds
        with pytest.raises(PartitionsChanged):
            wait_for(lambda: poller.poll(1) is None, "the running poller refuses")


def _run(transform: beam.PTransform) -> None:
    preset = direct.preset([])
    pipeline = beam.Pipeline(FnApiRunner(), options=preset.options)
    pipeline | beam.Create([(0, rows(0, 1))]).with_output_types(Keyed) | transform
    pipeline.run().wait_until_finish()


def test_a_recreated_examples_topic_is_refused(address: KafkaAddress) -> None:
    reader = address.create_missing()
    writer = address.open_writer()
    writer.append(0, [b"junk"] * 3, 1_000_000)
    writer.close()
    poller = ExamplesPoller(ExamplesReader(reader, 10), ExamplesOptions())
    poller.poll(0)
    state = poller.state()
    old = poller._reader.incarnation
    recreate(address, wait_for)
    with pytest.raises(Exception, match="recreated") as caught:
        ExamplesPoller(ExamplesReader(address.open_reader(), 10), ExamplesOptions(), state)
    assert old in str(caught.value)
    if address.library == "kafka-python":
        with pytest.raises(LogRecreated):
            poller.poll(1)


def test_a_retention_below_the_age_of_what_is_needed_is_refused(address: KafkaAddress) -> None:
    kept = address.model_copy(
        update={"config": {"retention.ms": "3600000", "message.timestamp.type": "CreateTime"}}
    )
    reader = kept.create_missing()
    assert reader.retention_us() == 3_600_000_000
    now_us = time.time_ns() // 1_000
    writer = kept.open_writer()
    writer.append(0, [b"older", b"newer"], now_us - 1_800_000_000)
    writer.close()
    check_retention(reader, {}, 60_000_000, now_us)
    check_retention(reader, {0: Position(0)}, 60_000_000, now_us)
    with pytest.raises(RetentionTooShort, match="checkpoints"):
        check_retention(reader, {}, 3_600_000_000, now_us)
    with pytest.raises(RetentionTooShort, match=r"message 1 of partition 0.*keeps them for 3,600 s"):
        check_retention(reader, {0: Position(1)}, 60_000_000, now_us + 1_800_000_001)
    check_retention(reader, {0: Position(2)}, 60_000_000, now_us + 1_800_000_001)
