"""Names of arrays in a message: a path of its parts as JSON, so any table name will do: ``["ids", "user"]``."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping

from cuckooflow.embedding_store.wire_head import Array


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


@functools.lru_cache(maxsize=1024)
def _parts(name: str) -> tuple[str, ...]:
    return tuple(json.loads(name))
