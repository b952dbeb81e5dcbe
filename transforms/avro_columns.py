"""Avro records by column: a field of all messages at once, with numpy.

Every message has a cursor. To decode a field is to read at all cursors and to move them on: a number of any
length takes as many rounds as its longest has bytes, a list as many as the longest has items. A message that
does not hold what the schema says loses its cursor and keeps the reason; its neighbours go on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.transforms.avro_schema import Node

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

#: A message with a longer list is left to others: every item would be a round for all.
ITEMS_MAX = 512
#: Records inside records, by a type that contains itself.
DEPTH_MAX = 64
_VARINT_BYTES_MAX = 10


class AvroColumns:
    """Decodes messages of one schema; see the module.

    Args:
        messages: (n,) records.
        root: their type.
        wanted: which fields of it, as a struct; the others are passed over.
        skip: bytes before each record.

    Attributes:
        faults: message -> what is wrong with it.
        long: messages with a list of more than ``ITEMS_MAX`` items, which were not decoded.
    """

    def __init__(self, messages: Sequence[bytes], root: Node, wanted: pa.DataType, skip: int = 0) -> None:
        lengths = np.fromiter(map(len, messages), np.int64, len(messages))
        # Padded, so that reads past an end are harmless; they are found by the cursor.
        self._data: U8 = np.frombuffer(b"".join([*messages, bytes(16)]), np.uint8)
        self._end: I64 = np.cumsum(lengths)
        self._at: I64 = self._end - lengths + skip
        self._root = root
        self._wanted = wanted
        self.faults: dict[int, str] = {}
        self.long: set[int] = set()
        self._lost: Bools = np.zeros(len(messages), np.bool_)

    def decode(self) -> tuple[pa.Array, I64]:
        """The records that hold, as structs, and which messages they are of."""
        lanes = np.arange(len(self._at))
        values = self._value(self._root, self._wanted, lanes, self._root.name, 0)
        left = lanes[(self._at != self._end) & ~self._lost]
        for lane in left.tolist():
            self._lose(
                np.array([lane]), f"{self._end[lane] - self._at[lane]} bytes are left over behind the record"
            )
        whole = np.flatnonzero(~self._lost)
        return values.take(pa.array(whole)) if len(whole) < len(lanes) else values, whole

    # --- cursors

    def _lose(self, lanes: I64, why: str) -> None:
        for lane in lanes[~self._lost[lanes]].tolist():
            self.faults[lane] = why
        self._lost[lanes] = True
        self._at[lanes] = self._end[lanes]

    def _need(self, lanes: I64, size: I64 | int, what: str) -> Bools:
        """Which lanes have so many bytes left; the others are lost."""
        there = ~self._lost[lanes] & (size <= self._end[lanes] - self._at[lanes])
        if not there.all():
            self._lose(lanes[~there], f"the message ends inside {what}")
        return there

    def _long(self, lanes: I64, what: str) -> I64:
        """Zigzag numbers of variable length, moving the cursors on; 0 for lost lanes."""
        value: U64 = np.zeros(len(lanes), np.uint64)
        open_ = np.flatnonzero(~self._lost[lanes])
        for turn in range(_VARINT_BYTES_MAX):
            if not len(open_):
                break
            mine = lanes[open_]
            at = self._at[mine]
            past = at >= self._end[mine]
            if past.any():
                self._lose(mine[past], f"the message ends inside {what}")
                open_, mine, at = open_[~past], mine[~past], at[~past]
            byte = self._data[at]
            value[open_] |= (byte & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * turn)
            self._at[mine] = at + 1
            open_ = open_[byte >= 0x80]
        if len(open_):
            self._lose(lanes[open_], f"{what} is a number of more than {_VARINT_BYTES_MAX} bytes")
        value[self._lost[lanes]] = 0
        return ((value >> np.uint64(1)) ^ (~(value & np.uint64(1)) + np.uint64(1))).view(np.int64)

    # --- values

    def _value(self, node: Node, wanted: pa.DataType | None, lanes: I64, what: str, depth: int) -> pa.Array:
        """The values of ``lanes`` in :meth:`Node.arrow_type`; whatever it is for lost ones."""
        kind = node.kind
        if depth > DEPTH_MAX:
            self._lose(lanes, f"records are inside each other more than {DEPTH_MAX} times at {what}")
            return self._nothing(node, wanted, len(lanes))
        if not len(lanes) or kind == "null":
            return self._nothing(node, wanted, len(lanes))
        if kind == "record":
            return self._record(node, wanted, lanes, depth)
        if kind == "union":
            return self._union(node, wanted, lanes, what, depth)
        if kind in ("array", "map"):
            return self._list(node, wanted, lanes, what, depth)
        if kind in ("bytes", "string"):
            size = self._long(lanes, what)
            if (size < 0).any():
                self._lose(lanes[size < 0], f"{what} has a negative length")
            return self._bytes(node, wanted, lanes, np.where(self._lost[lanes], 0, size), what)
        if kind == "fixed":
            return self._bytes(node, wanted, lanes, np.full(len(lanes), node.size), what)
        if kind in ("float", "double"):
            return self._float(wanted, lanes, 4 if kind == "float" else 8, what)
        if kind == "boolean":
            return self._boolean(wanted, lanes, what)
        number = self._long(lanes, what)
        if kind == "int":
            over = (number < -(1 << 31)) | (number >= 1 << 31)
            if over.any():
                self._lose(lanes[over], f"{what} is an int of more than 32 bits")
        if kind == "enum":
            unknown = (number < 0) | (number >= len(node.symbols))
            if unknown.any():
                self._lose(lanes[unknown], f"{what} is symbol {number[unknown][0]} of {len(node.symbols)}")
            if wanted is None:
                return pa.nulls(len(lanes))
            return pa.array(node.symbols, pa.string()).take(pa.array(np.where(unknown, 0, number)))
        return pa.nulls(len(lanes)) if wanted is None else pa.array(number)

    @staticmethod
    def _nothing(node: Node, wanted: pa.DataType | None, count: int) -> pa.Array:
        return pa.nulls(count, node.arrow_type(wanted))

    def _record(self, node: Node, wanted: pa.DataType | None, lanes: I64, depth: int) -> pa.Array:
        found: dict[str, pa.Array] = {}
        for name, inner in node.fields.items():
            asked = wanted is not None and wanted.get_field_index(name) >= 0
            below = wanted.field(name).type if wanted is not None and asked else None
            values = self._value(inner, below, lanes, name, depth + 1)
            if asked:
                found[name] = values
        if wanted is None:
            return pa.nulls(len(lanes))
        return pa.StructArray.from_arrays([found[f.name] for f in wanted], names=[f.name for f in wanted])

    def _union(self, node: Node, wanted: pa.DataType | None, lanes: I64, what: str, depth: int) -> pa.Array:
        branch = self._long(lanes, what)
        unknown = (branch < 0) | (branch >= len(node.branches))
        if unknown.any():
            self._lose(lanes[unknown], f"{what} is branch {branch[unknown][0]} of {len(node.branches)}")
        result = None
        for at, inner in enumerate(node.branches):
            mine = np.flatnonzero((branch == at) & ~self._lost[lanes])
            if wanted is None or inner.kind == "null":
                self._value(inner, None, lanes[mine], what, depth + 1)
                continue
            values = self._value(inner, wanted, lanes[mine], what, depth + 1)
            if len(mine) == len(lanes):
                return values
            place = np.zeros(len(lanes), np.int64)
            place[mine] = np.arange(len(mine))
            absent = np.ones(len(lanes), np.bool_)
            absent[mine] = False
            result = values.take(pa.array(place, mask=absent))
        return pa.nulls(len(lanes)) if result is None else result

    def _list(self, node: Node, wanted: pa.DataType | None, lanes: I64, what: str, depth: int) -> pa.Array:
        """Blocks of items, each with its count, until a block of none."""
        assert node.items is not None
        inner = None if wanted is None or node.kind == "map" else wanted.value_type
        keys = Node("string", "string")
        left = np.zeros(len(lanes), np.int64)
        total = np.zeros(len(lanes), np.int64)
        open_ = np.arange(len(lanes))
        owners: list[I64] = []
        parts: list[pa.Array] = []
        while len(open_):
            fresh = open_[left[open_] == 0]
            if len(fresh):
                left[fresh] = self._block(lanes[fresh], what)
                total[fresh] += left[fresh]
                over = fresh[total[fresh] > ITEMS_MAX]
                if len(over):
                    self.long.update(lanes[over][~self._lost[lanes[over]]].tolist())
                    self._lost[lanes[over]] = True
                    left[over] = 0
            open_ = open_[(left[open_] > 0) & ~self._lost[lanes[open_]]]
            if not len(open_):
                break
            if node.kind == "map":
                self._value(keys, None, lanes[open_], what, depth)
            parts.append(self._value(node.items, inner, lanes[open_], what, depth + 1))
            owners.append(open_)
            left[open_] -= 1
        if wanted is None:
            return pa.nulls(len(lanes))
        return self._gathered(node, wanted, len(lanes), owners, parts)

    def _block(self, lanes: I64, what: str) -> I64:
        """How many items the next block has."""
        count = self._long(lanes, what)
        sized = count < 0
        if sized.any():
            self._long(lanes[sized], what)  # its bytes, for those who would jump over it
            count = np.where(sized, -count, count)
        room = self._end[lanes] - self._at[lanes]
        over = (count < 0) | (count > room)  # an item takes a byte at least
        if over.any():
            self._lose(lanes[over], f"{what} has a block of more items than the message has bytes")
        return np.where(self._lost[lanes], 0, count)

    @staticmethod
    def _gathered(
        node: Node, wanted: pa.DataType, count: int, owners: list[I64], parts: list[pa.Array]
    ) -> pa.Array:
        """Items, which came a round at a time, as one list a lane."""
        type_ = node.arrow_type(wanted)
        if not parts:
            return pa.ListArray.from_arrays(
                np.zeros(count + 1, np.int32), pa.array([], type_.value_type)
            ).cast(type_)
        owner = np.concatenate(owners)
        order = np.argsort(owner, kind="stable")
        items = pa.concat_arrays(parts).take(pa.array(order))
        offsets = np.concatenate(([0], np.cumsum(np.bincount(owner, minlength=count)))).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), items)

    def _bytes(self, node: Node, wanted: pa.DataType | None, lanes: I64, size: I64, what: str) -> pa.Array:
        size = np.where(self._need(lanes, size, what), size, 0)
        begin = self._at[lanes]
        self._at[lanes] = begin + size
        if wanted is None and node.kind != "string":
            return pa.nulls(len(lanes))
        # The values and the gaps between them as they lie; lanes ascend, and so do the bounds.
        bounds = np.empty(2 * len(lanes) + 1, np.int64)
        bounds[0:-1:2], bounds[1::2], bounds[-1] = begin, begin + size, begin[-1] + size[-1]
        both = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), 2 * len(lanes), [None, pa.py_buffer(bounds), pa.py_buffer(self._data)]
        )
        values = both.take(pa.array(np.arange(0, 2 * len(lanes), 2))).cast(pa.binary())
        if node.kind == "string":
            values = self._text(values, lanes, what)  # also of what is passed over
        return pa.nulls(len(lanes)) if wanted is None else values

    def _text(self, values: pa.Array, lanes: I64, what: str) -> pa.Array:
        try:
            return values.cast(pa.string())
        except pa.ArrowInvalid:
            texts = []
            for lane, value in zip(lanes.tolist(), values.to_pylist(), strict=True):
                try:
                    texts.append(value.decode())
                except UnicodeDecodeError:
                    self._lose(np.array([lane]), f"{what} is not UTF-8")
                    texts.append("")
            return pa.array(texts, pa.string())

    def _float(self, wanted: pa.DataType | None, lanes: I64, size: int, what: str) -> pa.Array:
        there = self._need(lanes, size, what)
        begin = np.where(there, self._at[lanes], 0)
        self._at[lanes] += np.where(there, size, 0)
        if wanted is None:
            return pa.nulls(len(lanes))
        raw = self._data[begin[:, None] + np.arange(size)]
        return pa.array(np.ascontiguousarray(raw).view("<f4" if size == 4 else "<f8")[:, 0])

    def _boolean(self, wanted: pa.DataType | None, lanes: I64, what: str) -> pa.Array:
        there = self._need(lanes, 1, what)
        byte = self._data[np.where(there, self._at[lanes], 0)]
        self._at[lanes] += there
        wrong = there & (byte > 1)
        if wrong.any():
            self._lose(lanes[wrong], f"{what} is a boolean of {byte[wrong][0]}")
        return pa.nulls(len(lanes)) if wanted is None else pa.array(byte == 1)
