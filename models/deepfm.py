"""DeepFM (Guo et al., IJCAI 2017): linear part, factorisation machine and deep network on one embedding.

The second-order term is ``0.5 * ((sum v)^2 - sum v^2)`` over the fields (Rendle, ICDM 2010), weighted
per dimension and label by a dense parameter that begins at one, so that several labels can share the
embedding; with one label it begins as the plain factorisation machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuckooflow.embedding_store.api import DenseConfig, TableConfig
from cuckooflow.models.base import Inputs, tensorflow
from cuckooflow.models.lr import LogisticRegression

#: The table of the embeddings; (dim = the spec's).
EMBEDDING = "embedding"


class DeepFM(LogisticRegression):
    """The linear part of :class:`LogisticRegression`, plus the FM term, plus the deep network."""

    @property
    def tables(self) -> tuple[TableConfig, ...]:
        embedding = self._table(
            EMBEDDING,
            self.spec.dim,
            optimizer=self.spec.embedding.build(),
            init_stddev=self.spec.init_stddev,
        )
        return (*super().tables, embedding)

    @property
    def dense(self) -> tuple[DenseConfig, ...]:
        optimizer = self.spec.dense.build()
        outputs = len(self.labels)
        parameters = list(super().dense)
        if self.spec.fm:
            parameters.append(DenseConfig("fm/weights", (self.spec.dim, outputs), optimizer, "ones"))
        if self.spec.hidden:
            width = self.encoder.num_fields * self.spec.dim + self.encoder.num_numbers
            for layer, units in enumerate((*self.spec.hidden, outputs)):
                kernel = DenseConfig(
                    f"deep/{layer}/kernel", (width, units), optimizer, "glorot_uniform", self.spec.seed
                )
                # The last layer's bias would repeat the linear part's.
                parameters.append(kernel)
                if layer < len(self.spec.hidden):
                    parameters.append(DenseConfig(f"deep/{layer}/bias", (units,), optimizer))
                width = units
        return tuple(parameters)

    def forward(self, inputs: Inputs, dense: Mapping[str, Any]) -> Any:
        tf = tensorflow()
        logits = super().forward(inputs, dense)
        fields = inputs.fields[EMBEDDING]
        if self.spec.fm:
            squared_sum = tf.square(tf.reduce_sum(fields, axis=1))
            sum_squared = tf.reduce_sum(tf.square(fields), axis=1)
            logits += tf.matmul(0.5 * (squared_sum - sum_squared), dense["fm/weights"])
        if self.spec.hidden:
            size = self.encoder.num_fields * self.spec.dim
            x = tf.concat([tf.reshape(fields, (-1, size)), inputs.numbers], axis=1)
            for layer in range(len(self.spec.hidden)):
                x = tf.nn.relu(tf.matmul(x, dense[f"deep/{layer}/kernel"]) + dense[f"deep/{layer}/bias"])
            logits += tf.matmul(x, dense[f"deep/{len(self.spec.hidden)}/kernel"])
        return logits
