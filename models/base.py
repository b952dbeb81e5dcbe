"""What a model is: its parameters in the store, a compiled training step, a compiled prediction.

Parameters live in the embedding store; a model declares them (without TensorFlow, which only the first
step or prediction imports) and turns pulled values into probabilities and gradients. It keeps nothing
between calls but its compiled functions.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.embedding_store.api import DenseConfig, Floats, Ids, Pulled, TableConfig
from cuckooflow.embedding_store.distinct import Fields, Lookup, aligned
from cuckooflow.embedding_store.distinct import distinct as distinct_ids
from cuckooflow.models.encoding import Encoded, Encoder
from cuckooflow.models.features import FeatureSpec, slots
from cuckooflow.models.late_weights import importance
from cuckooflow.models.spec import ModelSpec
from cuckooflow.models.streaming import LookupAt, Streaming

#: What each place of an axis stands for, such as ``("label", "click")`` or ``("field", "user", 3)``; after ``field`` and
#: ``number`` comes the name of a feature.
Axis = tuple[tuple[str | int, ...], ...]

#: Given ids for each table, the rows for each table and all dense parameters: ``Store.pull``.
Pull = Callable[[Mapping[str, Ids]], tuple[Mapping[str, Floats], Mapping[str, Floats]] | Pulled]


def distinct(encoded: Encoded) -> Lookup:
    """The distinct ids of the used places of a batch."""
    weights = None if encoded.weights.all() else encoded.weights  # no lists: nothing to pick out
    return distinct_ids(encoded.ids, weights)


@dataclass(frozen=True)
class Targets:
    """What each row says about each label.

    The loss of a row and label is ``positive * -log(p) + negative * -log(1 - p)``. An ordinary example
    has (1, 0) or (0, 1), one whose label is unknown (0, 0), and a late positive whose row was trained as a
    negative before has (1, -1): it learns the one and takes back the other.

    Attributes:
        positive, negative: (B, L) float32.
        late_share: (B, L) float32: of a label's positives the share that comes when the row was trained as a
            negative already, for weights as :mod:`~cuckooflow.models.late_weights` says; None: no such weights.
        shift: (B, L) float32, given with ``late_share``: what the log odds of the model lack.
    """

    positive: Floats
    negative: Floats
    late_share: Floats | None = None
    shift: Floats | None = None

    @property
    def parts(self) -> tuple[Floats, ...]:
        """Those of the arrays that are there."""
        given = (self.positive, self.negative, self.late_share, self.shift)
        return tuple(array for array in given if array is not None)

    def slice(self, start: int, stop: int) -> Targets:
        """Rows ``start <= row < stop``, without a copy."""
        return Targets(*(array[start:stop] for array in self.parts))

    @staticmethod
    def concat(several: Sequence[Targets]) -> Targets:
        """The rows of all, in order; all have the same arrays, and there is at least one."""
        return Targets(*(np.concatenate(arrays) for arrays in zip(*(t.parts for t in several), strict=True)))


@dataclass(frozen=True)
class Inputs:
    """What :meth:`Model.forward` gets, as tensors.

    Attributes:
        fields: table name -> (B, F, dim): each field's pooled rows.
        numbers: (B, K).
    """

    fields: Mapping[str, Any]
    numbers: Any


@dataclass(frozen=True)
class Prepared:
    """Rows as a step or a prediction takes them.

    Attributes:
        lookup: their distinct ids.
        fields: how their places are pooled.
        tensors: their numbers, the dense parameters as one, each table's pooled rows.
        clock: of the store, where the parameters were pulled from one.
    """

    lookup: Lookup
    fields: Fields
    tensors: tuple[Any, ...]
    clock: tuple[int, ...] = ()


@dataclass(frozen=True)
class StepResult:
    """What one training step found.

    Attributes:
        probabilities: (B, L) float32, predicted before anything was learned from these rows.
        loss: the summed loss of the batch, weighted by label.
        dense_gradients: parameter name -> float32, summed over the batch and divided by ``step_rows``.
        prepared: what the step was given.
        field_gradients: table name -> (B, F, dim) float32, of the pooled rows.
    """

    probabilities: Floats
    loss: float
    dense_gradients: Mapping[str, Floats]
    prepared: Prepared
    field_gradients: Mapping[str, Floats]

    @functools.cached_property
    def row_gradients(self) -> Mapping[str, Floats]:
        """Table name -> (U, dim) float32, summed over the batch, when it is asked for first."""
        lookup, fields = self.prepared.lookup, self.prepared.fields
        return {name: lookup.spread(gradients, fields) for name, gradients in self.field_gradients.items()}

    def finite(self) -> bool:
        """Whether every gradient and the loss are finite."""
        arrays = (*self.row_gradients.values(), *self.dense_gradients.values())
        return bool(np.isfinite(self.loss)) and all(bool(np.isfinite(a).all()) for a in arrays)


@functools.cache
def tensorflow() -> Any:
    """TensorFlow, imported at the first call (some seconds)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    return tf


