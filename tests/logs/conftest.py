"""Logs of every kind: a folder, and topics on a real broker through both client libraries."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cuckooflow.logs.address import KafkaAddress, LocalAddress, LogAddress

LIBRARIES = ("kafka-python", "confluent-kafka")
_kafka = [pytest.param(library, marks=pytest.mark.cluster) for library in LIBRARIES]

MakeTopic = Callable[..., KafkaAddress]
MakeLog = Callable[..., LogAddress]


@pytest.fixture(params=_kafka)
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def topic(kafka: str) -> MakeTopic:
    """An address of a topic of its own: ``topic(library, partitions=3)``; not created yet."""

    def make(library: str, partitions: int = 1, **more: Any) -> KafkaAddress:
        name = f"t-{uuid.uuid4().hex}"
        fields: dict[str, Any] = {
            "bootstrap": kafka,
            "topic": name,
            "partitions": partitions,
            "library": library,
        }
        return KafkaAddress(**{**fields, **more})

    return make


@pytest.fixture(params=["local", *_kafka])
def new_log(request: pytest.FixtureRequest, tmp_path: Path) -> MakeLog:
    """An address of a log of each kind, which is not there yet: ``new_log(partitions=3)``."""
    if request.param == "local":
        numbers = itertools.count()
        return lambda partitions=1, **_: LocalAddress(tmp_path / f"log-{next(numbers)}", partitions)
    make: MakeTopic = request.getfixturevalue("topic")
    return lambda partitions=1, **more: make(request.param, partitions, **more)
