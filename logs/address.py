"""Where a log lies: a local folder or a Kafka topic. Addresses travel to workers; readers and writers do not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cuckooflow.errors import SpecError
from cuckooflow.logs.client_properties import Value, check_properties
from cuckooflow.logs.contract import LogReader, LogWriter
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.logs.segment import Encoding

KAFKA_SCHEME = "kafka"


@dataclass(frozen=True)
class LocalAddress:
    """A local log.

    Attributes:
        path: its folder.
        partitions: how many it is created with; an existing log keeps its own.
    """

    path: Path
    partitions: int = 1

    @property
    def name(self) -> str:
        """The log's name; for a log that is not there, the folder's."""
        return LocalLog.open(self.path).name if (self.path / "meta.json").exists() else self.path.name

    def holds_any_bytes(self) -> bool:
        """Whether a message may hold line breaks.

        Raises:
            LogNotFound: no log is there.
        """
        return LocalLog.open(self.path).encoding == "frames"

    def open_reader(self) -> LogReader:
        """Open it for reading.

        Raises:
            LogNotFound: no log is there.
        """
        return LocalLog.open(self.path)

    def open_writer(self, partitions: list[int] | None = None) -> LogWriter:
        """Open it for writing, all partitions or these.

        Raises:
            LogNotFound: no log is there.
            LogLocked: another process writes it.
        """
        return LocalLogWriter(self.path, partitions)

    def create_missing(self, encoding: Encoding = "frames") -> LogReader:
        """Create it, unless it is there."""
        return LocalLog.create(self.path, self.partitions, encoding, exist_ok=True)

    def create(self, encoding: Encoding = "frames") -> LogReader:
        """Create it.

        Raises:
            LogError: something is there.
        """
        return LocalLog.create(self.path, self.partitions, encoding)

    def resolved(self) -> LocalAddress:
        """The same log, whatever the working folder."""
        return LocalAddress(self.path.resolve(), self.partitions)

    def __str__(self) -> str:
        return str(self.path)


class KafkaAddress(BaseModel):
    """A Kafka topic.

    Attributes:
        bootstrap: brokers to ask first, ``host:port`` with commas between.
        topic: its name, which is the log's.
        partitions: how many it is created with, default 1; more let more readers and writers work side by
            side. Of an examples log it is also how many it must have.
        replication: copies that it is created with, default what the cluster says.
        config: the topic's configuration at creation, as ``{retention.ms: "604800000"}``.
        client: properties of the client, see :mod:`cuckooflow.logs.client_properties`; SASL and TLS are
            among them.
        library: ``kafka-python`` (default) or ``confluent-kafka``, which is faster for small messages and an
            extra: ``pip install 'cuckooflow[confluent]'``.
        group: consumer group whose offsets follow the reader, for lag tools; default none. Nothing is ever
            read from where they stand.
        read_timeout_s: how long a call may wait for a broker before it is unavailable, default 10 s.
        write_timeout_s: how long messages may wait for their acknowledgement, retries included, default 2
            minutes. Costs that long a wait where a broker is gone for good.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bootstrap: str = Field(pattern=r"^[^,\s:/]+:\d{1,5}(,[^,\s:/]+:\d{1,5})*$")
    topic: str = Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")
    partitions: int = Field(default=1, ge=1, le=1024)
    replication: int | None = Field(default=None, ge=1, le=32)
    config: dict[str, str] = Field(default={})
    client: dict[str, Value] = Field(default={}, repr=False)
    library: Literal["kafka-python", "confluent-kafka"] = "kafka-python"
    group: str | None = Field(default=None, min_length=1, max_length=249)
    read_timeout_s: float = Field(default=10.0, gt=0.0, le=600.0)
    write_timeout_s: float = Field(default=120.0, gt=0.0, le=3600.0)

    @field_validator("config", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """YAML reads 604800000 as a number."""
        if not isinstance(value, Mapping):
            return value
        return {
            str(k): str(v).lower() if isinstance(v, bool) else str(v) if isinstance(v, int | float) else v
            for k, v in value.items()
        }

    @field_validator("client", mode="before")
    @classmethod
    def _checked(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        wrong = [name for name, entry in value.items() if not isinstance(entry, str | int | float | bool)]
        if wrong:
            raise ValueError(f"a text, a number, true or false for {', '.join(map(str, wrong))}")
        try:
            check_properties(value)
        except SpecError as error:
            raise ValueError(str(error)) from None
        return value

    def __hash__(self) -> int:
        return hash((self.bootstrap, self.topic, self.library))

    @property
    def name(self) -> str:
        """The log's name."""
        return self.topic

    def holds_any_bytes(self) -> bool:
        """Whether a message may hold line breaks: always."""
        return True

    def open_reader(self) -> LogReader:
        """Open it for reading.

        Raises:
            LogNotFound: no such topic.
            LogUnavailable: no broker answers.
            SpecError: a client property is wrong, or the library is not installed.
        """
        from cuckooflow.logs.kafka_log import KafkaLogReader

        return KafkaLogReader(self)

    def open_writer(self, partitions: list[int] | None = None) -> LogWriter:  # noqa: ARG002
        """Open it for writing; a topic takes many writers, so none is locked.

        Raises:
            LogNotFound, LogUnavailable, SpecError: as :meth:`open_reader`.
        """
        from cuckooflow.logs.kafka_log import KafkaLogWriter

        return KafkaLogWriter(self)

    def create_missing(self, encoding: Encoding = "frames") -> LogReader:  # noqa: ARG002
        """Create the topic, unless it is there. A topic holds any bytes, whatever ``encoding`` says.

        Raises:
            LogUnavailable: no broker answers.
            LogError: the cluster refused.
        """
        from cuckooflow.logs.kafka_log import create_topic

        create_topic(self)
        return self.open_reader()

    def create(self, encoding: Encoding = "frames") -> LogReader:  # noqa: ARG002
        """Create the topic.

        Raises:
            LogError: it is there already, or the cluster refused.
        """
        from cuckooflow.errors import LogError
        from cuckooflow.logs.kafka_log import create_topic

        if not create_topic(self):
            raise LogError(f"expected no topic {self}, found one; use it, or delete it to start anew")
        return self.open_reader()

    def resolved(self) -> KafkaAddress:
        """Itself."""
        return self

    def __str__(self) -> str:
        return f"{KAFKA_SCHEME}://{self.bootstrap}/{quote(self.topic)}"


LogAddress = LocalAddress | KafkaAddress


def to_address(place: LogAddress | str | os.PathLike[str]) -> LogAddress:
    """An address as it is, a local folder, or ``kafka://host:port,host:port/topic?partitions=8``.

    What stands after the question mark are fields of :class:`KafkaAddress`; ``client.NAME=value`` and
    ``config.NAME=value`` give entries of theirs.

    >>> str(to_address("kafka://localhost:9092/clicks?partitions=4&client.security.protocol=SSL"))
    'kafka://localhost:9092/clicks'

    Raises:
        SpecError: it is none of these.
    """
    if isinstance(place, LocalAddress | KafkaAddress):
        return place
    if not isinstance(place, str) or "://" not in place:
        return LocalAddress(Path(place))
    parts = urlsplit(place)
    if parts.scheme != KAFKA_SCHEME:
        raise SpecError(f"expected a folder or kafka://host:port/topic, received the scheme {parts.scheme!r}")
    fields: dict[str, object] = {"bootstrap": parts.netloc, "topic": unquote(parts.path.strip("/"))}
    nested: dict[str, dict[str, str]] = {"client": {}, "config": {}}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        kind, _, entry = name.partition(".")
        if kind in nested and entry:
            nested[kind][entry] = value
        else:
            fields[name] = value
    try:
        return KafkaAddress.model_validate({**fields, **nested})
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            for fault in error.errors(include_input=False)
        )
        raise SpecError(f"expected kafka://host:port/topic, received one with faults: {faults}") from None
