"""RecordBatch -> feature ids and numbers, columnar.

Each feature takes a fixed number of places in a row: one, or ``max_length`` for a list. A place that is
not used has weight 0 and counts nowhere. A null, a missing column and an empty list have an id of their
own in each slot, so "unknown" is learned like any other value. A float that is NaN or infinite is
treated as null (the parser dead-letters such rows before; a caller of the encoder may not have one).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cuckooflow.embedding_store.api import SLOT_BITS, Floats, Ids
from cuckooflow.embedding_store.hashing import NULL_HASH, hash_column, hash_int64, hash_rows
from cuckooflow.errors import SpecError
from cuckooflow.models.features import FeatureSpec, id_slots
from cuckooflow.models.streaming_columns import listed_values, streaming_numbers

_VALUE_BITS = 64 - SLOT_BITS
_VALUE_MASK = np.uint64((1 << _VALUE_BITS) - 1)


@dataclass(frozen=True)
class Encoded:
    """Rows as a model takes them.

    Attributes:
        ids: (B, C) uint64 feature ids; 0 in unused places.
        weights: (B, C) float32: what a place's row counts in its field's sum; 0 where unused.
        numbers: (B, K) float32 dense inputs: for each number its scaled value, then 1 where it was null; for
            streaming features see :func:`~cuckooflow.models.streaming_columns.streaming_numbers`.
        bounds: (F + 1,) int32: field (id feature) f has the places from bounds[f] up to bounds[f + 1]; the same for all
            batches.
    """

    ids: Ids
    weights: Floats
    numbers: Floats
    bounds: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)

    def slice(self, start: int, stop: int) -> Encoded:
        """Rows ``start <= row < stop``, without a copy."""
        return Encoded(self.ids[start:stop], self.weights[start:stop], self.numbers[start:stop], self.bounds)

    @staticmethod
    def concat(parts: Sequence[Encoded]) -> Encoded:
        """The rows of all parts, in order; there must be at least one part."""
        if len(parts) == 1:
            return parts[0]
        return Encoded(
            np.concatenate([p.ids for p in parts]),
            np.concatenate([p.weights for p in parts]),
            np.concatenate([p.numbers for p in parts]),
            parts[0].bounds,
        )


#: An id feature with its columns, its slot and its places in a row.
_Field = tuple[FeatureSpec, tuple[str, ...], np.uint64, slice]


@dataclass(frozen=True)
class _Integers:
    """The plain int64 columns of a schema: their indices, places and slots, one for one."""

    schema: pa.Schema
    columns: tuple[int, ...]
    places: tuple[int, ...]
    slots: Ids
    done: frozenset[int]


class Encoder:
    """Turns batches into :class:`Encoded`. Safe to share between threads.

    Args:
        features: in slot order; see :mod:`cuckooflow.models.features`.

    Raises:
        SpecError: names or slots collide, or no feature has ids.

    >>> genres = FeatureSpec(name="genres", pooling="mean", max_length=2)
    >>> encoder = Encoder([FeatureSpec(name="user"), genres])
    >>> rows = pa.record_batch({"user": ["u1", None], "genres": [["a", "b"], []]})
    >>> encoder.encode(rows).weights.tolist()
    [[1.0, 0.5, 0.5], [1.0, 1.0, 0.0]]
    """

    def __init__(self, features: Sequence[FeatureSpec]) -> None:
        slot_of = id_slots(features)
        self.features = tuple(features)
        self._id_features = tuple(f for f in features if not f.numbers)
        self._number_features = tuple(f for f in features if f.numbers)
        if not self._id_features:
            raise SpecError("features: expected at least one that is not a number, received numbers only")
        widths = [feature.width for feature in self._id_features]
        self._bounds: npt.NDArray[np.int32] = np.cumsum([0, *widths], dtype=np.int32)
        self._fields: list[_Field] = [
            (feature, feature.inputs, np.uint64(slot_of[feature.name] << _VALUE_BITS), slice(*ends))
            for feature, ends in zip(
                self._id_features, itertools.pairwise(self._bounds.tolist()), strict=True
            )
        ]
        self._integers: _Integers | None = None  # of the schema that was seen last
        self._num_numbers = sum(feature.numbers for feature in self._number_features)

    @property
    def num_fields(self) -> int:
        """Fields (id features)."""
        return len(self._id_features)

    @property
    def num_numbers(self) -> int:
        """K: dense inputs."""
        return self._num_numbers

    @property
    def field_names(self) -> tuple[str, ...]:
        """The feature of each field."""
        return tuple(feature.name for feature in self._id_features)

    @property
    def number_names(self) -> tuple[tuple[str, int], ...]:
        """Of each dense input, its feature, and which of that feature's it is."""
        return tuple((f.name, k) for f in self._number_features for k in range(f.numbers))

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """Encode every row of a batch, to which streaming features were attached already.

        Raises:
            SpecError: a column has a type that the feature cannot take; names both.
        """
        rows = batch.num_rows
        places = int(self._bounds[-1])
        ids = np.zeros((rows, places), np.uint64)
        weights = np.zeros((rows, places), np.float32)
        done = self._fill_integers(batch, ids, weights)
        for feature, inputs, slot, here in self._fields:
            at = here.start
            if at in done:
                continue
            columns = [_column(batch, name) for name in inputs]
            try:
                if feature.kind == "recent":
                    values = listed_values(feature, batch)
                    _fill_hashes(feature, *values, slot, ids[:, here], weights[:, here])
                elif feature.pooling is None:
                    ids[:, at] = slot | (_values(feature, columns) & _VALUE_MASK)
                    weights[:, at] = 1.0
                else:
                    _fill_lists(feature, columns[0], slot, ids[:, here], weights[:, here])
            except (TypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise _unfit(feature, columns, error) from error
        numbers = np.zeros((rows, self.num_numbers), np.float32)
        at = 0
        for feature in self._number_features:
            here = slice(at, at + feature.numbers)
            at += feature.numbers
            if feature.streaming:
                numbers[:, here] = streaming_numbers(feature, batch)
                continue
            column = _column(batch, feature.inputs[0])
            try:
                numbers[:, here] = np.stack(_number(feature, column), axis=1)
            except (TypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise _unfit(feature, [column], error) from error
        return Encoded(ids, weights, numbers, self._bounds)

    def _fill_integers(self, batch: pa.RecordBatch, ids: Ids, weights: Floats) -> frozenset[int]:
        """Fill the places of plain int64 columns without nulls, all at once: of a small batch each call counts.

        Returns:
            those places.
        """
        integers = self._integers
        if integers is None or not integers.schema.equals(batch.schema):
            integers = self._integers = _integers(batch.schema, self._fields)
        if not integers.columns:
            return frozenset()
        try:
            values = batch.select(integers.columns).to_tensor().to_numpy()
        except pa.ArrowTypeError:  # some have nulls
            return frozenset()
        ids[:, integers.places] = integers.slots | (hash_int64(values) & _VALUE_MASK)
        weights[:, integers.places] = 1.0
        return integers.done


def _integers(schema: pa.Schema, fields: Sequence[_Field]) -> _Integers:
    found = []
    for feature, inputs, slot, here in fields:
        plain = feature.kind == "id" and feature.pooling is None
        index = schema.get_field_index(inputs[0]) if plain else -1
        if index >= 0 and schema.field(index).type == pa.int64():
            found.append((index, here.start, slot))
    columns, places, slots = zip(*found, strict=True) if found else ((), (), ())
    return _Integers(schema, columns, places, np.array(slots, np.uint64), frozenset(places))


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    index = batch.schema.get_field_index(name)
    if index < 0:
        return pa.nulls(batch.num_rows, pa.string())
    column = batch.column(index)
    return pa.nulls(batch.num_rows, pa.string()) if pa.types.is_null(column.type) else column


def _values(feature: FeatureSpec, columns: list[pa.Array]) -> npt.NDArray[np.uint64]:
    if feature.kind == "cross":
        return hash_rows([_finite(c) for c in columns])
    column = columns[0]
    if feature.kind == "bucket":
        values, known = _floats(column)
        buckets = np.searchsorted(np.asarray(feature.boundaries, np.float64), values, side="right")
        return np.where(known, hash_column(pa.array(buckets.astype(np.int64))), NULL_HASH)
    if feature.kind == "hour":
        return hash_column(_hours(column, feature.zone))
    return hash_column(_finite(column))


def _hours(column: pa.Array, zone: str) -> pa.Array:
    """Hour of the day in ``zone``; an integer column holds microseconds since the epoch, UTC."""
    if column.null_count == len(column):
        return pa.nulls(len(column), pa.int64())
    if pa.types.is_integer(column.type):
        column = column.cast(pa.int64()).cast(pa.timestamp("us"))
    if pa.types.is_timestamp(column.type) and column.type.tz is None:
        column = column.cast(pa.timestamp(column.type.unit, "UTC"))
    if not pa.types.is_timestamp(column.type):
        raise TypeError("expected a time")
    return pc.hour(column.cast(pa.timestamp(column.type.unit, zone)))


def _finite(column: pa.Array) -> pa.Array:
    """The column with NaN and infinity as null."""
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))


