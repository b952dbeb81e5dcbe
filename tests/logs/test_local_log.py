"""The local log: offsets, tailing, locks, torn tails, retention; against a plain list as the oracle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.errors import (
    LogDamaged,
    LogError,
    LogLocked,
    LogNotFound,
    MessageNotStorable,
    MessageTooLarge,
    OffsetOutOfRange,
)
from cuckooflow.logs.contract import LogReader, LogWriter
from cuckooflow.logs.local_log import LocalLog, LocalLogReader, LocalLogWriter
from cuckooflow.logs.segment import Encoding

LINES = [b'{"a":1}', b"", b'{"a":2,"s":"x"}']
FRAMES = [b"\x00\n\xff", None, b"", b"abc" * 100]


def everything(
    reader: LocalLogReader, partition: int = 0, **bounds: int
) -> list[tuple[int, int, bytes | None]]:
    """(offset, append time, message) of all that can be read."""
    found, at = [], reader.start_offset(partition)
    while len(batch := reader.read(partition, at, **bounds)):
        found += zip(batch.offsets.tolist(), batch.append_us.tolist(), batch.values.to_pylist(), strict=True)
        at = batch.next_offset
    return found


def messages(encoding: Encoding) -> list[bytes | None]:
    return list(LINES) if encoding == "lines" else list(FRAMES)


def data_file(path: Path, base: int = 0) -> Path:
    return next((path / "0").glob(f"{base:020d}.[jf]*"))


def index_file(path: Path, base: int = 0) -> Path:
    return path / "0" / f"{base:020d}.index"


encodings = pytest.mark.parametrize("encoding", ["lines", "frames"])


@encodings
def test_reads_what_was_appended(tmp_path: Path, encoding: Encoding) -> None:
    reader = LocalLog.create(tmp_path / "log", 2, encoding)
    expected = []
    with LocalLogWriter(tmp_path / "log") as writer:
        for n in range(5):
            assert writer.append(1, messages(encoding), 1_000 + n) == len(expected)
            expected += [(len(expected) + i, 1_000 + n, m) for i, m in enumerate(messages(encoding))]
            assert reader.end_offset(1) == len(expected)  # a tailing reader sees it at once
    assert everything(reader, 1) == expected
    assert everything(reader, 1, max_messages=2) == expected
    assert everything(reader, 1, max_bytes=1) == expected
    assert everything(reader, 0) == []


def test_accepts_an_arrow_array_and_an_empty_append(tmp_path: Path) -> None:
    reader = LocalLog.create(tmp_path / "log")
    with LocalLogWriter(tmp_path / "log") as writer:
        assert writer.append(0, pa.array([b"a", b"b"], pa.binary()), 1) == 0
        assert writer.append(0, [], 2) == 2
    assert [m for _, _, m in everything(reader)] == [b"a", b"b"]


def test_a_log_of_lines_is_a_plain_text_file(tmp_path: Path) -> None:
    LocalLog.create(tmp_path / "log")
    with LocalLogWriter(tmp_path / "log") as writer:
        writer.append(0, [b'{"a":1}', b'{"a":2}'], 1)
    assert data_file(tmp_path / "log").read_bytes() == b'{"a":1}\n{"a":2}\n'


def test_implements_the_contract(tmp_path: Path) -> None:
    reader: LogReader = LocalLog.create(tmp_path / "log", 3, name="clicks")
    assert (reader.name, list(reader.partitions())) == ("clicks", [0, 1, 2])
    with LocalLogWriter(tmp_path / "log") as local:
        writer: LogWriter = local
        writer.append(0, [b"a"], 1)
    assert LocalLog.open(tmp_path / "log").incarnation() == reader.incarnation()


def test_a_recreated_log_has_another_incarnation(tmp_path: Path) -> None:
    first = LocalLog.create(tmp_path / "log").incarnation()
    (tmp_path / "log" / "meta.json").unlink()
    assert LocalLog.create(tmp_path / "log").incarnation() != first


def test_create_refuses_what_is_there_and_opens_it_if_asked(tmp_path: Path) -> None:
    incarnation = LocalLog.create(tmp_path / "log").incarnation()
    with pytest.raises(LogError, match="found one"):
        LocalLog.create(tmp_path / "log")
    assert LocalLog.create(tmp_path / "log", exist_ok=True).incarnation() == incarnation
    with pytest.raises(LogError, match="partitions"):
        LocalLog.create(tmp_path / "other", 0)


def test_opening_nothing_and_nonsense(tmp_path: Path) -> None:
    with pytest.raises(LogNotFound, match="found none"):
        LocalLog.open(tmp_path / "log")
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(LogDamaged, match=r"meta\.json"):
        LocalLog.open(tmp_path)


def test_offsets_out_of_range(tmp_path: Path) -> None:
    reader = LocalLog.create(tmp_path / "log")
    with LocalLogWriter(tmp_path / "log") as writer:
        writer.append(0, [b"a", b"b"], 1)
    assert len(reader.read(0, 2)) == 0
    for bad in (3, -1):
        with pytest.raises(OffsetOutOfRange):
            reader.read(0, bad)
    with pytest.raises(OffsetOutOfRange):
        list(reader.read_range(0, 1, 3))
    with pytest.raises(LogError, match="partition"):
        reader.read(1, 0)
    assert [b.values.to_pylist() for b in reader.read_range(0, 1, 2)] == [[b"b"]]
    assert list(reader.read_range(0, 2, 2)) == []


@pytest.mark.parametrize("bad", [[b"a", b"x\ny"], [b"a", None]])
def test_lines_refuse_newlines_and_tombstones_whole(tmp_path: Path, bad: list[bytes | None]) -> None:
    reader = LocalLog.create(tmp_path / "log")
    with LocalLogWriter(tmp_path / "log") as writer, pytest.raises(MessageNotStorable):
        writer.append(0, bad, 1)
    assert reader.end_offset(0) == 0


@encodings
def test_too_large_a_message_is_refused_whole(tmp_path: Path, encoding: Encoding) -> None:
    reader = LocalLog.create(tmp_path / "log", 1, encoding)
    with LocalLogWriter(tmp_path / "log", max_message_bytes=10) as writer:
        with pytest.raises(MessageTooLarge):
            writer.append(0, [b"a", b"x" * 11], 1)
        writer.append(0, [b"x" * 10], 1)
    assert reader.end_offset(0) == 1


def test_one_writer_a_partition(tmp_path: Path) -> None:
    LocalLog.create(tmp_path / "log", 2)
    with LocalLogWriter(tmp_path / "log", [0]) as first:
        with pytest.raises(LogLocked, match="log/0"):
            LocalLogWriter(tmp_path / "log")
        with LocalLogWriter(tmp_path / "log", [1]) as second:
            second.append(1, [b"a"], 1)
            with pytest.raises(LogError, match="expected a partition"):
                first.append(1, [b"a"], 1)
    LocalLogWriter(tmp_path / "log").close()


def test_a_closed_writer_refuses(tmp_path: Path) -> None:
    LocalLog.create(tmp_path / "log")
    writer = LocalLogWriter(tmp_path / "log")
    writer.close()
    writer.close()
    with pytest.raises(LogError, match="closed"):
        writer.append(0, [b"a"], 1)


@encodings
def test_rolls_segments_and_retains(tmp_path: Path, encoding: Encoding) -> None:
    reader = LocalLog.create(tmp_path / "log", 1, encoding)
    with LocalLogWriter(tmp_path / "log", segment_bytes=100) as writer:
        for n in range(40):
            writer.append(0, [b"%030d" % n], n)
        assert len(list((tmp_path / "log/0").glob("*.index"))) > 5
        assert [m for _, _, m in everything(reader)] == [b"%030d" % n for n in range(40)]
        start = writer.retain(0, 20)
        assert 0 < start <= 20
        assert reader.start_offset(0) == start
        assert [o for o, _, _ in everything(reader)] == list(range(start, 40))
        with pytest.raises(OffsetOutOfRange, match="retention"):
            reader.read(0, start - 1)
        assert writer.retain(0, 40) == 40  # even the segment that is being written
        assert (reader.start_offset(0), reader.end_offset(0)) == (40, 40)
        assert writer.append(0, [b"next"], 1) == 40
    with LocalLogWriter(tmp_path / "log") as writer:
        assert writer.append(0, [b"after"], 1) == 41
    assert [m for _, _, m in everything(reader)] == [b"next", b"after"]


def test_a_sealed_log_says_so_and_refuses(tmp_path: Path) -> None:
    reader = LocalLog.create(tmp_path / "log")
    with LocalLogWriter(tmp_path / "log") as writer:
        assert not reader.sealed(0)
        writer.seal()
        assert reader.sealed(0)
        with pytest.raises(LogError, match="sealed"):
            writer.append(0, [b"a"], 1)


@encodings
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_torn_tail_is_cut_to_whole_messages(
    tmp_path_factory: pytest.TempPathFactory, encoding: Encoding, data: st.DataObject
) -> None:
    """Whatever prefix of the last append's bytes reached the two files, the rest of the log stands."""
    path = tmp_path_factory.mktemp("torn") / "log"
    reader = LocalLog.create(path, 1, encoding)
    with LocalLogWriter(path, fsync=False) as writer:
        writer.append(0, messages(encoding), 1)
        data_before, index_before = data_file(path).stat().st_size, index_file(path).stat().st_size
        writer.append(0, messages(encoding), 2)
    data_size, index_size = data_file(path).stat().st_size, index_file(path).stat().st_size
    # The data are written before the index, so a torn index means whole data.
    keep_index = data.draw(st.integers(index_before, index_size))
    keep_data = data_size if keep_index > index_before else data.draw(st.integers(data_before, data_size))
    os.truncate(data_file(path), keep_data)
    os.truncate(index_file(path), keep_index)
    kept = (keep_index - index_before) // 16
    expected = messages(encoding) + messages(encoding)[:kept]
    assert [m for _, _, m in everything(reader)] == expected
    with LocalLogWriter(path, fsync=False) as writer:
        assert writer.append(0, [b"new"], 3) == len(expected)
    assert [m for _, _, m in everything(reader)] == [*expected, b"new"]


