"""A published snapshot whose blob arrives slowly: a reader gets half of it, and waits for the rest."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

from cuckooflow.models.snapshots import Manifest


@contextlib.contextmanager
def slow_blob(
    folder: Path, manifest: Manifest, wait_for: Callable[..., None]
) -> Iterator[Callable[[], None]]:
    """A pipe in the blob's place; at the end the blob is there again, as it was published.

    Yields:
        What returns once a reader has the first half, and can only wait for the second.
    """
    path, aside = folder / manifest.blob, folder / "aside"  # which is no snapshot's name
    content = path.read_bytes()
    path.rename(aside)
    os.mkfifo(path)
    with contextlib.ExitStack() as stack:
        stack.callback(aside.replace, path)

        def give_half() -> None:
            sinks: list[int] = []
            wait_for(lambda: sinks.extend(_opened(path)) or sinks, "a reader of the blob")
            stack.callback(os.close, sinks[0])
            assert os.write(sinks[0], content[: len(content) // 2]) > 0
            wait_for(lambda: _unread(sinks[0]) == 0, "the first half is read")

        yield give_half


def _opened(pipe: Path) -> list[int]:
    """The pipe's end to write to, where it has a reader."""
    try:
        return [os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)]
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return []


def _unread(sink: int) -> int:
    """Bytes that were written and not read yet."""
    count = array.array("i", [0])
    fcntl.ioctl(sink, termios.FIONREAD, count)
    return count[0]
