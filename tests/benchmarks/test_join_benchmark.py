"""The join's benchmark: its events are what it says they are, and its command line gives every figure's name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import join
from benchmarks.join_events import Shape, arrow_messages, events, json_messages, partition_rows
from benchmarks.join_flat import LongStream
from benchmarks.join_in_process import join_options, poll_elements, run_core
from benchmarks.join_live import INPUTS, LiveJob, folders, spec, steady_rate
from cuckooflow.transforms.batch_bytes import decode_batch

KEYS = [
    "flink_events_per_s",
    "flink_json_events_per_s",
    "flink_vs_flink_sql",
    "prism_events_per_s",
    "direct_events_per_s",
    "direct_vs_per_key",
    "core_events_per_s",
    "latency_p50_s",
    "latency_p99_s",
    "state_bytes_ratio",
    "idle_core_fraction",
]


def test_the_events_are_of_the_size_and_the_lateness_that_the_figures_are_told_for() -> None:
    shape = Shape(late=0.05)
    made = events(40_000, 3, shape)
    assert 150 < made.shown.nbytes / len(made.shown) < 250
    assert len(made.done) / len(made.shown) == pytest.approx(0.3, abs=0.02)
    shown = {
        (row["request_id"], row["item_id"]): row["_time"]
        for row in made.shown.select(["request_id", "item_id", "_time"]).to_pylist()
    }
    assert len(shown) == 40_000
    late = after = 0
    for row, arrival_us in zip(made.done.to_pylist(), made.done_us.tolist(), strict=True):
        begin_us = shown[row["request_id"], row["item_id"]]
        assert row["_time"] >= begin_us
        assert arrival_us >= row["_time"]
        # With so many events a partition's watermark is as good as what has happened, less the skew.
        late += arrival_us - shape.skew_us > begin_us + shape.window_us
        after += row["_time"] > begin_us + shape.window_us
    assert late / len(made.done) == pytest.approx(0.05, abs=0.01)
    assert after / len(made.done) < 0.01
    assert np.all(np.diff(made.shown_us) > 0)
    assert np.all(np.diff(made.done_us) >= 0)


def test_arrow_and_json_messages_hold_the_same_rows() -> None:
    made = events(5_000, 4)
    parts = [made.shown.take(pa.array(rows)) for rows in partition_rows(made.shown, 8)]
    assert sum(len(part) for part in parts) == 5_000
    for part in parts:
        messages = arrow_messages(part, 100)
        rows = [row for message in messages for row in decode_batch(message).to_pylist()]
        assert [decode_batch(message).num_rows for message in messages[:-1]] == [100] * (len(messages) - 1)
        assert rows == [json.loads(line) for line in json_messages(part)]
        assert [row["time"] for row in rows] == part.column("_time").to_pylist()


def test_a_jobs_spec_is_valid_and_its_logs_take_the_events(tmp_path: Path) -> None:
    job = LiveJob(tmp_path / "job", spec(folders(), Shape(), "arrow"))
    made = events(3_000, 5)
    job.fill(made, "arrow")
    rows = 0
    for log in INPUTS:
        reader = job.address(log).open_reader()
        for partition in reader.partitions():
            found = reader.read(partition, 0).values.to_pylist()
            rows += sum(decode_batch(value).num_rows for value in found)
    assert rows == made.count
    job.close()


def test_the_rate_is_that_between_two_shares_of_the_events() -> None:
    def record(shard: int, impressions: int, actions: int) -> dict[str, object]:
        return {
            "stage": "join",
            "shard": shard,
            "counts": {"impressions": impressions, "actions": actions, "examples": 7},
        }

    records = [
        (0, {"stage": "source", "shard": 0, "counts": {}}),
        (1_000_000, record(0, 5, 0)),  # start-up
        (9_000_000, record(0, 15, 5)),
        (10_000_000, record(1, 10, 0)),  # 30 of 100
        (12_000_000, record(0, 60, 10)),  # 80
        (14_000_000, record(1, 15, 0)),  # 85
        (15_000_000, record(1, 20, 5)),  # 95
        (30_000_000, record(1, 20, 10)),  # what is left takes long
    ]
    assert steady_rate(records, 100, first=0.2, last=0.9) == pytest.approx((95 - 20) / 6)


def test_parts_are_chosen_by_name_and_quick_needs_no_cluster() -> None:
    assert join.options(["--quick"]).parts == ("core", "direct", "per_key")
    assert join.options(["--parts", "flink,json,latency"]).parts == ("flink", "json", "latency")
    assert set(join.options([]).parts) == set(join.PARTS)


def test_a_part_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        join.options(["--parts", "flink,speed"])
    assert "received speed" in capsys.readouterr().err


def test_the_last_line_has_every_key_and_null_for_what_was_not_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    join.main(["--parts", "core", "--impressions", "4000"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found) == KEYS
    assert found["core_events_per_s"] > 0
    assert [name for name, value in found.items() if value is not None] == ["core_events_per_s"]


def test_a_long_stream_is_its_block_over_and_over_with_other_keys_later() -> None:
    shape = Shape(step_us=1_000, window_us=1_000_000, skew_us=100_000)
    stream = LongStream(4_000, 5, shape, block=1_000)
    made = events(1_000, 5, shape)
    shown = stream.rows(0, 0, 4_000)
    assert len(stream.times[0]) == 4_000 and len(stream.times[1]) == 4 * len(made.done)
    for block in range(4):
        of_block = shown.slice(block * 1_000, 1_000)
        assert of_block.column("item_id").equals(made.shown.column("item_id"))
        requests = of_block.column("request_id").to_numpy() - made.shown.column("request_id").to_numpy()
        assert set(requests) == {block * 1_000}
        later_us = of_block.column("_time").to_numpy() - made.shown.column("_time").to_numpy()
        assert set(later_us) == {block * 1_000_000}
    counts = run_core(poll_elements(stream.rows, stream.times, shape), join_options(shape))
    assert counts["impressions"] == counts["examples"] == 4_000
    assert counts["used"] + counts["late"] + counts["unmatched"] == 4 * len(made.done)
    assert counts["used"] > 0.8 * counts["actions"]
