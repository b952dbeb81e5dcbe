"""Processes that outlive the one that started them, found again by a token in their environment.

A pid alone is no name: after a process has ended the system gives its pid to another. So each start
gets a fresh token, which the process and all its children inherit, and a process counts as ours only
if its environment holds the token. Linux only (``/proc``, pidfd).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TOKEN_VARIABLE = "CUCKOOFLOW_CLUSTER_TOKEN"

#: How long a process may take to end after SIGTERM before it is killed.
STOP_TIMEOUT_S = 20.0
_KILL_TIMEOUT_S = 10.0
#: An exec takes no longer.
_EXEC_TIMEOUT_S = 0.1
_EXEC_POLL_S = 0.001


@dataclass(frozen=True)
class Command:
    """What to run: program and words, variables beside the inherited ones, and where.

    Attributes:
        variables: set in the environment; None takes the variable out of it.
    """

    words: Sequence[str]
    folder: Path
    variables: Mapping[str, str | None]


@dataclass(frozen=True)
class Started:
    """A process that was started: its pid, and the token that tells it from a later owner of the pid."""

    pid: int
    token: str

    def save(self, file: Path) -> None:
        """Keep in a pid file: the pid on the first line, the token on the second."""
        beside = file.with_name(f".{file.name}.tmp")
        beside.write_text(f"{self.pid}\n{self.token}\n")
        beside.rename(file)

    @classmethod
    def load(cls, file: Path) -> Started | None:
        """From a pid file; None where there is none, or none that :meth:`save` wrote."""
        try:
            pid, token = file.read_text().split()
            return cls(int(pid), token)
        except (OSError, ValueError):
            return None

    def lives(self) -> bool:
        """Whether the process itself still runs."""
        _reap(self.pid)
        return _has_token(self.pid, self.token)

    def children(self) -> list[int]:
        """The pids of what the process started, and of what that started, and still runs."""
        return [pid for pid in _with_token(self.token) if pid != self.pid]

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """End the process and whatever it started; children that outlive it are killed.

        Returns:
            Whether it ended by itself, within the bound.
        """
        ended = _end(self.pid, self.token, signal.SIGTERM, timeout_s)
        for pid in _with_token(self.token):
            _end(pid, self.token, signal.SIGKILL, _KILL_TIMEOUT_S)
        return ended


def start(command: Command, log: Path) -> Started:
    """Start a process in a session of its own; its output is appended to ``log``."""
    token = secrets.token_hex(16)
    environment = {**os.environ, TOKEN_VARIABLE: token}
    for name, value in command.variables.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawnp(
        "env",
        ["env", "-C", str(command.folder), *command.words],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    return Started(pid, token)


def _end(pid: int, token: str, number: signal.Signals, timeout_s: float) -> bool:
    """Signal a process through a handle that no other process can take over, and wait."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        if not _has_token(pid, token):
            return True
        signal.pidfd_send_signal(handle, number)
        ready, _, _ = select.select([handle], [], [], timeout_s)
        return bool(ready)
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)
        _reap(pid)


def _has_token(pid: int, token: str, patient: bool = True) -> bool:
    """False too for a process that has ended and waits to be reaped: its environment is gone.

    Args:
        patient: wait out an exec, in the middle of which a process that runs shows no environment either.
    """
    deadline = time.monotonic() + _EXEC_TIMEOUT_S
    while True:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return False
        if environment or ended or not patient or time.monotonic() > deadline:
            return f"{TOKEN_VARIABLE}={token}".encode() in environment.split(b"\0")
        time.sleep(_EXEC_POLL_S)


def _with_token(token: str) -> list[int]:
    """Every process with the token. Not patient: there are many kernel threads, which never have an environment."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if _has_token(pid, token, patient=False)]


def _reap(pid: int) -> None:
    """Take leave of an ended child; a process that another one started is not ours to reap."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
