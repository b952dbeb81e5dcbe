"""Where a column's value lies in a message: a path such as ``user.id``, ``tags[0]`` or ``items[].id``.

A path is a list of steps: a name into an object, an index from 0 into a list, or ``[]``, each item of the one
list that a message is exploded by. A name with a dot, a bracket or a quote in it is written ``["a.b"]``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum, auto


class Each(Enum):
    """The step ``[]``."""

    EACH = auto()


EACH = Each.EACH

#: A name, an index, or each item.
Step = str | int | Each
Path = tuple[Step, ...]

#: Deeper than any message that people write; Arrow's and Python's own limits lie far beyond.
STEPS_MAX = 16
INDEX_MAX = 65_535

_TOKEN = re.compile(
    r"""(?P<dot>\.)?(?P<name>[^.\[\]"]+) | \[(?P<quoted>"(?:[^"\\]|\\.)*")\] | \[(?P<index>\d+)\] | (?P<each>\[\])""",
    re.VERBOSE,
)


def parse_path(text: str) -> Path:
    """The steps of a path.

    Raises:
        ValueError: it is none.

    >>> parse_path("user.id"), parse_path('tags[0]'), parse_path('["a.b"].c')
    (('user', 'id'), ('tags', 0), ('a.b', 'c'))
    """
    steps: list[Step] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or (match["name"] is not None and bool(match["dot"]) != bool(steps)):
            raise ValueError(f"{text!r} is no path; it should look like user.id, tags[0] or items[].id")
        if match["name"] is not None:
            steps.append(match["name"])
        elif match["quoted"] is not None:
            steps.append(json.loads(match["quoted"]))
        elif match["index"] is not None:
            steps.append(int(match["index"]))
        else:
            steps.append(EACH)
        at = match.end()
    if not steps or not isinstance(steps[0], str):
        raise ValueError(f"{text!r} is no path; it should begin with a name, like user.id")
    if len(steps) > STEPS_MAX or any(isinstance(step, int) and step > INDEX_MAX for step in steps):
        raise ValueError(f"{text!r} is over {STEPS_MAX} steps or an index of {INDEX_MAX}")
    if steps.count(EACH) > 1:
        raise ValueError(f"{text!r} goes through [] twice; a message is exploded by one list")
    return tuple(steps)


def format_path(path: Path) -> str:
    """A path as :func:`parse_path` reads it.

    >>> format_path(("items", EACH, "a.b", 3))
    'items[]["a.b"][3]'
    """
    text = ""
    for step in path:
        if isinstance(step, Each):
            text += "[]"
        elif isinstance(step, int):
            text += f"[{step}]"
        elif re.search(r'[.\[\]"]', step) or not step:
            text += f"[{json.dumps(step)}]"
        else:
            text += f".{step}" if text else step
    return text


@dataclass(frozen=True)
class Place:
    """Where a column lies.

    Attributes:
        outer: the path from the message to the value, or to the list that is exploded.
        inner: from an item of that list to the value; None for a value of the message itself.
    """

    outer: Path
    inner: Path | None = None


def place_of(path: Path) -> Place:
    """A path, cut at its ``[]``."""
    if EACH not in path:
        return Place(path)
    at = path.index(EACH)
    return Place(path[:at], path[at + 1 :])
