"""A call, and its answer, on the wire: a JSON head and named arrays, as one Flight exchange.

Every record batch carries a piece of one array as raw little-endian bytes, so arrays of any dtype share
one stream and one schema. The head comes with the first of them, or alone where there are none. It says
name, dtype and shape of each array in advance; the receiver checks the declared sizes against its bound
before it reserves any memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.flight as flight

from cuckooflow.errors import LimitExceeded, StoreError

SCHEMA = pa.schema([pa.field("bytes", pa.uint8(), nullable=False)])
#: An array is sent in pieces of this size: it bounds what gRPC holds at once.
PIECE_BYTES = 8 << 20
HEAD_BYTES_MAX = 4 << 20
#: Bound of one call's arrays; a larger one is refused before memory is reserved for it.
CALL_BYTES_MAX = 256 << 20

Array = npt.NDArray[Any]
_DTYPES = {
    "uint64": np.uint64,
    "int64": np.int64,
    "uint32": np.uint32,
    "uint8": np.uint8,
    "float32": np.float32,
}


def send(writer: Any, head: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a head and its arrays; ``writer`` is a Flight stream writer that has begun with :data:`SCHEMA`."""
    declared = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    first: bytes | None = json.dumps({**head, "arrays": declared}, separators=(",", ":")).encode()
    for array in arrays.values():
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, len(flat), PIECE_BYTES):
            piece = pa.py_buffer(flat[start : start + PIECE_BYTES])
            # Not pa.array nor to_numpy: their first call imports pandas where it is installed.
            column = pa.Array.from_buffers(pa.uint8(), piece.size, [None, piece])
            batch = pa.RecordBatch.from_arrays([column], schema=SCHEMA)
            if first is None:
                writer.write_batch(batch)
            else:  # The head travels with the first piece: a message of its own is a wake-up on both sides.
                writer.write_with_metadata(batch, first)
                first = None
    if first is not None:
        writer.write_metadata(first)


def receive(reader: Any, bytes_max: int) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read what :func:`send` wrote. Arrays may be read-only.

    Raises:
        LimitExceeded: the arrays are declared to be larger than ``bytes_max``.
        StoreError: the stream is not of this form.
    """
    head, piece = _head(reader)
    arrays: dict[str, Array] = {}
    sizes = [(name, _DTYPES[dtype], tuple(shape)) for name, dtype, shape in head.pop("arrays")]
    total = sum(math.prod(shape) * np.dtype(dtype).itemsize for _, dtype, shape in sizes)
    _check_total(total, bytes_max)
    for name, dtype, shape in sizes:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        pieces: list[Array] = []
        at = 0
        while at < size:
            content = _bytes(_next(reader, name) if piece is None else piece, name)
            piece = None
            if at + len(content) > size:
                raise _malformed(f"array {name!r} is longer than declared")
            pieces.append(content)
            at += len(content)
        # Most arrays come in one piece, which is taken as it lies.
        whole = pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.uint8), *pieces])
        arrays[name] = _aligned(whole).view(dtype).reshape(shape)
    return head, arrays


def _aligned(content: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The bytes where numbers of eight of them may begin."""
    return content if content.ctypes.data % 8 == 0 else content.copy()


def check_size(arrays: Mapping[str, Array], bytes_max: int) -> None:
    """Refuse to send what the other side would refuse.

    Raises:
        LimitExceeded: the arrays are larger than ``bytes_max``.
    """
    _check_total(sum(array.nbytes for array in arrays.values()), bytes_max)


def drain(reader: Any, bytes_max: int) -> None:
    """Read what is left of a refused message and drop it: its sender hears the answer only after all is sent."""
    left = bytes_max
    try:
        while left > 0:
            chunk = reader.read_chunk()
            left -= chunk.data.nbytes if chunk.data is not None else 1
    except StopIteration:
        return


def _check_total(total: int, bytes_max: int) -> None:
    if total > bytes_max:
        raise LimitExceeded(
            f"expected at most {bytes_max} bytes of arrays in one message, received {total}. Send less at once."
        )


def _head(reader: Any) -> tuple[dict[str, Any], Any]:
    """The head, and the record batch that came with it or None."""
    try:
        chunk = reader.read_chunk()
    except StopIteration:
        raise _malformed("it ended before its head") from None
    metadata = chunk.app_metadata
    if metadata is None or metadata.size > HEAD_BYTES_MAX:
        raise _malformed("its head is absent or too long")
    try:
        head = json.loads(metadata.to_pybytes())
        for name, dtype, shape in head["arrays"]:
            sound = (
                isinstance(name, str)
                and dtype in _DTYPES
                and all(isinstance(n, int) and n >= 0 for n in shape)
            )
            if not sound:
                raise ValueError(f"array {name!r} of {dtype} {shape}")
    except (ValueError, KeyError, TypeError) as error:
        raise _malformed(f"its head cannot be read: {error}") from error
    return cast(dict[str, Any], head), chunk.data


def _next(reader: Any, name: str) -> Any:
    try:
        return reader.read_chunk().data
    except StopIteration:
        raise _malformed(f"it ended within array {name!r}") from None


def _bytes(batch: Any, name: str) -> npt.NDArray[np.uint8]:
    if batch is None or batch.num_rows == 0:
        raise _malformed(f"a piece of array {name!r} is empty")
    if batch.num_columns != 1 or batch.column(0).type != pa.uint8() or batch.column(0).null_count:
        raise _malformed(f"a piece of array {name!r} is not one column of bytes")
    column = batch.column(0)
    return np.frombuffer(column.buffers()[1], np.uint8, batch.num_rows, column.offset)


def _malformed(why: str) -> StoreError:
    return StoreError(f"expected a message of the store's protocol, received another: {why}.")


def descriptor(verb: str) -> Any:
    """What a Flight exchange names its verb by."""
    return flight.FlightDescriptor.for_command(verb.encode())
