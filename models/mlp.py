"""A stack of fully connected ReLU layers, as dense parameters of the store and as a part of a model's forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cuckooflow.embedding_store.api import DenseConfig, Optimizer
from cuckooflow.models.base import tensorflow


@dataclass(frozen=True)
class Mlp:
    """``inputs -> hidden[0] -> hidden[1] ...``, each with a ReLU; with ``outputs``, one linear layer after them.

    Attributes:
        name: the parameters are ``name/0/kernel``, ``name/0/bias``, ``name/1/kernel`` ...; the linear layer
            has no bias, as the linear part of the model has one.
        inputs: width of what comes in.
        hidden: widths of the ReLU layers; may be empty.
        outputs: width of the linear layer at the end; 0: none.
    """

    name: str
    inputs: int
    hidden: tuple[int, ...]
    outputs: int = 0

    @property
    def width(self) -> int:
        """Width of what comes out."""
        return self.outputs or (self.hidden[-1] if self.hidden else self.inputs)

    def parameters(self, optimizer: Optimizer, seed: int) -> tuple[DenseConfig, ...]:
        """What it needs in the store."""
        parameters = []
        width = self.inputs
        for layer, units in enumerate((*self.hidden, *self._last)):
            kernel = f"{self.name}/{layer}/kernel"
            parameters.append(DenseConfig(kernel, (width, units), optimizer, "glorot_uniform", seed))
            if layer < len(self.hidden):
                parameters.append(DenseConfig(f"{self.name}/{layer}/bias", (units,), optimizer))
            width = units
        return tuple(parameters)

    def forward(self, x: Any, dense: Mapping[str, Any]) -> Any:
        """(B, inputs) -> (B, width), as tensors."""
        tf = tensorflow()
        for layer in range(len(self.hidden)):
            x = tf.nn.relu(
                tf.matmul(x, dense[f"{self.name}/{layer}/kernel"]) + dense[f"{self.name}/{layer}/bias"]
            )
        if self.outputs:
            x = tf.matmul(x, dense[f"{self.name}/{len(self.hidden)}/kernel"])
        return x

    @property
    def _last(self) -> tuple[int, ...]:
        return (self.outputs,) if self.outputs else ()
