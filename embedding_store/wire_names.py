"""Names of arrays in a message: a path of its parts as JSON, so any table name will do: ``["ids", "user"]``."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from cuckooflow.embedding_store.wire_head import DTYPES, Array
from cuckooflow.errors import BadShape


@functools.lru_cache(maxsize=1024)
def key(*parts: str) -> str:
    """An array's name."""
    return json.dumps(parts, separators=(",", ":"))


def keyed(kind: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays by table or parameter, named for the wire."""
    return {key(kind, name): array for name, array in arrays.items()}


def unkeyed(kind: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Those of a message's arrays that :func:`keyed` named so."""
    named = {_parts(name): array for name, array in arrays.items()}
    return {parts[1]: array for parts, array in named.items() if parts[0] == kind}


def check_arrays(arrays: Mapping[str, Any]) -> None:
    """Refuse what cannot be sent; what can be is checked where it arrives.

    Raises:
        BadShape: one is no numpy array, or of a dtype, or a byte order, that no table has.
    """
    for name, array in arrays.items():
        if isinstance(array, np.ndarray) and array.dtype.isnative and array.dtype.name in DTYPES:
            continue
        kind, *of = _parts(name)
        seen = (
            array.dtype
            if isinstance(array, np.ndarray)
            else f"a {type(array).__name__}; make it a numpy array"
        )
        raise BadShape(
            f"{' '.join(map(repr, of))}: expected {kind} of numbers in this machine's byte order, received {seen}"
        )


@functools.lru_cache(maxsize=1024)
def _parts(name: str) -> tuple[str, ...]:
    return tuple(json.loads(name))
