"""A copy of the trained model, as a scorer holds it between two snapshots."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from cuckooflow.embedding_store.api import Floats, Ids, Store
from cuckooflow.embedding_store.distinct import Lookup
from cuckooflow.embedding_store.read_store import ReadStore
from cuckooflow.errors import FullDeltaNeeded
from cuckooflow.models.base import Model, predict_batch
from cuckooflow.transforms.training_rows import TrainingRows


class ServingCopy:
    """Moved on by deltas of the store, as a replica is.

    Args:
        name: of the consumer of deltas, one for each copy.
        store: what is copied.
        own_features: look streaming features up in the copy, as a scorer does; else they are as training saw them.
    """

    def __init__(self, name: str, model: Model, store: Store, own_features: bool) -> None:
        self._name = name
        self._model = model
        self._store = store
        self._own_features = own_features and model.streaming is not None
        self._held = ReadStore(model.store_tables)
        self.syncs = 0

    def sync(self) -> None:
        """Hold what the store holds now."""
        try:
            delta = self._store.delta(self._name, full=self._held.version is None)
        except FullDeltaNeeded:  # more was touched since than the store lists
            delta = self._store.delta(self._name, full=True)
        self._held.apply(delta)
        self._store.ack(self._name, delta.version)
        self.syncs += 1

    def predict(self, rows: TrainingRows, lookup: Lookup) -> Floats:
        """(B, L) probabilities of rows, of the sampled stream.

        Args:
            lookup: the rows' distinct ids.
        """
        if self._own_features:
            parts = [batch.replace_schema_metadata(None) for batch in rows.batches]
            batch = pa.concat_batches(parts)
            found = predict_batch(self._model, batch, self._pull, self._held.lookup_at)
            return np.stack([found[label] for label in self._model.labels], axis=1)
        weights, dense = self._pull(self._model.wanted(lookup))
        return self._model.predict(rows.encoded, lookup, weights, dense)

    def _pull(self, ids: Mapping[str, Ids]) -> tuple[Mapping[str, Floats], Mapping[str, Floats]]:
        weights, dense, _ = self._held.pull(ids)
        return weights, dense
