"""What the rows of an event log look like: columns with types, and which of them mean what."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cuckooflow.transforms.column_path import Place
from cuckooflow.transforms.column_places import column_place, place_faults, whole_path
from cuckooflow.transforms.documents import document_schema
from cuckooflow.transforms.in_band import ROW_COLUMNS
from cuckooflow.transforms.message_format import MessageFormat

ColumnType = Literal[
    "string", "int64", "uint64", "float32", "float64", "bool", "time", "list<string>", "list<int64>"
]
TimeUnit = Literal["s", "ms", "us", "ns", "iso"]

_ARROW: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "list<string>": pa.list_(pa.string()),
    "list<int64>": pa.list_(pa.int64()),
}


class Column(BaseModel):
    """One declared column.

    Attributes:
        type: of its values. Ids are ``uint64``, ``int64`` or ``string``. A ``time`` is kept as int64
            microseconds since the epoch, UTC.
        unit: of a ``time``, and only there: ``s``, ``ms``, ``us`` or ``ns`` since the epoch (``s`` and ``ms``
            may have fractions), or ``iso`` for text such as ``2022-04-25T08:00:00+02:00``.
        zone: of ``iso`` times that do not say theirs, an IANA name, default UTC. A local time that a
            clock change skips or repeats is taken as the earlier one.
        required: a row without it is a dead letter, default true; else it may be null or absent.
        path: where its values lie in a message, default under the column's own name. ``user.id``, ``tags[0]``;
            ``items[].id`` of each item of the exploded list; a name with a dot in it as ``["a.b"]``. Of a
            tf.Example the feature's name as it is, ``name[2]`` for one of its values, ``name[]`` for one a row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: ColumnType
    unit: TimeUnit | None = None
    zone: str | None = None
    required: bool = True
    path: str | None = Field(default=None, min_length=1, max_length=1024)

    @model_validator(mode="after")
    def _time_options(self) -> Column:
        if self.type == "time" and self.unit is None:
            raise ValueError("a column of type time needs a unit: s, ms, us, ns or iso")
        if self.type != "time" and self.unit is not None:
            raise ValueError(f"only a column of type time has a unit, this one is {self.type}")
        if self.zone is not None:
            if self.unit != "iso":
                raise ValueError("only a time with the unit iso has a zone; other units count from the epoch")
            try:
                ZoneInfo(self.zone)
            except (KeyError, ValueError, OSError):
                raise ValueError(
                    f"expected an IANA time zone such as Europe/Zurich, received {self.zone!r}"
                ) from None
        return self

    @property
    def arrow_type(self) -> pa.DataType:
        """The type of its parsed values: int64 microseconds for a time."""
        return pa.int64() if self.type == "time" else _ARROW[self.type]

    @property
    def feature_kind(self) -> Literal["bytes_list", "int64_list", "float_list"]:
        """Which list of a tf.Example's feature its values stand in."""
        if self.type in ("string", "list<string>") or self.unit == "iso":
            return "bytes_list"
        return "float_list" if self.type in ("float32", "float64") else "int64_list"

    @property
    def json_type(self) -> pa.DataType:
        """The type that it is read with from JSON, before a time's unit is applied."""
        if self.type != "time":
            return _ARROW[self.type]
        if self.unit == "iso":
            return pa.string()
        return pa.float64() if self.unit in ("s", "ms") else pa.int64()


class EventSchema(BaseModel):
    """The columns of one event log.

    Attributes:
        columns: name -> column. Names that begin with an underscore are cuckooflow's own.
        time: which column is the event time. It becomes ``_time`` and does not appear by its own name.
        key: the columns of the join key, in order; required, no lists, no floats.
        action_type: which column says what kind of action it was (string); None for impressions.
        action_id: which column tells two actions of one type on one impression apart; None: their time does.
        unknown_columns: ``ignore`` drops columns that are not declared; ``dead_letter`` refuses their
            rows, where their value is not null.
        message: how the log's messages are read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: dict[str, Column] = Field(min_length=1, max_length=4096)
    time: str
    key: tuple[str, ...] = Field(min_length=1, max_length=8)
    action_type: str | None = None
    action_id: str | None = None
    unknown_columns: Literal["ignore", "dead_letter"] = "ignore"
    message: MessageFormat = MessageFormat()

    @model_validator(mode="after")
    def _roles(self) -> EventSchema:
        faults = [f"column {name!r} begins with an underscore" for name in self.columns if name[:1] == "_"]
        faults += self._fault("time", self.time, ("time",))
        for name in self.key:
            faults += self._fault("key", name, ("string", "int64", "uint64", "bool", "time"))
        if len(set(self.key)) != len(self.key):
            faults.append(f"key {list(self.key)} names a column twice")
        if self.time in self.key:
            faults.append(f"the time {self.time!r} cannot be a part of the key")
        if self.action_type is not None:
            faults += self._fault("action_type", self.action_type, ("string",))
        if self.action_id is not None:
            faults += self._fault("action_id", self.action_id, ("string", "int64", "uint64"))
        if self.message.only is not None and self.action_type is None:
            faults.append("only some action types are wanted, but no column is the action_type")
        for at, fault in place_faults(self.columns, self.message):
            faults.append(fault if at is None else f"column {at!r}: {fault}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @cached_property
    def places(self) -> Mapping[str, Place]:
        """Where each column lies in a message."""
        return {n: column_place(n, column, self.message) for n, column in self.columns.items()}

    @cached_property
    def document_schema(self) -> pa.Schema:
        """A message as a whole, as far as columns are declared."""
        leaves = ((whole_path(self.places[name]), column.json_type) for name, column in self.columns.items())
        return document_schema(leaves)

    @cached_property
    def columns_in_turn(self) -> tuple[str, ...]:
        """The columns as declared, the action type first where it decides what is looked at."""
        if self.message.only is None or self.action_type is None:
            return tuple(self.columns)
        return (self.action_type, *(name for name in self.columns if name != self.action_type))

    def wanted(self, action: object) -> bool:
        """Whether rows of an action type are wanted; one without a type is, to be refused."""
        return self.message.only is None or action is None or action in self.message.only

    def _fault(self, role: str, name: str, types: Annotated[tuple[str, ...], "allowed"]) -> list[str]:
        column = self.columns.get(name)
        if column is None:
            return [f"{role} {name!r} is not declared; columns are {', '.join(sorted(self.columns))}"]
        if column.type not in types:
            return [f"{role} {name!r} is {column.type}; allowed are {', '.join(types)}"]
        if not column.required:
            return [f"{role} {name!r} must be required"]
        return []

    @cached_property
    def json_schema(self) -> pa.Schema:
        """What the columns' values are read as from JSON."""
        return pa.schema([pa.field(name, column.json_type) for name, column in self.columns.items()])

    @cached_property
    def row_schema(self) -> pa.Schema:
        """Parsed rows: the declared columns but the event time, then ``ROW_COLUMNS``."""
        declared = [pa.field(n, c.arrow_type) for n, c in self.columns.items() if n != self.time]
        return pa.schema([*declared, *ROW_COLUMNS])
