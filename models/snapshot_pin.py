"""The pin of a folder of snapshots: the number that replicas serve, whatever else is published.

It is one small file beside the snapshots, put there at once. A replica that is past it goes back, one that is before it
goes on up to it; without it they follow the newest. Publishing goes on meanwhile, and what leads to the pinned one is not
deleted.
"""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cuckooflow.embedding_store.durable import write_durably
from cuckooflow.errors import SnapshotDamaged

_FILE = "pinned.json"


class Pin(BaseModel):
    """What replicas are held at.

    Attributes:
        sequence: the snapshot's number.
        since_us: when it was pinned, microseconds since the epoch, UTC.
        reason: as whoever pinned it says.
    """

    model_config = ConfigDict(frozen=True)

    sequence: int = Field(ge=1)
    since_us: int
    reason: str = ""


def read_pin(folder: Path) -> Pin | None:
    """The folder's pin; None where there is none.

    Raises:
        SnapshotDamaged: the file is not what :func:`write_pin` wrote.
    """
    try:
        content = (folder / _FILE).read_bytes()
    except FileNotFoundError:
        return None
    try:
        return Pin.model_validate_json(content)
    except ValidationError as error:
        raise SnapshotDamaged(
            f"{folder / _FILE}: expected a pin, received something else ({error.errors()[0]['msg']}); pin again, or unpin"
        ) from error


def write_pin(folder: Path, sequence: int, reason: str = "") -> Pin:
    """Pin a number, in place of what was pinned."""
    pin = Pin(sequence=sequence, since_us=time.time_ns() // 1_000, reason=reason)
    write_durably(folder / _FILE, pin.model_dump_json().encode() + b"\n")
    return pin


def remove_pin(folder: Path) -> bool:
    """Let replicas follow the newest again; whether there was a pin."""
    try:
        (folder / _FILE).unlink()
    except FileNotFoundError:
        return False
    return True
