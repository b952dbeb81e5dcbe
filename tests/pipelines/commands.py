"""Commands of a job as processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def process(*words: object) -> Iterator[subprocess.Popen[bytes]]:
    """A command of the job, ended as an operator ends it."""
    running = subprocess.Popen([sys.executable, "-m", "cuckooflow.pipelines.cli", *map(str, words)])
    try:
        yield running
        running.send_signal(signal.SIGTERM)
        assert running.wait(90) == 0
    finally:
        if running.poll() is None:
            os.kill(running.pid, signal.SIGKILL)
            running.wait(10)
