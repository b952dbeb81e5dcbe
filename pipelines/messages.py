"""From the job spec's ``messages`` to the formats that the parser takes, and what about them cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from cuckooflow.errors import SpecError
from cuckooflow.pipelines.job_spec import ActionMessageSpec, MessageSpec
from cuckooflow.transforms.column_places import place_faults
from cuckooflow.transforms.columns import Column
from cuckooflow.transforms.message_format import MessageFormat


def message_format(spec: MessageSpec, folder: Path) -> MessageFormat:
    """The format of a log's messages, its schema file read.

    Args:
        folder: what the schema file is relative to.

    Raises:
        SpecError: the schema file cannot be read.
        ValueError: the options contradict each other, or the file holds no schema.
    """
    text = None
    if spec.schema_file is not None:
        try:
            text = (folder / spec.schema_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"expected a schema in {folder / spec.schema_file}: {error}") from None
    only = spec.only if isinstance(spec, ActionMessageSpec) else None
    return MessageFormat(
        kind=spec.format,
        avro_schema=text,
        confluent_header=spec.confluent_header,
        schema_id=spec.schema_id,
        explode=spec.explode,
        only=None if only is None else tuple(only),
    )


def message_faults(
    log: str, spec: MessageSpec, columns: Mapping[str, Column], folder: Path
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """What cannot be: the place in the job spec, what was received, what is allowed.

    Args:
        log: ``impressions`` or ``actions``.
        folder: what the schema file is relative to.
    """
    try:
        message = message_format(spec, folder)
    except SpecError as error:
        yield ("messages", log, "schema_file"), repr(str(spec.schema_file)), f"a file with a schema; {error}"
        return
    except ValidationError as error:
        for entry in error.errors():
            why = str(entry.get("ctx", {}).get("error", entry["msg"]))
            yield ("messages", log), f"format {spec.format}", f"options that go together; {why}"
        return
    for name, why in place_faults(columns, message):
        if name is None:
            yield ("messages", log), f"format {spec.format}", f"paths that go together; {why}"
        else:
            received = repr(columns[name].path or name)
            yield ("columns", log, name), received, f"a place in the messages; {why}"
