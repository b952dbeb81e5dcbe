"""The part of the demo in which the system runs: replay, kills, the frozen copy, one user's story."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from cuckooflow.embedding_store.api import Ids
from cuckooflow.embedding_store.client import connect
from cuckooflow.errors import CuckooflowError, DemoFailed
from cuckooflow.logs.address import LocalAddress
from cuckooflow.models.registry import COUNT_TABLE
from cuckooflow.models.snapshots import Manifest
from cuckooflow.pipelines.demo.expected import Outcomes
from cuckooflow.pipelines.demo.exposures import Exposures
from cuckooflow.pipelines.demo.feedback import DemoEvents
from cuckooflow.pipelines.demo.progress import Observed, Observer
from cuckooflow.pipelines.demo.replay import Replay
from cuckooflow.pipelines.demo.story import Story, Told, choose_story
from cuckooflow.pipelines.demo.telling import Telling
from cuckooflow.pipelines.demo.watch import Watch
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.log_specs import InputSpec
from cuckooflow.pipelines.supervisor import Supervisor, address_files
from cuckooflow.serving.client import ScorerClient

#: Shares of the replay at which a process is killed -9.
KILLS = (("store", 0.58), ("train", 0.68))
#: Where the model is frozen that the live one is compared with.
FROZEN_AT = 0.5
#: The replay may not stand still for longer than this; a killed trainer is back after some ten seconds.
STALLED_S = 120.0
#: After the replay the system must have worked everything off within this.
SETTLE_S = 60.0
_LOOK_S = 0.05


@dataclass(frozen=True)
class LiveOutcome:
    """What the run left behind.

    Attributes:
        observed: what was seen while it ran.
        told: the user's story; None if the replay ended before it did.
        frozen: folder with the snapshots of the model frozen at half.
        frozen_us: newest event time that the frozen model was trained on.
        first_served_fraction: share of the replay that was appended when the scorer first served.
        killed: what was killed -9, and when.
        restarts: how often each of these was started again.
        started_us, replayed_us: when the replay began and ended.
        counts: the store's counting table: ids and counts.
        settled: whether everything was worked off within :data:`SETTLE_S`.
    """

    observed: Observed
    told: Told | None
    frozen: Path
    frozen_us: int
    first_served_fraction: float
    killed: tuple[tuple[str, int], ...]
    restarts: dict[str, int]
    started_us: int
    replayed_us: int
    counts: tuple[Ids, npt.NDArray[np.float32]]
    settled: bool


class LiveRun:
    """Runs a job's processes and the replay into them.

    Args:
        spec_file: the job's YAML file.
        job: the same, loaded.
        shown, events: what is replayed.
        expected: what must come of it, to know when the join is done.
        window_us: the job's longest label window.
        console: where to show progress.
    """

    def __init__(
        self,
        spec_file: Path,
        job: JobSpec,
        shown: Exposures,
        events: DemoEvents,
        expected: Outcomes,
        window_us: int,
        console: Console,
    ) -> None:
        self._spec_file = spec_file
        self._job = job
        self._shown = shown
        self._events = events
        self._expected = expected
        self._console = console
        self._story: Story = choose_story(shown, events, window_us)
        self._first_served: float | None = None
        self._frozen_us: int | None = None
        self._killed: list[tuple[str, int]] = []

    def run(self) -> LiveOutcome:
        """Start everything, replay, settle, stop.

        Raises:
            DemoFailed: the replay stood still, or the scorer never served.
            CuckooflowError: a process failed for good.
        """
        job = self._job
        store_address, scorer_address = address_files(job)
        with ExitStack() as stack:
            supervisor = stack.enter_context(Supervisor(self._spec_file, job, on_event=lambda _: None))
            supervisor.wait_ready()
            scorer = f"http://{scorer_address.read_text().strip()}"
            self._console.print(f"store, join, trainer and scorer are up; scorer: {scorer}", highlight=False)
            client = stack.enter_context(ScorerClient(scorer, job.name))
            observer = stack.enter_context(Observer(job, client, store_address, now_us))
            watch = stack.enter_context(Watch(self._console))
            replay = Replay(
                self._events,
                _folder(job, job.logs.impressions),
                _folder(job, job.logs.actions),
                served_us=lambda: observer.observed.served_us,
                clock_us=now_us,
            )
            telling = Telling(job, self._shown, self._story, client, now_us)
            started_us = now_us()
            with replay:
                self._follow(replay, observer, supervisor, telling, watch)
            replayed_us = now_us()
            settled = self._settle(replay, observer, supervisor, store_address, telling, watch)
            watch.show(1.0, observer.observed)
            came_back = {role: supervisor.restarts(role) for role, _ in self._killed}
            store = connect(store_address)
            table = store.delta("demo", full=True).tables[COUNT_TABLE]
            store.close()
        if self._frozen_us is None or self._first_served is None:
            raise DemoFailed(
                "expected the scorer to serve during the replay, it did not: read the logs in "
                f"{job.dir / 'processes'}"
            )
        return LiveOutcome(
            observed=observer.observed,
            told=telling.told,
            frozen=self._frozen_folder,
            frozen_us=self._frozen_us,
            first_served_fraction=self._first_served,
            killed=tuple(self._killed),
            restarts=came_back,
            started_us=started_us,
            replayed_us=replayed_us,
            counts=(table.ids, table.weights[:, 0]),
            settled=settled,
        )

    @property
    def _frozen_folder(self) -> Path:
        return self._job.dir / "frozen"

    # --- while the replay runs ------------------------------------------------------------------

    def _follow(
        self, replay: Replay, observer: Observer, supervisor: Supervisor, telling: Telling, watch: Watch
    ) -> None:
        observed = observer.observed
        kills = list(KILLS)
        done, moved_s = 0, time.monotonic()
        while not replay.finished:
            time.sleep(_LOOK_S)
            supervisor.check()
            observer.check()
            if replay.done != done:
                done, moved_s = replay.done, time.monotonic()
            if time.monotonic() - moved_s > STALLED_S:
                raise DemoFailed(
                    f"expected the system to follow the replay, it stands still at {replay.fraction:.0%} for "
                    f"{STALLED_S:g} s: read the logs in {self._job.dir / 'processes'}"
                )
            if self._first_served is None and observed.served:
                self._first_served = replay.fraction
                watch.say(f"the scorer serves its first snapshot, {replay.fraction:.1%} of the way")
            if self._frozen_us is None and observed.served_us >= replay.event_time_at(FROZEN_AT):
                self._freeze(observed)
            if self._frozen_us is not None and kills and replay.fraction >= kills[0][1]:
                self._kill(kills.pop(0)[0], supervisor, watch)
            self._tell(replay, observed, telling, watch)
            watch.show(replay.fraction, observed)

    def _freeze(self, observed: Observed) -> None:
        """Keep what is served now: links to the newest full snapshot and the deltas on it."""
        served = observed.served[-1].sequence
        chain = list(_chain(observed.manifests, served))
        self._frozen_folder.mkdir()
        source = self._job.path(self._job.snapshots.dir)
        for manifest in chain:
            for name in (f"{manifest.sequence:012d}.json", manifest.blob):
                os.link(source / name, self._frozen_folder / name)
        self._frozen_us = observed.served_us

    def _kill(self, role: str, supervisor: Supervisor, watch: Watch) -> None:
        pid = supervisor.pids().get(role)
        if pid is None:
            raise DemoFailed(
                f"expected the {role} process to run, it does not: read {supervisor.log_file(role)}"
            )
        os.kill(pid, signal.SIGKILL)
        self._killed.append((role, now_us()))
        watch.say(f"killed -9: {role} (pid {pid}); it is started again, nothing may be lost or doubled")

    def _tell(self, replay: Replay, observed: Observed, telling: Telling, watch: Watch) -> None:
        if telling.look(replay, observed) and telling.told is not None:
            watch.say(
                f"a newcomer's ranking changed {telling.told.seconds:.1f} s after that user's last like"
            )

    # --- after it -------------------------------------------------------------------------------

    def _settle(
        self,
        replay: Replay,
        observer: Observer,
        supervisor: Supervisor,
        store_address: Path,
        telling: Telling,
        watch: Watch,
    ) -> bool:
        """Wait until the join has done what it must, the trainer has trained all of it, and all is told."""
        deadline_s = time.monotonic() + SETTLE_S
        settled = False
        while time.monotonic() < deadline_s and not (settled and telling.told):
            supervisor.check()
            observer.check()
            settled = settled or (self._joined(observer.observed) and self._trained(store_address))
            self._tell(replay, observer.observed, telling, watch)
            time.sleep(_LOOK_S)
        return settled

    def _joined(self, observed: Observed) -> bool:
        joined, expected = observed.joined, self._expected
        lines = len(self._events.impressions) + len(self._events.actions)
        seen = sum(joined.get(f"join.{name}", 0) for name in ("impressions", "actions"))
        seen -= sum(joined.get(f"join.{name}_dead", 0) for name in ("impressions", "actions"))
        examples = joined.get("join.examples", 0)
        return (
            seen + sum(observed.dead.values()) >= lines
            and examples >= expected.examples
            and joined.get("sampling.examples", 0) >= examples
        )

    def _trained(self, store_address: Path) -> bool:
        """Whether every bucket of the store stands at the end of the examples log."""
        log = self._job.address(self._job.logs.examples).open_reader()
        try:
            store = connect(store_address, retry_s=0)
            marks = store.marks(log.name)
            store.close()
        except CuckooflowError:
            return False
        return all(
            log.end_offset(partition) == 0
            or (bool(marks.get(partition)) and marks[partition][0].offset >= log.end_offset(partition))
            for partition in log.partitions()
        )


def _folder(job: JobSpec, log: InputSpec) -> Path:
    """The demo's own job has no topics."""
    address = job.address(log)
    assert isinstance(address, LocalAddress)
    return address.path


def now_us() -> int:
    """The wall clock, microseconds since the epoch."""
    return time.time_ns() // 1_000


def _chain(manifests: dict[int, Manifest], last: int) -> Iterator[Manifest]:
    """The newest full snapshot up to ``last``, and what follows it up to there."""
    numbers = sorted(number for number in manifests if number <= last)
    full = max(number for number in numbers if manifests[number].kind == "full")
    yield from (manifests[number] for number in numbers if number >= full)
