"""What a log's messages are: their format, how one becomes several rows, and which rows are wanted."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cuckooflow.transforms.column_path import EACH, Path, parse_path

Kind = Literal["json", "tf_example", "arrow", "avro"]


class MessageFormat(BaseModel):
    """How to read a log's messages.

    Attributes:
        kind: ``json``, one object a message, which also takes ``arrow`` messages beside it; ``tf_example``,
            one serialised tf.train.Example; ``arrow``, one Arrow IPC stream of any number of rows; ``avro``,
            one record without a container, as brokers carry it.
        avro_schema: of ``avro``, and only there: the writer's schema, as JSON text.
        confluent_header: of ``avro``: each message begins with a zero byte and a schema id of four bytes,
            default false.
        schema_id: the only schema id that such a header may have; None (default): any.
        explode: path of the list whose items become rows of their own, such as ``items`` or
            ``response.shown``; columns of the item have paths that go through ``[]``. None (default): a
            message is one row, or for ``arrow`` as many as it has. Of ``tf_example`` it is true by the paths
            alone: columns with a path that ends in ``[]`` take one value of their feature each.
        only: values of the action type that are wanted; rows with others are counted and left out before
            they are validated. None (default): all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = "json"
    avro_schema: str | None = None
    confluent_header: bool = False
    schema_id: int | None = Field(default=None, ge=0, lt=1 << 32)
    explode: str | None = None
    only: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=1024)

    @model_validator(mode="after")
    def _together(self) -> MessageFormat:
        if (self.avro_schema is None) == (self.kind == "avro"):
            raise ValueError(
                f"expected an avro_schema with the format avro and only there, received {self.kind}"
            )
        if self.avro_schema is not None:
            from cuckooflow.transforms.avro_schema import read_avro_schema  # only jobs with Avro pay for it

            read_avro_schema(self.avro_schema)
        if self.confluent_header and self.kind != "avro":
            raise ValueError(f"expected confluent_header only with the format avro, received {self.kind}")
        if self.schema_id is not None and not self.confluent_header:
            raise ValueError("expected schema_id only with confluent_header: nothing else carries one")
        if self.explode is not None:
            if self.kind == "tf_example":
                raise ValueError(
                    "expected no explode with tf_example: give the columns of the item paths that end in []"
                )
            if EACH in parse_path(self.explode):
                raise ValueError(
                    f"expected the path of a list in explode, without [], received {self.explode!r}"
                )
        return self

    @cached_property
    def list_path(self) -> Path | None:
        """The steps of ``explode``."""
        return None if self.explode is None else parse_path(self.explode)
