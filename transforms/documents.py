"""Nested Arrow tables, one row a message, to flat rows: values by path, and a list's items as rows.

What is not there (a field, an index past a list's end, anything below a null) is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cuckooflow.transforms.column_path import EACH, Each, Path, Place, Step, format_path

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


# --- what a document must look like ---------------------------------------------------------


@dataclass
class _Node:
    """A part of a document: an object with children, a list with an element, or a value."""

    path: Path
    children: dict[str, _Node] = field(default_factory=dict)
    element: _Node | None = None
    type: pa.DataType | None = None

    def arrow(self) -> pa.DataType:
        if self.element is not None:
            return pa.list_(self.element.arrow())
        if self.children:
            return pa.struct([pa.field(name, child.arrow()) for name, child in self.children.items()])
        return self.type

    def down(self, step: Step) -> _Node:
        if isinstance(step, str):
            if self.element is not None or self.type is not None:
                raise self._conflict("an object")
            return self.children.setdefault(step, _Node((*self.path, step)))
        if self.children or self.type is not None:
            raise self._conflict("a list")
        if self.element is None:
            self.element = _Node((*self.path, step))
        return self.element

    def be(self, type_: pa.DataType) -> None:
        if pa.types.is_list(type_):
            self.down(EACH).be(type_.value_type)
            return
        if self.children or self.element is not None or self.type not in (None, type_):
            raise self._conflict(str(type_))
        self.type = type_

    def _conflict(self, other: str) -> ValueError:
        mine = "a list" if self.element is not None else "an object" if self.children else str(self.type)
        return ValueError(
            f"two columns take {format_path(self.path)} for different things: {mine} and {other}"
        )


def document_schema(leaves: Iterable[tuple[Path, pa.DataType]]) -> pa.Schema:
    """The nested schema that holds a value at each of these paths.

    Raises:
        ValueError: two of them contradict each other.
    """
    root = _Node(())
    for path, type_ in leaves:
        node = root
        for step in path:
            node = node.down(step)
        node.be(type_)
    return pa.schema([pa.field(name, node.arrow()) for name, node in root.children.items()])


# --- values by path -------------------------------------------------------------------------


def value_at(values: pa.Array, path: Iterable[Step]) -> pa.Array | None:
    """What lies at a path below each value; None where the type has no such field.

    Args:
        values: (n,) structs, lists, or the values themselves for an empty path.

    Returns:
        (n,) values.

    Raises:
        TypeError: the type has no fields, or no items, where the path asks for them.
    """
    for step in path:
        kind = values.type
        if isinstance(step, Each):
            raise TypeError("expected a path without []")
        if pa.types.is_null(kind):
            return None
        if isinstance(step, str):
            if not pa.types.is_struct(kind):
                raise TypeError(f"expected an object with the field {step}, received {kind}")
            if kind.get_field_index(step) < 0:
                return None
            values = pc.struct_field(values, step)
        else:
            values = _item(_as_list(values), step)
    return values


def _as_list(values: pa.Array) -> pa.Array:
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return values
    if pa.types.is_fixed_size_list(kind):
        return values.cast(pa.list_(kind.value_type))
    raise TypeError(f"expected a list, received {kind}")


def _item(values: pa.Array, index: int) -> pa.Array:
    offsets = values.offsets.to_numpy()
    there = (np.diff(offsets) > index) & _mask(values.is_valid())
    at = np.where(there, offsets[:-1] + index, 0)
    return values.values.take(pa.array(at, mask=~there))


@dataclass(frozen=True)
class FlatRows:
    """Rows of documents.

    Attributes:
        table: (n,) rows: a column for each declared one that the documents have.
        document: (n,) int64, which document each row is of.
        item: (n,) int64, its place in the exploded list, 0 without one.
        without_list: documents whose list is null or absent; they have no rows.
        empty: documents whose list has no items; they have no rows.
    """

    table: pa.Table
    document: I64
    item: I64
    without_list: I64
    empty: I64


def flat_rows(table: pa.Table, places: Mapping[str, Place], list_path: Path | None) -> FlatRows:
    """Take the columns out of documents, an item of the list a row.

    Args:
        table: (n,) documents.
        places: column -> where it lies.
        list_path: the list that is exploded; None: a document is a row.

    Raises:
        TypeError: a type in ``table`` does not have what a path asks for.
    """
    count = table.num_rows
    tops = {name: _whole(table.column(i)) for i, name in enumerate(table.schema.names)}
    nothing = np.zeros(0, np.int64)
    document, item, without, empty = np.arange(count), np.zeros(count, np.int64), nothing, nothing
    items: pa.Array | None = None
    if list_path is not None:
        lists = _below(tops, list_path)
        if lists is None or pa.types.is_null(lists.type):
            without, document, item = np.arange(count), nothing, nothing
        else:
            lists = _as_list(lists)
            there = _mask(lists.is_valid())
            lengths = np.where(there, np.diff(lists.offsets.to_numpy()), 0)
            without, empty = np.flatnonzero(~there), np.flatnonzero(there & (lengths == 0))
            document = np.repeat(np.arange(count), lengths)
            item = np.arange(len(document)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            items = pc.list_flatten(lists)
    columns: dict[str, pa.Array] = {}
    for name, place in places.items():
        if place.inner is not None:
            values = None if items is None else value_at(items, place.inner)
        else:
            values = _below(tops, place.outer)
            if values is not None and list_path is not None:
                values = values.take(pa.array(document))
        if values is not None:
            columns[name] = values
    rows = pa.table(columns) if columns else pa.table({"": pa.nulls(len(document))}).select([])
    return FlatRows(rows, document, item, without, empty)


def _below(tops: Mapping[str, pa.Array], path: Path) -> pa.Array | None:
    top = tops.get(str(path[0]))
    return None if top is None else value_at(top, path[1:])


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks)
        if column.num_chunks
        else pa.nulls(0, column.type)
    )


def _mask(values: pa.Array) -> Bools:
    return values.to_numpy(zero_copy_only=False)
