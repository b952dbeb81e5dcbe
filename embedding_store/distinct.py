"""The distinct ids of a batch, their rows pooled by field, and the gradients of fields summed by id.

What :meth:`~cuckooflow.embedding_store.api.Store.pull` and ``push`` want, each id once, and what a model computes
with, a row for every field, are two forms of one thing; these go from one to the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.api import Floats, Ids
from cuckooflow.errors import BadShape

#: Where TensorFlow wants an array to begin if it is to be used where it lies.
_ALIGN = 64


class Fields:
    """How the places of a batch's rows are pooled.

    Args:
        weights: (B, C) float32, by which a place's row counts; 0 where it is not used.
        bounds: (F + 1,) int32, ascending from 0 to C: field f has the places from bounds[f] up to bounds[f + 1]. The
            one place of a field that has no more is always used, and its weight taken as 1.

    Raises:
        BadShape: the bounds are not so.
    """

    def __init__(self, weights: Floats, bounds: npt.NDArray[np.int32]) -> None:
        ends = (0, weights.shape[1]) if weights.ndim == 2 else None
        if ends is None or not len(bounds) or (bounds[0], bounds[-1]) != ends or (np.diff(bounds) < 0).any():
            raise BadShape(
                f"expected bounds from 0 to the places of a row, received {bounds.tolist()} for weights of {weights.shape}"
            )
        self.weights = np.ascontiguousarray(weights, np.float32)
        self.bounds = np.ascontiguousarray(bounds, np.int32)

    @property
    def count(self) -> int:
        """F."""
        return len(self.bounds) - 1


@dataclass(frozen=True)
class Lookup:
    """The distinct ids of a batch.

    Attributes:
        ids: (U,) uint64, distinct, in the order of their first places.
        inverse: (B, C) int32: the place in ``ids`` of each place of the batch; 0 where unused.
        counts: (U,) uint32: how often each id occurred; unused places do not count.
    """

    ids: Ids
    inverse: npt.NDArray[np.int32]
    counts: npt.NDArray[np.uint32]

    def pool(self, rows: Floats, fields: Fields) -> Floats:
        """Each field's rows, weighted and summed: (B, F, dim) float32. Zeros where no id is used at all.

        Args:
            rows: (U, dim) float32.
            fields: of these places.

        Raises:
            BadShape: there is not one row for each id, or the fields are of other places.
        """
        if rows.ndim != 2 or len(rows) != len(self.ids):
            raise BadShape(f"expected a row for each of {len(self.ids)} ids, received {rows.shape}")
        self._check(fields)
        pooled = aligned((len(self.inverse), fields.count, rows.shape[1]))
        if len(rows):
            given = np.ascontiguousarray(rows, np.float32)
            _native.pool_rows(given, self.inverse, fields.weights, fields.bounds, pooled)
        else:
            pooled.fill(0)
        return pooled

    def spread(self, gradients: Floats, fields: Fields) -> Floats:
        """The gradient of each id's row: (U, dim) float32, summed in the order of places.

        Args:
            gradients: (B, F, dim) float32, of what :meth:`pool` gave.
            fields: as there.

        Raises:
            BadShape: there is not one gradient for each field of each row, or the fields are of other places.
        """
        self._check(fields)
        if gradients.ndim != 3 or gradients.shape[:2] != (len(self.inverse), fields.count):
            raise BadShape(
                f"expected gradients of {len(self.inverse)} rows' {fields.count} fields, received {gradients.shape}"
            )
        if not len(self.ids):
            return np.zeros((0, gradients.shape[2]), np.float32)
        given = np.ascontiguousarray(gradients, np.float32)
        summed: Floats = _native.spread_rows(
            given, self.inverse, fields.weights, fields.bounds, len(self.ids)
        )
        return summed

    def _check(self, fields: Fields) -> None:
        if fields.weights.shape != self.inverse.shape:
            raise BadShape(f"expected fields of {self.inverse.shape} places, received {fields.weights.shape}")


def distinct(ids: Ids, weights: Floats | None = None) -> Lookup:
    """The distinct ids of a batch's used places, so that each travels once.

    Args:
        ids: (B, C) uint64.
        weights: (B, C) float32, 0 where a place is not used; None: all are.

    Raises:
        BadShape: the two are of different shapes, or not of two dimensions.

    >>> lookup = distinct(np.array([[7, 9], [9, 7]], np.uint64))
    >>> lookup.ids.tolist(), lookup.inverse.tolist(), lookup.counts.tolist()
    ([7, 9], [[0, 1], [1, 0]], [2, 2])
    """
    if ids.ndim != 2 or (weights is not None and weights.shape != ids.shape):
        received = ids.shape if weights is None else (ids.shape, weights.shape)
        raise BadShape(f"expected ids, and weights if any, of one shape (B, C), received {received}")
    given = None if weights is None else np.ascontiguousarray(weights, np.float32)
    found, inverse, counts = _native.distinct_ids(np.ascontiguousarray(ids, np.uint64), given)
    return Lookup(found, inverse.reshape(ids.shape), counts)


def aligned(shape: tuple[int, ...]) -> Floats:
    """An array, not filled, that TensorFlow can use where it lies."""
    size = int(np.prod(shape))
    room = np.empty(size + _ALIGN // 4, np.float32)
    begin = -room.ctypes.data % _ALIGN // 4
    return room[begin : begin + size].reshape(shape)