@encodings
def test_a_power_loss_may_keep_the_index_but_not_the_data(tmp_path: Path, encoding: Encoding) -> None:
    path = tmp_path / "log"
    reader = LocalLog.create(path, 1, encoding)
    with LocalLogWriter(path) as writer:
        writer.append(0, [b"first"], 1)
        size = data_file(path).stat().st_size
        writer.append(0, [b"second"], 2)
    os.truncate(data_file(path), size + 2)
    with LocalLogWriter(path) as writer:
        assert writer.append(0, [b"third"], 3) == 1
    assert everything(reader) == [(0, 1, b"first"), (1, 3, b"third")]


@encodings
def test_a_lost_index_is_rebuilt(tmp_path: Path, encoding: Encoding) -> None:
    path = tmp_path / "log"
    reader = LocalLog.create(path, 1, encoding)
    with LocalLogWriter(path) as writer:
        writer.append(0, messages(encoding), 77)
    with data_file(path).open("ab") as file:
        file.write(b'{"torn')
    index_file(path).unlink()
    with pytest.raises(LogDamaged, match="rebuilds the index"):
        reader.read(0, 0)
    with LocalLogWriter(path) as writer:
        writer.append(0, [b"new"], 78)
    found = everything(reader)
    assert [m for _, _, m in found] == [*messages(encoding), b"new"]
    if encoding == "frames":
        assert [t for _, t, _ in found] == [77] * len(FRAMES) + [78]


