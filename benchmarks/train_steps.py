"""One trainer in this process beside the two things that TensorFlow alone can do with the same rows.

They take turns, so that what the machine does meanwhile falls on all of them; each one's best turn counts.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.train_rows import ALL_VALUES, DIM, FEATURES, FIELDS, HIDDEN, MODEL, Rows
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.models.base import tensorflow
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import build_model, store_config
from cuckooflow.transforms.trainer import Trainer
from cuckooflow.transforms.training_options import TrainingOptions

ELEMENT_ROWS = 8_192
TURNS = 3
#: Trains for about so many seconds; rows it took.
Turn = Callable[[float], int]


def one_thread() -> Any:
    """TensorFlow, bound to one thread; call it before anything else uses it."""
    tf = tensorflow()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def rates(contenders: dict[str, Turn], seconds: float) -> dict[str, float]:
    """Rows a second of each: the best of :data:`TURNS`, after a first one, which compiles and fills tables."""
    for turn in contenders.values():
        turn(seconds / TURNS)
    best = dict.fromkeys(contenders, 0.0)
    for _ in range(TURNS):
        for name, turn in contenders.items():
            begun = time.perf_counter()
            rows = turn(seconds / TURNS)
            best[name] = max(best[name], rows / (time.perf_counter() - begun))
    return best


class TrainerTurn:
    """The trainer of a job, with the store in its process: elements of the log in, pushes out."""

    def __init__(self, rows: Rows, batch: int, features: Sequence[FeatureSpec] = FEATURES) -> None:
        model = build_model(MODEL, features)
        self.store = EmbeddedStore(store_config(model), None)
        self._trainer = Trainer(self.store, model, None, TrainingOptions(batch_size=batch, overlap=True))
        self._elements = rows.elements(ELEMENT_ROWS)

    def __call__(self, seconds: float) -> int:
        until, rows = time.perf_counter() + seconds, 0
        while True:
            element = next(self._elements, None)
            if element is None:
                raise RuntimeError("expected more rows than a turn takes, received fewer: generate more")
            self._trainer.accept(element)
            rows += element.num_rows
            if time.perf_counter() >= until:
                return rows


def tensorflow_only(rows: Rows, batch: int) -> Turn:
    """The same network's step on rows that were gathered before: gradients of rows and parameters, Adam on the latter."""
    tf = tensorflow()
    rng = np.random.default_rng(2)

    def drawn(*shape: int, scale: float = 1e-3) -> Any:
        return tf.constant(rng.standard_normal(shape).astype(np.float32) * scale)

    gathered = [(drawn(batch, FIELDS, DIM), drawn(batch, FIELDS, 1)) for _ in range(8)]
    labels = [
        tf.constant(rows.labels[k * batch : (k + 1) * batch, None].astype(np.float32)) for k in range(8)
    ]
    widths = [FIELDS * DIM, *HIDDEN, 1]
    weights = [tf.Variable(drawn(a, b, scale=(2 / a) ** 0.5)) for a, b in itertools.pairwise(widths)]
    biases = [tf.Variable(tf.zeros(b)) for b in widths[1:]]
    pair_weights, bias = tf.Variable(tf.ones((DIM, 1))), tf.Variable(tf.zeros(1))
    variables = [*weights, *biases, pair_weights, bias]
    adam = tf.keras.optimizers.Adam(1e-3)
    adam.build(variables)

    @tf.function(autograph=False)
    def step(embedded: Any, linear: Any, label: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([embedded, linear])
            z = tf.reduce_sum(linear, axis=1) + bias
            squared_sum = tf.square(tf.reduce_sum(embedded, axis=1))
            sum_squared = tf.reduce_sum(tf.square(embedded), axis=1)
            z += tf.matmul(0.5 * (squared_sum - sum_squared), pair_weights)
            x = tf.reshape(embedded, (-1, FIELDS * DIM))
            for k, (weight, offset) in enumerate(zip(weights, biases, strict=True)):
                x = tf.matmul(x, weight) + offset
                x = tf.nn.relu(x) if k < len(HIDDEN) else x
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(label, z + x))
        of_rows, of_variables = tape.gradient(loss, ([embedded, linear], variables))
        adam.apply_gradients(zip(of_variables, variables, strict=True))
        return loss, of_rows

    def turn(seconds: float) -> int:
        until, count = time.perf_counter() + seconds, 0
        while True:
            step(*gathered[count % 8], labels[count % 8])[0].numpy()
            count += 1
            if time.perf_counter() >= until:
                return count * batch

    return turn


def keras_fit(rows: Rows, batch: int, compiled: bool) -> Turn:
    """What one writes without a store: ``Embedding`` layers that hold every value, Adagrad, ``fit``.

    Args:
        compiled: by XLA, which is Keras's own choice where it can.
    """
    tf = tensorflow()
    keras = tf.keras
    layers = keras.layers
    given = keras.Input((FIELDS,), dtype="int32")
    embedded = layers.Embedding(ALL_VALUES, DIM)(given)
    z = layers.Flatten()(layers.Embedding(ALL_VALUES, 1)(given))
    z = layers.Dense(1, kernel_initializer="ones")(z)
    pairs = layers.Lambda(
        lambda v: 0.5 * (tf.square(tf.reduce_sum(v, axis=1)) - tf.reduce_sum(tf.square(v), axis=1))
    )(embedded)
    x = layers.Flatten()(embedded)
    for width in HIDDEN:
        x = layers.Dense(width, activation="relu")(x)
    out = layers.Add()([z, layers.Dense(1)(pairs), layers.Dense(1)(x)])
    model = keras.Model(given, out)
    model.compile(
        optimizer=keras.optimizers.Adagrad(0.05),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        jit_compile=compiled,
    )
    places, labels = rows.places.astype(np.int32), rows.labels[:, None].astype(np.float32)
    chunks: Iterator[int] = itertools.cycle(range(0, len(rows) - ELEMENT_ROWS * 2 + 1, ELEMENT_ROWS * 2))

    def turn(seconds: float) -> int:
        until, count = time.perf_counter() + seconds, 0
        while True:
            start = next(chunks)
            stop = start + ELEMENT_ROWS * 2
            data = tf.data.Dataset.from_tensor_slices((places[start:stop], labels[start:stop])).batch(batch)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*shuffle=True")
                model.fit(data, verbose=0)
            count += stop - start
            if time.perf_counter() >= until:
                return count

    return turn
