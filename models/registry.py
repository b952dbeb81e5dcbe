"""From a job's ``model`` and ``features`` sections to a model."""

from __future__ import annotations

from collections.abc import Sequence

from cuckooflow.embedding_store.api import Optimizer, StoreConfig, TableConfig
from cuckooflow.errors import SpecError
from cuckooflow.models.base import Model, predict_batch
from cuckooflow.models.dcn import DeepCross
from cuckooflow.models.deepfm import DeepFM
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.lr import LogisticRegression
from cuckooflow.models.own import own_model
from cuckooflow.models.shared_bottom import SharedBottom
from cuckooflow.models.spec import ModelSpec

__all__ = ["COUNT_TABLE", "build_model", "predict_batch", "store_config"]

#: The table that counts how often each feature id was trained on; see :func:`store_config`.
COUNT_TABLE = "_count"

_KINDS: dict[str, type[Model]] = {
    "lr": LogisticRegression,
    "fm": DeepFM,  # without hidden layers
    "deepfm": DeepFM,
    "dcn": DeepCross,
    "shared_bottom": SharedBottom,
}


def build_model(spec: ModelSpec, features: Sequence[FeatureSpec]) -> Model:
    """The model that a job asks for. Imports no TensorFlow yet.

    Raises:
        SpecError: the features do not fit together, or the model's file holds no model.
    """
    if spec.kind != "file":
        return _KINDS[spec.kind](spec, features)
    if spec.code is None:
        raise SpecError(f"expected the text of {spec.file} in code; load the job spec with load_spec")
    return own_model(str(spec.file), spec.code)(spec, features)


def store_config(model: Model, counting: bool = False, buckets: int = 64) -> StoreConfig:
    """The store that a model trains against.

    Args:
        counting: with one more table, :data:`COUNT_TABLE`, whose rows count exactly how often each id was
            trained on (gradient -1 an occurrence, SGD with rate 1): the proof that nothing is lost or
            doubled. Costs a row of one weight for each id.
        buckets: logical buckets, see :class:`~cuckooflow.embedding_store.api.StoreConfig`.
    """
    tables = model.store_tables
    if counting:
        count = TableConfig(COUNT_TABLE, 1, Optimizer(kind="sgd", learning_rate=1.0), init_stddev=0.0)
        tables = (*tables, count)
    return StoreConfig(tables=tables, dense=model.dense, buckets=buckets)
