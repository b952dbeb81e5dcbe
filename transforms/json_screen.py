"""Which JSON messages Arrow's reader would refuse, nearly, by regular expressions in native code.

For batches that it refuses without saying why: the messages that are picked out here are decoded one by one.
To pick too many costs time, to pick too few a bisection; neither changes what comes out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cuckooflow.transforms.columns import Column, EventSchema

_BLANK = r"[ \t\r]*"
_STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u(?:[0-9abcefABCEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}))*"'
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,2})?"
_SCALAR = rf"(?:{_STRING}|{_NUMBER}|true|false|null)"
#: Objects and lists inside a message that are followed; each level doubles the expression.
_LEVELS = 4


def _value(levels: int) -> str:
    """A value nested so deep, commas not looked at too closely: what that lets through, Arrow does not."""
    if levels == 0:
        return _SCALAR
    inner = _value(levels - 1)
    end = rf"{_BLANK},?{_BLANK}"
    return rf"(?:{_SCALAR}|\[{_BLANK}(?:{inner}{end})*\]|\{{{_BLANK}(?:{_STRING}{_BLANK}:{_BLANK}{inner}{end})*\}})"


_PAIR = rf"{_STRING}{_BLANK}:{_BLANK}{_value(_LEVELS)}"
_OBJECT = rf"^{_BLANK}\{{{_BLANK}(?:{_PAIR}(?:{_BLANK},{_BLANK}{_PAIR})*)?{_BLANK}\}}{_BLANK}$"

_BAD_INT = r'["tf\[{N]|-?[0-9]+[.eE]|-?[0-9]{20}|-?9[0-9]{18}'
_BAD_VALUE = {
    "string": r"[-0-9tf\[{NI]",
    "int64": _BAD_INT,
    "uint64": r'["tf\[{N-]|[0-9]+[.eE]|[0-9]{21}|1[89][0-9]{18}|[2-9][0-9]{19}',
    "float32": r'["tf\[{]',
    "float64": r'["tf\[{]',
    "bool": r'["0-9\[{NI-]',
    "list<string>": r'[^\[n \t]|\[[ \t]*[^" \t\]]|\[[^\]]*"[ \t]*,[ \t]*[^" \t]',
    "list<int64>": r"[^\[n \t]|\[[^\]]*(?:[^-0-9, \t\]]|[0-9]{20}|9[0-9]{18})",
}


@lru_cache(maxsize=64)
def _bad_value_pattern(columns: tuple[tuple[str, Column], ...]) -> str:
    """Matches where a name is followed by a value that its column's type refuses; may match too often."""
    options = []
    for name, column in columns:
        kind: str = column.type
        if kind == "time":
            kind = {"iso": "string", "s": "float64", "ms": "float64"}.get(str(column.unit), "int64")
        options.append(f'"{re.escape(name)}"{_BLANK}:{_BLANK}(?:{_BAD_VALUE[kind]})')
    return "|".join(options)


def suspects(messages: Sequence[bytes], schema: EventSchema) -> npt.NDArray[np.bool_]:
    """Which messages Arrow would refuse, nearly.

    Args:
        messages: (n,) UTF-8.

    Returns:
        (n,) bool.
    """
    texts = pa.array(messages, pa.binary()).cast(pa.string())
    whole = pc.match_substring_regex(texts, _OBJECT)
    named = []
    for name, column in schema.columns.items():
        place = schema.places[name]
        last = (place.outer if place.inner is None else place.inner)[-1:]
        if last and isinstance(last[0], str):
            named.append((last[0], column))
    bad = pc.invert(whole)
    if named:
        bad = pc.or_(bad, pc.match_substring_regex(texts, _bad_value_pattern(tuple(named))))
    return bad.to_numpy(zero_copy_only=False)
