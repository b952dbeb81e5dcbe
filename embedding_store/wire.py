"""A call, and its answer, on the wire: a JSON head and named arrays.

A call is one Flight exchange, or, where it is small, one Flight get with all of the call in its ticket: that
saves the messages by which a stream of calls begins and ends. The answer to either is a stream of record batches.
Each carries a piece of one array as raw little-endian bytes, so arrays of any dtype share one stream and one
schema. The head comes with the first of them, or alone where there are none; the head of a small answer to a get comes
with the schema, since Flight then sends all of it without coming back to Python. It says name, dtype and shape of
each array in advance; the receiver checks the declared sizes against its bound before it reserves any memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.flight as flight

from cuckooflow.embedding_store.wire_head import (
    HEAD_BYTES_MAX,
    Array,
    Declared,
    malformed,
    read_head,
    write_head,
)
from cuckooflow.errors import LimitExceeded

SCHEMA = pa.schema([pa.field("bytes", pa.uint8(), nullable=False)])
#: An array is sent in pieces of this size: it bounds what gRPC holds at once.
PIECE_BYTES = 8 << 20
#: Bound of one call's arrays; a larger one is refused before memory is reserved for it.
CALL_BYTES_MAX = 256 << 20

#: An answer to a get of no more bytes than this has its head with the schema. Of an array of 16 KiB to so many the
#: message is then such that the array is taken as it lies; others are copied, or have a head to pad, see _padded.
WHOLE_BYTES_MAX = (1 << 21) - 1
_HEAD_KEY = b"head"
#: Without them Arrow reads the environment at every call.
_OPTIONS = pa.ipc.IpcWriteOptions()

#: A record batch, or one with the head.
Piece = Any | tuple[Any, bytes]


def messages(head: Mapping[str, Any], arrays: Mapping[str, Array]) -> Iterator[Piece]:
    """What goes over the wire, in order: record batches of :data:`SCHEMA`, the first with the head as metadata.

    The head travels with the first piece, since a message of its own is a wake-up on both sides.
    """
    first: bytes | None = write_head(head, arrays)
    for array in arrays.values():
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, len(flat), PIECE_BYTES):
            content = flat[start : start + PIECE_BYTES]
            yield _batch(content), _padded(first or b"", len(content))
            first = None
    if first is not None:
        yield _batch(np.empty(0, np.uint8)), first


def whole(head: Mapping[str, Any], arrays: Mapping[str, Array]) -> Any:
    """A small answer to a get, of :data:`WHOLE_BYTES_MAX` at most, as a Flight stream of its own."""
    flat = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays.values())
    schema = SCHEMA.with_metadata({_HEAD_KEY: write_head(head, arrays)})
    batches = [_batch(content) for content in flat if len(content)]
    return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(schema, batches), _OPTIONS)


def send(writer: Any, pieces: Iterable[Piece]) -> None:
    """Write what :func:`messages` gave; ``writer`` is a Flight stream writer that has begun with :data:`SCHEMA`."""
    for piece in pieces:
        if isinstance(piece, tuple):
            writer.write_with_metadata(*piece)
        else:
            writer.write_batch(piece)


def to_ticket(verb: str, head: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """A whole call as the ticket of a Flight get: lengths of verb and head, these, the arrays' bytes."""
    text = write_head(head, arrays)
    lengths = np.array([len(verb.encode()), len(text)], "<u4").tobytes()
    contents = (np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays.values())
    return b"".join([lengths, verb.encode(), text, *contents])


def from_ticket(ticket: bytes, bytes_max: int) -> tuple[str, dict[str, Any], dict[str, Array]]:
    """Verb, head and arrays of what :func:`to_ticket` made. Arrays may be read-only.

    Raises:
        LimitExceeded: the arrays are larger than ``bytes_max``.
        StoreError: the ticket is not of this form.
    """
    if len(ticket) < 8:
        raise malformed("it ended before its head")
    of_verb, of_head = (int(length) for length in np.frombuffer(ticket, "<u4", 2))
    at = 8 + of_verb + of_head
    if at > len(ticket) or of_head > HEAD_BYTES_MAX:
        raise malformed("its head is absent or too long")
    verb = ticket[8 : 8 + of_verb].decode(errors="replace")
    head, declared = read_head(ticket[8 + of_verb : at])
    total = sum(of.nbytes for of in declared)
    _check_total(total, bytes_max)
    if total != len(ticket) - at:
        raise malformed(f"it holds {len(ticket) - at} bytes of arrays and declares {total}")
    arrays: dict[str, Array] = {}
    whole = np.frombuffer(ticket, np.uint8)
    for of in declared:
        arrays[of.name] = _typed(whole[at : at + of.nbytes], of)
        at += of.nbytes
    return verb, head, arrays


