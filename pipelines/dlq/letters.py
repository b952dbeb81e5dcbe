"""Dead letters as they are kept, in a log or in files by day, and which of them are wanted."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from cuckooflow.logs.contract import LogReader
from cuckooflow.transforms.dead_letters import PARSE_REASONS


class Place(NamedTuple):
    """Where the refused event lay; ``row`` is -1 for a message as a whole. It names a letter."""

    log: str
    partition: int
    offset: int
    row: int

    def __str__(self) -> str:
        within = "" if self.row <= 0 else f".{self.row}"
        return f"{self.log}/{self.partition}@{self.offset}{within}"


@dataclass(frozen=True)
class Letter:
    """One dead letter.

    Attributes:
        place: see :class:`Place`.
        reason, detail: why it was refused.
        append_us: when its message was appended, microseconds since the epoch.
        value: what is kept of it; None where nothing is.
        left_out: it was too long to be kept.
    """

    place: Place
    reason: str
    detail: str
    append_us: int
    value: bytes | None
    left_out: bool = False

    @property
    def original(self) -> bool:
        """Whether ``value`` is the original bytes.

        Events that were refused before the join keep theirs; what the join refused is kept as it was parsed, and
        its message is read at its place.
        """
        return self.value is not None and self.reason in PARSE_REASONS

    def to_dict(self) -> dict[str, Any]:
        """What a script that mends it, or a line of JSON, is told."""
        shown: dict[str, Any] = {
            **self.place._asdict(),
            "reason": self.reason,
            "detail": self.detail,
            "append": self.append_us,
        }
        if self.value is not None:
            try:
                shown["value"] = self.value.decode()
            except UnicodeDecodeError:
                shown["value_base64"] = base64.b64encode(self.value).decode()
        return shown


@dataclass(frozen=True)
class Wanted:
    """Which letters are wanted.

    Attributes:
        reasons: any of these; empty for all.
        log: name of the log; None for any.
        since_us, until_us: when their messages were appended, half open; None for no bound.
    """

    reasons: tuple[str, ...] = ()
    log: str | None = None
    since_us: int | None = None
    until_us: int | None = None

    def takes(self, letter: Letter) -> bool:
        """Whether a letter is among them."""
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (self.log is None or letter.place.log == self.log)
            and (self.since_us is None or letter.append_us >= self.since_us)
            and (self.until_us is None or letter.append_us < self.until_us)
        )


def letters_of_log(reader: LogReader) -> Iterator[Letter]:
    """All letters of a log of dead letters, as it is now."""
    for partition in reader.partitions():
        first, end = reader.start_offset(partition), reader.end_offset(partition)
        for batch in reader.read_range(partition, first, end):
            for line in batch.values:
                if line.is_valid:
                    yield _of_line(json.loads(line.as_py()))


def letters_of_days(out: str) -> Iterator[Letter]:
    """All letters in a folder of files by day."""
    from cuckooflow.transforms.day_files import DEAD_LETTERS, read_day, whole_days

    for day in whole_days(out):
        for row in read_day(out, day, DEAD_LETTERS).to_pylist():
            yield _of_row(row, row["value"])


def _of_line(body: dict[str, Any]) -> Letter:
    if "value_base64" in body:
        value: bytes | None = base64.b64decode(body["value_base64"])
    else:
        value = body["value"].encode() if "value" in body else None
    return _of_row(body, value)


def _of_row(body: dict[str, Any], value: bytes | None) -> Letter:
    place = Place(body["log"], body["partition"], body["offset"], body["row"])
    left_out = "value_left_out" in body
    return Letter(place, body["reason"], body["detail"], body["append"], value, left_out)


def each_once(letters: Iterable[Letter]) -> Iterator[Letter]:
    """Without those that were written twice, as a join that was restarted does."""
    seen: set[tuple[Place, str]] = set()
    for letter in letters:
        name = (letter.place, letter.reason)
        if name not in seen:
            seen.add(name)
            yield letter
