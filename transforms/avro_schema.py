"""An Avro writer's schema as a tree, with names resolved, and what its values are in Arrow.

By the Avro specification 1.11 (https://avro.apache.org/docs/1.11.1/specification/); fastavro checks the text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import fastavro
import pyarrow as pa

from cuckooflow.transforms.column_path import EACH, Path, format_path

Kind = Literal[
    "null", "boolean", "int", "long", "float", "double", "bytes", "string",
    "record", "enum", "array", "map", "union", "fixed",
]  # fmt: skip

_ARROW: dict[str, pa.DataType] = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int64(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "fixed": pa.binary(),
    "string": pa.string(),
    "enum": pa.string(),
}


@dataclass(eq=False)
class Node:
    """A type of the schema.

    Attributes:
        kind: which.
        name: of a named type, or the kind.
        fields: of a record, in the order in which they are written.
        branches: of a union.
        items: of an array, or a map's values.
        symbols: of an enum.
        size: of a fixed, in bytes.
        logical: its logical type, as the schema says it.
    """

    kind: Kind
    name: str = ""
    fields: dict[str, Node] = field(default_factory=dict)
    branches: list[Node] = field(default_factory=list)
    items: Node | None = None
    symbols: tuple[str, ...] = ()
    size: int = 0
    logical: str | None = None

    def arrow_type(self, wanted: pa.DataType | None) -> pa.DataType:
        """What its values are in Arrow, as far as ``wanted`` asks for them; null for what nobody wants."""
        if wanted is None:
            return pa.null()
        if self.kind == "record":
            named = [pa.field(f.name, self.fields[f.name].arrow_type(f.type)) for f in wanted]
            return pa.struct(named)
        if self.kind == "array":
            assert self.items is not None
            return pa.list_(self.items.arrow_type(wanted.value_type))
        if self.kind == "union":
            return self.alternative.arrow_type(wanted)
        return _ARROW[self.kind]

    @property
    def alternative(self) -> Node:
        """The one branch of a union that is not null."""
        (branch,) = [branch for branch in self.branches if branch.kind != "null"]
        return branch


class _Reader:
    def __init__(self) -> None:
        self._named: dict[str, Node] = {}

    def node(self, schema: Any) -> Node:
        if isinstance(schema, list):
            return Node("union", "union", branches=[self.node(branch) for branch in schema])
        if isinstance(schema, str):
            return self._named[schema] if schema in self._named else Node(schema, schema)  # type: ignore[arg-type]
        kind, logical = schema["type"], schema.get("logicalType")
        if kind in ("record", "error"):
            record = self._named[schema["name"]] = Node("record", schema["name"], logical=logical)
            record.fields = {f["name"]: self.node(f["type"]) for f in schema["fields"]}
            return record
        if kind == "enum":
            enum = Node("enum", schema["name"], symbols=tuple(schema["symbols"]))
            return self._named.setdefault(schema["name"], enum)
        if kind == "fixed":
            fixed = Node("fixed", schema["name"], size=int(schema["size"]), logical=logical)
            return self._named.setdefault(schema["name"], fixed)
        if kind in ("array", "map"):
            items = self.node(schema["items" if kind == "array" else "values"])
            return Node(kind, kind, items=items)
        inner = self.node(kind)
        return Node(**{**vars(inner), "logical": logical}) if logical else inner


@dataclass(frozen=True)
class AvroSchema:
    """A schema that was read.

    Attributes:
        root: its record.
        plain: the same for fastavro, without logical types: a value comes as it is written.
    """

    root: Node
    plain: Any


@lru_cache(maxsize=64)
def read_avro_schema(text: str) -> AvroSchema:
    """Read a schema.

    Raises:
        ValueError: it is none, is no record's, or has lists of values that take no bytes.
    """
    try:
        raw = json.loads(text)
        parsed = fastavro.parse_schema(raw)
    except json.JSONDecodeError as error:
        raise ValueError(f"the Avro schema is not JSON: {error}") from None
    except Exception as error:  # fastavro has errors of its own, and others
        raise ValueError(f"not an Avro schema: {type(error).__name__}: {error}") from None
    root = _Reader().node(parsed)
    if root.kind != "record":
        raise ValueError(f"expected the Avro schema of a record, received {root.kind}")
    _check_sizes(root, set())
    return AvroSchema(root, fastavro.parse_schema(_without_logical(raw)))


def _without_logical(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        return {k: _without_logical(v) for k, v in schema.items() if k not in ("logicalType", "default")}
    if isinstance(schema, list):
        return [_without_logical(part) for part in schema]
    return schema


def _check_sizes(node: Node, seen: set[int]) -> None:
    """Refuse lists of values without bytes: a short message could claim any number of them."""
    if id(node) in seen:
        return
    seen.add(id(node))
    for inner in (*node.fields.values(), *node.branches, *([node.items] if node.items else [])):
        _check_sizes(inner, seen)
    if node.kind == "array" and node.items is not None and _empty(node.items, set()):
        raise ValueError(f"an array of {node.items.name}, whose values take no bytes, is not supported")


def _empty(node: Node, seen: set[int]) -> bool:
    """Whether a value may take no bytes."""
    if node.kind == "null" or (node.kind == "fixed" and node.size == 0):
        return True
    if node.kind != "record" or id(node) in seen:
        return False
    return all(_empty(inner, {*seen, id(node)}) for inner in node.fields.values())


def type_at(root: Node, path: Path) -> Node:
    """The type at a path, nulls aside.

    Raises:
        ValueError: there is none, or it may be several.
    """
    node = root
    for at, step in enumerate((*path, None)):
        node = _alone(node, path[:at])
        if step is None:
            return node
        here = format_path(path[:at]) or "the record"
        if isinstance(step, str):
            if node.kind != "record":
                raise ValueError(f"{here} is {node.kind}, which has no field {step!r}")
            if step not in node.fields:
                known = ", ".join(node.fields)
                raise ValueError(f"{here} has no field {step!r} in the Avro schema; it has {known}")
            node = node.fields[step]
        else:
            if node.kind != "array" or node.items is None:
                raise ValueError(f"{here} is {node.kind}, no array")
            node = node.items
    return node


def _alone(node: Node, path: Path) -> Node:
    if node.kind != "union":
        return node
    branches = [branch for branch in node.branches if branch.kind != "null"]
    if len(branches) != 1:
        kinds = ", ".join(branch.name for branch in node.branches)
        raise ValueError(f"{format_path(path)} is a union of {kinds}; a column takes one type, or null")
    return branches[0]


#: What a number of this logical type counts, as a time column's unit.
_LOGICAL_UNITS = {"timestamp-millis": "ms", "timestamp-micros": "us", "timestamp-nanos": "ns"}


def column_fault(text: str, path: Path, type_: pa.DataType, unit: str | None) -> str | None:
    """Why a column cannot be read at a path of the schema; None where it can.

    Args:
        text: of the schema, which can be read.
        type_: what the column's values are read as.
        unit: of a time.
    """
    try:
        node = type_at(read_avro_schema(text).root, path)
        inner = node
        if pa.types.is_list(type_):
            if node.kind != "array" or node.items is None:
                return f"{format_path(path)} is {node.kind} in the Avro schema, no array"
            type_, inner = type_.value_type, _alone(node.items, (*path, EACH))
    except ValueError as error:
        return str(error)
    fitting = {
        "string": ("string", "enum"),
        "bool": ("boolean",),
        "int64": ("int", "long"),
        "uint64": ("int", "long"),
    }.get(str(type_), ("int", "long", "float", "double"))
    here = f"{format_path(path)} is {inner.logical or inner.kind} in the Avro schema"
    if inner.kind not in fitting:
        return f"{here}; a column of {type_} takes {', '.join(fitting)}"
    if unit is not None and inner.logical is not None and _LOGICAL_UNITS.get(inner.logical) != unit:
        return f"{here}; a time in {unit} takes another, or a plain long"
    return None
