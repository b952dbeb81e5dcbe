"""The ``model`` section of a job."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cuckooflow.embedding_store.api import Optimizer
from cuckooflow.models.duration import DurationUs


class OptimizerSpec(BaseModel):
    """How gradients become weights; see :class:`cuckooflow.embedding_store.api.Optimizer`.

    Attributes:
        kind: ``sgd``, ``adagrad``, ``adam``, ``ftrl`` or, for tables only, ``rowwise_adagrad``.
        learning_rate: step size; FTRL's alpha.
        initial_accumulator: Adagrad's and FTRL's, default 0.1. With summed gradients a larger one slows the
            first steps.
        beta, l1, l2: FTRL's, default 1, 0 and 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl"] = "adagrad"
    learning_rate: float = Field(default=0.05, gt=0)
    initial_accumulator: float = Field(default=0.1, gt=0)
    beta: float = Field(default=1.0, gt=0)
    l1: float = Field(default=0.0, ge=0)
    l2: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.kind != "ftrl" and (self.beta, self.l1, self.l2) != (1.0, 0.0, 0.0):
            raise ValueError(f"beta, l1 and l2 go with kind ftrl, received kind {self.kind}")
        return self

    def build(self) -> Optimizer:
        """As the store takes it."""
        return Optimizer(**self.model_dump())


class ModelSpec(BaseModel):
    """What is trained.

    Attributes:
        kind: ``lr`` (logistic regression over all features) or ``deepfm`` (linear part, factorisation
            machine and a deep network over the same embeddings; Guo et al., IJCAI 2017).
        labels: which labels are learned, one output each.
        dim: weights of an embedding row, default 8, 1 to 1024. Memory and the store's traffic grow with it.
        hidden: widths of the deep network's layers, default 128 and 64; empty: none.
        fm: ``deepfm`` only: with the factorisation machine's second-order term; default on. Off gives a
            deep network plus a linear part.
        embedding: the embedding table's optimizer, default Adagrad 0.05.
        linear: the linear table's; default Adagrad 0.05, for ``lr``, where nothing else learns, 0.2.
        dense: of every dense parameter, default Adam 0.001 (Adagrad does not learn there).
        init_stddev: embedding rows begin as normal(0, init_stddev); default 0.001.
        admission: occurrences before an id gets rows; default 1, at once. 2 roughly halves memory on
            long-tailed data.
        admission_mode: ``exact`` counts occurrences in bounded memory; ``probabilistic`` gives an id rows with
            probability 1/admission at each. Default exact.
        ttl: rows that no example touched for so long, in event time, are evicted; default: never.
        seed: of all initial values; default 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["lr", "deepfm"] = "deepfm"
    labels: tuple[str, ...] = Field(min_length=1, max_length=32)
    dim: int = Field(default=8, ge=1, le=1024)
    hidden: tuple[int, ...] = (128, 64)
    fm: bool = True
    embedding: OptimizerSpec = OptimizerSpec()
    linear: OptimizerSpec | None = None
    dense: OptimizerSpec = OptimizerSpec(kind="adam", learning_rate=1e-3)
    init_stddev: float = Field(default=1e-3, ge=0)
    admission: int = Field(default=1, ge=1)
    admission_mode: Literal["exact", "probabilistic"] = "exact"
    ttl: DurationUs | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must differ, received {list(self.labels)}")
        if any(not 1 <= width <= 8192 for width in self.hidden):
            raise ValueError(f"hidden: expected widths of 1 to 8192, received {list(self.hidden)}")
        if len(self.hidden) > 16:
            raise ValueError(f"hidden: expected at most 16 layers, received {len(self.hidden)}")
        if self.dense.kind == "rowwise_adagrad":
            raise ValueError("dense: rowwise_adagrad is for tables; dense parameters have no rows")
        if self.kind == "deepfm" and not self.fm and not self.hidden:
            raise ValueError("deepfm without fm and without hidden layers is lr: say kind: lr")
        return self

    @property
    def linear_optimizer(self) -> Optimizer:
        """Of the linear table."""
        default = OptimizerSpec(learning_rate=0.2 if self.kind == "lr" else 0.05)
        return (self.linear or default).build()
