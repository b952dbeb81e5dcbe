"""What a part of the cluster is: a process, how to start it, and how to know that it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from cuckooflow.runners.cluster.place import Place
from cuckooflow.runners.cluster.processes import Command


class Part(ABC):
    """One process of the cluster. Stateless: everything is in the place that it is handed."""

    name: ClassVar[str]
    #: Names of the ports that it listens on.
    ports: ClassVar[tuple[str, ...]]
    #: Names of the parts that it cannot do without.
    needs: ClassVar[tuple[str, ...]] = ()
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

    @abstractmethod
    def fetch(self, place: Place) -> None:
        """Have everything in the cache that :meth:`command` will want.

        Raises:
            ClusterError: something could not be had.
        """
