"""What a start of the join may write again: counted from the log by a plain loop, held against D."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pytest

from cuckooflow.errors import ReplayTooLong
from cuckooflow.logs.address import LocalAddress
from cuckooflow.logs.local_log import LocalLogWriter
from cuckooflow.transforms.batch_bytes import encode_batch
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.poll_core import PollOptions
from cuckooflow.transforms.read_logs import LogInput, ReadLogs
from cuckooflow.transforms.replay_bound import CLOCK_SKEW_US, ReplayBound, rows_since

S = 1_000_000


def examples(path: Path, seed: int) -> tuple[LocalAddress, list[tuple[int, int, int]]]:
    """An examples log, and (partition, append time, rows) of each message."""
    print(f"seed={seed}")
    rng = random.Random(seed)
    address = LocalAddress(path / "examples", 2)
    address.create("frames")
    written = []
    with LocalLogWriter(address.path, fsync=False, segment_bytes=20_000) as writer:
        for n in range(400):
            partition, rows = rng.randrange(2), rng.randrange(1, 30)
            if rng.random() < 0.05:
                writer.append(partition, [b"junk", None], n * S)
            batch = pa.RecordBatch.from_pydict({"n": list(range(rows))})
            writer.append(partition, [encode_batch(batch)], n * S)
            written.append((partition, n * S, rows))
    return address, written


@pytest.mark.parametrize("since_us", [None, 0, 5 * S, 200 * S, 399 * S, 400 * S])
def test_rows_are_those_appended_since(tmp_path: Path, since_us: int | None) -> None:
    address, written = examples(tmp_path, seed=5)
    expected = {
        p: sum(rows for of, us, rows in written if of == p and (since_us is None or us >= since_us))
        for p in (0, 1)
    }
    assert rows_since(address.open_reader(), since_us, 1 << 40) == expected


def test_counting_stops_where_there_is_enough(tmp_path: Path) -> None:
    address, _ = examples(tmp_path, seed=6)
    found = rows_since(address.open_reader(), None, 100)
    assert all(100 < rows < 2_000 for rows in found.values())


def test_a_resume_within_reach_goes_on_and_one_beyond_names_what_it_needs(tmp_path: Path) -> None:
    address, written = examples(tmp_path, seed=7)
    polled_us = 300 * S
    state = json.dumps({"last_element_us": polled_us}).encode()
    replayed = {
        p: sum(rows for of, us, rows in written if of == p and us >= polled_us - CLOCK_SKEW_US)
        for p in (0, 1)
    }
    needed = 2 * max(replayed.values())
    ReplayBound(address, needed).check(state)
    with pytest.raises(ReplayTooLong, match=rf"goes on from its checkpoint.*dedupe_rows to {needed} or more"):
        ReplayBound(address, needed - 1).check(state)
    everything = 2 * max(sum(rows for of, _, rows in written if of == p) for p in (0, 1))
    ReplayBound(address, everything).check(None)
    with pytest.raises(ReplayTooLong, match=rf"from the beginning.*dedupe_rows to {everything} or more"):
        ReplayBound(address, everything - 1).check(None)


def test_a_first_start_has_nothing_to_write_again(tmp_path: Path) -> None:
    address = LocalAddress(tmp_path / "examples", 3)
    address.create("frames")
    ReplayBound(address, 0).check(None)


def test_a_source_is_held_against_it_where_it_runs_not_where_it_is_built(tmp_path: Path) -> None:
    address, _ = examples(tmp_path, seed=8)
    key = {"k": Column(type="string"), "t": Column(type="time", unit="s")}
    shown = EventSchema(columns=key, time="t", key=("k",))
    done = EventSchema(
        columns={**key, "what": Column(type="string")}, time="t", key=("k",), action_type="what"
    )
    inputs = []
    for name, schema in (("impressions", shown), ("actions", done)):
        LocalAddress(tmp_path / name).create("lines")
        inputs.append(LogInput(tmp_path / name, schema))
    source = ReadLogs(*inputs, PollOptions(), replay=ReplayBound(address, 10))  # a resumed job is built too
    with pytest.raises(ReplayTooLong):
        source._open_poller(None)
