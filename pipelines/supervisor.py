"""``up``: store, join, train and scorer as supervised processes over local logs.

A child that ends without being asked to is started again after a backoff that doubles; one that ends too
often within :data:`RESTART_WINDOW_S` stops the whole. Every child's output is kept in
``<dir>/processes/<role>.log`` and its process id in ``<role>.pid``. Children end with their supervisor.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cuckooflow.errors import CuckooflowError
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.options import store_addresses

_LOGGER = logging.getLogger(__name__)

#: Started in this order, stopped in the reverse one: the store goes last and writes its checkpoint.
ROLES = ("store", "join", "train", "serve")

BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 10.0
RESTARTS_MAX = 10
RESTART_WINDOW_S = 120.0
STOP_TIMEOUT_S = 30.0
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class _Child:
    role: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    restarts: deque[float] = field(default_factory=deque)
    backoff_s: float = BACKOFF_FIRST_S
    start_at: float = 0.0


class Supervisor:
    """Runs the processes of one job.

    Args:
        spec_file: the job's YAML file, which each child reads for itself.
        job: the same, loaded.
        on_event: told of every start, end and restart, one line each; called from the supervising thread.
        roles: which processes to run, default all; a store of several shards is ``store-0``, ``store-1``...

    Thread-safe. Use as a context manager, or call :meth:`stop` in the end.
    """

    def __init__(
        self,
        spec_file: Path,
        job: JobSpec,
        on_event: Callable[[str], None] = _LOGGER.info,
        roles: Sequence[str] = ROLES,
    ) -> None:
        self._job = job
        self._on_event = on_event
        self._folder = job.dir / "processes"
        self._children = {
            name: _Child(name, _command(role, spec_file, words))
            for role in roles
            for name, words in _processes(role, job)
        }
        self._stopping = threading.Event()
        self._failed: str | None = None
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._lock = threading.Lock()

    def start(self) -> None:
        """Create the input logs where they do not exist, and start every process."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for address in self._job.written_inputs():
            address.create_missing("lines").close()
        for file in (*store_addresses(self._job), address_files(self._job)[1]):
            file.unlink(missing_ok=True)
        self._thread.start()

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the store and the scorer have told their addresses.

        Raises:
            CuckooflowError: they did not within the bound, or a process failed for good.
        """
        deadline = time.monotonic() + timeout_s
        wanted = [
            path
            for role, paths in (
                ("store", store_addresses(self._job)),
                ("serve", [address_files(self._job)[1]]),
            )
            for path, (name, _) in zip(paths, _processes(role, self._job), strict=True)
            if name in self._children
        ]
        while not all(path.exists() for path in wanted):
            self.check()
            if time.monotonic() > deadline:
                raise CuckooflowError(
                    f"expected the store and the scorer to be up within {timeout_s:g} s; read the logs in {self._folder}"
                )
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raise if the supervised whole has failed.

        Raises:
            CuckooflowError: naming the process that ended too often and where its log is.
        """
        if self._failed is not None:
            raise CuckooflowError(self._failed)

    def pids(self) -> dict[str, int]:
        """Role -> process id, of those that run now."""
        with self._lock:
            return {
                role: child.process.pid
                for role, child in self._children.items()
                if child.process is not None and child.process.poll() is None
            }

    def restarts(self, role: str) -> int:
        """How often a role was started again within the last :data:`RESTART_WINDOW_S`."""
        with self._lock:
            return len(self._children[role].restarts)

    def log_file(self, role: str) -> Path:
        """Where a role's output is kept."""
        return self._folder / f"{role}.log"

    def run_until(self, stop: threading.Event) -> None:
        """Block until ``stop`` is set or the whole has failed; then everything is stopped."""
        try:
            while not stop.wait(0.2):
                self.check()
        finally:
            self.stop()

    def stop(self) -> None:
        """End every process, the store last. Idempotent."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S * len(self._children))

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- the supervising thread; the only one that starts processes, as they are bound to its life

    def _supervise(self) -> None:
        while not self._stopping.wait(_POLL_S):
            for child in self._children.values():
                self._tend(child)
            if self._failed is not None:
                break
        for child in reversed(self._children.values()):
            self._end(child)

    def _tend(self, child: _Child) -> None:
        now = time.monotonic()
        process = child.process
        if process is not None and process.poll() is not None:
            self._note_end(child, process, now)
        if child.process is None and now >= child.start_at:
            self._spawn(child)

    def _note_end(self, child: _Child, process: subprocess.Popen[bytes], now: float) -> None:
        code = process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        while child.restarts and now - child.restarts[0] > RESTART_WINDOW_S:
            child.restarts.popleft()
        if not child.restarts:
            child.backoff_s = BACKOFF_FIRST_S
        if len(child.restarts) >= RESTARTS_MAX or code == 2:
            self._failed = (
                f"{child.role} ended ({how}) and is not started again; its log is {self.log_file(child.role)}"
            )
            self._on_event(self._failed)
        else:
            self._on_event(
                f"{child.role} pid={process.pid} ended ({how}); starting again in {child.backoff_s:g} s"
            )
        with self._lock:
            child.restarts.append(now)
            child.process = None
        child.start_at = now + child.backoff_s
        child.backoff_s = min(2 * child.backoff_s, BACKOFF_MAX_S)

    def _spawn(self, child: _Child) -> None:
        with self.log_file(child.role).open("ab") as out:
            process = subprocess.Popen(
                child.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with(os.getpid()),
                start_new_session=True,
            )
        with self._lock:
            child.process = process
        (self._folder / f"{child.role}.pid").write_text(f"{process.pid}\n")
        self._on_event(f"{child.role} pid={process.pid} started")

    def _end(self, child: _Child) -> None:
        process = child.process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._on_event(
                    f"{child.role} pid={process.pid} did not end within {STOP_TIMEOUT_S:g} s: killed"
                )
                process.kill()
                process.wait()
        (self._folder / f"{child.role}.pid").unlink(missing_ok=True)
        with self._lock:
            child.process = None
        self._on_event(f"{child.role} stopped")


def address_files(job: JobSpec) -> tuple[Path, Path]:
    """Where the store (of several shards, the first) and the scorer write the address that they listen on."""
    return store_addresses(job)[0], job.dir / "processes" / "serve.address"


def _processes(role: str, job: JobSpec) -> list[tuple[str, list[str]]]:
    """The processes of a role: name and further words of the command. One, but for the shards of a store."""
    if role != "store" or job.store.shards == 1:
        return [(role, [])]
    return [(f"store-{shard}", ["--shard", str(shard)]) for shard in range(job.store.shards)]


def _command(role: str, spec_file: Path, further: Sequence[str]) -> list[str]:
    words = {
        "store": ["store", "serve"],
        "join": ["run", "join"],
        "train": ["run", "train"],
        "serve": ["serve"],
    }[role]
    return [sys.executable, "-m", "cuckooflow.pipelines.cli", *words, str(spec_file.resolve()), *further]


def _die_with(parent: int) -> Callable[[], None]:
    """Runs in the child before its program: end when the supervisor does, however that ends."""

    def before_exec() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was gone before the request took effect
            os._exit(1)

    return before_exec
