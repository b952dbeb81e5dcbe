"""What every model with embeddings has: the linear part, and one embedding row for each id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuckooflow.embedding_store.api import TableConfig
from cuckooflow.models.base import Axis, Inputs, tensorflow
from cuckooflow.models.lr import LogisticRegression

#: The table of the embeddings; (dim = the spec's).
EMBEDDING = "embedding"


class EmbeddedModel(LogisticRegression):
    """The linear part of :class:`LogisticRegression`, and the table of embeddings. A base of others."""

    @property
    def tables(self) -> tuple[TableConfig, ...]:
        embedding = self.table(
            EMBEDDING,
            self.spec.dim,
            optimizer=self.spec.embedding.build(),
            init_stddev=self.spec.init_stddev,
        )
        return (*super().tables, embedding)

    @property
    def axes(self) -> Mapping[str, tuple[Axis, ...]]:
        return {**super().axes, EMBEDDING: (self.dim_axis,)}

    @property
    def dim_axis(self) -> Axis:
        """One place a weight of an embedding."""
        return tuple(("dim", n) for n in range(self.spec.dim))

    @property
    def flat_axis(self) -> Axis:
        """One place a column of :meth:`flat`."""
        fields = (("field", name, n) for name in self.encoder.field_names for n in range(self.spec.dim))
        return (*fields, *self.number_axis)

    @property
    def flat_width(self) -> int:
        """Width of :meth:`flat`: ``num_fields * dim + num_numbers``."""
        return self.encoder.num_fields * self.spec.dim + self.encoder.num_numbers

    def flat(self, inputs: Inputs) -> Any:
        """(B, flat_width): every field's pooled embedding and the numbers, side by side."""
        tf = tensorflow()
        size = self.encoder.num_fields * self.spec.dim
        return tf.concat([tf.reshape(inputs.fields[EMBEDDING], (-1, size)), inputs.numbers], axis=1)
