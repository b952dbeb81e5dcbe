"""Appends both logs in the order of arrival, as fast as the system follows.

One chunk of event time goes to both logs at once, so that neither runs ahead of the other. The replay
holds back while it is more than ``max_lead`` lines ahead of what was served.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from cuckooflow.logs.local_log import LocalLogWriter
from cuckooflow.pipelines.demo.feedback import DemoEvents, Sent

#: Between two looks at whether the system has followed.
_LOOK_S = 0.02


@dataclass(frozen=True)
class ReplayOptions:
    """How the replay is paced.

    Attributes:
        chunk: lines of both logs appended at once, default 2,000. An append is a disk sync.
        max_lead: lines that may be appended and not be served yet, default 45,000. More is faster up to
            what the system bears, and everything served is older by that much.
    """

    chunk: int = 2_000
    max_lead: int = 45_000


class Replay:
    """Appends the events from a thread of its own.

    Args:
        events: both logs' lines.
        impressions, actions: folders of the logs, which exist.
        served_us: up to which event time the system has come; NO_TIME before the first.
        clock_us: now, microseconds since the epoch.
        options: see :class:`ReplayOptions`.

    Thread-safe to look at. Use as a context manager.
    """

    def __init__(
        self,
        events: DemoEvents,
        impressions: Path,
        actions: Path,
        served_us: Callable[[], int],
        clock_us: Callable[[], int],
        options: ReplayOptions = ReplayOptions(),
    ) -> None:
        self._logs = ((events.impressions, impressions), (events.actions, actions))
        self._arrival_us = np.sort(np.concatenate([events.impressions.arrival_us, events.actions.arrival_us]))
        self._served_us = served_us
        self._clock_us = clock_us
        self._options = options
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        self._reached: list[tuple[int, int]] = []
        self._done = 0

    @property
    def total(self) -> int:
        """Lines of both logs."""
        return len(self._arrival_us)

    @property
    def done(self) -> int:
        """Lines appended so far."""
        return self._done

    @property
    def fraction(self) -> float:
        """Share of the lines that are appended."""
        return self._done / self.total

    def fraction_at(self, event_us: int) -> float:
        """Share of all lines that had arrived by an event time."""
        return int(np.searchsorted(self._arrival_us, event_us, side="right")) / self.total

    def event_time_at(self, fraction: float) -> int:
        """The event time by which this share of all lines had arrived, microseconds."""
        return int(self._arrival_us[min(self.total - 1, int(fraction * self.total))])

    def appended_us(self, arrival_us: int) -> int | None:
        """When the line that arrived then was appended, microseconds since the epoch; None if not yet."""
        reached = self._reached[:]
        at = int(np.searchsorted([arrival for arrival, _ in reached], arrival_us, side="left"))
        return reached[at][1] if at < len(reached) else None

    @property
    def finished(self) -> bool:
        """Whether every line is appended.

        Raises:
            Exception: the one that ended the replay.
        """
        if self._error is not None:
            raise self._error
        return self._done == self.total

    def __enter__(self) -> Replay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            writers = []
            try:
                for sent, path in self._logs:
                    writers.append((sent, LocalLogWriter(path, fsync=False)))
                self._append_all(writers)
            finally:
                for _, writer in writers:
                    writer.close()
        except BaseException as error:  # handed to the thread that watches
            self._error = error

    def _append_all(self, writers: list[tuple[Sent, LocalLogWriter]]) -> None:
        at = [0] * len(writers)
        while self._done < self.total:
            if not self._wait_for_system():
                return
            until_us = int(self._arrival_us[min(self.total, self._done + self._options.chunk) - 1])
            now_us = self._clock_us()
            for index, (sent, writer) in enumerate(writers):
                stop = int(np.searchsorted(sent.arrival_us, until_us, side="right"))
                if stop > at[index]:
                    writer.append(
                        0, sent.lines.slice(at[index], stop - at[index]).cast(pa.large_binary()), now_us
                    )
                    at[index] = stop
            self._reached.append((until_us, now_us))
            self._done = sum(at)

    def _wait_for_system(self) -> bool:
        """False if the replay is to stop."""
        while not self._stop.is_set():
            served = int(np.searchsorted(self._arrival_us, self._served_us(), side="right"))
            if self._done - served < self._options.max_lead:
                return True
            self._stop.wait(_LOOK_S)
        return False