def _floats(column: pa.Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Values as float64 (0 where unknown) and whether they are known and finite."""
    if column.null_count == len(column):
        return np.zeros(len(column)), np.zeros(len(column), np.bool_)
    if not (
        pa.types.is_integer(column.type)
        or pa.types.is_floating(column.type)
        or pa.types.is_boolean(column.type)
    ):
        raise TypeError("expected numbers")
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    known = column.is_valid().to_numpy(zero_copy_only=False)
    values = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64)
    known = known & np.isfinite(values)
    return np.where(known, values, 0.0), known


def _number(feature: FeatureSpec, column: pa.Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    values, known = _floats(column)
    if feature.log:
        values = np.sign(values) * np.log1p(np.abs(values))
    scaled = (values - feature.center) / feature.scale
    # A value near float64's end would be infinite as float32; the bound is far past any use.
    return np.where(known, np.clip(scaled, -1e6, 1e6), 0.0), ~known


def _fill_lists(feature: FeatureSpec, column: pa.Array, slot: np.uint64, ids: Ids, weights: Floats) -> None:
    if column.null_count == len(column):
        ids[:, 0] = slot | (NULL_HASH & _VALUE_MASK)
        weights[:, 0] = 1.0
        return
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        ids[:, 0] = slot | (hash_column(_finite(column)) & _VALUE_MASK)
        weights[:, 0] = 1.0
        return
    # flatten() leaves out what lies under null lists, so lengths and elements stay in step.
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    elements = column.flatten()
    if pa.types.is_null(elements.type):
        elements = elements.cast(pa.string())
    _fill_hashes(feature, lengths, hash_column(_finite(elements)), slot, ids, weights)


def _fill_hashes(
    feature: FeatureSpec,
    lengths: npt.NDArray[np.int64],
    hashes: npt.NDArray[np.uint64],
    slot: np.uint64,
    ids: Ids,
    weights: Floats,
) -> None:
    """Lists of (n,) lengths whose elements' hashes follow each other."""
    starts = np.cumsum(lengths) - lengths
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(hashes)) - np.repeat(starts, lengths)
    kept = place < feature.max_length
    row, place = row[kept], place[kept]
    ids[row, place] = slot | (hashes[kept] & _VALUE_MASK)
    counted = np.minimum(lengths, feature.max_length)
    share = 1.0 / np.maximum(counted, 1) if feature.pooling == "mean" else np.ones(len(lengths))
    weights[row, place] = share[row]
    empty = lengths == 0
    ids[empty, 0] = slot | (NULL_HASH & _VALUE_MASK)
    weights[empty, 0] = 1.0


def _unfit(feature: FeatureSpec, columns: Sequence[pa.Array], error: Exception) -> SpecError:
    got = ", ".join(f"{name}: {column.type}" for name, column in zip(feature.inputs, columns, strict=True))
    hint = ""
    if any(pa.types.is_list(c.type) or pa.types.is_large_list(c.type) for c in columns):
        hint = "; a column of lists needs kind id and pooling: mean or sum"
    return SpecError(f"feature {feature.name!r} of kind {feature.kind} cannot take {got} ({error}){hint}")
