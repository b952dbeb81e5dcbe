"""Follows one user's story through a running job: when to ask for the ranking before, and when after.

After means: the scorer serves a version whose marks have passed every example of the user's sitting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cuckooflow.errors import NoSnapshot, ScorerUnavailable
from cuckooflow.logs.contract import Position
from cuckooflow.logs.local_log import LocalLog
from cuckooflow.pipelines.demo.exposures import Exposures
from cuckooflow.pipelines.demo.progress import Observed
from cuckooflow.pipelines.demo.replay import Replay
from cuckooflow.pipelines.demo.story import Ranking, Story, Told, instances
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.serving.client import ScorerClient

#: The ranking before is asked for anew this often, until the user comes.
_BEFORE_EVERY_US = 500_000
#: From when on, before the user's arrival, as a share of the replay.
_BEFORE_SHARE = 0.1


class Telling:
    """One telling of a story. Not thread-safe.

    Args:
        story: whose.
        shown: what is replayed.
        job: the job that runs.
        client: of its scorer.
        clock_us: now, microseconds since the epoch.
    """

    def __init__(
        self,
        story: Story,
        shown: Exposures,
        job: JobSpec,
        client: ScorerClient,
        clock_us: Callable[[], int],
    ) -> None:
        self._story = story
        self._instances = instances(shown, story)
        self._job = job
        self._client = client
        self._clock_us = clock_us
        self._before: Ranking | None = None
        self._joined: int | None = None
        self._needed: dict[int, Position] | None = None
        self.told: Told | None = None

    def look(self, replay: Replay, observed: Observed) -> bool:
        """See how far the story is; True in the one call in which it ends."""
        if self.told is not None or not observed.served:
            return False
        if replay.appended_us(self._story.first_us) is None:
            self._ask_before(replay)
            return False
        if self._joined is None and observed.clock_us > self._story.closes_us:
            self._joined = observed.joined.get("join.examples", 0)
        if self._joined is not None and self._needed is None:
            self._note_needed(observed)
        if self._before is None or self._needed is None or not self._serves(observed):
            return False
        appended_us = replay.appended_us(self._story.last_like_us)
        after = self._rank()
        if after is None or appended_us is None:
            return False
        self.told = Told(self._story, self._before, after, (after.at_us - appended_us) / 1e6)
        return True

    def _ask_before(self, replay: Replay) -> None:
        soon = replay.event_time_at(min(1.0, replay.fraction + _BEFORE_SHARE)) >= self._story.first_us
        asked_us = self._before.at_us if self._before is not None else 0
        if soon and self._clock_us() - asked_us >= _BEFORE_EVERY_US:
            self._before = self._rank() or self._before

    def _note_needed(self, observed: Observed) -> None:
        """Where the examples log ends once all that the join has given out by then are written."""
        if observed.joined.get("sampling.examples", 0) < (self._joined or 0):
            return
        log = LocalLog.open(self._job.path(self._job.logs.examples.path))
        self._needed = {partition: Position(log.end_offset(partition)) for partition in log.partitions()}

    def _serves(self, observed: Observed) -> bool:
        manifest = observed.manifests[observed.served[-1].sequence]
        log = self._job.logs.examples.path.name
        marks: Mapping[int, Position] = manifest.marks.get(log, {})
        assert self._needed is not None
        return all(
            end == Position(0) or (partition in marks and Position(*marks[partition]) >= end)
            for partition, end in self._needed.items()
        )

    def _rank(self) -> Ranking | None:
        try:
            answer = self._client.predict(self._instances)
        except (NoSnapshot, ScorerUnavailable):
            return None
        return Ranking(answer.model_version, self._clock_us(), tuple(float(score) for score in answer.values))
