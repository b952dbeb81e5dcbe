"""Where a cluster lives: its folder, its ports, and what it was asked to be. Kept in ``cluster.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cuckooflow.errors import SpecError

_FILE = "cluster.json"


@dataclass(frozen=True)
class ClusterOptions:
    """What a cluster may be asked to be.

    Attributes:
        task_slots: how many subtasks the TaskManager takes, default 4; a job of parallelism n needs n.
            The managed memory is dealt out among them.
        job_server_jar: Beam's job server, default the one merged from Maven's jars. An official jar of a
            newer Beam goes here.
        worker_python: the interpreter whose environment the Python workers run in; default a wheel's of this
            checkout, or this interpreter where cuckooflow is installed from a wheel.
    """

    task_slots: int = 4
    job_server_jar: Path | None = None
    worker_python: Path | None = None

    def __post_init__(self) -> None:
        if self.task_slots < 1:
            raise SpecError(f"expected one task slot or more, received {self.task_slots}")
        for name, path in (
            ("job server jar", self.job_server_jar),
            ("worker interpreter", self.worker_python),
        ):
            if path is not None and not path.is_file():
                raise SpecError(f"expected a {name}, found no file {path}")


@dataclass(frozen=True)
class Place:
    """Where a cluster lives.

    Attributes:
        folder: of configuration, data, logs and pid files; absolute.
        cache: of downloads; absolute.
        ports: name -> port on loopback, chosen once for a folder, so that a part comes back where it was.
        options: as it was asked to be.
    """

    folder: Path
    cache: Path
    ports: Mapping[str, int] = field(default_factory=dict)
    options: ClusterOptions = ClusterOptions()

    @classmethod
    def load(cls, folder: Path, cache: Path) -> Place:
        """As :meth:`save` left it; without ports where there is none yet."""
        file = folder / _FILE
        if not file.exists():
            return cls(folder, cache)
        kept: dict[str, Any] = json.loads(file.read_text())
        options: dict[str, Any] = {
            name: Path(value) if isinstance(value, str) else value for name, value in kept["options"].items()
        }
        return cls(folder, cache, kept["ports"], ClusterOptions(**options))

    def save(self) -> None:
        """Keep for those who come later."""
        kept = {"ports": dict(self.ports), "options": asdict(self.options)}
        beside = self.folder / f".{_FILE}.tmp"
        beside.write_text(json.dumps(kept, indent=2, default=str))
        beside.rename(self.folder / _FILE)

    def with_ports(self, ports: Mapping[str, int]) -> Place:
        """The same, with other ports."""
        return replace(self, ports=ports)
