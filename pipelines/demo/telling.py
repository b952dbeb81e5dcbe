"""Tells one user's story while the demo runs: the ranking before that user came, and once the likes are served."""

from __future__ import annotations

import os
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from cuckooflow.errors import NoSnapshot, ScorerUnavailable
from cuckooflow.logs.address import LogAddress, to_address
from cuckooflow.logs.contract import Position
from cuckooflow.pipelines.demo.exposures import Exposures
from cuckooflow.pipelines.demo.progress import Observed
from cuckooflow.pipelines.demo.replay import Replay
from cuckooflow.pipelines.demo.story import Ranking, Story, Told, instances
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.serving.client import ScorerClient
from cuckooflow.transforms.examples_reader import ExamplesReader

#: Looks at the ranking before the user comes are this far apart, and begin this share of the replay before.
_BEFORE_EVERY_US = 500_000
_BEFORE_SHARE = 0.1
_ROWS_READ = 65_536


class LikedExamples:
    """Finds the examples of some impressions in the examples log as it grows.

    Args:
        place: where the log lies.
        keys: (request, item) of the impressions.

    Attributes:
        log: the log's name.
        ends: partition -> the position of the last one found in it.
    """

    def __init__(self, place: LogAddress | str | os.PathLike[str], keys: set[tuple[str, str]]) -> None:
        log = to_address(place).open_reader()
        self.log = log.name
        self.ends: dict[int, Position] = {}
        self._missing = set(keys)
        self._requests = pa.array(sorted({request for request, _ in keys}), pa.string())
        self._reader = ExamplesReader(log, dedupe_rows=0)
        self._at = {partition: Position(log.end_offset(partition)) for partition in log.partitions()}

    @property
    def complete(self) -> bool:
        """Whether all were found."""
        return not self._missing

    def look(self) -> None:
        """Read what was appended since the last call."""
        for partition, first in self._at.items():
            batch, header = self._reader.read(partition, first, max_rows=_ROWS_READ)
            self._at[partition] = header.range.last
            if not batch.num_rows:
                continue
            for row in batch.filter(pc.is_in(batch["request_id"], self._requests)).to_pylist():
                key = (row["request_id"], row["item_id"])
                if key in self._missing:
                    self._missing.remove(key)
                    self.ends[partition] = Position(row["_offset"], row["_row"])

    def learned(self, marks: dict[int, Position]) -> bool:
        """Whether all were found, and a store that stands at these marks has trained them."""
        return self.complete and all(marks.get(p, Position(0)) > end for p, end in self.ends.items())


class Telling:
    """Watches for the moments of a story. Call :meth:`look` often.

    Args:
        job: whose examples log is read.
        shown: what is replayed.
        story: the user's.
        scorer: a client of the job's scorer.
        clock_us: the wall clock.

    Attributes:
        told: the story with both rankings, once it is told.
    """

    def __init__(
        self,
        job: JobSpec,
        shown: Exposures,
        story: Story,
        scorer: ScorerClient,
        clock_us: Callable[[], int],
    ) -> None:
        self._examples_log = job.address(job.logs.examples)
        self._shown = shown
        self._story = story
        self._scorer = scorer
        self._clock_us = clock_us
        self._before: Ranking | None = None
        self._liked: LikedExamples | None = None
        self.told: Told | None = None

    def look(self, replay: Replay, observed: Observed) -> bool:
        """Ask for a ranking where it is time to; whether the story was told just now."""
        if self.told is not None or not observed.served:
            return False
        if replay.appended_us(self._story.first_us) is None:
            self._rank_before(replay)
            return False
        if self._liked is None:
            self._liked = LikedExamples(self._examples_log, self._story.liked_keys(self._shown))
        self._liked.look()
        served = observed.manifests.get(observed.served[-1].sequence)
        appended_us = replay.appended_us(self._story.last_like_us)
        if (
            self._before is None
            or appended_us is None
            or served is None
            or not self._liked.learned(served.marks.get(self._liked.log, {}))
        ):
            return False
        after = self._rank()
        if after is not None:
            seconds = (after.at_us - appended_us) / 1e6
            self.told = Told(self._story, self._before, after, seconds)
        return after is not None

    def _rank_before(self, replay: Replay) -> None:
        last_us = self._before.at_us if self._before is not None else 0
        soon = replay.event_time_at(max(0.0, replay.fraction - _BEFORE_SHARE)) < self._story.first_us
        if soon and self._clock_us() - last_us >= _BEFORE_EVERY_US:
            self._before = self._rank() or self._before

    def _rank(self) -> Ranking | None:
        try:
            answer = self._scorer.predict(instances(self._shown, self._story))
        except (NoSnapshot, ScorerUnavailable):
            return None
        return Ranking(answer.model_version, self._clock_us(), tuple(float(score) for score in answer.values))
