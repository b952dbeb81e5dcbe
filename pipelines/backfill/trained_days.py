"""Which run made each day that a store was trained on, kept in the job's folder as ``trained_days.json``.

The rows of a backfill's day have positions of its run: made anew, a position names another row. A day of which the
store has trained a part must stay as it was; one that is untouched, or trained to its end, may be made anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cuckooflow.embedding_store.durable import write_durably
from cuckooflow.errors import DayMadeAnew, SpecError
from cuckooflow.logs.contract import Position
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.transforms.day_log import DayLog, day_range

_FILE = "trained_days.json"


@dataclass(frozen=True)
class TrainedDays:
    """The file.

    Attributes:
        path: where it lies.
        num_shards: of the job's join, from which a day's positions follow.
    """

    path: Path
    num_shards: int

    @classmethod
    def of(cls, job: JobSpec) -> TrainedDays:
        """That of a job."""
        return cls(job.path(Path(_FILE)), job.join.num_shards)

    def check(self, days: DayLog, marks: Mapping[int, tuple[Position, ...]]) -> None:
        """Note which run made each day, before any of it is trained.

        Args:
            marks: the store's, of the log of the days.

        Raises:
            DayMadeAnew: another run made a day of which the store has trained a part.
            SpecError: the file is damaged.
        """
        known = self._read()
        noted = dict(known)
        all_marks = [mark for of_partition in marks.values() for mark in of_partition]
        for day, run in sorted(days.runs.items()):
            first, end = day_range(day, self.num_shards)
            name = f"{days.log} {day.isoformat()}"
            if all(mark <= first for mark in all_marks):
                noted[name] = run
            elif any(mark < end for mark in all_marks) and noted.setdefault(name, run) != run:
                raise DayMadeAnew(
                    f"expected {day} in {days.out} as run {noted[name]} made it, since the store has trained a part of "
                    f"it, found it made anew by run {run}; put the old files back, or take the store back to before "
                    "the day with cuckooflow train rewind"
                )
        if noted != known:
            write_durably(self.path, json.dumps(noted, indent=1, sort_keys=True).encode())

    def _read(self) -> dict[str, str]:
        try:
            body = json.loads(self.path.read_text())
            return {str(day): str(run) for day, run in body.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError) as error:
            raise SpecError(
                f"{self.path}: expected which run made each day, received something else ({error}); mend or remove it"
            ) from None
