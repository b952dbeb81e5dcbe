"""Examples in event time: the log's partitions merged, within bounds of time and number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.errors import LogNotFound, NoExamples, SpecError, TooManyExamples
from cuckooflow.logs.contract import Position
from cuckooflow.logs.local_log import LocalLogWriter
from cuckooflow.pipelines.experiments.timeline import Timeline, read_timeline
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.transforms.batch_bytes import encode_batch
from cuckooflow.transforms.ranges import read_range_header
from tests.pipelines.experiments.drifting import DAY_US, START_US, drifting, write_examples, write_job

ROWS_MAX = 10_000


@pytest.fixture
def job(tmp_path: Path) -> JobSpec:
    return load_spec(write_job(tmp_path))


def rows_of(timeline: Timeline) -> pa.Table:
    return pa.Table.from_batches([b.replace_schema_metadata(None) for b in timeline.elements()])


def test_partitions_are_merged_by_event_time(job: JobSpec) -> None:
    rows = drifting(700)
    write_examples(job, rows)
    read = rows_of(read_timeline(job, ROWS_MAX, None, None))
    assert read["_time"].to_pylist() == sorted(rows["_time"].to_pylist())
    key = ["_time", "_id_hi", "user", "item", "label_click"]
    assert sorted(zip(*(read[k].to_pylist() for k in key), strict=True)) == sorted(
        zip(*(rows[k].to_pylist() for k in key), strict=True)
    )
    assert read["_offset"].to_pylist() == list(range(700))


def test_times_bound_it_half_open(job: JobSpec) -> None:
    rows = drifting(700)
    write_examples(job, rows)
    times = rows["_time"].to_numpy()
    low, high = int(times[100]), int(times[300])
    read = read_timeline(job, ROWS_MAX, low, high)
    assert read.times_us.tolist() == times[(times >= low) & (times < high)].tolist()


def test_more_than_it_may_hold_is_refused(job: JobSpec) -> None:
    write_examples(job, drifting(700))
    with pytest.raises(TooManyExamples, match="at most 699"):
        read_timeline(job, 699, None, None)
    assert len(read_timeline(job, 700, None, None)) == 700


def test_without_examples_it_says_so(job: JobSpec) -> None:
    with pytest.raises(LogNotFound):
        read_timeline(job, ROWS_MAX, None, None)
    write_examples(job, drifting(50))
    with pytest.raises(NoExamples, match="run the join first"):
        read_timeline(job, ROWS_MAX, START_US + 400 * DAY_US, None)


def test_a_column_of_two_types_is_named(job: JobSpec) -> None:
    rows = drifting(50)
    write_examples(job, rows)
    other = rows.slice(0, 1).set_column(1, "item", pa.array([["a list"]]))
    other = other.set_column(other.column_names.index("_id_lo"), "_id_lo", pa.array([1], pa.uint64()))
    with LocalLogWriter(job.path(job.logs.examples.path)) as writer:  # type: ignore[union-attr]
        writer.append(0, [encode_batch(other.combine_chunks().to_batches()[0])], 7)
    with pytest.raises(SpecError, match=r"one type for each column.*--from and --to"):
        read_timeline(job, ROWS_MAX, None, None)


def test_elements_and_what_is_read_again_are_the_same_rows() -> None:
    timeline = Timeline(drifting(1_000))
    headers = [read_range_header(element) for element in timeline.elements(300)]
    assert [header.range.last.offset for header in headers] == [300, 600, 900, 1_000]
    assert [header.end for header in headers] == [False, False, False, True]
    again, header = timeline.read(0, Position(250), Position(800), 400)
    assert (header.range.first, header.range.last) == (Position(250), Position(650))
    assert np.array_equal(again.column("_offset").to_numpy(), np.arange(250, 650))
