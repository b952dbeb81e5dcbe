"""A stack of fully connected ReLU layers, as dense parameters of the store and as a part of a model's forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cuckooflow.embedding_store.api import DenseConfig, Optimizer
from cuckooflow.models.base import Axis, tensorflow


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

    def axes(self, inputs: Axis, outputs: Axis = ()) -> dict[str, tuple[Axis, ...]]:
        """What the places of its parameters stand for, given what those of its input and of its output do.

        A unit is the same one only where all layers up to its own have the same widths.
        """
        found: dict[str, tuple[Axis, ...]] = {}
        for layer, units in enumerate(self.hidden):
            named = self._units(layer, units)
            found[f"{self.name}/{layer}/kernel"] = (inputs, named)
            found[f"{self.name}/{layer}/bias"] = (named,)
            inputs = named
        if self.outputs:
            found[f"{self.name}/{len(self.hidden)}/kernel"] = (inputs, outputs)
        return found

    def end(self, inputs: Axis) -> Axis:
        """What the places of the last hidden layer stand for."""
        return self._units(len(self.hidden) - 1, self.hidden[-1]) if self.hidden else inputs

    def _units(self, layer: int, units: int) -> Axis:
        widths = self.hidden[: layer + 1]
        return tuple(("unit", self.name, *widths, n) for n in range(units))

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
