"""The shards of a job's store as processes that a test kills, bounds and reads."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from cuckooflow.pipelines.options import store_addresses

Wait = Callable[..., None]


class Shards:
    """The processes.

    Args:
        films: the job, whose spec says how many.
        wait_for: the fixture.
    """

    def __init__(self, films: Any, wait_for: Wait) -> None:
        self._films, self._wait_for = films, wait_for
        self._running: dict[int, subprocess.Popen[str]] = {}
        self._said: dict[int, list[str]] = {}

    @property
    def all(self) -> range:
        """Their numbers."""
        return range(self._films.job.store.shards)

    def start(self, *shards: int) -> None:
        for shard in shards:
            shown = ("--http", "127.0.0.1:0")
            words = ("store", "serve", self._films.spec, "--shard", shard, "--of", len(self.all), *shown)
            command = [sys.executable, "-m", "cuckooflow.pipelines.cli", *map(str, words)]
            running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            self._running[shard], self._said[shard] = running, []
            threading.Thread(target=_read, args=(running, self._said[shard]), daemon=True).start()
        for shard in shards:
            self._wait_for(store_addresses(self._films.job)[shard].exists, f"shard {shard}'s address")

    def said(self, shard: int, words: str) -> bool:
        """Whether the shard's log, since it was started last, holds these."""
        return any(words in line for line in self._said[shard])

    def counted(self, shard: int, metric: str) -> float:
        """A sample of its metrics, by name and labels; 0 where it is not there."""
        folder: Path = store_addresses(self._films.job)[shard].parent
        url = f"http://{(folder / 'http_address').read_text().strip()}/metrics"
        page = httpx.get(url, trust_env=False).raise_for_status().text
        samples = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        return float(samples.get(metric, 0))

    def fill_disk(self, shard: int) -> None:
        """From now on it can write nothing: every file that grows fails as on a full disk."""
        resource.prlimit(self._running[shard].pid, resource.RLIMIT_FSIZE, (0, 0))

    def checkpoints(self, shard: int) -> list[str]:
        """Names of its checkpoints."""
        folder: Path = store_addresses(self._films.job)[shard].parent
        return sorted(path.name for path in folder.glob("checkpoint*") if not path.name.endswith(".tmp"))

    def kill(self, *shards: int) -> None:
        for shard in shards:
            self._running[shard].send_signal(signal.SIGKILL)
        for shard in shards:
            self._running.pop(shard).wait()
            store_addresses(self._films.job)[shard].unlink()

    def end(self) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.wait()
        self._running.clear()


def _read(running: subprocess.Popen[str], lines: list[str]) -> None:
    assert running.stderr is not None
    with running.stderr:
        for line in running.stderr:
            lines.append(line)
            sys.stderr.write(line)
