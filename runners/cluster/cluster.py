"""The local cluster: its parts as processes that live on after the program that started them.

Everything is in one folder: ``cluster.json`` (ports), ``pids/PART.pid``, ``logs/PART.log``, and a
folder of configuration and data for each part. What was started is ended by :meth:`LocalCluster.down`
and by nothing else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cuckooflow.errors import PartFailed, SpecError
from cuckooflow.runners.cluster.cache import default_cache, locked
from cuckooflow.runners.cluster.flink import JobManager, TaskManager
from cuckooflow.runners.cluster.job_server import JobServer
from cuckooflow.runners.cluster.kafka import Kafka
from cuckooflow.runners.cluster.part import Part
from cuckooflow.runners.cluster.place import ClusterOptions, Place
from cuckooflow.runners.cluster.ports import free_port, is_free
from cuckooflow.runners.cluster.processes import Started, start
from cuckooflow.runners.cluster.workers import Workers

_LOGGER = logging.getLogger(__name__)

#: In the order of their start; they are stopped in the reverse one.
_PARTS: tuple[Part, ...] = (Kafka(), JobManager(), TaskManager(), JobServer(), Workers())
ALL_PARTS: tuple[str, ...] = tuple(part.name for part in _PARTS)

#: Of the commands, in the folder where they are given.
DEFAULT_FOLDER = Path("cluster-run")

_POLL_S = 0.1
#: What takes longer to fetch is told when it is there.
_TOLD_S = 2.0
_LOG_TAIL_LINES = 15

State = Literal["up", "silent", "dead", "down"]


@dataclass(frozen=True)
class ClusterAddresses:
    """Where clients reach the parts; None for a part that was never started.

    Attributes:
        kafka: bootstrap servers, ``host:port``.
        flink_rest: the JobManager's REST address, ``http://host:port``.
        job_endpoint: of Beam's job server, ``host:port``.
        worker_pool: of the Python worker pool, ``host:port``.
    """

    kafka: str | None = None
    flink_rest: str | None = None
    job_endpoint: str | None = None
    worker_pool: str | None = None


@dataclass(frozen=True)
class PartStatus:
    """How a part is.

    Attributes:
        name: of the part.
        state: ``up``: runs and answers; ``silent``: runs but does not answer; ``dead``: was started
            and has ended without being asked to; ``down``: is not started.
        pid: of the process, while it runs.
        address: what a client is given; None while it is down.
        log: file of its output, kept over restarts.
    """

    name: str
    state: State
    pid: int | None
    address: str | None
    log: Path


class LocalCluster:
    """The cluster in a folder.

    Args:
        folder: of this cluster; made when it is not there.
        cache: of downloads, default :func:`default_cache`.
        options: default those that the folder's cluster was started with, else as they say. They hold for
            parts that are started from now on.
        on_event: told what takes time, one line each; default a log line.

    Several objects, also in other processes, may stand for the same folder; starts and stops wait for each other.
    """

    def __init__(
        self,
        folder: Path,
        cache: Path | None = None,
        options: ClusterOptions | None = None,
        on_event: Callable[[str], None] = _LOGGER.info,
    ) -> None:
        self._folder = folder.resolve()
        self._cache = (cache or default_cache()).resolve()
        self._options = options
        self._on_event = on_event

    @property
    def folder(self) -> Path:
        """Where it lives; absolute."""
        return self._folder

    def up(self, parts: Sequence[str] = ALL_PARTS) -> ClusterAddresses:
        """Start those of ``parts`` that do not run, and wait until all of them answer.

        Raises:
            SpecError: there is no such part, or one of them needs another that neither runs nor is named.
            PartFailed: a part ended, or did not answer within its bound; its log is kept.
            ClusterError: what a part needs could not be had.
        """
        wanted = self._named(parts)
        with self._locked():
            place = self._place()
            missing = [part for part in wanted if self._running(part) is None]
            self._fetch(missing, place)  # before anything is started: it may take minutes
            for part in missing:
                started = start(part.command(place), self._log(part))
                started.save(self._pid_file(part))
                self._on_event(f"{part.name} pid={started.pid} started")
            for part in wanted:
                self._wait(part, place)
        return self.addresses()

    def start(self, part: str) -> None:
        """Start one part, as :meth:`up` does, in the place where it was before."""
        self.up([part])

    def fetch(self, parts: Sequence[str] = ALL_PARTS) -> None:
        """Have in the cache whatever ``parts`` need; start nothing.

        Raises:
            ClusterError: something could not be had.
        """
        self._fetch(self._named(parts, alone=True), self._loaded())

    def down(self) -> None:
        """End every part that was started here, the last started first. Idempotent; data and logs stay."""
        if not self._folder.is_dir():
            return
        with self._locked():
            for part in reversed(_PARTS):
                started = Started.load(self._pid_file(part))
                if started is not None:
                    started.stop()
                    self._pid_file(part).unlink()

    def status(self) -> list[PartStatus]:
        """How every part is, in the order of their start."""
        place = self._loaded()
        return [self._status(part, place) for part in _PARTS]

    def addresses(self) -> ClusterAddresses:
        """Where the parts that were started are reached."""
        place = self._loaded()
        found = {
            part.name: part.address(place)
            for part in _PARTS
            if Started.load(self._pid_file(part)) is not None
        }
        return ClusterAddresses(
            kafka=found.get("kafka"),
            flink_rest=found.get("jobmanager"),
            job_endpoint=found.get("jobserver"),
            worker_pool=found.get("workers"),
        )

    def pid(self, part: str) -> int:
        """The process id of a part that runs.

        Raises:
            PartFailed: it does not run.
        """
        (wanted,) = self._named([part], alone=True)
        started = self._running(wanted)
        if started is None:
            raise PartFailed(
                f"{part}: expected it to run, it does not; start it, or read {self._log(wanted)}"
            )
        return started.pid

    def worker_pids(self) -> list[int]:
        """The process ids of the Python workers that the pool has started and that still run."""
        (pool,) = self._named(["workers"], alone=True)
        started = Started.load(self._pid_file(pool))
        return [] if started is None else started.children()

    # --- parts

    def _named(self, names: Sequence[str], alone: bool = False) -> list[Part]:
        unknown = [name for name in names if name not in ALL_PARTS]
        if unknown:
            raise SpecError(f"expected parts among {', '.join(ALL_PARTS)}, received {', '.join(unknown)}")
        wanted = [part for part in _PARTS if part.name in names]
        have = {*names, *(part.name for part in _PARTS if self._running(part) is not None)}
        for part in wanted if not alone else ():
            lacking = [name for name in part.needs if name not in have]
            if lacking:
                raise SpecError(
                    f"{part.name} needs {', '.join(lacking)}: expected it among the parts or running, received "
                    f"{', '.join(names)}"
                )
        return wanted

    def _fetch(self, parts: Sequence[Part], place: Place) -> None:
        for part in parts:
            begun = time.monotonic()
            self._on_event(f"{part.name}: looking for what it needs in {place.cache}")
            part.fetch(place)
            if time.monotonic() - begun > _TOLD_S:
                self._on_event(f"{part.name}: had it in {time.monotonic() - begun:.0f} s")

    def _running(self, part: Part) -> Started | None:
        started = Started.load(self._pid_file(part))
        return started if started is not None and started.lives() else None

    def _status(self, part: Part, place: Place) -> PartStatus:
        log = self._log(part)
        if Started.load(self._pid_file(part)) is None:
            return PartStatus(part.name, "down", None, None, log)
        running = self._running(part)
        if running is None:
            return PartStatus(part.name, "dead", None, part.address(place), log)
        state: State = "up" if part.answers(place) else "silent"
        return PartStatus(part.name, state, running.pid, part.address(place), log)

    def _wait(self, part: Part, place: Place) -> None:
        deadline = time.monotonic() + part.ready_timeout_s
        while not part.answers(place):
            if self._running(part) is None:
                raise PartFailed(f"{part.name} ended before it answered; {self._said(part)}")
            if time.monotonic() > deadline:
                raise PartFailed(
                    f"{part.name}: expected an answer within {part.ready_timeout_s:g} s; {self._said(part)}"
                )
            time.sleep(_POLL_S)

    def _said(self, part: Part) -> str:
        lines = self._log(part).read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return "\n".join([f"its log {self._log(part)} ends with:", *lines])

    # --- the folder

    def _locked(self) -> AbstractContextManager[None]:
        for name in ("pids", "logs"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        return locked(self._folder / "lock")

    def _pid_file(self, part: Part) -> Path:
        return self._folder / "pids" / f"{part.name}.pid"

    def _log(self, part: Part) -> Path:
        return self._folder / "logs" / f"{part.name}.log"

    def _loaded(self) -> Place:
        place = Place.load(self._folder, self._cache)
        return place if self._options is None else replace(place, options=self._options)

    def _place(self) -> Place:
        """With a port for everything that may listen; new ones where another program took the old."""
        place = self._loaded()
        ports = dict(place.ports)
        if not any(self._running(part) for part in _PARTS):
            ports = {name: port for name, port in ports.items() if is_free(port)}
        for name in (name for part in _PARTS for name in part.ports):
            if name not in ports:
                ports[name] = free_port(ports.values())
        place = place.with_ports(ports)
        place.save()
        return place
