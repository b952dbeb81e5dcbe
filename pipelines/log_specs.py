"""Where a job's logs lie, as its spec says: a folder, a topic, a subscription or files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from cuckooflow.logs.address import KafkaAddress
from cuckooflow.logs.pubsub_address import PubSubAddress
from cuckooflow.transforms.files_address import FilesAddress


class Section(BaseModel):
    """A part of the spec: unknown keys are faults, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LocalLogSpec(Section):
    """A local log.

    Attributes:
        path: its folder, relative to the job's ``dir``.
        partitions: how many it is created with where it does not exist yet, default 1; an existing
            log keeps its own. More partitions let more writers and readers work side by side.
    """

    path: Path
    partitions: int = Field(default=1, ge=1, le=1024)


class KafkaLogSpec(Section):
    """A Kafka topic, which the job creates where it is not there and it may.

    Attributes:
        kafka: where it lies, see :class:`~cuckooflow.logs.address.KafkaAddress`. Of the examples log,
            ``partitions`` is how many it has, for good.
    """

    kafka: KafkaAddress


class PubSubLogSpec(Section):
    """A Pub/Sub subscription, for impressions or actions alone: what was acknowledged cannot be read again.

    Attributes:
        pubsub: where it lies, see :class:`~cuckooflow.logs.pubsub_address.PubSubAddress`.
    """

    pubsub: PubSubAddress


class FilesLogSpec(Section):
    """Files, those that come while the job runs included, for impressions or actions alone: nothing is written to them.

    Attributes:
        files: which, and how they are read, see :class:`~cuckooflow.transforms.files_address.FilesAddress`.
    """

    files: FilesAddress


#: How a fault's location names the kind of a log, and what it then is.
LOG_KINDS: Mapping[str, type[Section]] = {
    "(folder)": LocalLogSpec,
    "(topic)": KafkaLogSpec,
    "(subscription)": PubSubLogSpec,
    "(files)": FilesLogSpec,
}
#: The key that only one kind of log has.
_KIND_KEYS = {"kafka": "(topic)", "pubsub": "(subscription)", "files": "(files)"}


def _log_kind(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return next((kind for key, kind in _KIND_KEYS.items() if key in value), "(folder)")
    return next((kind for kind, of_kind in LOG_KINDS.items() if isinstance(value, of_kind)), None)


LogSpec = Annotated[
    Annotated[LocalLogSpec, Tag("(folder)")] | Annotated[KafkaLogSpec, Tag("(topic)")],
    Discriminator(
        _log_kind,
        custom_error_type="log_kind",
        custom_error_message="a mapping with path, a folder, or with kafka, a topic; a Pub/Sub subscription, which "
        "keeps no message that was acknowledged, and files may be impressions and actions only",
    ),
]
InputSpec = Annotated[
    Annotated[LocalLogSpec, Tag("(folder)")]
    | Annotated[KafkaLogSpec, Tag("(topic)")]
    | Annotated[PubSubLogSpec, Tag("(subscription)")]
    | Annotated[FilesLogSpec, Tag("(files)")],
    Discriminator(
        _log_kind,
        custom_error_type="log_kind",
        custom_error_message="a mapping with path, a folder, with kafka, a topic, with pubsub, a subscription, or with "
        "files",
    ),
]
