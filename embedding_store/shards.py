"""Which part of a store each of its shards holds.

A store of n shards is n processes, or objects, with one configuration. Its logical buckets are dealt out in
contiguous ranges: bucket b of B belongs to shard ``b * n // B``. With the bucket go the rows of its ids, its
region of the admission filters, its marks and the dense parameters whose names hash into it. So a bucket
moves as a whole when a store is dealt out to another number of shards, and what one shard holds depends on
(configuration, i, n) alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.api import Floats, Ids, StoreConfig
from cuckooflow.embedding_store.native_core import dense_bucket
from cuckooflow.errors import SpecError, WrongShard


class Shard(NamedTuple):
    """One of a store's shards. ``number``: 0 to ``of`` - 1; ``of``: how many there are. Default: the only one."""

    number: int = 0
    of: int = 1

    def __str__(self) -> str:
        return f"shard {self.number} of {self.of}"


#: The only shard of a store that was not dealt out.
WHOLE = Shard()


def check_shard(shard: Shard, buckets: int) -> None:
    """Refuse a shard that a store of so many logical buckets cannot have.

    Raises:
        SpecError.
    """
    if not 1 <= shard.of <= buckets:
        raise SpecError(
            f"expected 1 to {buckets} shards, as many as there are logical buckets, received {shard.of}. "
            "Use fewer, or create the store with more buckets."
        )
    if not 0 <= shard.number < shard.of:
        raise SpecError(f"expected a shard from 0 to {shard.of - 1}, received {shard.number}. Count from 0.")


def bucket_owners(buckets: int, of: int) -> npt.NDArray[np.uint16]:
    """(buckets,) uint16: the shard that each logical bucket belongs to.

    >>> bucket_owners(8, 3).tolist()
    [0, 0, 0, 1, 1, 1, 2, 2]
    """
    return (np.arange(buckets, dtype=np.int64) * of // buckets).astype(np.uint16)


class Ownership:
    """What one shard owns.

    Attributes:
        shard: which one.
        first, end: its logical buckets, half open.
        dense: names of its dense parameters.

    Raises:
        SpecError: the store cannot have this shard.
    """

    def __init__(self, config: StoreConfig, shard: Shard) -> None:
        check_shard(shard, config.buckets)
        self.shard = shard
        self._buckets = config.buckets
        self.first = -(-shard.number * config.buckets // shard.of)
        self.end = -(-(shard.number + 1) * config.buckets // shard.of)
        self.dense = frozenset(
            dense.name
            for dense in config.dense
            if self.first <= dense_bucket(dense.name, config.buckets) < self.end
        )

    @property
    def buckets(self) -> int:
        """How many logical buckets it owns."""
        return self.end - self.first

    def check_ids(self, ids: Mapping[str, Ids]) -> None:
        """Refuse ids of other shards.

        Raises:
            WrongShard.
        """
        if self.shard.of == 1:
            return
        for name, values in ids.items():
            strange = np.flatnonzero(~self.owned(values))
            if len(strange):
                raise WrongShard(
                    f"table {name!r}: expected ids of {self.shard}, received {len(strange)} of other shards, the "
                    f"first of them {values[strange[0]]}. Ask through a client of all shards, in their order."
                )

    def check_dense(self, names: Mapping[str, Floats]) -> None:
        """Refuse dense parameters of other shards.

        Raises:
            WrongShard.
        """
        strange = sorted(set(names) - self.dense)
        if strange:
            raise WrongShard(
                f"expected dense parameters of {self.shard} ({sorted(self.dense)}), received {strange}. "
                "Push through a client of all shards, in their order."
            )

    def owned(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """(n,) bool: which of the ids are this shard's."""
        buckets = _native.buckets_of(ids, self._buckets)
        mine: npt.NDArray[np.bool_] = (buckets >= self.first) & (buckets < self.end)
        return mine

    def over_all(self, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A mask over its own buckets as one over all buckets of the store."""
        if len(mask) == self._buckets:
            return mask
        whole = np.zeros(self._buckets, np.uint8)
        whole[self.first : self.end] = mask
        return whole

    def own_dense(self, dense: Mapping[str, Floats]) -> dict[str, Floats]:
        """Those of the dense parameters that are its own."""
        return {name: value for name, value in dense.items() if name in self.dense}
