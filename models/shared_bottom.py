"""Shared-bottom multi-task network (Caruana, "Multitask Learning", Machine Learning 28, 1997).

All labels share the embeddings and the layers of ``hidden``; above them each has a tower of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuckooflow.embedding_store.api import DenseConfig
from cuckooflow.models.base import Axis, Inputs, tensorflow
from cuckooflow.models.embedded import EmbeddedModel
from cuckooflow.models.mlp import Mlp


class SharedBottom(EmbeddedModel):
    """The linear part, plus one tower (``tower``) for each label on the shared layers (``hidden``)."""

    @property
    def dense(self) -> tuple[DenseConfig, ...]:
        optimizer = self.spec.dense.build()
        parts = (self._shared, *self._towers)
        return super().dense + tuple(p for mlp in parts for p in mlp.parameters(optimizer, self.spec.seed))

    @property
    def axes(self) -> Mapping[str, tuple[Axis, ...]]:
        found = {**super().axes, **self._shared.axes(self.flat_axis)}
        shared = self._shared.end(self.flat_axis)
        for label, tower in zip(self.labels, self._towers, strict=True):
            found |= tower.axes(shared, (("label", label),))
        return found

    def forward(self, inputs: Inputs, dense: Mapping[str, Any]) -> Any:
        tf = tensorflow()
        shared = self._shared.forward(self.flat(inputs), dense)
        towers = [tower.forward(shared, dense) for tower in self._towers]
        return super().forward(inputs, dense) + tf.concat(towers, axis=1)

    @property
    def _shared(self) -> Mlp:
        return Mlp("shared", self.flat_width, self.spec.hidden)

    @property
    def _towers(self) -> tuple[Mlp, ...]:
        return tuple(Mlp(f"tower/{label}", self._shared.width, self.spec.tower, 1) for label in self.labels)
