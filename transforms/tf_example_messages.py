"""Serialised tf.train.Example messages to rows, columnar, by tfx-bsl's decoder.

Seen with tfx-bsl 1.21: one message that is no Example, or has a feature of another kind, fails its whole batch
(``DATA_LOSS``, ``INVALID_ARGUMENT``) and the error does not say which; so a failing batch is cut into small
pieces, and a failing piece is bisected. A decoder that has failed answers its next batch with the rows of
the failed one before it; so each batch has a decoder of its own. A feature that is absent, or there without
a kind, is null; one of a kind but without values an empty list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.dead_letters import MALFORMED, MISSING_COLUMN, WRONG_TYPE, Refused
from cuckooflow.transforms.decoded import NO_ITEMS, OTHER_ACTION, Decoded, Rows
from cuckooflow.transforms.documents import value_at

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

#: A failing batch is cut into pieces of so many messages: about as many as lie between two bad ones at 1 %.
_PIECE_MESSAGES = 64
#: After a piece with more bad ones, the next is decoded one by one.
_BAD_MAX = 8

#: tensorflow_metadata.proto.v0.FeatureType
_FEATURE_TYPES = {"bytes_list": 1, "int64_list": 2, "float_list": 3}


def decode_tf_example(messages: Sequence[bytes], index: I64, schema: EventSchema) -> Decoded:
    """Decode tf.train.Example messages.

    Args:
        messages: (n,) each ought to be one serialised Example.
        index: (n,) int64, what to call each of them in the answer.
        schema: the declared columns; a path is a feature's name.
    """
    decoded = Decoded()
    features = {(str(schema.places[name].outer[0]), c.feature_kind) for name, c in schema.columns.items()}
    wanted = _features_schema(tuple(sorted(features)))
    refused: list[tuple[int, str]] = []
    batches, which = [], []
    for batch, some in _decode_apart(wanted, messages, refused):
        batches.append(batch)
        which.append(some)
    for i, error in refused:
        if _other_action(messages[i], schema):
            decoded.leave_out(OTHER_ACTION, 1)
            continue
        reason = WRONG_TYPE if "wrong type" in error else MALFORMED
        detail = f"expected a tf.train.Example: {error}"
        decoded.refused.append(Refused(int(index[i]), -1, reason, detail, messages[i]))
    if batches:
        table = pa.Table.from_batches(batches).combine_chunks()
        _take(table, np.concatenate(which), messages, index, schema, decoded)
    return decoded


@lru_cache(maxsize=64)
def _features_schema(features: tuple[tuple[str, str], ...]) -> bytes:
    # Imported here: only jobs with this format pay for it.
    from tensorflow_metadata.proto.v0 import schema_pb2

    schema = schema_pb2.Schema()
    for name, kind in features:
        feature = schema.feature.add()
        feature.name, feature.type = name, _FEATURE_TYPES[kind]
    return schema.SerializeToString()


def _attempt(features: bytes | None, messages: Sequence[bytes]) -> pa.RecordBatch | str:
    """These messages, (n,) rows with a list column a feature, all features for None; or the decoder's error."""
    from tfx_bsl.cc.tfx_bsl_extension.coders import ExamplesToRecordBatchDecoder

    try:
        return ExamplesToRecordBatchDecoder(features).DecodeBatch(list(messages))
    except RuntimeError as error:
        return str(error)


# --- which of them fail ---------------------------------------------------------------------


def _decode_apart(
    features: bytes, messages: Sequence[bytes], refused: list[tuple[int, str]]
) -> Iterator[tuple[pa.RecordBatch, I64]]:
    """The messages that decode, in batches, and which these are; the others go to ``refused``."""
    answer = _attempt(features, messages)
    if isinstance(answer, pa.RecordBatch):
        yield answer, np.arange(len(messages))
        return
    one_by_one = False
    for begin in range(0, len(messages), _PIECE_MESSAGES):
        which = np.arange(begin, min(begin + _PIECE_MESSAGES, len(messages)))
        before = len(refused)
        if one_by_one:
            for i in which.tolist():
                yield from _bisect(features, messages, np.array([i]), refused)
        else:
            yield from _bisect(features, messages, which, refused)
        one_by_one = len(refused) - before > _BAD_MAX


