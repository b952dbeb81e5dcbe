"""Messages that a runner has read from Pub/Sub: the same rows as from the subscription itself, each once."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.logs.once_messages import Message, OnceMessages, label_of
from cuckooflow.logs.pubsub_address import PubSubAddress
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.given_messages import PollGiven, message_of
from cuckooflow.transforms.given_poller import GivenPoller
from cuckooflow.transforms.in_band import ACTIONS
from cuckooflow.transforms.poll_core import PollCore, PollOptions, PollSource

KEY = {"k": Column(type="string"), "t": Column(type="time", unit="s")}
SHOWN = EventSchema(columns=KEY, time="t", key=("k",))
DONE = EventSchema(columns={**KEY, "what": Column(type="string")}, time="t", key=("k",), action_type="what")
T0 = 1_767_225_600
PLACE = PubSubAddress(project="shop-1", subscription="clicks", remember=4, unacknowledged_max=4)


def open_poller(folder: Path, state: bytes | None) -> GivenPoller:
    readers = {ACTIONS: OnceMessages(PLACE)}
    shown = PollSource(LocalLog.open(folder / "shown"), SHOWN)
    core = PollCore(shown, PollSource(readers[ACTIONS], DONE), PollOptions(num_shards=2), state)
    return GivenPoller(core, readers)


def given(n: int, value: bytes | None = None) -> tuple[int, tuple[int, Message]]:
    body = json.dumps({"k": f"k{n}", "t": T0 + n, "what": "click"}).encode() if value is None else value
    return 0, (ACTIONS, Message(f"m{n}", T0 * 1_000_000, body))


def keys_are(expected: Counter[str]) -> Any:
    def check(elements: list[tuple[int, pa.RecordBatch]]) -> None:
        found: Counter[str] = Counter()
        for _, batch in elements:
            found.update(batch.column("k").to_pylist() if "k" in batch.schema.names else [])
        assert found == expected, found

    return check


def letters_are(expected: list[tuple[int, bytes]]) -> Any:
    def check(batches: list[pa.RecordBatch]) -> None:
        rows = [row for batch in batches for row in batch.to_pylist()]
        assert [(row["offset"], row["value"]) for row in rows] == expected, rows

    return check


def test_given_messages_join_what_is_polled_beside_them(tmp_path: Path) -> None:
    LocalLog.create(tmp_path / "shown", 1)
    with LocalLogWriter(tmp_path / "shown") as writer:
        writer.append(0, [json.dumps({"k": "shown", "t": T0}).encode()], T0 * 1_000_000)
    messages = [(0, None), given(1), given(2), given(1), given(3, b"nonsense")]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        source = pipeline | beam.Create(messages).with_output_types(tuple[int, Any])
        out = source | PollGiven(partial(open_poller, tmp_path), endless=False)
        assert_that(out.main, keys_are(Counter({"shown": 1, "k1": 1, "k2": 1})), label="rows")
        assert_that(out.dead, letters_are([(label_of("m3"), b"nonsense")]), label="letters")


def test_a_message_of_the_runners_reader_keeps_id_time_and_bytes() -> None:
    published = datetime(2026, 1, 1, 12, 0, 0, 123456, UTC)
    read = PubsubMessage(b"body", {"a": "b"}, message_id="77", publish_time=published)
    assert message_of(read) == Message("77", 1_767_268_800_123_456, b"body")


def test_the_window_of_known_messages_is_bounded_and_kept() -> None:
    reader = OnceMessages(PLACE)
    reader.give([Message(f"m{n}", 1, b"%d" % n) for n in range(6)])
    assert len(reader.read(0, 0)) == 6
    again = OnceMessages(PLACE)
    again.restore(json.loads(json.dumps(reader.state())))
    again.give([Message(f"m{n}", 1, b"%d" % n) for n in range(6)])
    batch = again.read(0, 6)
    assert batch.values.to_pylist() == [b"0", b"1"]  # four are remembered
    assert batch.offsets.tolist() == [6, 7]
    assert batch.next_offset == 12
    assert again.receipts().repeated == 4


def test_what_was_given_and_not_read_can_be_taken_back() -> None:
    reader = OnceMessages(PLACE)
    messages = [Message(f"m{n}", 1, b"") for n in range(3)]
    reader.give(messages)
    reader.read(0, 0, max_messages=1)
    assert reader.take_back() == messages[1:]
    assert len(reader.read(0, 1)) == 0
