"""The Python worker pool: Flink asks it for a worker process whenever a job begins or comes back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cuckooflow.errors import ToolMissing
from cuckooflow.runners.cluster.part import Part
from cuckooflow.runners.cluster.place import Place
from cuckooflow.runners.cluster.ports import LOOPBACK, accepts
from cuckooflow.runners.cluster.processes import Command
from cuckooflow.runners.cluster.wheel_venv import checkout, wheel_venv

#: The program in the workers' environment.
POOL = "cuckooflow-worker-pool"


def worker_python(place: Place) -> Path:
    """The interpreter whose environment the workers run in: the given one, a wheel's, or this one."""
    if place.options.worker_python is not None:
        return place.options.worker_python
    root = checkout()
    return wheel_venv(place.cache, root) / "bin" / "python" if root is not None else Path(sys.executable)


class Workers(Part):
    name = "workers"
    ports = ("worker-pool",)
    ready_timeout_s = 60.0

    def command(self, place: Place) -> Command:
        empty = place.folder / self.name / "empty"
        empty.mkdir(parents=True, exist_ok=True)
        python = worker_python(place)
        pool = python.parent / POOL
        if not pool.is_file():
            raise ToolMissing(
                f"expected {POOL} beside {python}, found none; install 'cuckooflow[pipelines]' there"
            )
        words = [str(pool), "--listen", self.address(place)]
        variables = {
            "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)]),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONNOUSERSITE": "1",
            "PYTHONPATH": None,
            "PYTHONHOME": None,
            "VIRTUAL_ENV": None,
        }
        return Command(words, empty, variables)

    def fetch(self, place: Place) -> None:
        worker_python(place)

    def answers(self, place: Place) -> bool:
        return accepts(place.ports["worker-pool"])

    def address(self, place: Place) -> str:
        return f"{LOOPBACK}:{place.ports['worker-pool']}"
