"""Runs in TensorFlow Recommenders Addons' own environment: a file of rows, batch -> rows a second as JSON.

DeepFM over one of its cuckoo hash tables, whose rows hold embedding, linear weight and both Adagrad accumulators:
look up the distinct ids, one step, insert them again. Adam on the network.
"""

from __future__ import annotations

import itertools
import json
import sys
import time

import numpy as np
import tensorflow as tf
import tensorflow_recommenders_addons as tfra

DIM = 16
HIDDEN = (256, 128, 64)
WIDTH = DIM + 1
RATE = 0.05


def main(file: str, batch: int) -> None:
    """One pass in batches, the first tenth of it not measured."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with np.load(file) as rows:
        places, labels = rows["places"], rows["labels"].astype(np.float32)[:, None]
    fields = places.shape[1]
    first = tf.constant(np.concatenate([np.zeros(WIDTH), np.full(WIDTH, 0.1)]).astype(np.float32))
    table = tfra.dynamic_embedding.CuckooHashTable(tf.int64, tf.float32, first, init_size=1 << 20)
    rng = np.random.default_rng(1)
    widths = [fields * DIM, *HIDDEN, 1]
    weights = [
        tf.Variable((rng.standard_normal(shape) * (2 / shape[0]) ** 0.5).astype(np.float32))
        for shape in itertools.pairwise(widths)
    ]
    biases = [tf.Variable(tf.zeros(width)) for width in widths[1:]]
    pair_weights, bias = tf.Variable(tf.ones((DIM, 1))), tf.Variable(tf.zeros(1))
    variables = [*weights, *biases, pair_weights, bias]
    moments = [(tf.Variable(tf.zeros_like(v)), tf.Variable(tf.zeros_like(v))) for v in variables]

    @tf.function(autograph=False, reduce_retracing=True)
    def step(ids: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        distinct, inverse = tf.unique(tf.reshape(ids, [-1]))
        rows = table.lookup(distinct)
        values, sums = rows[:, :WIDTH], rows[:, WIDTH:]
        with tf.GradientTape() as tape:
            tape.watch(values)
            taken = tf.reshape(tf.gather(values, inverse), (-1, fields, WIDTH))
            embedded, linear = taken[:, :, :DIM], taken[:, :, DIM:]
            z = tf.reduce_sum(linear, axis=1) + bias
            squared_sum = tf.square(tf.reduce_sum(embedded, axis=1))
            sum_squared = tf.reduce_sum(tf.square(embedded), axis=1)
            z += tf.matmul(0.5 * (squared_sum - sum_squared), pair_weights)
            x = tf.reshape(embedded, (-1, fields * DIM))
            for k, (weight, offset) in enumerate(zip(weights, biases, strict=True)):
                x = tf.matmul(x, weight) + offset
                x = tf.nn.relu(x) if k < len(HIDDEN) else x
            loss = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(label, z + x))
        of_rows, of_variables = tape.gradient(loss, (values, variables))
        of_rows = tf.convert_to_tensor(of_rows)
        sums += tf.square(of_rows)
        updated = tf.concat([values - RATE * of_rows / tf.sqrt(sums), sums], axis=1)
        table.insert(distinct, updated)
        for variable, gradient, (mean, square) in zip(variables, of_variables, moments, strict=True):
            gradient /= batch
            mean.assign(0.9 * mean + 0.1 * gradient)
            square.assign(0.999 * square + 0.001 * tf.square(gradient))
            variable.assign_sub(1e-3 * mean / (tf.sqrt(square) + 1e-7))
        return loss

    batches = [
        (
            tf.constant(places[start : start + batch].astype(np.int64)),
            tf.constant(labels[start : start + batch]),
        )
        for start in range(0, len(labels) - batch + 1, batch)
    ]
    warm = max(1, len(batches) // 10)
    for given in batches[:warm]:
        step(*given)
    begun = time.perf_counter()
    for given in batches[warm:]:
        step(*given)
    seconds = time.perf_counter() - begun
    print(json.dumps({"examples_per_s": (len(batches) - warm) * batch / seconds}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
