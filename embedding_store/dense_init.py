"""Starting values of dense parameters, from (seed, name) alone."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.api import DenseConfig, Floats


def initial_dense(config: DenseConfig) -> Floats:
    """The parameter's first value, of the configured shape, float32.

    ``glorot_uniform`` as in Glorot and Bengio (2010); of a shape with one axis both fans are its
    length, of more than two the leading axes count as a receptive field.
    """
    if config.init == "zeros":
        return np.zeros(config.shape, np.float32)
    if config.init == "ones":
        return np.ones(config.shape, np.float32)
    fan_in, fan_out = _fans(config.shape)
    limit = math.sqrt(6.0 / (fan_in + fan_out))
    digest = hashlib.sha256(f"{config.seed}:{config.name}".encode()).digest()
    seed = int.from_bytes(digest[:8], "little")
    bits = _native.hash_ints(np.arange(math.prod(config.shape), dtype=np.uint64), seed)
    unit = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return ((2.0 * unit - 1.0) * limit).astype(np.float32).reshape(config.shape)


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) < 2:
        length = shape[0] if shape else 1
        return length, length
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field
