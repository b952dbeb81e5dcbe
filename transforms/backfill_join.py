"""RunTasks: the tasks of one phase of a backfill as a Beam transform, for any runner in batch mode.

Only descriptors travel through the runner; rows lie in files. So the runner's shuffle, which the in-process
one keeps in memory, stays small, and a task's memory is the bound of a worker's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics

import cuckooflow
from cuckooflow.errors import CuckooflowError, FilesNotShared
from cuckooflow.transforms.backfill_tasks import BackfillOptions, Task
from cuckooflow.transforms.whole_files import read_whole


@dataclass(frozen=True)
class RunMark:
    """What a worker must find where the submitter wrote it, or the two do not share their files.

    Attributes:
        path: of a JSON file of the run.
        run: what the file says under ``run``.
    """

    path: str
    run: str

    def check(self) -> None:
        """Look.

        Raises:
            FilesNotShared: it is not there.
        """
        blob = read_whole(self.path)
        found = None if blob is None else json.loads(blob)["run"]
        if found != self.run:
            raise FilesNotShared(
                f"expected the file {self.path} of run {self.run} on this worker, as the submitter wrote it, found "
                f"{'no such file' if found is None else f'that of run {found}'}; let --out, and inputs that are "
                f"files, lie on a file system that all workers mount at the same path, or at an address such as gs://"
            )


class RunTasks(beam.PTransform):
    """Pipeline -> names of the ``done`` files of the tasks that were run, in any order.

    Args:
        tasks: of one phase; those that are done already are left alone.
        options: of the backfill.
        mark: of the run that the tasks are of.
    """

    def __init__(self, tasks: Sequence[Task], options: BackfillOptions, mark: RunMark) -> None:
        super().__init__()
        self._tasks = list(tasks)
        self._options = options
        self._mark = mark

    def expand(self, begin: Any) -> Any:
        tasks = begin | "Tasks" >> beam.Create(self._tasks)
        run = beam.ParDo(_Run(self._options, self._mark, cuckooflow.__version__)).with_output_types(str)
        return tasks | "Spread" >> beam.Reshuffle() | "Run" >> run


class _Run(beam.DoFn):
    def __init__(self, options: BackfillOptions, mark: RunMark, version: str) -> None:
        self._options = options
        self._mark = mark
        self._version = version
        self._done = Metrics.counter("cuckooflow", "backfill_tasks_done")

    def setup(self) -> None:
        if self._version != cuckooflow.__version__:
            raise CuckooflowError(
                f"expected cuckooflow {self._version} on this worker, as on the submitter, received "
                f"{cuckooflow.__version__}; install the submitter's version"
            )
        self._mark.check()

    def process(self, task: Task) -> Iterator[str]:
        """Run a task, unless a bundle that failed later had done it."""
        if not FileSystems.exists(task.done):
            task.run(self._options)
        self._done.inc()
        yield task.done
