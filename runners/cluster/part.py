"""What a part of the cluster is: a process, how to start it, and how to know that it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cuckooflow.runners.cluster.processes import Command


@dataclass(frozen=True)
class Place:
    """Where a cluster lives.

    Attributes:
        folder: of configuration, data, logs and pid files; absolute.
        cache: of downloads; absolute.
        ports: name -> port on loopback, chosen once for a folder, so that a part comes back where it was.
    """

    folder: Path
    cache: Path
    ports: Mapping[str, int]


class Part(ABC):
    """One process of the cluster. Stateless: everything is in the place that it is handed."""

    name: ClassVar[str]
    #: Names of the ports that it listens on; the first one's number is part of its address.
    ports: ClassVar[tuple[str, ...]]
    #: How long it may take from its start until it answers.
    ready_timeout_s: ClassVar[float]

    @abstractmethod
    def command(self, place: Place) -> Command:
        """Fetch and write whatever the process needs, and say how to start it. May be called again."""

    @abstractmethod
    def answers(self, place: Place) -> bool:
        """Whether it does its work now; no longer than a few seconds."""

    @abstractmethod
    def address(self, place: Place) -> str:
        """What a client is given."""
