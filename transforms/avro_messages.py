"""Avro messages to rows, columnar: one record a message, written by a schema that the job gives.

A record has neither marks nor checksums, so a message of another schema may decode to nonsense; what can be
noticed is: a record that ends too early or too late, a branch or a symbol that does not exist, text that is
not UTF-8. A header as Confluent's registry makes it (a zero byte, a schema id in four, big endian) tells more.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.transforms.avro_columns import AvroColumns
from cuckooflow.transforms.avro_schema import AvroSchema, read_avro_schema
from cuckooflow.transforms.columns import EventSchema
from cuckooflow.transforms.dead_letters import MALFORMED, MISSING_COLUMN, Refused
from cuckooflow.transforms.decoded import NO_ITEMS, Decoded, Rows
from cuckooflow.transforms.documents import flat_rows

I64 = npt.NDArray[np.int64]
HEADER_BYTES = 5


def decode_avro(messages: Sequence[bytes], index: I64, schema: EventSchema) -> Decoded:
    """Decode Avro messages.

    Args:
        messages: (n,) each ought to be one record.
        index: (n,) int64, what to call each of them in the answer.
        schema: the declared columns; its message format holds the writer's schema.
    """
    assert schema.message.avro_schema is not None, "a format of kind avro has a schema"
    avro = read_avro_schema(schema.message.avro_schema)
    decoded = Decoded()
    chosen = list(range(len(messages)))
    skip = HEADER_BYTES if schema.message.confluent_header else 0
    if skip:
        chosen = []
        for i, message in enumerate(messages):
            fault = _header_fault(message, schema.message.schema_id)
            if fault is None:
                chosen.append(i)
            else:
                whole = 0 if schema.message.explode is None else -1
                decoded.refused.append(Refused(int(index[i]), whole, MALFORMED, fault, message))
    if chosen:
        _decode(messages, chosen, skip, avro, index, schema, decoded)
    return decoded


def _header_fault(message: bytes, schema_id: int | None) -> str | None:
    if len(message) < HEADER_BYTES or message[0] != 0:
        return "expected a zero byte and a schema id of four bytes before the record"
    found: int = struct.unpack_from(">I", message, 1)[0]
    if schema_id is not None and found != schema_id:
        return f"expected the schema id {schema_id}, received {found}"
    return None


def _decode(
    messages: Sequence[bytes],
    chosen: Sequence[int],
    skip: int,
    avro: AvroSchema,
    index: I64,
    schema: EventSchema,
    decoded: Decoded,
) -> None:
    wanted = pa.struct(list(schema.document_schema))
    columns = AvroColumns([messages[i] for i in chosen], avro.root, wanted, skip)
    found = [columns.decode()]
    faults = dict(columns.faults)
    if columns.long:
        rows, whence = [], []
        for at in sorted(columns.long):
            answer = _decode_one(messages[chosen[at]][skip:], avro)
            if isinstance(answer, str):
                faults[at] = answer
            else:
                rows.append(answer)
                whence.append(at)
        found.append((pa.array(rows, avro.root.arrow_type(wanted)), np.array(whence, np.int64)))
    whole = 0 if schema.message.explode is None else -1
    for at, why in faults.items():
        i = chosen[at]
        detail = f"expected an Avro record: {why}"
        decoded.refused.append(Refused(int(index[i]), whole, MALFORMED, detail, messages[i]))
    for values, which in found:
        origin = np.array(chosen, np.int64)[which]
        table = pa.Table.from_batches([pa.RecordBatch.from_struct_array(values)])
        flat = flat_rows(table, schema.places, schema.message.list_path)
        for i in origin[flat.without_list].tolist():
            detail = f"expected a list in {schema.message.explode}, found null"
            decoded.refused.append(Refused(int(index[i]), whole, MISSING_COLUMN, detail, messages[i]))
        decoded.leave_out(NO_ITEMS, len(flat.empty))
        decoded.parts.append(Rows(flat.table, index[origin[flat.document]], flat.item))


def _decode_one(record: bytes, avro: AvroSchema) -> dict[str, Any] | str:
    """A record by fastavro, or what is wrong with it."""
    stream = io.BytesIO(record)
    try:
        found = fastavro.schemaless_reader(stream, avro.plain, None)
    except Exception as error:  # whatever the bytes made it stumble over
        return f"{type(error).__name__}: {error}" if str(error) else "the message ends inside the record"
    left = len(record) - stream.tell()
    if left:
        return f"{left} bytes are left over behind the record"
    assert isinstance(found, dict), "the schema is a record's"
    return found
