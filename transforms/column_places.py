"""Where the declared columns lie in a log's messages, and what about that cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cuckooflow.transforms.column_path import EACH, Path, Place, format_path, parse_path, place_of
from cuckooflow.transforms.documents import document_schema
from cuckooflow.transforms.message_format import MessageFormat

if TYPE_CHECKING:
    from cuckooflow.transforms.columns import Column

#: The column that is at fault, None for none in particular, and why.
PlaceFault = tuple[str | None, str]


def column_place(name: str, column: Column, message: MessageFormat) -> Place:
    """Where a column lies.

    Raises:
        ValueError: its path is none.
    """
    if message.kind == "tf_example":
        return _feature_place(column.path or name)
    return Place((name,)) if column.path is None else place_of(parse_path(column.path))


def whole_path(place: Place) -> Path:
    """A place as one path."""
    return place.outer if place.inner is None else (*place.outer, EACH, *place.inner)


def place_faults(columns: Mapping[str, Column], message: MessageFormat) -> list[PlaceFault]:
    """Everything about the columns' places that cannot be, given the messages' format."""
    faults: list[PlaceFault] = []
    places: dict[str, Place] = {}
    for name, column in columns.items():
        try:
            places[name] = column_place(name, column, message)
        except ValueError as error:
            faults.append((name, str(error)))
    exploded = [name for name, place in places.items() if place.inner is not None]
    if message.kind != "tf_example":
        listed = "no list" if message.list_path is None else format_path(message.list_path)
        faults += [
            (name, f"its path goes through {format_path(places[name].outer)}[], but {listed} is exploded")
            for name in exploded
            if places[name].outer != message.list_path
        ]
        if message.explode is not None and not exploded:
            faults.append((None, f"{message.explode} is exploded, but no column has a path through it"))
    if faults:
        return faults
    if message.kind == "tf_example":
        return list(_feature_faults(columns, places))
    if message.kind == "avro":
        faults += _avro_faults(columns, places, str(message.avro_schema))
    if not faults and message.kind in ("json", "avro"):
        try:
            document_schema((whole_path(place), columns[name].json_type) for name, place in places.items())
        except ValueError as error:
            faults.append((None, str(error)))
    return faults


_FEATURE_SUFFIX = re.compile(r"(?P<name>.+?)(?:\[(?P<at>\d*)\])?")


def _feature_place(path: str) -> Place:
    """A tf.Example's feature: ``name``, ``name[2]`` or ``name[]``; any other character is the name's own.

    >>> _feature_place("item.id/raw[]")
    Place(outer=('item.id/raw',), inner=())
    """
    match = _FEATURE_SUFFIX.fullmatch(path)
    assert match is not None, "a path is not empty"
    name, at = match["name"], match["at"]
    if at is None:
        return Place((name,))
    return Place((name,), ()) if not at else Place((name, int(at)))


def _feature_faults(columns: Mapping[str, Column], places: Mapping[str, Place]) -> Iterator[PlaceFault]:
    kinds: dict[str, str] = {}
    for name, column in columns.items():
        feature, kind = str(places[name].outer[0]), column.feature_kind
        if kinds.setdefault(feature, kind) != kind:
            yield name, f"the feature {feature!r} cannot be {kinds[feature]} and {kind}"
        if column.type.startswith("list") and places[name] != Place((feature,)):
            yield name, "one value of a feature is no list"


def _avro_faults(
    columns: Mapping[str, Column], places: Mapping[str, Place], text: str
) -> Iterator[PlaceFault]:
    from cuckooflow.transforms.avro_schema import column_fault  # only jobs with Avro pay for it

    for name, place in places.items():
        column = columns[name]
        fault = column_fault(text, whole_path(place), column.json_type, column.unit)
        if fault is not None:
            yield name, fault
