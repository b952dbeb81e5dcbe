"""JSON messages to Arrow, columnar; a batch with bad ones costs little more than a clean one.

Arrow's JSON reader refuses a batch as a whole, but mostly says at which row. That message is put aside and
the reading goes on behind it; where it does not say (an integer that does not fit, a line with two objects),
regular expressions pick out the suspects, and what both overlook is found by bisection. Whatever was put
aside is decoded one by one with the standard library, which says what is wrong or finds that nothing is.

Seen with pyarrow 25.0.1: ``null`` as the first line ends the process; ``{"a":1}{"a":2}`` in one message
gives two rows; an empty message gives none; a pretty-printed object gives one; invalid UTF-8 passes.
So only messages from ``{`` to ``}`` without a line break reach the reader, whose rows must be as many as
the messages: since no JSON value may begin right after a ``}`` but at the top level, and no string may
hold a line break, message and document boundaries then agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from cuckooflow.transforms.column_path import EACH, Path
from cuckooflow.transforms.columns import EventSchema
from cuckooflow.transforms.dead_letters import MISSING_COLUMN, UNKNOWN_COLUMN, Refused
from cuckooflow.transforms.decoded import NO_ITEMS, Decoded, Rows
from cuckooflow.transforms.documents import flat_rows
from cuckooflow.transforms.json_one import decode_one, missing_list, unknown_detail
from cuckooflow.transforms.json_screen import suspects

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
#: Below this many messages, bisection gives up and decodes one by one.
_BISECT_MESSAGES_MIN = 32
#: A message with more opening brackets may be nested deeper than Arrow's reader can bear.
_BRACKETS_MAX = 5_000
#: Where more than one message in so many is bad, to read on behind each costs more than one by one.
_GAP_MIN = 8
_GAPS_SEEN_MIN = 64
_IN_ROW = re.compile(r" in row (\d+)")


def decode_json(messages: Sequence[bytes], index: I64, schema: EventSchema) -> Decoded:
    """Decode messages that begin with ``{``.

    Args:
        messages: (n,) each ought to be one JSON object.
        index: (n,) int64, what to call each of them in the answer.
        schema: the declared columns.
    """
    decoded = Decoded()
    fits = np.fromiter((_fit_for_arrow(m) for m in messages), np.bool_, len(messages))
    together = np.flatnonzero(fits)
    alone = np.flatnonzero(~fits).tolist()
    for table, which in _read_apart(messages, together, schema, alone):
        _take_documents(table, which, messages, index, schema, decoded)
    if alone:
        _take_one_by_one(sorted(alone), messages, index, schema, decoded)
    return decoded


def _fit_for_arrow(message: bytes) -> bool:
    """Whether a message may go to Arrow's reader together with others."""
    if message[-1:] != b"}" or b"\n" in message:
        return False
    if len(message) > _BRACKETS_MAX and message.count(b"[") + message.count(b"{") > _BRACKETS_MAX:
        return False
    if not message.isascii():
        try:
            message.decode()
        except UnicodeDecodeError:
            return False
    return True


# --- one by one -----------------------------------------------------------------------------


def _take_one_by_one(
    alone: Sequence[int], messages: Sequence[bytes], index: I64, schema: EventSchema, decoded: Decoded
) -> None:
    rows, whence, place = [], [], []
    exploded = schema.message.list_path is not None
    for i in alone:
        answer = decode_one(messages[i], schema)
        if answer.fault is not None:
            at = -1 if exploded else 0
            decoded.refused.append(Refused(int(index[i]), at, *answer.fault, messages[i]))
        decoded.leave_out(NO_ITEMS, int(answer.empty))
        for at, row in enumerate(answer.rows):
            if isinstance(row, dict):
                rows.append(row)
                whence.append(i)
                place.append(at)
            else:
                decoded.refused.append(Refused(int(index[i]), at, *row, messages[i]))
    if rows:
        table = pa.Table.from_pylist(rows, schema=schema.json_schema)
        message = index[np.array(whence)]
        decoded.parts.append(Rows(table, message, np.array(place, np.int64)))


# --- together -------------------------------------------------------------------------------


def _read_apart(
    messages: Sequence[bytes], which: I64, schema: EventSchema, alone: list[int]
) -> Iterator[tuple[pa.Table, I64]]:
    """Documents of the messages that Arrow takes, and which these are; the others go to ``alone``."""
    screened = False
    while len(which):
        lines = _Lines(messages, which)
        answer = lines.read(0, schema)
        if isinstance(answer, pa.Table):
            yield answer, which
            return
        keep, told = _follow_hints(lines, schema, answer)
        alone += which[~keep].tolist()
        which = which[keep]
        if told and not screened:
            continue
        if screened:
            break
        odd = suspects([messages[i] for i in which.tolist()], schema)
        alone += which[odd].tolist()
        which, screened = which[~odd], True
    yield from _bisect(messages, which, schema, alone)


class _Lines:
    """Messages as lines of one buffer, from any of which on Arrow can read."""

    def __init__(self, messages: Sequence[bytes], which: I64) -> None:
        chosen = messages if len(which) == len(messages) else [messages[i] for i in which.tolist()]
        self.count = len(chosen)
        self._buffer = pa.py_buffer(b"\n".join([*chosen, b""]))
        lengths = np.fromiter(map(len, chosen), np.int64, self.count)
        self._begins = np.concatenate(([0], np.cumsum(lengths + 1)))

    def read(self, first: int, schema: EventSchema) -> pa.Table | int | None:
        """The lines from ``first`` on as documents; or the line that Arrow says it fails at; or None."""
        blob = self._buffer.slice(int(self._begins[first]))
        try:
            table = pj.read_json(
                pa.BufferReader(blob),
                read_options=pj.ReadOptions(use_threads=False, block_size=max(len(blob) + 1, 64)),
                parse_options=pj.ParseOptions(
                    explicit_schema=schema.document_schema,
                    unexpected_field_behavior="infer"
                    if schema.unknown_columns == "dead_letter"
                    else "ignore",
                ),
            )
        except pa.ArrowInvalid as error:
            hint = _IN_ROW.search(str(error))
            at = self.count if hint is None else first + int(hint[1])
            return at if at < self.count else None
        except pa.ArrowNotImplementedError:
            return None
        return table if table.num_rows == self.count - first else None


def _follow_hints(lines: _Lines, schema: EventSchema, answer: int | None) -> tuple[Bools, bool]:
    """Take out the lines that Arrow complains of, one after another.

    Returns:
        (count,) bool, which are left, none where one by one is faster; and whether it always said which.
    """
    keep = np.ones(lines.count, np.bool_)
    seen = 0
    while answer is not None:
        keep[answer] = False
        seen += 1
        at = answer + 1
        if seen >= _GAPS_SEEN_MIN and at < seen * _GAP_MIN:
            keep[:] = False
            return keep, True
        if at >= lines.count:
            return keep, True
        found = lines.read(at, schema)
        if isinstance(found, pa.Table):
            return keep, True
        answer = found
    return keep, False


def _bisect(
    messages: Sequence[bytes], which: I64, schema: EventSchema, alone: list[int]
) -> Iterator[tuple[pa.Table, I64]]:
    if not len(which):
        return
    table = _Lines(messages, which).read(0, schema)
    if isinstance(table, pa.Table):
        yield table, which
    elif len(which) < _BISECT_MESSAGES_MIN:
        alone += which.tolist()
    else:
        middle = len(which) // 2
        yield from _bisect(messages, which[:middle], schema, alone)
        yield from _bisect(messages, which[middle:], schema, alone)


# --- documents ------------------------------------------------------------------------------


def _take_documents(
    table: pa.Table, which: I64, messages: Sequence[bytes], index: I64, schema: EventSchema, decoded: Decoded
) -> None:
    path = schema.message.list_path
    whole = 0 if path is None else -1
    if schema.unknown_columns == "dead_letter":
        faults = dict(reversed(list(_unknown(table, schema.document_schema))))
        for at, found in faults.items():
            i = int(which[at])
            detail = unknown_detail(found)
            decoded.refused.append(Refused(int(index[i]), whole, UNKNOWN_COLUMN, detail, messages[i]))
        if faults:
            keep = np.ones(len(which), np.bool_)
            keep[list(faults)] = False
            table, which = table.filter(pa.array(keep)), which[keep]
    flat = flat_rows(table, schema.places, path)
    for i in which[flat.without_list].tolist():
        assert path is not None
        detail = missing_list(path)
        decoded.refused.append(Refused(int(index[i]), whole, MISSING_COLUMN, detail, messages[i]))
    decoded.leave_out(NO_ITEMS, len(flat.empty))
    decoded.parts.append(Rows(flat.table, index[which[flat.document]], flat.item))


def _unknown(table: pa.Table, declared: pa.Schema) -> Iterator[tuple[int, Path]]:
    """Rows with a value that no declared column lies on, and its path."""
    for name in table.schema.names:
        values = table.column(name).combine_chunks()
        at = np.arange(table.num_rows)
        if name not in declared.names:
            yield from ((row, (name,)) for row in at[_valid(values)].tolist())
        else:
            yield from _unknown_below(values, declared.field(name).type, (name,), at)


def _unknown_below(
    values: pa.Array, declared: pa.DataType, path: Path, at: I64
) -> Iterator[tuple[int, Path]]:
    if pa.types.is_struct(declared) and pa.types.is_struct(values.type):
        for field in values.type:
            inner = pc.struct_field(values, field.name)
            below = (*path, field.name)
            if declared.get_field_index(field.name) < 0:
                yield from ((row, below) for row in at[_valid(inner)].tolist())
            else:
                yield from _unknown_below(inner, declared.field(field.name).type, below, at)
    elif pa.types.is_list(declared) and pa.types.is_list(values.type):
        parents = pc.list_parent_indices(values).to_numpy()
        yield from _unknown_below(pc.list_flatten(values), declared.value_type, (*path, EACH), at[parents])


def _valid(values: pa.Array) -> Bools:
    return values.is_valid().to_numpy(zero_copy_only=False)
