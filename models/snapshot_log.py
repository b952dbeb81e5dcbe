"""Snapshots as messages of a log, for scorers that share no folder with the trainer.

Partition 0 holds snapshots, each as the parts of its blob and then its manifest, in the order of their numbers. What
has no manifest behind it is not whole, and counts for nothing: its sender begins again. Every message says where the
manifest before it lies, and every manifest where its full snapshot begins, so a reader finds its way from the end of
the log and reads no more than it needs. Partition 1 holds what scorers ask for: a full snapshot.

A message is a line of JSON and, behind it, bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cuckooflow.errors import SnapshotDamaged, SnapshotsApart
from cuckooflow.logs.contract import LogReader, LogWriter
from cuckooflow.models import snapshots
from cuckooflow.models.snapshots import Manifest

SNAPSHOTS, REQUESTS = 0, 1
PARTITIONS = 2
#: Where a mirror stands in the log, in its folder.
_PLACE = "log_place.json"
#: Bytes of a blob in one message; brokers take messages of 1 MiB by default.
PART_BYTES = 512 << 10


@dataclass(frozen=True)
class Head:
    """What a message of partition 0 says of itself.

    Attributes:
        sequence: of the snapshot.
        parts: of its blob; its manifest is behind them.
        part: which of them the message is, from 0; ``parts``: it is the manifest.
        before: offset of the manifest before it; -1: there is none.
        full: of a manifest: offset of the first part of the full snapshot that it stands on; else -1.
    """

    sequence: int
    parts: int
    part: int
    before: int
    full: int = -1

    @property
    def is_manifest(self) -> bool:
        """Whether the message is one; else it is a part of a blob."""
        return self.part == self.parts


def encode(head: Head, body: bytes) -> bytes:
    """A message."""
    return json.dumps(asdict(head)).encode() + b"\n" + body


def decode(message: bytes) -> tuple[Head, bytes]:
    """What a message says, and its bytes.

    Raises:
        SnapshotDamaged: it is none of ours.
    """
    line, _, body = message.partition(b"\n")
    try:
        return Head(**json.loads(line)), body
    except (ValueError, TypeError) as error:
        raise SnapshotDamaged(
            f"expected a message of snapshots, received {line[:80]!r} ({error}); name a log of its own in snapshots.log"
        ) from error


@dataclass(frozen=True)
class Tail:
    """The newest whole snapshot in a log.

    Attributes:
        head: of its manifest.
        manifest_at: the offset of that.
    """

    head: Head
    manifest_at: int


def read_tail(log: LogReader) -> Tail | None:
    """What a log ends with; None where it holds no whole snapshot any more.

    Raises:
        SnapshotDamaged: the log holds something else.
    """
    end = log.end_offset(SNAPSHOTS)
    start = log.start_offset(SNAPSHOTS)
    if end <= start:
        return None
    at = end - 1
    head = _head_at(log, at)
    if not head.is_manifest:
        at = head.before
        if at < start:
            return None
        head = _head_at(log, at)
    return Tail(head, at) if head.full >= start else None


def _head_at(log: LogReader, offset: int) -> Head:
    for batch in log.read_range(SNAPSHOTS, offset, offset + 1):
        return decode(batch.values[0].as_py())[0]
    raise SnapshotDamaged(f"expected a message at offset {offset} of {log.name}, found none")


class SnapshotSender:
    """Puts what is published in a folder into a log. Not thread-safe.

    Args:
        folder: where snapshots are published.
        reader, writer: of the log, of :data:`PARTITIONS` partitions.
        part_bytes: see :data:`PART_BYTES`.

    Raises:
        LogError: the log does not answer.
        SnapshotDamaged: it holds something else.
    """

    def __init__(
        self, folder: Path, reader: LogReader, writer: LogWriter, part_bytes: int = PART_BYTES
    ) -> None:
        self._folder = folder
        self._reader = reader
        self._writer = writer
        self._part_bytes = part_bytes

    def send_new(self, now_us: int) -> int:
        """Send every snapshot that the log does not hold; how many.

        Where the log has lost the full one that the newest stands on, by retention say, the way begins at the full one
        in the folder again.

        Raises:
            SnapshotsApart: the log is ahead of the folder, which is a new one, say; scorers would pass its numbers over.
            LogError: the log does not answer; what it took counts.
            SnapshotDamaged: a snapshot in the folder.
        """
        tail = read_tail(self._reader)
        newest = snapshots.newest_sequence(self._folder)
        if tail is not None and tail.head.sequence > newest:
            raise SnapshotsApart(
                f"expected {self._reader.name} to end at snapshot {newest} or before, as {self._folder} does, it ends at "
                f"{tail.head.sequence}: the folder is a new one, or another trainer sends into this log; give the folder "
                "back, or name another log in snapshots.log"
            )
        if newest == 0 or (tail is not None and tail.head.sequence == newest):
            return 0
        missing = self._missing(tail, newest)
        full_at, before = (-1, -1) if tail is None else (tail.head.full, tail.manifest_at)
        for manifest in missing:
            first = self._reader.end_offset(SNAPSHOTS)
            if manifest.kind == "full":
                full_at = first
            before = self._send(manifest, before, full_at, now_us)
        return len(missing)

    def take_requests(self) -> None:
        """Pass on to whoever publishes into the folder what a scorer has asked for since the newest full snapshot.

        Raises:
            LogError: the log does not answer.
        """
        end = self._reader.end_offset(REQUESTS)
        if end <= self._reader.start_offset(REQUESTS):
            return
        asked_us = max(
            int(batch.append_us[-1])
            for batch in self._reader.read_range(REQUESTS, end - 1, end)
            if len(batch)
        )
        fulls = snapshots.full_sequences(self._folder)
        if fulls and asked_us > snapshots.read_manifest(self._folder, fulls[-1]).created_us:
            snapshots.request_full(self._folder, f"a scorer that follows {self._reader.name}")

    def _missing(self, tail: Tail | None, newest: int) -> list[Manifest]:
        if tail is not None:
            behind = [
                m for m in snapshots.list_manifests(self._folder, tail.head.sequence) if m.sequence <= newest
            ]
            # Those between may have been deleted from the folder as too old: then the way begins anew.
            if [m.sequence for m in behind] == list(range(tail.head.sequence + 1, newest + 1)):
                return behind
        return snapshots.way_to(self._folder, newest)

    def _send(self, manifest: Manifest, before: int, full_at: int, now_us: int) -> int:
        """One whole snapshot; the offset of its manifest."""
        raw = (self._folder / manifest.blob).read_bytes()
        parts = [raw[at : at + self._part_bytes] for at in range(0, len(raw), self._part_bytes)]
        for n, part in enumerate(parts):
            head = Head(manifest.sequence, len(parts), n, before)
            self._writer.append(SNAPSHOTS, [encode(head, part)], now_us)
        head = Head(manifest.sequence, len(parts), len(parts), before, full_at)
        return self._writer.append(SNAPSHOTS, [encode(head, manifest.model_dump_json().encode())], now_us)


class SnapshotMirror:
    """Puts what is in a log into a folder of one's own, for a replica to follow. Not thread-safe.

    Killed anywhere it goes on: what is whole in the folder stays, and the rest is read again.

    Args:
        folder: of one mirror alone.
        reader: of the log.
        fulls_kept: as of :func:`~cuckooflow.models.snapshots.write_snapshot`.
    """

    def __init__(self, folder: Path, reader: LogReader, fulls_kept: int = 2) -> None:
        self._folder = folder
        self._reader = reader
        self._fulls_kept = fulls_kept
        self._next: int | None = None
        self._parts: list[bytes] = []
        self._of = 0

    def poll(self) -> int:
        """Take what is new; how many snapshots that were.

        Raises:
            LogError: the log does not answer.
            SnapshotDamaged: the log holds something else.
        """
        at = self._begin() if self._next is None else self._next
        if at is None:
            return 0
        taken = 0
        while True:
            batch = self._reader.read(SNAPSHOTS, max(at, self._reader.start_offset(SNAPSHOTS)), 64)
            if not len(batch):
                self._next = batch.next_offset
                return taken
            for offset, value in zip(batch.offsets.tolist(), batch.values, strict=True):
                head, body = decode(value.as_py())
                taken += self._take(head, body)
                if head.is_manifest:
                    self._keep_place(offset + 1)
            self._next = at = batch.next_offset

    @property
    def wants_full(self) -> bool:
        """Whether the replica has asked for a full snapshot that has not come yet."""
        return snapshots.full_requested(self._folder)

    def ask(self, writer: LogWriter, now_us: int) -> None:
        """Pass on that the replica asks for a full snapshot."""
        writer.append(REQUESTS, [b"full"], now_us)

    def _begin(self) -> int | None:
        """Behind what the folder holds, if the log still has that; else at the full one that the newest stands on."""
        tail = read_tail(self._reader)
        if tail is None:
            return None
        try:
            place = json.loads((self._folder / _PLACE).read_bytes())
            offset, known = int(place["offset"]), str(place["incarnation"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return tail.head.full
        goes_on = known == self._reader.incarnation() and tail.head.full <= offset <= tail.manifest_at + 1
        return offset if goes_on else tail.head.full

    def _keep_place(self, offset: int) -> None:
        """An older one is as good, since what is held is passed over."""
        place = {"incarnation": self._reader.incarnation(), "offset": offset}
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f"{_PLACE}.tmp"
        temporary.write_text(json.dumps(place))
        temporary.rename(self._folder / _PLACE)

    def _take(self, head: Head, body: bytes) -> int:
        if head.part == 0:
            self._parts, self._of = [], head.sequence
        if head.sequence != self._of or head.part != len(self._parts):
            self._parts, self._of = [], 0  # its beginning is gone: the next whole one counts
            return 0
        if not head.is_manifest:
            self._parts.append(body)
            return 0
        raw, self._parts, self._of = b"".join(self._parts), [], 0
        if snapshots.is_published(self._folder, head.sequence):
            return 0
        snapshots.take_in(self._folder, body, raw, self._fulls_kept)
        return 1
