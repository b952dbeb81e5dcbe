"""Which shard of a store has what: how a call's ids are dealt out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.api import AnyPush, Floats, Ids, StoreConfig
from cuckooflow.embedding_store.kinds import RowsAt
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

    def gathered_at(self, dealt: Mapping[str, Dealt], answers: Mapping[int, RowsAt]) -> RowsAt:
        """The answers of shards to what was dealt out to them, in the order asked."""
        empty = self.checker.lookup_at({name: np.empty(0, np.uint64) for name in dealt}, None)[0]

        def gather(name: str, blank: Any, parts: Mapping[int, Any]) -> Any:
            rows = np.empty((sum(map(len, dealt[name].ids)), *blank.shape[1:]), blank.dtype)
            for i, part in parts.items():
                rows[dealt[name].places[i]] = part
            return rows

        def gather_all(kind: str) -> dict[str, Any]:
            found = {}
            for name, blank in getattr(empty, kind).items():
                parts = {i: getattr(answer, kind)[name] for i, answer in answers.items()}
                columns = [
                    gather(name, column, {i: part[k] for i, part in parts.items()})
                    for k, column in enumerate(blank)
                ]
                found[name] = type(blank)(*columns)
            return found

        weights = {
            name: gather(name, blank, {i: answer.weights[name] for i, answer in answers.items()})
            for name, blank in empty.weights.items()
        }
        dense = {name: value for answer in answers.values() for name, value in answer.dense.items()}
        return RowsAt(
            weights, gather_all("counters"), gather_all("recents"), self.in_order(dense) if dense else {}
        )

    def in_order(self, dense: Mapping[str, Floats]) -> dict[str, Floats]:
        """As the configuration lists them, whoever answered first."""
        return {parameter.name: dense[parameter.name] for parameter in self.config.dense}


def of_places(push: AnyPush, places: npt.NDArray[np.intp]) -> AnyPush:
    """The entries of a push at some places: of each of its arrays, which are by entry all of them."""
    arrays: dict[str, Any] = {field.name: getattr(push, field.name) for field in dataclasses.fields(push)}
    taken = {name: array[places] for name, array in arrays.items() if isinstance(array, np.ndarray)}
    part: AnyPush = dataclasses.replace(push, **taken)  # type: ignore[arg-type]
    return part
