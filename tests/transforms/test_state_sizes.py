"""What Beam's cache of state takes a value for."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from apache_beam.runners.worker import statecache

from cuckooflow.transforms.state_sizes import size_flat_state_directly

BATCH = pa.record_batch({"a": list(range(1_000))})


@pytest.fixture(autouse=True)
def beams_own() -> Iterator[None]:
    before = statecache.get_deep_size
    yield
    statecache.get_deep_size = before


@pytest.mark.parametrize(
    "value", [[], [b""], [b"x" * 1_000, b"y"], ([b"a"],), [BATCH], [BATCH, BATCH.slice(3)]]
)
def test_flat_values_weigh_what_beam_says(value: list[object]) -> None:
    expected = statecache.get_deep_size(value)
    size_flat_state_directly()
    # Beam counts what two batches share once.
    assert expected <= statecache.get_deep_size(value) <= 1.2 * expected + len(value) * BATCH.nbytes
    if len(value) < 2:
        assert statecache.get_deep_size(value) == expected


SEEN = [("examples", "incarnation", 3, 500_000_000, 0, 500_000_001, 7)]


def test_plain_values_weigh_what_beam_says_or_a_little_more() -> None:
    expected = statecache.get_deep_size(SEEN)
    size_flat_state_directly()
    # Beam leaves out what any module refers to as well, such as small numbers.
    assert expected <= statecache.get_deep_size(SEEN) <= expected + 8 * 64


@pytest.mark.parametrize("value", [{"a": [1, 2]}, [[{"nested"}]], ([object()],)])
def test_what_refers_to_more_is_left_to_beam(value: object) -> None:
    expected = statecache.get_deep_size(value)
    size_flat_state_directly()
    size_flat_state_directly()
    assert statecache.get_deep_size(value) == expected
    assert statecache.get_deep_size([b"z"], value) == statecache.get_deep_size([b"z"]) + expected


def test_the_cache_asks_it() -> None:
    size_flat_state_directly()
    cache = statecache.StateCache(10_000)
    cache.put("small", [b"x" * 1_000])
    assert cache.peek("small") == [b"x" * 1_000]
    cache.put("large", [b"x" * 20_000])
    assert cache.size() == 0
