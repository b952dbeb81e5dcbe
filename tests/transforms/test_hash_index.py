"""HashIndex against a plain list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckooflow.transforms.hash_index import HashIndex

# Few keys, so that they repeat, and the ends of what a key can be.
keys = st.one_of(st.integers(0, 12), st.sampled_from([1 << 63, (1 << 64) - 1]))
batches = st.lists(st.lists(keys, max_size=60), max_size=12)


@given(batches, st.lists(keys, max_size=20))
def test_finds_and_drops_like_a_list(added: list[list[int]], queries: list[int]) -> None:
    index = HashIndex()
    plain: list[tuple[int, int]] = []
    for some in added:
        values = np.arange(len(plain), len(plain) + len(some)) - 5
        index.add(np.array(some, np.uint64), values)
        plain += list(zip(some, values.tolist(), strict=True))
    for _ in range(2):
        assert len(index) == len(plain)
        which, found = index.lookup(np.array(queries, np.uint64))
        assert (np.diff(which) >= 0).all()
        expected = sorted((i, v) for i, q in enumerate(queries) for k, v in plain if k == q)
        assert sorted(zip(which.tolist(), found.tolist(), strict=True)) == expected
        assert sorted(zip(*(part.tolist() for part in index.entries()), strict=True)) == sorted(plain)
        index.retain(lambda _, values: values % 3 != 0)
        plain = [entry for entry in plain if entry[1] % 3 != 0]


def test_many_entries_in_bounded_memory() -> None:
    index = HashIndex()
    hashes = np.random.default_rng(1).integers(0, 1 << 63, 200_000).astype(np.uint64) * np.uint64(2)
    for part in np.split(np.arange(200_000), 40):
        index.add(hashes[part], part)
        assert index.nbytes <= 33 * len(index) + 1_024
    which, found = index.lookup(hashes[::-1])
    same = hashes[::-1][which] == hashes[found]
    assert same.all() and len(np.unique(found)) == 200_000
    assert index.lookup(hashes + np.uint64(1))[0].size == 0  # odd: none of them is there


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="a value for each key"):
        HashIndex().add(np.zeros(2, np.uint64), np.zeros(1, np.int64))
