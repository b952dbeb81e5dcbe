"""DCN-v2 (Wang et al., "DCN V2: Improved Deep & Cross Network", WWW 2021), in its parallel form.

A cross layer is ``x + x0 * (W x + b)``, ``x0`` being all fields and numbers side by side: after n of
them there are products of up to n + 1 inputs. ``cross_rank`` makes W a product of two thin matrices (section 3.4
of the paper). The deep network reads the same ``x0``; both ends, and the linear part, add up to the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuckooflow.embedding_store.api import DenseConfig
from cuckooflow.models.base import Axis, Inputs, tensorflow
from cuckooflow.models.embedded import EmbeddedModel
from cuckooflow.models.mlp import Mlp


class DeepCross(EmbeddedModel):
    """The linear part, plus cross layers, plus the deep network (``hidden``)."""

    @property
    def dense(self) -> tuple[DenseConfig, ...]:
        optimizer, seed, width = self.spec.dense.build(), self.spec.seed, self.flat_width
        parameters = list(super().dense)
        rank = self.spec.cross_rank
        for layer in range(self.spec.cross_layers):
            name = f"cross/{layer}"
            shapes = (
                {"kernel": (width, width)} if rank is None else {"down": (width, rank), "up": (rank, width)}
            )
            for part, shape in shapes.items():
                parameters.append(DenseConfig(f"{name}/{part}", shape, optimizer, "glorot_uniform", seed))
            parameters.append(DenseConfig(f"{name}/bias", (width,), optimizer))
        outputs = (width, len(self.labels))
        parameters.append(DenseConfig("cross/outputs", outputs, optimizer, "glorot_uniform", seed))
        if self.spec.hidden:
            parameters += self._deep.parameters(optimizer, seed)
        return tuple(parameters)

    @property
    def axes(self) -> Mapping[str, tuple[Axis, ...]]:
        flat, labels = self.flat_axis, self.label_axis
        thin: Axis = tuple(("rank", self.spec.cross_rank or 0, n) for n in range(self.spec.cross_rank or 0))
        found: dict[str, tuple[Axis, ...]] = {"cross/outputs": (flat, labels)}
        for layer in range(self.spec.cross_layers):
            name = f"cross/{layer}"
            found |= {f"{name}/kernel": (flat, flat), f"{name}/bias": (flat,)}
            found |= {f"{name}/down": (flat, thin), f"{name}/up": (thin, flat)}
        deep = self._deep.axes(flat, labels) if self.spec.hidden else {}
        return {**super().axes, **found, **deep}

    def forward(self, inputs: Inputs, dense: Mapping[str, Any]) -> Any:
        tf = tensorflow()
        first = crossed = self.flat(inputs)
        for layer in range(self.spec.cross_layers):
            name = f"cross/{layer}"
            if self.spec.cross_rank is None:
                product = tf.matmul(crossed, dense[f"{name}/kernel"])
            else:
                product = tf.matmul(tf.matmul(crossed, dense[f"{name}/down"]), dense[f"{name}/up"])
            crossed += first * (product + dense[f"{name}/bias"])
        logits = super().forward(inputs, dense) + tf.matmul(crossed, dense["cross/outputs"])
        if self.spec.hidden:
            logits += self._deep.forward(first, dense)
        return logits

    @property
    def _deep(self) -> Mlp:
        return Mlp("deep", self.flat_width, self.spec.hidden, len(self.labels))
