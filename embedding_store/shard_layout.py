"""Which shard of a store has what: how a call's ids are dealt out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.api import Floats, Ids, StoreConfig, TablePush
from cuckooflow.embedding_store.native_core import NativeCore
from cuckooflow.embedding_store.shards import Ownership, Shard, bucket_owners


@dataclasses.dataclass(frozen=True)
class Dealt:
    """One table's ids by shard: the ids, and their places in what was asked."""

    ids: list[Ids]
    places: list[npt.NDArray[np.intp]]


class Layout:
    """What the shards have in common, and who owns what.

    Attributes:
        config: the store's.
        owned: of each shard.
        checker: checks pushes as a shard would.
    """

    def __init__(self, config: StoreConfig, of: int) -> None:
        self.config = config
        self.owned = [Ownership(config, Shard(i, of)) for i in range(of)]
        self._owners = bucket_owners(config.buckets, of)
        # Checks pushes as a shard would; it holds no row and needs no memory for admission.
        self.checker = NativeCore(
            [dataclasses.replace(table, admission=1, slot_admission={}) for table in config.tables],
            config.dense,
            config.buckets,
        )

    def deal(self, ids: Ids) -> Dealt:
        of = len(self.owned)
        shards = self._owners[_native.buckets_of(ids, self.config.buckets)]
        order = np.argsort(shards, kind="stable")
        places = np.split(order, np.cumsum(np.bincount(shards, minlength=of))[:-1])
        return Dealt([ids[at] for at in places], places)

    def in_order(self, dense: Mapping[str, Floats]) -> dict[str, Floats]:
        """As the configuration lists them, whoever answered first."""
        return {parameter.name: dense[parameter.name] for parameter in self.config.dense}


def of_places(push: TablePush, places: npt.NDArray[np.intp]) -> TablePush:
    """The entries of a push at some places: of each of its arrays, which are by entry all of them."""
    arrays = {field.name: getattr(push, field.name) for field in dataclasses.fields(push)}
    return dataclasses.replace(
        push, **{name: array[places] for name, array in arrays.items() if isinstance(array, np.ndarray)}
    )
