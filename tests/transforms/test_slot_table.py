"""SlotTable against a dict of rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.transforms import slot_table
from cuckooflow.transforms.slot_table import SlotTable

SCHEMA = pa.schema([("name", pa.string()), ("tags", pa.list_(pa.int64()))])


def batch(first: int, n: int) -> pa.RecordBatch:
    numbers = range(first, first + n)
    return pa.RecordBatch.from_pydict(
        {"name": [f"row {i}" for i in numbers], "tags": [[i] * (i % 3) for i in numbers]}, schema=SCHEMA
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), max_size=25),
    st.randoms(use_true_random=False),
)
def test_rows_are_found_by_slot_until_released(steps, chance):
    small, compact = slot_table.SMALL_ROWS, slot_table.COMPACT_ROWS
    slot_table.SMALL_ROWS, slot_table.COMPACT_ROWS = 16, 30
    try:
        table = SlotTable(SCHEMA, {"number": np.int64})
        alive: set[int] = set()
        count = 0
        for added, released in steps:
            numbers = np.arange(count, count + added)
            slots = table.append(batch(count, added), {"number": numbers})
            assert slots.tolist() == numbers.tolist()
            alive |= set(numbers.tolist())
            count += added
            gone = chance.sample(sorted(alive), min(released, len(alive)))
            table.release(np.array(gone, np.int64))
            alive -= set(gone)
            assert table.waiting == len(alive)
            assert table.live_slots().tolist() == sorted(alive)
            asked = np.array(chance.sample(sorted(alive), min(12, len(alive))), np.int64)
            rows = table.gather(asked)
            assert rows.to_pylist() == [batch(int(s), 1).to_pylist()[0] for s in asked]
            assert table.get("number", asked).tolist() == asked.tolist()
            assert table.gather(asked, ("tags",)).schema.names == ["tags"]
            every = np.arange(count)
            assert table.alive(every).tolist() == [s in alive for s in range(count)]
    finally:
        slot_table.SMALL_ROWS, slot_table.COMPACT_ROWS = small, compact


def test_memory_of_released_rows_goes():
    table = SlotTable(SCHEMA, {"number": np.int64})
    for i in range(2_000):
        table.append(batch(i * 10, 10), {"number": np.zeros(10, np.int64)})
    assert len(table._batches) <= 20  # small ones were merged
    table.release(np.arange(19_000))
    table.release(np.arange(19_000, 20_000))
    assert table._batches == []


def test_a_table_that_was_full_to_its_last_row_and_is_empty_answers_and_goes_on():
    table = SlotTable(SCHEMA, {"n": np.int64})
    rows = 2 * slot_table.COMPACT_ROWS
    slots = table.append(batch(0, rows), {"n": np.arange(rows)})
    table.release(slots)
    assert not table.alive(slots).any()
    assert table.live_slots().tolist() == []
    more = table.append(batch(rows, 3), {"n": np.arange(3)})
    assert table.alive(more).all()
    assert not table.alive(slots).any()
    assert table.get("n", more).tolist() == [0, 1, 2]