def test_a_changed_byte_in_a_frame_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = LocalLog.create(path, 1, "frames")
    with LocalLogWriter(path) as writer:
        writer.append(0, [b"first", b"second"], 1)
    raw = bytearray(data_file(path).read_bytes())
    raw[raw.index(b"second")] ^= 1
    data_file(path).write_bytes(raw)
    assert reader.read(0, 0, max_messages=1).values.to_pylist() == [b"first"]
    with pytest.raises(LogDamaged, match="checksum"):
        reader.read(0, 1)
    with pytest.raises(LogDamaged, match="checksum"):
        LocalLogWriter(path)


def test_an_edited_file_of_lines_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = LocalLog.create(path)
    with LocalLogWriter(path) as writer:
        writer.append(0, [b"aaa", b"bbb"], 1)
    data_file(path).write_bytes(b"a\naabbb\n")
    with pytest.raises(LogDamaged, match="edited"):
        reader.read(0, 0)


WRITER = """
import itertools, sys
from cuckooflow.logs.local_log import LocalLogWriter
writer = LocalLogWriter(sys.argv[1], segment_bytes=20_000)
print("ready", flush=True)
for n in itertools.count(writer.end_offset(0)):
    first = writer.append(0, [b'{"n":%d}' % n], n)
    assert first == n
"""


@pytest.fixture
def killed() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.fault
@encodings
def test_killed_writers_leave_a_whole_log(
    tmp_path: Path, encoding: Encoding, killed: list[subprocess.Popen[str]]
) -> None:
    """A reader tails while writers are killed -9 one after the other: message n is at offset n, always."""
    path = tmp_path / "log"
    reader = LocalLog.create(path, 1, encoding)
    at = 0
    for kill in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        killed.append(process)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        goal = at + 700
        while at < goal:
            batch = reader.read(0, at)
            assert batch.values.to_pylist() == [b'{"n":%d}' % n for n in batch.offsets]
            at = batch.next_offset
            assert process.poll() is None, kill
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [o for o, _, _ in everything(reader)] == list(range(reader.end_offset(0)))


def test_threads_share_a_writer(tmp_path: Path) -> None:
    reader = LocalLog.create(tmp_path / "log")
    with LocalLogWriter(tmp_path / "log", fsync=False) as writer:

        def work(who: int) -> None:
            for n in range(100):
                writer.append(0, [b"%d %d" % (who, n)] * 3, 1)

        threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = [m for _, _, m in everything(reader)]
    assert len(found) == 1_200
    assert all(found[i] == found[i + 1] == found[i + 2] for i in range(0, 1_200, 3))


def test_a_large_read_is_bounded_and_in_order(tmp_path: Path) -> None:
    reader = LocalLog.create(tmp_path / "log")
    with LocalLogWriter(tmp_path / "log", segment_bytes=1 << 20) as writer:
        for n in range(30):
            writer.append(0, [b"%0100d" % (n * 1_000 + i) for i in range(1_000)], n)
    sizes, at = [], 0
    while len(batch := reader.read(0, at, max_messages=1_500, max_bytes=100_000)):
        assert (np.diff(batch.offsets) == 1).all()
        assert batch.values[0].as_py() == b"%0100d" % at
        sizes.append(len(batch))
        at = batch.next_offset
    assert at == 30_000 and max(sizes) * 101 <= 100_000