def _bisect(
    features: bytes, messages: Sequence[bytes], which: I64, refused: list[tuple[int, str]]
) -> Iterator[tuple[pa.RecordBatch, I64]]:
    answer = _attempt(features, [messages[i] for i in which.tolist()])
    if isinstance(answer, pa.RecordBatch):
        yield answer, which
    elif len(which) == 1:
        refused.append((int(which[0]), answer))
    else:
        middle = len(which) // 2
        yield from _bisect(features, messages, which[:middle], refused)
        yield from _bisect(features, messages, which[middle:], refused)


def _other_action(message: bytes, schema: EventSchema) -> bool:
    """Whether a message that does not decode as declared is of an action type that nobody wants."""
    if schema.message.only is None or schema.action_type is None:
        return False
    batch = _attempt(None, [message])
    name = str(schema.places[schema.action_type].outer[0])
    if isinstance(batch, str) or name not in batch.schema.names:
        return False
    values = batch.column(name)[0].as_py()
    if not values or not isinstance(values[0], bytes):
        return False
    return not schema.wanted(values[0].decode(errors="replace"))


# --- features to columns --------------------------------------------------------------------


class _Faults:
    """The first fault of each message."""

    def __init__(self, count: int) -> None:
        self.bad: Bools = np.zeros(count, np.bool_)
        self.why: dict[int, tuple[str, str]] = {}

    def mark(self, bad: Bools, reason: str, detail: str) -> None:
        for at in np.flatnonzero(bad & ~self.bad).tolist():
            self.why[at] = (reason, detail)
        self.bad |= bad


