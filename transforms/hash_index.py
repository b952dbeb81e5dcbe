"""An index of hashes in memory, for joins: many entries a key, batched inserts and lookups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from cuckooflow.embedding_store import _native

Array = npt.NDArray[Any]


class HashIndex:
    """Entries ``(key, value)``, uint64 and int64; keys may repeat. 21 to 32 bytes an entry. Not thread-safe.

    >>> index = HashIndex()
    >>> index.add(np.array([5, 3], np.uint64), np.array([50, 30]))
    >>> index.add(np.array([3], np.uint64), np.array([31]))
    >>> which, values = index.lookup(np.array([4, 3], np.uint64))
    >>> which.tolist(), sorted(values.tolist())
    ([1, 1], [30, 31])
    """

    def __init__(self) -> None:
        self._index = _native.HashIndex()

    def __len__(self) -> int:
        return len(self._index)

    @property
    def nbytes(self) -> int:
        """Bytes of all places, taken and free."""
        return int(self._index.nbytes)

    def add(self, keys: Array, values: Array) -> None:
        """Insert (n,) keys with (n,) values; no value may be the least int64."""
        if len(keys) != len(values):
            raise ValueError(f"expected a value for each key, received {len(keys)} and {len(values)}")
        if len(keys):
            self._index.add(keys, values)

    def lookup(self, queries: Array) -> tuple[Array, Array]:
        """All entries whose key is among (m,) queries: (index of the query, ascending; value), equal lengths."""
        which, values = self._index.lookup(queries)
        return which, values

    def entries(self) -> tuple[Array, Array]:
        """All entries, (n,) keys and (n,) values, in no particular order."""
        keys, values = self._index.entries()
        return keys, values

    def retain(self, keep: Callable[[Array, Array], Array]) -> None:
        """Drop the entries for which ``keep(keys, values)`` is false. Costs as much as adding the others anew."""
        keys, values = self.entries()
        mask = keep(keys, values)
        self._index = _native.HashIndex()
        self.add(keys[mask], values[mask])
