"""Arithmetic of the join over arrays: exact keys, repeats, reused keys, labels, identities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.hashing import hash_column, hash_rows
from cuckooflow.transforms.join_options import JoinOptions

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

#: What :func:`settle_keys` answers.
ACCEPTED, REPEATED, REUSED = 0, 1, 2

_SEED_HI, _SEED_LO, _SEED_ACTION = 0x1D_41, 0x1D_10, 0x1D_AC
_SALT_LO = np.uint64(0x9E3779B97F4A7C15)


def same_keys(left: pa.RecordBatch, right: pa.RecordBatch) -> Mask:
    """Which rows hold the same key; columns by position, null equal to null. (n,) bool.

    Integer columns may differ in width, as the two logs may declare them differently.
    """
    same = np.ones(left.num_rows, bool)
    for a, b in zip(left.columns, right.columns, strict=True):
        if a.type != b.type:
            a, b = _comparable(a), _comparable(b)
        equal = pc.equal(a, b)
        if equal.null_count:
            equal = pc.fill_null(equal, False).to_numpy(zero_copy_only=False)
            both_null = pc.and_(pc.is_null(a), pc.is_null(b)).to_numpy(zero_copy_only=False)
            same &= equal | both_null
        else:
            same &= equal.to_numpy(zero_copy_only=False)
    return same


def _comparable(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        return column.cast(pa.decimal128(20, 0))  # int64 and uint64 have no common integer
    return column.cast(pa.large_string())


def exact_codes(keys: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Dense codes of the rows: equal iff the keys are equal in every column. (n,) int64."""
    codes = np.zeros(keys.num_rows, np.int64)
    for column in keys.columns:
        encoded = pc.dictionary_encode(column, null_encoding="encode")
        indices = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        pair = codes * (len(encoded.dictionary) + 1) + indices
        codes = np.unique(pair, return_inverse=True)[1].astype(np.int64)
    return codes


def settle_keys(
    codes: Array, times: Array, existing: Mask, rank: Array, span_us: int
) -> npt.NDArray[np.int8]:
    """Which impressions are accepted where keys come more than once.

    Row by row in the order of ``rank``: a row at the time of an accepted row of its key is a repeat;
    one at another time, at most ``span_us`` away, is a reused key; else it is accepted. Rows that
    ``existing`` marks were accepted before.

    Args:
        codes: (n,) exact key codes.
        times: (n,) event times, microseconds.
        existing: (n,) bool.
        rank: (n,) order in which rows are considered.
        span_us: how long a key belongs to its impression.

    Returns:
        (n,) int8 of ``ACCEPTED``, ``REPEATED``, ``REUSED``.

    >>> settle_keys(np.zeros(4, int), np.array([5, 5, 9, 99]), np.zeros(4, bool), np.arange(4), 10).tolist()
    [0, 1, 2, 0]
    """
    verdict = np.full(len(codes), -1, np.int8)
    left = np.lexsort((rank, ~existing, codes))
    while len(left):  # a round settles the first row left of every key, and all that it excludes
        code = codes[left]
        first = np.concatenate(([True], code[1:] != code[:-1]))
        pivots = left[first]
        verdict[pivots] = ACCEPTED
        away = np.abs(times[left] - times[pivots][np.cumsum(first) - 1])
        open_rows = ~first & ~existing[left]
        verdict[left[open_rows & (away == 0)]] = REPEATED
        verdict[left[open_rows & (away > 0) & (away <= span_us)]] = REUSED
        left = left[verdict[left] < 0]
    return verdict


def first_of_each(groups: Sequence[Array], order: Sequence[Array]) -> Mask:
    """Marks, in each group of rows equal in all of ``groups``, the first by ``order``. (n,) bool."""
    sort = np.lexsort((*reversed(order), *reversed(groups)))
    first = np.zeros(len(sort), bool)
    if len(sort):
        new = np.zeros(len(sort) - 1, bool)
        for group in groups:
            new |= np.diff(group[sort]) != 0
        first[sort] = np.concatenate(([True], new))
    return first


