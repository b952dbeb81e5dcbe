"""The ledger of replays: what was put back, and where it went; one file, appended to and never changed.

Before messages are appended to a log an *intent* is written, with where the log ends and what will be appended,
and afterwards an *outcome*. Whoever is killed in between leaves an intent without one, and the next replay
looks into the log, from where it ended, for what of it is there. So a letter is put back once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuckooflow.errors import LedgerDamaged, ReplayBusy
from cuckooflow.file_lock import FileLock
from cuckooflow.logs.contract import LogReader
from cuckooflow.pipelines.dlq.letters import Place

#: A broker keeps milliseconds.
_CLOCK_GRAIN_US = 1_000


@dataclass(frozen=True)
class Intent:
    """Messages that are about to be appended to one partition.

    Attributes:
        number: of the intent in the ledger.
        log, incarnation, partition: where to.
        end: the partition's end before.
        append_us: the append time that they are given.
        places: of the letters, in the order of the messages.
        digests: of the messages.
    """

    number: int
    log: str
    incarnation: str
    partition: int
    end: int
    append_us: int
    places: tuple[Place, ...]
    digests: tuple[str, ...]


class Ledger:
    """Use it as a context manager; one process at a time. Not thread-safe.

    Args:
        path: of the file; it is made where it is not there.
        read_only: do not lock it, and do not mend a torn end.

    Raises:
        ReplayBusy: another process replays.
        LedgerDamaged: the file is no ledger.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self._path = path
        self._lock: FileLock | None = None
        self._intents: dict[int, Intent] = {}
        self._offsets: dict[int, tuple[int | None, ...]] = {}
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = FileLock(path)
            except BlockingIOError:
                raise ReplayBusy(
                    f"expected to be the only replay with {path}, another runs; wait for it"
                ) from None
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock. Idempotent."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def replayed(self, incarnations: dict[str, str]) -> dict[Place, tuple[str, int, int]]:
        """Letters that were put back, and the (log, partition, offset) of each.

        Args:
            incarnations: of the logs as they are; what was put into another one is gone with it.
        """
        found = {}
        for number, offsets in self._offsets.items():
            intent = self._intents[number]
            if incarnations.get(intent.log) == intent.incarnation:
                for place, offset in zip(intent.places, offsets, strict=True):
                    if offset is not None:
                        found[place] = (intent.log, intent.partition, offset)
        return found

    def unsettled(self) -> list[Intent]:
        """Intents without an outcome."""
        return [intent for number, intent in self._intents.items() if number not in self._offsets]

    def intend(
        self,
        log: str,
        incarnation: str,
        partition: int,
        end: int,
        append_us: int,
        messages: Sequence[tuple[Place, bytes]],
    ) -> Intent:
        """Say what is about to be appended; it is durable when this returns."""
        places = tuple(place for place, _ in messages)
        digests = tuple(digest(value) for _, value in messages)
        number = len(self._intents)
        intent = Intent(number, log, incarnation, partition, end, append_us, places, digests)
        self._write({"intent": {**intent.__dict__, "places": [list(place) for place in places]}})
        self._intents[number] = intent
        return intent

    def settle(self, intent: Intent, offsets: Sequence[int | None]) -> None:
        """Say where the messages of an intent are; None for one that was not appended."""
        self._write({"outcome": {"number": intent.number, "offsets": list(offsets)}})
        self._offsets[intent.number] = tuple(offsets)

    def _write(self, entry: dict[str, Any]) -> None:
        assert self._lock is not None
        os.lseek(self._lock.handle, 0, os.SEEK_END)
        os.write(self._lock.handle, json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        os.fsync(self._lock.handle)

    def _load(self) -> None:
        if not self._path.exists():
            return
        blob = self._path.read_bytes()
        whole = blob.rfind(b"\n") + 1
        if whole < len(blob) and self._lock is not None:
            os.truncate(self._lock.handle, whole)  # a line that was being written when its writer was killed
        for line in blob[:whole].splitlines():
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise LedgerDamaged(
                    f"expected a ledger of replays at {self._path}, found {line[:80]!r}: {error}"
                ) from None

    def _take(self, entry: dict[str, Any]) -> None:
        if "intent" in entry:
            body = entry["intent"]
            places = tuple(Place(*place) for place in body.pop("places"))
            intent = Intent(**{**body, "places": places, "digests": tuple(body["digests"])})
            self._intents[intent.number] = intent
        else:
            body = entry["outcome"]
            self._offsets[self._intents[body["number"]].number] = tuple(body["offsets"])


def digest(value: bytes) -> str:
    """Of a message."""
    return hashlib.sha256(value).hexdigest()[:32]


def look_for(intent: Intent, reader: LogReader, own_time: bool) -> list[int | None]:
    """Where the messages of an intent are in its log, by their bytes and append time.

    Args:
        own_time: whether the log keeps the append time to the microsecond. A broker keeps less, or its own:
            there, a message of these bytes that was appended since is taken for the one.
    """
    left: dict[str, list[int]] = {}
    for at, name in enumerate(intent.digests):
        left.setdefault(name, []).append(at)
    offsets: list[int | None] = [None] * len(intent.digests)
    end = reader.end_offset(intent.partition)
    begin = max(intent.end, reader.start_offset(intent.partition))
    for batch in reader.read_range(intent.partition, begin, max(begin, end)):
        entries = zip(batch.offsets.tolist(), batch.append_us.tolist(), batch.values, strict=True)
        for offset, append_us, value in entries:
            same_time = (
                append_us == intent.append_us if own_time else append_us >= intent.append_us - _CLOCK_GRAIN_US
            )
            if value.is_valid and same_time:
                waiting = left.get(digest(value.as_py()), [])
                if waiting:
                    offsets[waiting.pop(0)] = offset
    return offsets
