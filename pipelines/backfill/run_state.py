"""Where a backfill stands, in a folder of its own beside the days: what it was asked, and what it reads.

A backfill that was killed left ``_work/run.json``. The same request goes on with it; another one is refused.
When all days are whole the folder goes, and the same request is then a new run, which makes the days anew.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cuckooflow.errors import BackfillBusy
from cuckooflow.file_lock import FileLock
from cuckooflow.pipelines.backfill.estimate import Layout
from cuckooflow.transforms.whole_files import read_whole, remove, write_whole

WORK = "_work"
_RUN = "run.json"


@dataclass(frozen=True)
class RunState:
    """One run of a backfill.

    Attributes:
        run: its name, in its files' names and the days' manifests.
        fingerprint: of what was asked; a resumed run was asked the same.
        listing: the inputs as they were when it began.
        layout: how rows are laid out.
    """

    run: str
    fingerprint: str
    listing: dict[str, Any]
    layout: Layout


def fingerprint(asked: dict[str, Any]) -> str:
    """A hash of what a run was asked, of anything that JSON can hold."""
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def resume_or_begin(
    out: str, asked: str, begin: Callable[[], tuple[dict[str, Any], Layout]], restart: bool
) -> tuple[RunState, bool]:
    """The run in this folder, and whether it goes on from one that was killed.

    Args:
        out: the folder of the days.
        asked: fingerprint of the request.
        begin: the listing of the inputs and the layout of a new run.
        restart: give up what another run had begun.

    Raises:
        BackfillBusy: another request was begun here and did not end.
    """
    work = work_folder(out)
    blob = read_whole(run_file(out))
    if blob is not None and not restart:
        body = json.loads(blob)
        state = RunState(**{**body, "layout": Layout(**body["layout"])})
        if state.fingerprint == asked:
            return state, True
        raise BackfillBusy(
            f"expected no unfinished backfill in {out}, found one of another job spec, other days or other "
            "options; run that one again to its end, or give it up with --restart"
        )
    remove(work)
    listing, layout = begin()
    state = RunState(uuid.uuid4().hex[:12], asked, listing, layout)
    write_whole(run_file(out), json.dumps(asdict(state)).encode())
    return state, False


def end_run(out: str) -> None:
    """Every day is whole: forget how they came to be."""
    remove(run_file(out))
    remove(work_folder(out))


def run_file(out: str) -> str:
    """Where the state of the run lies while it goes on."""
    return posixpath.join(work_folder(out), _RUN)


def work_folder(out: str) -> str:
    """Where a run keeps what it needs while it goes on."""
    return posixpath.join(out, WORK)


class FolderLock:
    """Keeps a second backfill out of a local folder while this one lives; elsewhere it keeps nobody out.

    Raises:
        BackfillBusy: another process has it.
    """

    def __init__(self, out: str) -> None:
        self._lock: FileLock | None = None
        if "://" in out:
            return
        Path(out).mkdir(parents=True, exist_ok=True)
        try:
            self._lock = FileLock(Path(out) / ".lock")
        except BlockingIOError:
            raise BackfillBusy(
                f"expected to be the only backfill that writes into {out}, another process does; wait for it"
            ) from None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()
