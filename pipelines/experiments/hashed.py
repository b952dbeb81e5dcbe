"""A model whose ids share the rows of a table of fixed size: what a collisionless table is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from cuckooflow.embedding_store.api import Ids
from cuckooflow.embedding_store.hashing import hash_column
from cuckooflow.models.base import Model
from cuckooflow.models.encoding import Encoded, Encoder
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import build_model
from cuckooflow.pipelines.experiments.learner import Learner


def hashed_ids(ids: Ids, size: int) -> Ids:
    """The row of each id in a table of ``size`` rows: ids are mixed first, since those of two features may end alike."""
    mixed = hash_column(pa.array(ids.reshape(-1)))
    return (mixed % np.uint64(size)).reshape(ids.shape)


class HashedEncoder(Encoder):
    """Gives rows of a table of fixed size for ids.

    Args:
        features: as of :class:`~cuckooflow.models.encoding.Encoder`.
        size: rows, those of all features together; 1 to 2^63.
    """

    def __init__(self, features: Sequence[FeatureSpec], size: int) -> None:
        super().__init__(features)
        self._size = size

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """See :meth:`~cuckooflow.models.encoding.Encoder.encode`."""
        encoded = super().encode(batch)
        ids = np.where(encoded.weights != 0, hashed_ids(encoded.ids, self._size), np.uint64(0))
        return dataclasses.replace(encoded, ids=ids)


def hashed_model(learner: Learner, size: int) -> Model:
    """The learner's model over a table of so many rows. Such a table has all its rows at once: no admission, no expiry."""
    spec = learner.spec.model_copy(update={"admission": 1, "ttl": None})
    features = [
        feature if feature.streaming else feature.model_copy(update={"admission": None, "ttl": None})
        for feature in learner.features
    ]
    model = build_model(spec, features)
    model.encoder = HashedEncoder(features, size)
    return model
