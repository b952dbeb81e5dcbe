"""A model whose ids share the rows of a table of fixed size: what a collisionless table is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from cuckooflow.embedding_store.api import SLOT_BITS, Ids
from cuckooflow.embedding_store.hashing import hash_column
from cuckooflow.models.base import Model
from cuckooflow.models.encoding import Encoded, Encoder
from cuckooflow.models.features import MAX_SLOTS, FeatureSpec, slots
from cuckooflow.models.registry import build_model
from cuckooflow.pipelines.experiments.learner import Learner

#: Rows of a hashed table, at most: its ids have as many bits as a feature's values.
SIZE_MAX = 1 << (64 - SLOT_BITS)


def hashed_ids(ids: Ids, size: int) -> Ids:
    """The row of each id in a table of ``size`` rows: ids are mixed first, since those of two features may end alike."""
    mixed = hash_column(pa.array(ids.reshape(-1)))
    return (mixed % np.uint64(size)).reshape(ids.shape)


class HashedEncoder(Encoder):
    """Gives rows of a table of fixed size for ids, under a slot that no feature has: nobody's admission, nobody's expiry.

    Args:
        features: as of :class:`~cuckooflow.models.encoding.Encoder`.
        size: rows, those of all features together; 1 to :data:`SIZE_MAX`.
    """

    def __init__(self, features: Sequence[FeatureSpec], size: int) -> None:
        super().__init__(features)
        taken = set(slots(features).values())
        free = next(slot for slot in reversed(range(MAX_SLOTS)) if slot not in taken)
        self._slot = np.uint64(free * SIZE_MAX)
        self._size = size

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """See :meth:`~cuckooflow.models.encoding.Encoder.encode`."""
        encoded = super().encode(batch)
        rows = self._slot | hashed_ids(encoded.ids, self._size)
        return dataclasses.replace(encoded, ids=np.where(encoded.weights != 0, rows, np.uint64(0)))


def hashed_model(learner: Learner, size: int) -> Model:
    """The learner's model over a table of so many rows. Such a table has all its rows at once: no admission, no expiry.

    Streaming features have tables of their own, which stay as they are.
    """
    spec = learner.spec.model_copy(update={"admission": 1, "ttl": None})
    features = [
        feature.model_copy(update={"ttl": learner.spec.ttl})
        if feature.streaming and feature.ttl is None
        else feature
        for feature in learner.features
    ]
    model = build_model(spec, features)
    model.encoder = HashedEncoder(features, size)
    return model