def receive(reader: Any, bytes_max: int) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read what :func:`messages` gave. Arrays may be read-only.

    Raises:
        LimitExceeded: the arrays are declared to be larger than ``bytes_max``.
        StoreError: the stream is not of this form.
    """
    return _received(reader, bytes_max, *_head(reader))


def receive_got(reader: Any, bytes_max: int) -> tuple[dict[str, Any], dict[str, Array]]:
    """The same of an answer to a get: what :func:`whole` or :func:`messages` gave."""
    told = (reader.schema.metadata or {}).get(_HEAD_KEY)
    if told is None:
        return receive(reader, bytes_max)
    if len(told) > HEAD_BYTES_MAX:
        raise malformed("its head is too long")
    return _received(reader, bytes_max, *read_head(told), None)


def _received(
    reader: Any, bytes_max: int, head: dict[str, Any], declared: tuple[Declared, ...], piece: Any
) -> tuple[dict[str, Any], dict[str, Array]]:
    """``piece``: the first one, where it came already."""
    arrays: dict[str, Array] = {}
    _check_total(sum(of.nbytes for of in declared), bytes_max)
    for of in declared:
        whole: Array = np.empty(0, np.uint8)
        at = 0
        while at < of.nbytes:
            content = _bytes(_next(reader, of.name) if piece is None else piece, of.name)
            piece = None
            if at + len(content) > of.nbytes:
                raise malformed(f"array {of.name!r} is longer than declared")
            if len(content) == of.nbytes:
                whole = content  # most arrays come in one piece, which is taken as it lies
            else:
                if at == 0:
                    whole = np.empty(of.nbytes, np.uint8)
                whole[at : at + len(content)] = content
            at += len(content)
        arrays[of.name] = _typed(whole, of)
    return head, arrays


def end(reader: Any) -> None:
    """Read the end of a stream, of which :func:`receive` has read all there is.

    Raises:
        StoreError: there is more.
    """
    try:
        reader.read_chunk()
    except StopIteration:
        return
    raise malformed("it goes on after its arrays")


def _typed(content: npt.NDArray[np.uint8], declared: Declared) -> Array:
    """The bytes as what they are, copied where they lie where such numbers may not begin."""
    typed = content.view(declared.dtype)
    return (typed if typed.flags.aligned else typed.copy()).reshape(declared.shape)


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


def _padded(metadata: bytes, body_bytes: int) -> bytes:
    """Metadata with blanks after it, so that the body after it begins where numbers of eight bytes may.

    A message is the fields data_header, app_metadata and data_body of a Flight message: numbers of one, one and two
    bytes, each field's length and its content. A large one lies in memory as it was sent, and an array in its
    body is taken as it lies where that is aligned.
    """
    fixed = 1 + _varint_bytes(_HEADER_BYTES) + _HEADER_BYTES + 1 + 2 + _varint_bytes(body_bytes)
    size = len(metadata)
    while (fixed + _varint_bytes(size) + size) % 8 or size == 0:
        size += 1
    return metadata.ljust(size)


def _varint_bytes(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)


def _batch(content: npt.NDArray[np.uint8]) -> Any:
    piece = pa.py_buffer(content)
    # Not pa.array nor to_numpy: their first call imports pandas where it is installed.
    column = pa.Array.from_buffers(pa.uint8(), piece.size, [None, piece])
    return pa.RecordBatch.from_arrays([column], schema=SCHEMA)


def _head(reader: Any) -> tuple[dict[str, Any], tuple[Declared, ...], Any]:
    """The head, the arrays that it declares, and the record batch that came with it or None."""
    try:
        chunk = reader.read_chunk()
    except StopIteration:
        raise malformed("it ended before its head") from None
    metadata = chunk.app_metadata
    if metadata is None or metadata.size > HEAD_BYTES_MAX:
        raise malformed("its head is absent or too long")
    return *read_head(metadata.to_pybytes()), chunk.data


#: Of what Arrow puts before the body of a record batch of SCHEMA.
_HEADER_BYTES: int = pa.ipc.read_message(_batch(np.zeros(8, np.uint8)).serialize()).metadata.size


def _next(reader: Any, name: str) -> Any:
    try:
        return reader.read_chunk().data
    except StopIteration:
        raise malformed(f"it ended within array {name!r}") from None


def _bytes(batch: Any, name: str) -> npt.NDArray[np.uint8]:
    if batch is None or batch.num_rows == 0:
        raise malformed(f"a piece of array {name!r} is empty")
    if batch.num_columns != 1 or batch.column(0).type != pa.uint8() or batch.column(0).null_count:
        raise malformed(f"a piece of array {name!r} is not one column of bytes")
    column = batch.column(0)
    return np.frombuffer(column.buffers()[1], np.uint8, batch.num_rows, column.offset)


def descriptor(verb: str) -> Any:
    """What a Flight exchange names its verb by."""
    return flight.FlightDescriptor.for_command(verb.encode())
