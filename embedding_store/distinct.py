"""The distinct ids of a batch, their rows at every place of it, and the gradients of places summed by id.

What :meth:`~cuckooflow.embedding_store.api.Store.pull` and ``push`` want, each id once, and what a model computes
with, a row for every place, are two forms of one thing; these go from one to the other.
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

    def take(self, rows: Floats) -> Floats:
        """A row for every place: (B, C, dim) float32 of (U, dim) float32. Zeros where no id is used at all.

        Raises:
            BadShape: there is not one row for each id.
        """
        if rows.ndim != 2 or len(rows) != len(self.ids):
            raise BadShape(f"expected a row for each of {len(self.ids)} ids, received {rows.shape}")
        taken = _aligned((*self.inverse.shape, rows.shape[1]))
        if len(rows):
            _native.take_rows(np.ascontiguousarray(rows, np.float32), self.inverse, taken)
        else:
            taken.fill(0)
        return taken

    def sum(self, gradients: Floats) -> Floats:
        """The gradients of all places of each id, summed in their order: (U, dim) float32 of (B, C, dim).

        Args:
            gradients: zero at unused places.

        Raises:
            BadShape: there is not one for each place.
        """
        if gradients.ndim != 3 or gradients.shape[:2] != self.inverse.shape:
            raise BadShape(
                f"expected a gradient for each of {self.inverse.shape} places, received {gradients.shape}"
            )
        if not len(self.ids):
            return np.zeros((0, gradients.shape[2]), np.float32)
        summed: Floats = _native.add_rows(
            np.ascontiguousarray(gradients, np.float32), self.inverse, len(self.ids)
        )
        return summed


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


def _aligned(shape: tuple[int, ...]) -> Floats:
    size = int(np.prod(shape))
    room = np.empty(size + _ALIGN // 4, np.float32)
    begin = -room.ctypes.data % _ALIGN // 4
    return room[begin : begin + size].reshape(shape)
