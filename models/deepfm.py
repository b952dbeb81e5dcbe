"""Factorisation machine and DeepFM (Guo et al., IJCAI 2017): linear part, pairs of fields, and a deep network.

The second-order term is ``0.5 * ((sum v)^2 - sum v^2)`` over the fields (Rendle, ICDM 2010), weighted
per dimension and label by a dense parameter that begins at one, so that several labels can share the
embedding; with one label it begins as the plain factorisation machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuckooflow.embedding_store.api import DenseConfig
from cuckooflow.models.base import Axis, Inputs, tensorflow
from cuckooflow.models.embedded import EMBEDDING, EmbeddedModel
from cuckooflow.models.mlp import Mlp


class DeepFM(EmbeddedModel):
    """The linear part, plus the FM term (``fm``), plus the deep network (``hidden``) over the same embeddings.

    Without hidden layers it is the factorisation machine.
    """

    @property
    def dense(self) -> tuple[DenseConfig, ...]:
        optimizer = self.spec.dense.build()
        parameters = super().dense
        if self.spec.fm:
            shape = (self.spec.dim, len(self.labels))
            parameters += (DenseConfig("fm/weights", shape, optimizer, "ones"),)
        if self.spec.hidden:
            parameters += self._deep.parameters(optimizer, self.spec.seed)
        return parameters

    @property
    def axes(self) -> Mapping[str, tuple[Axis, ...]]:
        deep = self._deep.axes(self.flat_axis, self.label_axis) if self.spec.hidden else {}
        return {**super().axes, "fm/weights": (self.dim_axis, self.label_axis), **deep}

    def forward(self, inputs: Inputs, dense: Mapping[str, Any]) -> Any:
        tf = tensorflow()
        logits = super().forward(inputs, dense)
        if self.spec.fm:
            fields = inputs.fields[EMBEDDING]
            squared_sum = tf.square(tf.reduce_sum(fields, axis=1))
            sum_squared = tf.reduce_sum(tf.square(fields), axis=1)
            logits += tf.matmul(0.5 * (squared_sum - sum_squared), dense["fm/weights"])
        if self.spec.hidden:
            logits += self._deep.forward(self.flat(inputs), dense)
        return logits

    @property
    def _deep(self) -> Mlp:
        return Mlp("deep", self.flat_width, self.spec.hidden, len(self.labels))
