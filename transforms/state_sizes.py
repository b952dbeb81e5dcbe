"""What a value of keyed state weighs in Beam's cache of it, told without a look at everything else.

Beam sizes a cached value anew with each write, by ``objsize``, which first walks over the globals of all modules so
as not to count them: .7 ms with what a worker has imported, several times an element, and a quarter of the Python
workers' time on Flink (measured with Beam 2.77). Values here are lists of bytes, of Arrow batches, and of tuples of
plain values, none of which refers to anything, so they are their own sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from apache_beam.runners.worker import statecache

_FLAT = frozenset({bytes, str, int, float, bool, type(None), pa.RecordBatch})


def size_flat_state_directly() -> None:
    """Have Beam's cache weigh such values directly, and everything else as before. Once for a process, or again."""
    if not isinstance(statecache.get_deep_size, _DeepSize):
        statecache.get_deep_size = _DeepSize(statecache.get_deep_size)


class _DeepSize:
    def __init__(self, of_others: Callable[..., int]) -> None:
        self._of_others = of_others

    def __call__(self, *values: Any) -> int:
        total = 0
        todo = list(values)
        while todo:
            value = todo.pop()
            if type(value) in (list, tuple):
                todo += value
            elif type(value) not in _FLAT:
                return self._of_others(*values)
            total += sys.getsizeof(value)
        return total
