"""Late labels, on a simulated stream: calibrated by either way of correction, with either way of sampling.

Two labels that hold with known probabilities by item. A negative is given out when the window closes, a
positive that came in time at once, and a positive that is late as a late example, hundreds of impressions
after its negative. The rows go through the real sampling, the real trainer and the real store.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from cuckooflow.embedding_store.hashing import hash_rows
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.models.base import Model
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import build_model, predict_batch, store_config
from cuckooflow.models.spec import ModelSpec
from cuckooflow.transforms.negative_sampling import sample_examples, sample_late
from cuckooflow.transforms.ranges import RangeHeader, attach_range
from cuckooflow.transforms.trainer import Trainer
from cuckooflow.transforms.training_options import TrainingOptions
from cuckooflow.transforms.training_output import shifted
from cuckooflow.transforms.training_rows import Correction, LateLabels

ITEMS = 24
ROWS = 40_000
CHUNK = 500
LATE_SHARE = 0.5


class Stream:
    """Impressions of random items; ``true[n, l]`` whether label l will ever hold, ``late[n, l]`` how."""

    def __init__(self, labels: int) -> None:
        rng = np.random.default_rng(11)
        odds = np.linspace(0.05, 0.45, ITEMS)
        self.items = rng.integers(0, ITEMS, ROWS)
        self.true = rng.random((ROWS, labels)) < odds[self.items][:, None]
        self.late = self.true & (rng.random((ROWS, labels)) < LATE_SHARE)
        #: In chunks: when a late positive comes.
        self.after = rng.integers(1, 12, (ROWS, labels))
        self.hashes = hash_rows([pa.array(range(ROWS))])
        self.names = ["click", "like"][:labels]

    def primary(self, chunk: int) -> pa.RecordBatch:
        at = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK)
        return self._batch(at, self.true[at] & ~self.late[at], kind=0)

    def late_ones(self, chunk: int) -> list[pa.RecordBatch]:
        """As the join gives them: the one label, whether the example had it at 0, and whether all were."""
        batches = []
        for label in range(len(self.names)):
            came = self.late[:, label] & (np.arange(ROWS) // CHUNK + self.after[:, label] == chunk)
            at = np.flatnonzero(came)
            only = np.zeros((len(at), len(self.names)), np.bool_)
            only[:, label] = True
            negative = ~(self.true[at] & ~self.late[at]).any(1)
            batches.append(
                self._batch(at, only, 1, _negative_kept=[True] * len(at), _primary_negative=negative)
            )
        return [batch for batch in batches if batch.num_rows]

    def _batch(self, at: Any, labels: npt.NDArray[np.bool_], kind: int, **more: Any) -> pa.RecordBatch:
        columns = {
            f"label_{name}": pa.array(labels[:, k].astype(np.uint8)) for k, name in enumerate(self.names)
        }
        return pa.record_batch(
            {
                "item": pa.array(self.items[at]),
                "_hash": pa.array(self.hashes[at]),
                **columns,
                "_kind": pa.array(np.full(len(at), kind, np.int8)),
                **{name: pa.array(values) for name, values in more.items()},
            }
        )


@functools.cache
def _model(labels: tuple[str, ...]) -> Model:
    return build_model(ModelSpec(kind="lr", labels=labels), [FeatureSpec(name="item")])


def calibration(
    labels: int, late: LateLabels | None, correction: Correction, rate: float
) -> npt.NDArray[np.float64]:
    """Sum of predictions / sum of labels, for each label, over the second half of the stream's impressions.

    Args:
        late: None: late examples never come to the trainer.
    """
    stream = Stream(labels)
    model = _model(tuple(stream.names))
    store = EmbeddedStore(store_config(model), None)
    trainer = Trainer(store, model, None, TrainingOptions(batch_size=64), correction, late_labels=late)
    every = pa.record_batch({"item": pa.array(np.arange(ITEMS))})
    offset = 0
    predicted = np.zeros(labels)
    for chunk in range(ROWS // CHUNK):
        if chunk * CHUNK >= ROWS // 2:
            items = stream.items[chunk * CHUNK : (chunk + 1) * CHUNK]
            odds = np.stack([*predict_batch(model, every, store.pull).values()], axis=1)
            if correction == "log_odds":
                odds = shifted(odds, np.full(ITEMS, rate, np.float32))
            predicted += odds[items].sum(0)
        given = [sample_examples(stream.primary(chunk), rate, 1)]
        if late is not None:
            given += [sample_late(batch, rate, 1) for batch in stream.late_ones(chunk)]
        for batch in given:
            range_ = LogRange("examples", "one", 0, Position(offset), Position(offset + 1))
            positions = {"_offset": np.full(batch.num_rows, offset), "_row": np.arange(batch.num_rows)}
            for name, values in positions.items():
                batch = batch.append_column(name, pa.array(values))
            trainer.accept(attach_range(batch, RangeHeader(range_, Position(0), offset)))
            offset += 1
    trainer.finish(offset)
    trainer.close()
    store.close()
    return np.asarray(predicted / stream.true[ROWS // 2 :].sum(0))


@pytest.mark.parametrize(
    ("labels", "correction", "rate"),
    [(2, "none", 1.0), (1, "log_odds", 0.3), (2, "weight", 0.3)],
    ids=["all-kept", "log-odds", "weight"],
)
def test_late_labels_are_made_up_for(labels: int, correction: Correction, rate: float) -> None:
    naive = calibration(labels, None, correction, rate)
    ignored = calibration(labels, LateLabels("ignore"), correction, rate)
    taken_back = calibration(labels, LateLabels("take_back"), correction, rate)
    share = dict.fromkeys(("click", "like"), LATE_SHARE)
    weighted = calibration(labels, LateLabels("weights", share), correction, rate)
    print(f"{naive=} {taken_back=} {weighted=}")
    assert (np.abs(naive - 1) >= 0.15).all()
    assert ignored == pytest.approx(naive, abs=0.01)
    assert (np.abs(taken_back - 1) <= 0.05).all()
    assert (np.abs(weighted - 1) <= 0.05).all()