def _take(
    table: pa.Table, which: I64, messages: Sequence[bytes], index: I64, schema: EventSchema, decoded: Decoded
) -> None:
    count = table.num_rows
    faults = _Faults(count)
    lists = {name: table.column(name).chunk(0) for name in table.schema.names} if count else {}
    each = [name for name, place in schema.places.items() if place.inner is not None]
    lengths = _lengths(lists, each, schema, faults) if each else np.ones(count, np.int64)
    document = np.repeat(np.arange(count), lengths)
    item = np.arange(len(document)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    columns: dict[str, pa.Array] = {}
    for name, column in schema.columns.items():
        place = schema.places[name]
        values = lists[str(place.outer[0])]
        if place.inner is not None:
            columns[name] = _typed(name, _items(values, lengths), column, document, faults)
        else:
            single = _one_value(name, values, column, len(place.outer) > 1, faults)
            if len(place.outer) > 1:
                single = value_at(values, place.outer[1:])
            single = _typed(name, single, column, np.arange(count), faults)
            columns[name] = single.take(pa.array(document)) if each else single
    rows = Rows(pa.table(columns), index[which[document]], item)
    if schema.action_type is not None and schema.message.only is not None:
        known = columns[schema.action_type].to_pylist()
        other = {int(at) for at, value in zip(document, known, strict=True) if not schema.wanted(value)}
        faults.bad[list(other)] = False
    for at in np.flatnonzero(faults.bad).tolist():
        i = int(which[at])
        entry = Refused(int(index[i]), -1 if each else 0, *faults.why[at], messages[i])
        decoded.refused.append(entry)
    decoded.leave_out(NO_ITEMS, int(((lengths == 0) & ~faults.bad).sum()))
    decoded.parts.append(rows.filter(~faults.bad[document]) if faults.bad.any() else rows)


def _lengths(lists: dict[str, pa.Array], each: Sequence[str], schema: EventSchema, faults: _Faults) -> I64:
    """How many rows each message gives: the length that all features of an item have in common."""
    found = np.full(len(faults.bad), -1, np.int64)
    for name in each:
        feature = str(schema.places[name].outer[0])
        values = lists[feature]
        mine = np.where(_valid(values), np.diff(values.offsets.to_numpy()), -1)
        differs = (found >= 0) & (mine >= 0) & (found != mine)
        faults.mark(differs, WRONG_TYPE, f"expected as many values in {feature} as in the others of the item")
        found = np.maximum(found, mine)
    names = ", ".join(str(schema.places[name].outer[0]) for name in each)
    faults.mark(found < 0, MISSING_COLUMN, f"expected values in {names}, found none")
    return np.where(faults.bad, 0, found)


def _items(values: pa.Array, lengths: I64) -> pa.Array:
    """All values of messages with ``lengths`` rows; nulls where a message does not have this feature."""
    offsets = values.offsets.to_numpy()
    there = _valid(values) & (np.diff(offsets) == lengths)
    begins = np.repeat(np.where(there, offsets[:-1], 0), lengths)
    inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return values.values.take(pa.array(begins + inside, mask=np.repeat(~there, lengths)))


def _one_value(name: str, values: pa.Array, column: Column, indexed: bool, faults: _Faults) -> pa.Array:
    """A feature's only value, null where there is none; or its list, for a column of lists."""
    if column.type.startswith("list") or indexed:
        return values
    lengths = np.where(_valid(values), np.diff(values.offsets.to_numpy()), 0)
    faults.mark(lengths > 1, WRONG_TYPE, f"expected one value in {name}, received several")
    return values.values.take(pa.array(values.offsets.to_numpy()[:-1] * (lengths > 0), mask=lengths == 0))


def _typed(name: str, values: pa.Array, column: Column, document: I64, faults: _Faults) -> pa.Array:
    """Bytes to text and 0, 1 to booleans; other types are left to the checks that all formats share."""

    def mark(bad: Bools, reason: str, detail: str) -> None:
        of_messages = np.zeros(len(faults.bad), np.bool_)
        of_messages[document[bad]] = True
        faults.mark(of_messages, reason, detail)

    if pa.types.is_large_list(values.type):
        if column.type == "list<string>":
            offsets, inner = values.offsets, values.values
            text, bad = _text(inner)
            if bad.any():
                holder = np.searchsorted(offsets.to_numpy(), np.flatnonzero(bad), side="right") - 1
                wrong = np.zeros(len(values), np.bool_)
                wrong[holder] = True
                mark(wrong, MALFORMED, f"expected UTF-8 in {name}")
            values = pa.LargeListArray.from_arrays(offsets, text, mask=pc.invert(values.is_valid()))
        return values.cast(pa.list_(values.type.value_type))
    if column.type == "string" or column.unit == "iso":
        text, bad = _text(values)
        mark(bad, MALFORMED, f"expected UTF-8 in {name}")
        return text
    if column.type == "bool":
        known = pc.is_in(values, value_set=pa.array([0, 1], pa.int64()))
        mark(_true(pc.invert(known)) & _valid(values), WRONG_TYPE, f"expected 0 or 1 in {name}")
        return pc.equal(values, 1)
    return values


def _text(values: pa.Array) -> tuple[pa.Array, Bools]:
    """Bytes as text, null where they are not UTF-8; and where."""
    try:
        return values.cast(pa.string()), np.zeros(len(values), np.bool_)
    except pa.ArrowInvalid:
        texts, bad = [], np.zeros(len(values), np.bool_)
        for at, value in enumerate(values.to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(None)
                bad[at] = True
        return pa.array(texts, pa.string()), bad


def _valid(values: pa.Array) -> Bools:
    return _true(values.is_valid())


def _true(values: pa.Array) -> Bools:
    return values.fill_null(False).to_numpy(zero_copy_only=False)