class LabelRules:
    """Action types as small codes, and the labels that an action sets.

    Attributes:
        names: label names, in the order of their bits.
        types: action types that some label names.
    """

    def __init__(self, options: JoinOptions) -> None:
        self.names = tuple(label.name for label in options.labels)
        self.types = tuple(dict.fromkeys(label.action for label in options.labels))
        self._rules = [(self.types.index(n.action), n.window_us, bit) for bit, n in enumerate(options.labels)]
        windows = [0] * len(self.types)
        for code, window, _ in self._rules:
            windows[code] = max(windows[code], window)
        self.windows_us = np.array(windows, np.int64)
        self._labels = options.labels
        #: Columns of the actions that some label sums or compares.
        self.columns = tuple(dict.fromkeys(n.column for n in options.labels if n.column is not None))

    def codes(self, types: pa.Array) -> npt.NDArray[np.int16]:
        """(n,) int16 code of each action's type, -1 where no label names it."""
        index = pc.index_in(types.cast(pa.string()), value_set=pa.array(self.types, pa.string()))
        codes: npt.NDArray[np.int16] = pc.fill_null(index, -1).to_numpy(zero_copy_only=False).astype(np.int16)
        return codes

    def bits(self, codes: Array, delays: Array) -> npt.NDArray[np.uint64]:
        """(n,) uint64: the labels that actions of these types, so long after the impression, set."""
        bits = np.zeros(len(codes), np.uint64)
        for code, window, bit in self._rules:
            bits |= ((codes == code) & (delays <= window)).astype(np.uint64) << np.uint64(bit)
        return bits

    def valued(self, codes: Array, actions: pa.RecordBatch) -> tuple[Mask, npt.NDArray[np.uint64]]:
        """Which actions have the values that their labels need, and the labels that they can set at all.

        A value of 0 is there, but leaves its label at 0.

        Returns:
            (n,) bool and (n,) uint64.
        """
        valid = np.ones(len(codes), bool)
        sets = np.full(len(codes), np.iinfo(np.uint64).max, np.uint64)
        for code, _, bit in self._rules:
            column = self._labels[bit].column
            if column is not None:
                values = actions.column(column).cast(pa.float64(), safe=False)
                numbers = pc.fill_null(values, -1.0).to_numpy(zero_copy_only=False)
                mine = codes == code
                valid &= ~mine | (numbers >= 0)
                sets[mine & (numbers == 0)] &= ~(np.uint64(1) << np.uint64(bit))
        return valid, sets

    def values(self, rows: int, which: Array, bits: Array, actions: pa.RecordBatch | None) -> list[pa.Array]:
        """The label columns of examples.

        Args:
            rows: how many examples.
            which: (k,) the example of each action.
            bits: (k,) uint64, the labels that it sets.
            actions: (k,) rows with :attr:`columns`; None where there are no such columns.
        """
        found = []
        for bit, label in enumerate(self._labels):
            mine = np.flatnonzero((bits >> np.uint64(bit)) & np.uint64(1))
            at = which[mine]
            if label.value == "flag":
                flags = np.zeros(rows, np.uint8)
                flags[at] = 1
                found.append(pa.array(flags))
                continue
            if label.value == "count":
                found.append(pa.array(np.bincount(at, minlength=rows).astype(np.uint32)))
                continue
            assert actions is not None
            column = actions.column(label.column).cast(pa.float64(), safe=False)
            values = column.to_numpy(zero_copy_only=False)[mine]
            if label.value == "sum":
                # In one order, whatever the order of arrival: a sum of fractions depends on it.
                order = np.argsort(values, kind="stable")
                found.append(pa.array(np.bincount(at[order], values[order], minlength=rows)))
            else:
                most = np.zeros(rows)
                np.maximum.at(most, at, values)
                found.append(pa.array(most))
        return found


def action_identities(options: JoinOptions, batch: pa.RecordBatch, times: Array) -> npt.NDArray[np.uint64]:
    """(n,) uint64 of (type, id or time): with the impression, it names an action."""
    kind = batch.column(options.action_type)
    by_time: npt.NDArray[np.uint64] = hash_rows([kind, pa.array(times)], _SEED_ACTION)
    if options.action_id is None:
        return by_time
    given = batch.column(options.action_id)
    by_id = hash_rows([kind, given], _SEED_ACTION + 1)
    missing = given.is_null().to_numpy(zero_copy_only=False) if given.null_count else False
    return np.where(missing, by_time, by_id)


def primary_identities(keys: pa.RecordBatch, times: Array) -> tuple[Array, Array]:
    """128-bit identities ``(hi, lo)`` of (key, impression time, primary): two (n,) uint64."""
    columns = [*keys.columns, pa.array(times)]
    return hash_rows(columns, _SEED_HI), hash_rows(columns, _SEED_LO)


def late_identities(keys: pa.RecordBatch, times: Array, actions: Array) -> tuple[Array, Array]:
    """128-bit identities of (key, impression time, late, action): two (n,) uint64."""
    hi, lo = primary_identities(keys, times)
    return (
        _native.hash_ints(np.bitwise_xor(hi, actions), _SEED_HI + 1),
        _native.hash_ints(lo + actions * _SALT_LO, _SEED_LO + 1),
    )


def sampling_fractions(keys: Array, seed: int) -> npt.NDArray[np.float64]:
    """(n,) float64 in [0, 1): uniform over keys, fixed for a (key, seed).

    Args:
        keys: (n,) uint64, the ``_hash`` column.
    """
    hashed = hash_column(pa.array(keys, pa.uint64()), seed ^ 0x5A_3D)
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
