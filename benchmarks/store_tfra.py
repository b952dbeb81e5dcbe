"""Runs in TensorFlow Recommenders Addons' own environment: rows, batch, seconds -> rates as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_recommenders_addons as tfra

DIM = 32
POOL = 128


def main(rows: int, batch: int, seconds: float) -> None:
    """Fill the table, then measure both in turns; the best round counts."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    rng = np.random.default_rng(1)
    keys = rng.integers(-(1 << 62), 1 << 62, rows, np.int64)
    table = tfra.dynamic_embedding.CuckooHashTable(
        tf.int64, tf.float32, tf.zeros([DIM], tf.float32), init_size=rows
    )
    for start in range(0, rows, 65_536):
        part = keys[start : start + 65_536]
        table.insert(part, tf.zeros([len(part), DIM]))
    picks = [tf.constant(rng.choice(keys, batch)) for _ in range(POOL)]
    values = tf.constant(rng.standard_normal((batch, DIM)).astype(np.float32))
    rounds = 3
    found = {"lookup": 0.0, "push": 0.0}
    for _ in range(rounds):
        each = seconds / rounds
        found["lookup"] = max(found["lookup"], rate(lambda ids: table.lookup(ids), picks, batch, each))
        found["push"] = max(found["push"], rate(lambda ids: table.insert(ids, values), picks, batch, each))
    print(json.dumps(found))


def rate(call: Callable[[tf.Tensor], object], picks: list[tf.Tensor], batch: int, seconds: float) -> float:
    """Rows a second."""
    calls, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        call(picks[calls % POOL])
        calls += 1
    return calls * batch / (time.perf_counter() - begun)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
