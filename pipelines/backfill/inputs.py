"""What a backfill reads: logs or files as they are when it begins, so that a resumed one reads the same."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC
from typing import Any

from cuckooflow.errors import LogError
from cuckooflow.pipelines.job_spec import FilesSpec, JobSpec
from cuckooflow.pipelines.options import action_schema, impression_schema
from cuckooflow.transforms.columns import EventSchema
from cuckooflow.transforms.in_band import ACTIONS, IMPRESSIONS, LOG_NAMES
from cuckooflow.transforms.input_files import FileInput
from cuckooflow.transforms.input_ranges import InputRange, LogSpan, log_ranges, log_span
from cuckooflow.transforms.placed_rows import PlaceColumns
from cuckooflow.transforms.read_logs import LogInput


@dataclass(frozen=True)
class JobInputs:
    """The two inputs of a job's join.

    Attributes:
        sources: log -> what is read.
        range_messages: of a log, the messages that one task of the first pass reads at most. Costs its memory.
    """

    sources: Mapping[int, LogInput | FileInput]
    range_messages: int

    @classmethod
    def of(cls, job: JobSpec, range_messages: int) -> JobInputs:
        """Files where the spec's ``backfill`` names some, else the job's logs."""
        sources: dict[int, LogInput | FileInput] = {}
        for log, schema, files, of_log in (
            (IMPRESSIONS, impression_schema(job), job.backfill.impressions, job.logs.impressions),
            (ACTIONS, action_schema(job), job.backfill.actions, job.logs.actions),
        ):
            sources[log] = (
                LogInput(job.address(of_log), schema)
                if files is None
                else _files(job, files, schema, job.input(of_log).name)
            )
        return cls(sources, range_messages)

    def names(self) -> list[str]:
        """Paths and patterns."""
        return [
            source.pattern if isinstance(source, FileInput) else str(source.place)
            for source in self.sources.values()
        ]

    def listing(self) -> dict[str, Any]:
        """What is there now, as JSON: of a log its incarnation and the span of each partition; of files their sizes.

        Raises:
            LogNotFound, InputFileWrong: an input is not there.
        """
        found: dict[str, Any] = {}
        for log, source in self.sources.items():
            if isinstance(source, FileInput):
                found[LOG_NAMES[log]] = {"files": source.listing()}
                continue
            with contextlib.closing(source.open().reader) as reader:
                spans = {p: log_span(reader, p, self.range_messages) for p in reader.partitions()}
                found[LOG_NAMES[log]] = {
                    "incarnation": reader.incarnation(),
                    "spans": [[p, *astuple(span)] for p, span in spans.items()],
                }
        return found

    def partitions(self, listing: Mapping[str, Any]) -> dict[tuple[int, int], str]:
        """(log, partition) -> incarnation, of the inputs that are logs."""
        found = {}
        for log in self.sources:
            listed = listing[LOG_NAMES[log]]
            for partition, *_ in listed.get("spans", []):
                found[log, partition] = str(listed["incarnation"])
        return found

    def ranges(self, listing: Mapping[str, Any]) -> Sequence[InputRange]:
        """The ranges of what was listed.

        Raises:
            LogError: a log is another one than it was.
        """
        ranges: list[InputRange] = []
        for log, source in self.sources.items():
            listed = listing[LOG_NAMES[log]]
            if isinstance(source, FileInput):
                ranges += source.ranges(log, [(path, size) for path, size in listed["files"]])
                continue
            with contextlib.closing(source.open().reader) as reader:
                incarnation = reader.incarnation()
            if incarnation != listed["incarnation"]:
                raise LogError(
                    f"expected the {LOG_NAMES[log]} log of incarnation {listed['incarnation']}, found "
                    f"{incarnation}: it was recreated; begin the backfill anew with --restart"
                )
            spans = {p: LogSpan(*span) for p, *span in listed["spans"]}
            ranges += log_ranges(source, log, incarnation, spans)
        return ranges


def _files(job: JobSpec, spec: FilesSpec, schema: EventSchema, name: str) -> FileInput:
    until_us = None
    if spec.append_until is not None:
        until = spec.append_until if spec.append_until.tzinfo else spec.append_until.replace(tzinfo=UTC)
        until_us = int(until.timestamp() * 1_000_000)
    return FileInput(
        pattern=spec.files if "://" in spec.files else str(job.dir / spec.files),
        format=spec.format,
        layout=spec.layout,
        columns=PlaceColumns(spec.partition, spec.offset, spec.row, spec.append, spec.value),
        schema=schema,
        name=name,
        append_until_us=until_us,
    )
