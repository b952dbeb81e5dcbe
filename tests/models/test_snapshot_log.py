"""Snapshots through a log: what is sent is what arrives, whatever was killed, deleted or made anew in between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuckooflow.embedding_store.api import Delta, TableDelta, Version
from cuckooflow.errors import LogUnavailable, SnapshotDamaged, SnapshotsApart
from cuckooflow.logs.contract import LogReader
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.models import snapshots
from cuckooflow.models.snapshot_log import (
    PARTITIONS,
    REQUESTS,
    SNAPSHOTS,
    Head,
    SnapshotMirror,
    SnapshotSender,
    encode,
    read_tail,
)
from cuckooflow.models.snapshots import SnapshotInfo, write_snapshot


def publish(folder: Path, n: int, full: bool, rows: int = 20) -> None:
    ids = np.arange(rows, dtype=np.uint64) + np.uint64(n)
    table = TableDelta(ids, np.full((rows, 4), n, np.float32), np.empty(0, np.uint64))
    base = None if full else Version("made", n - 1)
    write_snapshot(
        folder, Delta(Version("made", n), base, {"t": table}, {}, {}), SnapshotInfo(name="m", created_us=n)
    )


def new_log(folder: Path) -> LogReader:
    return LocalLog.create(folder, PARTITIONS, "frames")


def contents(folder: Path) -> dict[str, bytes]:
    """What replicas read."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".arrow")}


def newest_way(folder: Path) -> list[int]:
    newest = snapshots.newest_sequence(folder)
    return [manifest.sequence for manifest in snapshots.way_to(folder, newest)] if newest else []


class Breaks:
    """A writer that fails after so many messages, with or without having taken the last one."""

    def __init__(self, writer: LocalLogWriter, after: int, taken: bool) -> None:
        self._writer, self._left, self._taken = writer, after, taken

    def append(self, partition: int, values: Sequence[bytes], append_us: int) -> int:
        if self._left == 0:
            if self._taken:
                self._writer.append(partition, values, append_us)
            raise LogUnavailable("as a broker that is away")
        self._left -= 1
        return self._writer.append(partition, values, append_us)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("publish"), st.booleans()),
            st.tuples(st.just("send"), st.none()),
            st.tuples(st.just("break"), st.tuples(st.integers(0, 6), st.booleans())),
            st.tuples(st.just("mirror"), st.booleans()),
        ),
        max_size=14,
    )
)
def test_a_mirror_comes_to_hold_what_was_published(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, object]]
) -> None:
    work = tmp_path_factory.mktemp("log")
    here, there = work / "here", work / "there"
    log = new_log(work / "log")
    mirror = SnapshotMirror(there, log)
    n = 0
    for step, how in [*steps, ("publish", True), ("publish", False), ("send", None), ("mirror", True)]:
        if step == "publish":
            n += 1
            publish(here, n, full=bool(how) or n == 1)
            continue
        if step == "mirror":
            if how:  # killed and started again
                mirror = SnapshotMirror(there, LocalLog.open(work / "log"))
            mirror.poll()
            continue
        writer = LocalLogWriter(work / "log", [SNAPSHOTS])
        used = Breaks(writer, *how) if isinstance(how, tuple) else writer
        try:
            SnapshotSender(here, log, used, part_bytes=200).send_new(n)  # type: ignore[arg-type]
        except LogUnavailable:
            assert step == "break"
        finally:
            writer.close()
    assert newest_way(there) == newest_way(here)
    mine, its = contents(here), contents(there)
    for sequence in newest_way(here):
        manifest = snapshots.read_manifest(there, sequence)
        assert its[manifest.blob] == mine[manifest.blob]
        assert manifest == snapshots.read_manifest(here, sequence)
        snapshots.read_snapshot(there, manifest)


