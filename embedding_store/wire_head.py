"""The head of a message: its verb's arguments, and what arrays come with it, as JSON.

Calls of one kind repeat each other's declarations, so what was written or read last is kept, a bounded
number of each.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from cuckooflow.errors import StoreError

HEAD_BYTES_MAX = 4 << 20
Array = npt.NDArray[Any]

#: What can be declared: also what no table asks for, so that it is refused by the table's name and not as a stranger's.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64"),
    )
}
_KEPT = 256
_KEPT_BYTES_MAX = 1024
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Declared(NamedTuple):
    """An array that comes with a message."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nbytes: int


def write_head(head: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """The head of a message with these arrays."""
    declared = _declaration(tuple((name, array.dtype, array.shape) for name, array in arrays.items()))
    return f"{_encode(head)[:-1]},{declared}}}".encode() if head else f"{{{declared}}}".encode()


def read_head(text: bytes) -> tuple[dict[str, Any], tuple[Declared, ...]]:
    """A head, and the arrays that it declares.

    Raises:
        StoreError: it is not of this form.
    """
    head, declared = (_read_kept if len(text) <= _KEPT_BYTES_MAX else _read)(text)
    return dict(head), declared


def malformed(why: str) -> StoreError:
    """What is raised for a message that is not of this protocol."""
    return StoreError(f"expected a message of the store's protocol, received another: {why}.")


@functools.lru_cache(_KEPT)
def _declaration(arrays: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]) -> str:
    return f'"arrays":{_encode([(name, dtype.name, shape) for name, dtype, shape in arrays])}'


def _read(text: bytes) -> tuple[dict[str, Any], tuple[Declared, ...]]:
    try:
        head = cast(dict[str, Any], json.loads(text))
        declared = head.pop("arrays")
        for name, dtype, shape in declared:
            sound = (
                isinstance(name, str)
                and dtype in DTYPES
                and all(isinstance(n, int) and n >= 0 for n in shape)
            )
            if not sound:
                raise ValueError(f"array {name!r} of {dtype} {shape}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise malformed(f"its head cannot be read: {error}") from error
    return head, tuple(
        Declared(name, DTYPES[dtype], tuple(shape), math.prod(shape) * DTYPES[dtype].itemsize)
        for name, dtype, shape in declared
    )


_read_kept = functools.lru_cache(_KEPT)(_read)