class Model(ABC):
    """Base of every model. Thread-safe.

    Args:
        spec: the model's options.
        features: the job's features.

    Raises:
        SpecError: the features do not fit together.
    """

    def __init__(self, spec: ModelSpec, features: Sequence[FeatureSpec]) -> None:
        self.spec = spec
        self.encoder = Encoder(features)
        self._slot_admission = {
            slot: feature.admission
            for feature, slot in zip(features, slots(features).values(), strict=True)
            if feature.admission is not None
        }
        self._slot_ttl_us = {
            slot: feature.ttl
            for feature, slot in zip(features, slots(features).values(), strict=True)
            if feature.ttl is not None
        }
        streaming = Streaming(features, spec.ttl or 0)
        #: What earlier examples say; None where no feature asks for it.
        self.streaming: Streaming | None = streaming if streaming.features else None
        self._lock = threading.Lock()
        self._compiled: tuple[Any, Any, Any] | None = None
        self._last_packed: tuple[tuple[Floats, ...], Any] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of every (B, L) array."""
        return self.spec.labels

    @property
    @abstractmethod
    def tables(self) -> tuple[TableConfig, ...]:
        """The tables it needs. Every table is looked up with the same feature ids."""

    @property
    def store_tables(self) -> tuple[TableConfig, ...]:
        """All tables of a store for this model: its own, and those of streaming features."""
        return self.tables + (() if self.streaming is None else self.streaming.tables)

    @property
    @abstractmethod
    def dense(self) -> tuple[DenseConfig, ...]:
        """The dense parameters it needs."""

    @property
    def axes(self) -> Mapping[str, tuple[Axis, ...]]:
        """What the places of its parameters stand for: of a table its columns, of a dense parameter every axis.

        A model that starts from another one's parameters takes those that stand for the same. Default: nothing is
        known, and a parameter is taken where its name and shape are the same.
        """
        return {}

    @property
    def label_axis(self) -> Axis:
        """One place a label."""
        return tuple(("label", label) for label in self.labels)

    @abstractmethod
    def forward(self, inputs: Inputs, dense: Mapping[str, Any]) -> Any:
        """Logits, (B, L), from tensors to a tensor; traced once."""

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """See :meth:`cuckooflow.models.encoding.Encoder.encode`."""
        return self.encoder.encode(batch)

    def wanted(self, lookup: Lookup) -> dict[str, Ids]:
        """Table name -> ids, as ``Store.pull`` takes them."""
        return {table.name: lookup.ids for table in self._own_tables}

    def prepare(
        self, encoded: Encoded, lookup: Lookup, rows: Mapping[str, Floats], dense: Mapping[str, Floats]
    ) -> Prepared:
        """Bring a batch into the form that TensorFlow computes with.

        Args:
            encoded, lookup: B rows and their distinct ids; B at least 1.
            rows: table name -> (U, dim) float32, pulled.
            dense: parameter name -> value, pulled; an array that is given again must hold what it held.
        """
        fields = Fields(encoded.weights, encoded.bounds)
        # Rows are pooled and gradients summed outside: TensorFlow's own are several times slower on one thread.
        pooled = [lookup.pool(rows[table.name], fields) for table in self._own_tables]
        numbers = tensorflow().constant(encoded.numbers)
        return Prepared(lookup, fields, (numbers, self._packed(dense), *map(_in_place, pooled)))

    def train_step(self, prepared: Prepared, targets: Targets, step_rows: int) -> StepResult:
        """Probabilities and gradients of one batch. Nothing is applied here.

        Args:
            targets: of the same rows.
            step_rows: rows of a full batch. Dense gradients are divided by it, not by B, so that a
                ragged small batch makes a small step.
        """
        plain, weighted, _ = self._functions()
        step = plain if targets.late_share is None else weighted
        given = tensorflow().constant(np.stack(targets.parts))
        probabilities, loss, packed, *gradients = step(*prepared.tensors, given)
        dense_gradients: Floats = np.asarray(memoryview(packed), np.float32) / np.float32(step_rows)
        at = np.cumsum([0, *self._dense_sizes])
        return StepResult(
            probabilities.numpy(),
            float(loss),
            {
                parameter.name: dense_gradients[start:stop].reshape(parameter.shape)
                for parameter, (start, stop) in zip(self._own_dense, itertools.pairwise(at), strict=True)
            },
            prepared,
            {
                table.name: np.asarray(memoryview(g))
                for table, g in zip(self._own_tables, gradients, strict=True)
            },
        )

    def predict(
        self, encoded: Encoded, lookup: Lookup, rows: Mapping[str, Floats], dense: Mapping[str, Floats]
    ) -> Floats:
        """(B, L) float32 probabilities, in the order of :attr:`labels`."""
        if not len(encoded):
            return np.zeros((0, len(self.labels)), np.float32)
        predict = self._functions()[-1]
        (result,) = predict(*self.prepare(encoded, lookup, rows, dense).tensors)
        return cast(Floats, result.numpy())

    def table(self, name: str, dim: int, **options: Any) -> TableConfig:
        """A table with the spec's seed, admission and expiry.

        Args:
            dim: weights of a row.
            options: further ones of :class:`~cuckooflow.embedding_store.api.TableConfig`, such as ``optimizer``.
        """
        return TableConfig(
            name=name,
            dim=dim,
            seed=self.spec.seed,
            admission=self.spec.admission,
            slot_admission=self._slot_admission,
            admission_mode=self.spec.admission_mode,
            ttl_us=self.spec.ttl or 0,
            slot_ttl_us=self._slot_ttl_us,
            **options,
        )

    def _packed(self, dense: Mapping[str, Floats]) -> Any:
        """The dense parameters as one tensor, since every one that crosses costs tens of microseconds.

        Those of the last call are kept: a scorer asks with the same arrays until the next snapshot.
        """
        arrays = tuple(dense[parameter.name] for parameter in self._own_dense)
        last = self._last_packed
        if last is not None and all(map(operator.is_, last[0], arrays)):
            return last[1]
        packed = aligned((sum(self._dense_sizes),))
        np.concatenate([array.reshape(-1) for array in arrays], out=packed)
        tensor = _in_place(packed)
        self._last_packed = arrays, tensor
        return tensor

    @functools.cached_property
    def _own_tables(self) -> tuple[TableConfig, ...]:
        return self.tables  # which makes them anew each time

    @functools.cached_property
    def _own_dense(self) -> tuple[DenseConfig, ...]:
        return self.dense

    @functools.cached_property
    def _dense_sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(parameter.shape) for parameter in self._own_dense)

    def _functions(self) -> tuple[Any, Any, Any]:
        with self._lock:
            if self._compiled is None:
                self._compiled = self._compile()
            return self._compiled

    def _compile(self) -> tuple[Any, Any, Any]:
        tf = tensorflow()
        names = [table.name for table in self._own_tables]
        parameters = self._own_dense
        label_weights = np.array(
            [self.spec.label_weights.get(label, 1.0) for label in self.labels], np.float32
        )

        def logits(numbers: Any, packed: Any, pooled: Sequence[Any]) -> Any:
            values = tf.split(packed, self._dense_sizes)
            dense = {p.name: tf.reshape(v, p.shape) for p, v in zip(parameters, values, strict=True)}
            return self.forward(Inputs(dict(zip(names, pooled, strict=True)), numbers), dense)

        def tensor(*shape: int | None) -> Any:
            return tf.TensorSpec(shape, tf.float32)

        # The shapes leave the number of rows open, so each function is traced once.
        tensors = (
            tensor(None, self.encoder.num_numbers),
            tensor(sum(self._dense_sizes)),
            *(tensor(None, self.encoder.num_fields, table.dim) for table in self._own_tables),
        )

        def step(numbers: Any, packed: Any, *pooled_and_targets: Any) -> Any:
            *pooled, targets = pooled_and_targets
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([packed, *pooled])
                z = logits(numbers, packed, pooled)
                positive, negative = targets[0], targets[1]
                if targets.shape[0] > 2:
                    of_positive, of_negative = importance(tf, z, targets[2], targets[3])
                    positive, negative = positive * of_positive, negative * of_negative
                losses = positive * tf.nn.softplus(-z) + negative * tf.nn.softplus(z)
                loss = tf.reduce_sum(losses * label_weights)
            gradients = tape.gradient(
                loss, [packed, *pooled], unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return tf.sigmoid(z), loss, *gradients

        def predict(numbers: Any, packed: Any, *pooled: Any) -> Any:
            return tf.sigmoid(logits(numbers, packed, pooled))

        def targets(parts: int) -> Any:
            return tensor(parts, None, len(self.labels))

        return (
            _traced(step, *tensors, targets(2)),
            _traced(step, *tensors, targets(4)),
            _traced(predict, *tensors),
        )


def _traced(function: Callable[..., Any], *signature: Any) -> Callable[..., list[Any]]:
    """A function of tensors, compiled, which gives the list of its results.

    It is called as an operation: ``tf.function`` takes about a millisecond for each call to see that the arguments'
    types are what they were.
    """
    tf = tensorflow()
    traced = tf.function(function, autograph=False).get_concrete_function(*signature)
    types = [result.dtype for result in traced.outputs]

    def call(*tensors: Any) -> list[Any]:
        given = [*tensors, *traced.captured_inputs]
        return cast(list[Any], tf.raw_ops.StatefulPartitionedCall(args=given, Tout=types, f=traced))

    return call


def _in_place(array: Floats) -> Any:
    """A tensor in an array's memory, which nothing may write to any more; one made the usual way is a copy."""
    return tensorflow().experimental.dlpack.from_dlpack(array.__dlpack__())


def predict_batch(
    model: Model, batch: pa.RecordBatch, pull: Pull, lookup_at: LookupAt | None = None
) -> dict[str, npt.NDArray[np.float32]]:
    """Label -> (n,) float32 probabilities for the rows of a batch.

    Args:
        pull: as ``Store.pull``: rows of the asked tables and the dense parameters.
        lookup_at: as ``Store.lookup_at``, for streaming features as of each row's ``_time``; None: as if there had been
            no examples yet.
    """
    if model.streaming is not None and lookup_at is not None:
        batch = model.streaming.served(batch, lookup_at)
    encoded = model.encode(batch)
    lookup = distinct(encoded)
    rows, dense = pull(model.wanted(lookup))[:2]
    probabilities = model.predict(encoded, lookup, rows, dense)
    return {label: probabilities[:, k] for k, label in enumerate(model.labels)}