def test_a_new_mirror_reads_from_the_newest_full_one_alone(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    writer = LocalLogWriter(tmp_path / "log", [SNAPSHOTS])
    sender = SnapshotSender(tmp_path / "here", log, writer)
    for n in range(1, 9):
        publish(tmp_path / "here", n, full=n in (1, 6))
        assert sender.send_new(n) == 1
    assert sender.send_new(9) == 0
    writer.close()
    mirror = SnapshotMirror(tmp_path / "there", log)
    assert mirror.poll() == 3
    assert snapshots.sequences(tmp_path / "there") == [6, 7, 8]
    assert mirror.poll() == 0


def test_a_mirror_that_starts_again_reads_what_it_does_not_hold(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    writer = LocalLogWriter(tmp_path / "log", [SNAPSHOTS])
    sender = SnapshotSender(tmp_path / "here", log, writer)
    for n in range(1, 5):
        publish(tmp_path / "here", n, full=n == 1)
        sender.send_new(n)
    SnapshotMirror(tmp_path / "there", log).poll()
    publish(tmp_path / "here", 5, full=False)
    sender.send_new(5)
    writer.close()
    asked: list[int] = []

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(log, name)

        def read(self, partition: int, offset: int, max_messages: int) -> object:
            asked.append(offset)
            return log.read(partition, offset, max_messages)

    assert SnapshotMirror(tmp_path / "there", Watched()).poll() == 1  # type: ignore[arg-type]
    assert asked[0] == 8  # four snapshots of a part and a manifest each
    assert snapshots.sequences(tmp_path / "there") == [1, 2, 3, 4, 5]


def test_what_the_log_has_lost_is_sent_again_from_the_full_one(tmp_path: Path) -> None:
    first = new_log(tmp_path / "log")
    for n in range(1, 4):
        publish(tmp_path / "here", n, full=n == 1)
    writer = LocalLogWriter(tmp_path / "log", [SNAPSHOTS])
    assert SnapshotSender(tmp_path / "here", first, writer).send_new(1) == 3
    writer.close()

    class Kept:
        """A log whose first messages were deleted."""

        def __getattr__(self, name: str) -> object:
            return getattr(first, name)

        def start_offset(self, _: int) -> int:
            return 2

    assert read_tail(Kept()) is None  # type: ignore[arg-type]
    again = LocalLogWriter(tmp_path / "log", [SNAPSHOTS])
    assert SnapshotSender(tmp_path / "here", Kept(), again).send_new(2) == 3  # type: ignore[arg-type]
    again.close()
    assert SnapshotMirror(tmp_path / "there", first).poll() == 3
    assert newest_way(tmp_path / "there") == [1, 2, 3]


def test_a_folder_that_is_behind_the_log_is_refused_by_name(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    writer = LocalLogWriter(tmp_path / "log", [SNAPSHOTS])
    for n in (1, 2):
        publish(tmp_path / "here", n, full=n == 1)
    SnapshotSender(tmp_path / "here", log, writer).send_new(1)
    publish(tmp_path / "new machine", 1, full=True)
    with pytest.raises(SnapshotsApart, match="it ends at 2"):
        SnapshotSender(tmp_path / "new machine", log, writer).send_new(2)
    writer.close()


def test_a_request_for_a_full_one_goes_back(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    log = new_log(tmp_path / "log")
    writer = LocalLogWriter(tmp_path / "log")
    sender = SnapshotSender(here, log, writer)
    publish(here, 1, full=True)
    sender.send_new(1)
    mirror = SnapshotMirror(there, log)
    mirror.poll()
    assert not mirror.wants_full
    sender.take_requests()
    assert not snapshots.full_requested(here)
    snapshots.request_full(there, "lost its way")
    assert mirror.wants_full
    mirror.ask(writer, 2)
    SnapshotSender(here, log, writer).take_requests()
    assert snapshots.full_requested(here)
    publish(here, 3, full=True)
    assert not snapshots.full_requested(here)
    sender.take_requests()
    assert not snapshots.full_requested(here)
    sender.send_new(3)
    mirror.poll()
    assert not mirror.wants_full
    writer.close()


def test_other_messages_are_refused_by_name(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    writer = LocalLogWriter(tmp_path / "log")
    writer.append(SNAPSHOTS, [b'{"user": 1}'], 0)
    with pytest.raises(SnapshotDamaged, match="log of its own"):
        SnapshotMirror(tmp_path / "there", log).poll()
    writer.append(REQUESTS, [b"full"], 0)
    writer.close()


def test_a_blob_that_is_not_the_manifest_s_is_not_taken(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    writer = LocalLogWriter(tmp_path / "log")
    publish(tmp_path / "here", 1, full=True)
    manifest = snapshots.read_manifest(tmp_path / "here", 1)
    body = manifest.model_dump_json().encode()
    writer.append(SNAPSHOTS, [encode(Head(1, 1, 0, -1), b"x"), encode(Head(1, 1, 1, -1, 0), body)], 0)
    writer.close()
    with pytest.raises(SnapshotDamaged, match="received another of 1 bytes"):
        SnapshotMirror(tmp_path / "there", log).poll()
    assert not snapshots.sequences(tmp_path / "there")
