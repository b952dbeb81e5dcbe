"""The ``model`` section of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

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


#: Options that only some kinds know; a user's own class may use any.
_OF_KINDS = {
    "fm": ("deepfm", "file"),
    "cross_layers": ("dcn", "file"),
    "cross_rank": ("dcn", "file"),
    "tower": ("shared_bottom", "file"),
    "options": ("file",),
    "code": ("file",),
}


class ModelSpec(BaseModel):
    """What is trained.

    Attributes:
        kind: ``lr``: logistic regression over all features.
            ``fm``: factorisation machine (Rendle, ICDM 2010).
            ``deepfm``: linear part, factorisation machine and a deep network over the same embeddings (Guo et al.,
            IJCAI 2017).
            ``dcn``: linear part, cross layers and a deep network (DCN-v2: Wang et al., WWW 2021).
            ``shared_bottom``: linear part, layers that all labels share, and a tower for each label.
            ``file``: the user's own, see ``file``; it need not be said beside it.
        labels: which labels are learned, one output each.
        label_weights: label -> what its loss counts, default 1 each.
        dim: weights of an embedding row, default 8, 1 to 1024. Memory and the store's traffic grow with it.
        hidden: widths of the deep network's layers, default 128 and 64; empty: none. Not of ``lr`` and ``fm``.
        fm: ``deepfm`` only: with the factorisation machine's second-order term; default on. Off gives a
            deep network plus a linear part.
        cross_layers: ``dcn`` only: default 2, 1 to 8.
        cross_rank: ``dcn`` only: of each cross layer's matrix; default None: full, (fields * dim + numbers) squared.
        tower: ``shared_bottom`` only: widths of each label's own layers, default 32; empty: none.
        file: a Python file, relative to the job's ``dir``, that defines one class which extends
            :class:`cuckooflow.models.base.Model`. Its text goes to workers and scorers with the job.
        code: its text; filled when a job spec is loaded.
        options: of ``file`` only: for the user's own class, as ``spec.options``.
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

    kind: Literal["lr", "fm", "deepfm", "dcn", "shared_bottom", "file"] = "deepfm"
    labels: tuple[str, ...] = Field(min_length=1, max_length=32)
    label_weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    dim: int = Field(default=8, ge=1, le=1024)
    hidden: tuple[int, ...] = (128, 64)
    fm: bool = True
    cross_layers: int = Field(default=2, ge=1, le=8)
    cross_rank: int | None = Field(default=None, ge=1, le=1024)
    tower: tuple[int, ...] = (32,)
    file: Path | None = None
    code: str | None = None
    options: dict[str, Any] = {}
    embedding: OptimizerSpec = OptimizerSpec()
    linear: OptimizerSpec | None = None
    dense: OptimizerSpec = OptimizerSpec(kind="adam", learning_rate=1e-3)
    init_stddev: float = Field(default=1e-3, ge=0)
    admission: int = Field(default=1, ge=1)
    admission_mode: Literal["exact", "probabilistic"] = "exact"
    ttl: DurationUs | None = None
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _kind_implies(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        if data.get("file") is not None and "kind" not in data:
            data = {**data, "kind": "file"}
        if data.get("kind") in ("lr", "fm"):
            data = {"hidden": (), **data}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must differ, received {list(self.labels)}")
        if unknown := set(self.label_weights) - set(self.labels):
            raise ValueError(f"label_weights: expected labels of the model, received {sorted(unknown)}")
        for name in ("hidden", "tower"):
            widths = getattr(self, name)
            if any(not 1 <= width <= 8192 for width in widths) or len(widths) > 16:
                raise ValueError(f"{name}: expected at most 16 widths of 1 to 8192, received {list(widths)}")
        if self.dense.kind == "rowwise_adagrad":
            raise ValueError("dense: rowwise_adagrad is for tables; dense parameters have no rows")
        if self.kind == "deepfm" and not self.fm and not self.hidden:
            raise ValueError("deepfm without fm and without hidden layers is lr: say kind: lr")
        if (self.kind == "file") != (self.file is not None):
            raise ValueError("file and kind file belong together: give the file, and no kind")
        for name, kinds in _OF_KINDS.items():
            if self.kind not in kinds and getattr(self, name) != ModelSpec.model_fields[name].default:
                raise ValueError(f"{name} goes with kind {' or '.join(kinds)}, received kind {self.kind}")
        if self.kind in ("lr", "fm") and self.hidden:
            raise ValueError(f"{self.kind} has no hidden layers; say kind: deepfm for some")
        return self

    @property
    def linear_optimizer(self) -> Optimizer:
        """Of the linear table."""
        default = OptimizerSpec(learning_rate=0.2 if self.kind == "lr" else 0.05)
        return (self.linear or default).build()
