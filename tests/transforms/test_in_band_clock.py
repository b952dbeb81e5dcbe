"""The in-band clock: chain order whatever the order of arrival, no clock before all were heard, bounds."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.errors import ChainBroken, ChainOverflow
from cuckooflow.transforms.coders import RecordBatchCoder, decode_batch, encode_batch
from cuckooflow.transforms.in_band import (
    ACTIONS,
    END_TIME_US,
    IMPRESSIONS,
    NO_TIME_US,
    Header,
    Link,
    attach,
    read_header,
)
from cuckooflow.transforms.in_band_clock import InBandClock

PARTITIONS = {IMPRESSIONS: 2, ACTIONS: 1}
KEYS = [(IMPRESSIONS, 0), (IMPRESSIONS, 1), (ACTIONS, 0)]


def element(number: int, *links: Link) -> pa.RecordBatch:
    batch = pa.RecordBatch.from_pydict({"n": pa.array([number], pa.int64())})
    return attach(batch, Header(links, PARTITIONS, polled_us=number))


def source(elements: int) -> list[pa.RecordBatch]:
    """Element n brings news of some partitions; watermarks rise; the last one ends all."""
    chains = dict.fromkeys(KEYS, 0)
    made = []
    for n in range(elements):
        last = n == elements - 1
        links = []
        for i, key in enumerate(KEYS):
            if last or n == 0 or (n + i) % 3:
                links.append(Link(*key, chains[key], n * 100 + i, end=last))
                chains[key] += 1
        made.append(element(n, *links))
    return made


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(range(9)), repeats=st.lists(st.integers(0, 8), max_size=4), cut=st.integers(0, 9)
)
def test_any_order_comes_out_in_chain_order(order: list[int], repeats: list[int], cut: int) -> None:
    elements = source(9)
    clock, out = InBandClock(max_held=9), []
    for i, n in enumerate(order):
        if i == cut:
            clock = InBandClock.from_bytes(clock.to_bytes())
        out += clock.accept(elements[n])
    assert [batch.column("n")[0].as_py() for batch, _ in out] == list(range(9))
    assert [header.polled_us for _, header in out] == list(range(9))
    assert (clock.ended, clock.clock_us(), clock.held, clock.held_rows) == (True, END_TIME_US, 0, 0)
    for n in repeats:
        assert clock.accept(elements[n]) == []
    assert clock.repeated == len(repeats)


def test_no_clock_before_every_partition_was_heard() -> None:
    clock = InBandClock()
    assert clock.clock_us() == NO_TIME_US
    clock.accept(element(0, Link(IMPRESSIONS, 0, 0, 50), Link(IMPRESSIONS, 1, 0, 70)))
    assert clock.clock_us() == NO_TIME_US
    clock.accept(element(1, Link(ACTIONS, 0, 0, 60)))
    assert clock.clock_us() == 50
    clock.accept(element(2, Link(IMPRESSIONS, 0, 1, 50, end=True)))
    assert (clock.clock_us(), clock.ended) == (60, False)


def test_a_partition_without_events_holds_the_clock() -> None:
    clock = InBandClock()
    clock.accept(element(0, *(Link(*key, 0, NO_TIME_US if key == (ACTIONS, 0) else 5) for key in KEYS)))
    assert clock.clock_us() == NO_TIME_US


def test_a_heartbeat_without_links_passes() -> None:
    ((batch, header),) = InBandClock().accept(element(0))
    assert (batch.num_rows, header.links) == (1, ())


def test_what_waits_is_bounded_counted_and_can_be_given_up() -> None:
    clock = InBandClock(max_held=2)
    for chain in (2, 3):
        assert clock.accept(element(chain, Link(ACTIONS, 0, chain, 5))) == []
    assert (clock.held, clock.held_rows) == (2, 2)
    with pytest.raises(ChainOverflow, match="actions/0 element 0"):
        clock.accept(element(4, Link(ACTIONS, 0, 4, 5)))
    assert [b.column("n")[0].as_py() for b in clock.release_held()] == [2, 3]
    assert clock.held == 0


def test_contradictions_are_refused() -> None:
    clock = InBandClock()
    clock.accept(element(0, Link(ACTIONS, 0, 0, 5)))
    with pytest.raises(ChainBroken, match="partly"):
        clock.accept(element(1, Link(ACTIONS, 0, 0, 5), Link(IMPRESSIONS, 0, 0, 5)))
    with pytest.raises(ChainBroken, match="partitions"):
        clock.accept(element(1, Link(ACTIONS, 5, 0, 5)))
    other = attach(pa.RecordBatch.from_pydict({"n": [1]}), Header((), {IMPRESSIONS: 3, ACTIONS: 0}, 0))
    with pytest.raises(ChainBroken, match="or more"):
        clock.accept(other)


def test_a_coded_element_keeps_rows_types_and_header() -> None:
    batch = attach(
        pa.RecordBatch.from_pydict({"u": pa.array([1 << 63, None], pa.uint64()), "l": [["a"], []]}),
        Header((Link(ACTIONS, 0, 3, 4, True),), PARTITIONS, 5),
    )
    coder = RecordBatchCoder()
    again = coder.decode(coder.encode(batch))
    assert again.equals(batch, check_metadata=True)
    assert read_header(again) == read_header(batch)
    tail = attach(batch.slice(1), read_header(batch))
    assert decode_batch(encode_batch(tail)).equals(tail, check_metadata=True)
    with pytest.raises((pa.ArrowInvalid, OSError, StopIteration)):
        decode_batch(encode_batch(batch)[:40])


def grown(number: int, partitions: dict[int, int], *links: Link) -> pa.RecordBatch:
    batch = pa.RecordBatch.from_pydict({"n": pa.array([number], pa.int64())})
    return attach(batch, Header(links, partitions, polled_us=number))


@settings(max_examples=60, deadline=None)
@given(order=st.permutations(range(5)), cut=st.integers(0, 5))
def test_a_log_that_gets_more_partitions_never_turns_the_clock_back(order: list[int], cut: int) -> None:
    more = {IMPRESSIONS: 2, ACTIONS: 2}
    elements = [
        grown(0, PARTITIONS, *(Link(*key, 0, 100) for key in KEYS)),
        grown(1, PARTITIONS, Link(IMPRESSIONS, 0, 1, 300)),
        grown(2, more, Link(ACTIONS, 1, 0, 100), Link(IMPRESSIONS, 1, 1, 300)),
        grown(3, more, Link(ACTIONS, 0, 1, 400)),
        grown(4, more, Link(ACTIONS, 1, 1, 250)),
    ]
    clock, clocks, out = InBandClock(), [], []
    for i, n in enumerate(order):
        if i == cut:
            clock = InBandClock.from_bytes(clock.to_bytes())
        for batch, _ in clock.accept(elements[n]):
            out.append(batch.column("n")[0].as_py())
        clocks.append(clock.clock_us())
    assert sorted(out) == list(range(5)) and clocks == sorted(clocks)
    assert clocks[-1] == 250
    # Before the new partition's first element was taken, no clock is past where it begins.
    before = next(i for i in range(5) if 2 in order[: i + 1] and 0 in order[: i + 1])
    assert all(us in (NO_TIME_US, 100) for us in clocks[:before])
