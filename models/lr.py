"""Logistic regression over every feature: one weight an id and label, one for each number, a bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuckooflow.embedding_store.api import DenseConfig, TableConfig
from cuckooflow.models.base import Axis, Inputs, Model, tensorflow

#: The table of the linear part; (dim = labels).
LINEAR = "linear"


class LogisticRegression(Model):
    """``logit = bias + sum of the ids' weights + numbers . w``, for each label."""

    @property
    def tables(self) -> tuple[TableConfig, ...]:
        return (self.table(LINEAR, len(self.labels), optimizer=self.spec.linear_optimizer, init_stddev=0.0),)

    @property
    def dense(self) -> tuple[DenseConfig, ...]:
        optimizer = self.spec.dense.build()
        outputs = len(self.labels)
        bias = DenseConfig("linear/bias", (outputs,), optimizer)
        if not self.encoder.num_numbers:
            return (bias,)
        return (bias, DenseConfig("linear/numbers", (self.encoder.num_numbers, outputs), optimizer))

    @property
    def axes(self) -> Mapping[str, tuple[Axis, ...]]:
        labels = self.label_axis
        return {LINEAR: (labels,), "linear/bias": (labels,), "linear/numbers": (self.number_axis, labels)}

    @property
    def number_axis(self) -> Axis:
        """One place a dense input."""
        return tuple(("number", *name) for name in self.encoder.number_names)

    def forward(self, inputs: Inputs, dense: Mapping[str, Any]) -> Any:
        tf = tensorflow()
        logits = tf.reduce_sum(inputs.fields[LINEAR], axis=1) + dense["linear/bias"]
        if self.encoder.num_numbers:
            logits += tf.matmul(inputs.numbers, dense["linear/numbers"])
        return logits
