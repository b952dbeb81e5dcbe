"""SortedRuns against a plain list."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.transforms.sorted_runs import SortedRuns

batches = st.lists(st.lists(st.integers(0, 12), max_size=9), max_size=12)


@settings(max_examples=200, deadline=None)
@given(batches, st.lists(st.integers(-1, 14), max_size=8), st.integers(0, 13))
def test_finds_pops_and_drops_like_a_list(added, queries, limit):
    index = SortedRuns(np.int64, np.int64)
    plain: list[tuple[int, int]] = []
    for keys in added:
        payload = np.arange(len(plain), len(plain) + len(keys))
        index.add(np.array(keys, np.int64), payload)
        plain += list(zip(keys, payload.tolist(), strict=True))
    assert len(index) == len(plain)
    which, found = index.lookup(np.array(queries, np.int64))
    expected = sorted((i, p) for i, q in enumerate(queries) for k, p in plain if k == q)
    assert sorted(zip(which.tolist(), found.tolist(), strict=True)) == expected

    keys, payload = index.pop_through(limit)
    assert sorted(zip(keys.tolist(), payload.tolist(), strict=True)) == sorted(
        e for e in plain if e[0] <= limit
    )
    plain = [e for e in plain if e[0] > limit]
    index.retain(lambda k, p: (k + p) % 2 == 0)
    plain = [e for e in plain if sum(e) % 2 == 0]
    keys, payload = index.pop_through(99)
    assert sorted(zip(keys.tolist(), payload.tolist(), strict=True)) == sorted(plain)
    assert index.nbytes == 0


def test_runs_stay_few_and_all_of_uint64_are_keys():
    index = SortedRuns(np.uint64, np.int64)
    for i in range(2_000):
        index.add(np.array([i], np.uint64), np.array([i]))
    assert len(index._runs) <= 11
    extremes = np.array([0, 1 << 63, (1 << 64) - 1], np.uint64)
    index.add(extremes, np.array([-1, -2, -3]))
    which, found = index.lookup(extremes)
    assert sorted(zip(which.tolist(), found.tolist(), strict=True)) == [(0, -1), (0, 0), (1, -2), (2, -3)]
