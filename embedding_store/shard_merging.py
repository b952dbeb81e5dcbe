"""Answers of all shards as one answer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cuckooflow.embedding_store.api import TableDelta
from cuckooflow.logs.contract import Position


def joined(parts: Sequence[TableDelta]) -> TableDelta:
    """One table's deltas as one; no id is in two of them."""
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(TableDelta):
        of_parts = [getattr(part, field.name) for part in parts]
        columns[field.name] = None if of_parts[0] is None else np.concatenate(of_parts)
    return TableDelta(**columns)


def lowest(parts: Sequence[Mapping[str, Mapping[int, Position]]]) -> dict[str, dict[int, Position]]:
    """The lowest mark of any shard, of partitions that all of them have opened."""
    logs = [log for log in parts[0] if all(log in part for part in parts)]
    return {
        log: {
            partition: min(part[log][partition] for part in parts)
            for partition in parts[0][log]
            if all(partition in part[log] for part in parts)
        }
        for log in logs
    }


def summed(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics of one table over shards: numbers summed, nested ones likewise, load factor over all."""
    out: dict[str, Any] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        if all(isinstance(value, Mapping) for value in values):
            out[name] = summed(values)
        else:
            with contextlib.suppress(TypeError):  # a word is not summed; it stands with each shard
                out[name] = sum(values)
    if "load_factor" in out and "rows" in out:
        capacity = sum(part["rows"] / part["load_factor"] for part in parts if part["load_factor"])
        out["load_factor"] = out["rows"] / capacity if capacity else 0.0
    return out
