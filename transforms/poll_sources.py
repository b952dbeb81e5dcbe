"""What a poller reads: two logs whose rows go together."""

from __future__ import annotations

from dataclasses import dataclass

from cuckooflow.errors import SpecError
from cuckooflow.logs.contract import LogReader
from cuckooflow.transforms.columns import EventSchema


@dataclass(frozen=True)
class PollSource:
    """A log and the shape of its rows."""

    reader: LogReader
    schema: EventSchema


def check_together(impressions: EventSchema, actions: EventSchema) -> None:
    """Both logs' rows travel in one batch: columns of one name have one type.

    Raises:
        SpecError: they do not.
    """
    if impressions.key != actions.key:
        raise SpecError(f"expected one join key, received {impressions.key} and {actions.key}")
    if actions.action_type is None:
        raise SpecError("expected the actions' schema to name its action_type column, received none")
    both = set(impressions.row_schema.names) & set(actions.row_schema.names)
    for name in sorted(both):
        a, b = impressions.row_schema.field(name).type, actions.row_schema.field(name).type
        if a != b:
            raise SpecError(
                f"expected column {name!r} to have one type in both logs, received {a} in impressions and "
                f"{b} in actions; rename it in one of them"
            )
