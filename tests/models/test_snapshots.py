"""Snapshots as pairs of files: what is written comes back, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cuckooflow.embedding_store.api import Delta, TableDelta, Version
from cuckooflow.errors import SnapshotDamaged
from cuckooflow.logs.contract import Position
from cuckooflow.models import snapshots
from cuckooflow.models.snapshots import Manifest, SnapshotInfo, read_snapshot, write_snapshot

INFO = SnapshotInfo(name="movies", created_us=1_000, event_time_us=900, model={"labels": ["like"]})


def make_delta(n: int, base: int | None = None, rows: int = 3, incarnation: str = "inc") -> Delta:
    rng = np.random.default_rng(n)
    ids = np.array([0, 1 << 63, (1 << 64) - 1], np.uint64)
    ids = np.concatenate([ids, rng.integers(1, 1 << 63, max(0, rows - 3), np.uint64)])[:rows]
    return Delta(
        version=Version(incarnation, n),
        base=None if base is None else Version(incarnation, base),
        tables={
            "embedding": TableDelta(ids, rng.standard_normal((rows, 4), np.float32), ids[:1] + np.uint64(7)),
            "linear": TableDelta(ids[:0], np.empty((0, 1), np.float32), ids[:0]),
        },
        dense={"w": rng.standard_normal((2, 5), np.float32), "bias": np.float32(n).reshape(())},
        marks={"examples": {0: Position(n, 2), 1: Position(5, 0)}},
    )


def assert_same(got: Delta, expected: Delta) -> None:
    assert (got.version, got.base, got.marks) == (expected.version, expected.base, expected.marks)
    assert got.tables.keys() == expected.tables.keys()
    for name, table in expected.tables.items():
        assert got.tables[name].weights.dtype == np.float32
        np.testing.assert_array_equal(got.tables[name].ids, table.ids)
        np.testing.assert_array_equal(got.tables[name].tombstones, table.tombstones)
        # Bit for bit: compared as integers, so that -0.0 and denormals count too.
        np.testing.assert_array_equal(got.tables[name].weights.view(np.uint32), table.weights.view(np.uint32))
    assert got.dense.keys() == expected.dense.keys()
    for name, value in expected.dense.items():
        assert got.dense[name].shape == value.shape
        np.testing.assert_array_equal(got.dense[name].view(np.uint32), value.view(np.uint32))


def test_what_is_written_comes_back_bit_for_bit(tmp_path: Path) -> None:
    delta = make_delta(3, base=2)
    delta.tables["embedding"].weights[0] = [-0.0, 1e-45, np.finfo(np.float32).max, 1 / 3]
    written = write_snapshot(tmp_path / "new", delta, INFO)
    (manifest,) = snapshots.list_manifests(tmp_path / "new")
    assert manifest == written
    assert manifest.tables["embedding"].model_dump() == {"dim": 4, "rows": 3, "tombstones": 1}
    assert (manifest.kind, manifest.sequence, manifest.base) == ("delta", 1, Version("inc", 2))
    blob = (tmp_path / "new" / manifest.blob).read_bytes()
    assert (len(blob), hashlib.sha256(blob).hexdigest()) == (manifest.blob_bytes, manifest.sha256)
    assert_same(read_snapshot(tmp_path / "new", manifest), delta)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(0, 40), dim=st.integers(1, 9), bits=st.integers(0, (1 << 32) - 1))
def test_any_bits_survive(tmp_path_factory: pytest.TempPathFactory, rows: int, dim: int, bits: int) -> None:
    folder = tmp_path_factory.mktemp("any")
    weights = np.full((rows, dim), bits, np.uint32).view(np.float32)
    ids = np.arange(rows, dtype=np.uint64)
    delta = Delta(Version("i", 1), None, {"t": TableDelta(ids, weights, ids)}, {}, {})
    assert_same(read_snapshot(folder, write_snapshot(folder, delta, INFO)), delta)


def test_publication_order_survives_restarts_and_incarnations(tmp_path: Path) -> None:
    write_snapshot(tmp_path, make_delta(9), INFO)
    write_snapshot(tmp_path, make_delta(10, base=9), INFO)
    write_snapshot(tmp_path, make_delta(1, incarnation="restored"), INFO)
    manifests = snapshots.list_manifests(tmp_path)
    assert [m.sequence for m in manifests] == [1, 2, 3]
    assert [m.version for m in manifests] == [Version("inc", 9), Version("inc", 10), Version("restored", 1)]
    assert [m.sequence for m in snapshots.list_manifests(tmp_path, after=2)] == [3]
    assert snapshots.is_published(tmp_path, 3)
    assert not snapshots.is_published(tmp_path, 4)


def test_no_folder_is_no_snapshots(tmp_path: Path) -> None:
    assert snapshots.list_manifests(tmp_path / "none") == []
    assert snapshots.newest_sequence(tmp_path / "none") == 0


@pytest.mark.parametrize(
    ("base", "held", "expected"),
    [
        (None, None, True),
        (None, ("other", 99), True),
        (5, None, False),
        (5, ("inc", 4), False),
        (5, ("inc", 5), True),
        (5, ("inc", 7), True),
        (5, ("inc", 8), True),
        (5, ("inc", 9), False),
        (5, ("other", 5), False),
    ],
)
def test_stands_on(tmp_path: Path, base: int | None, held: tuple[str, int] | None, expected: bool) -> None:
    manifest = write_snapshot(tmp_path, make_delta(8, base=base), INFO)
    assert snapshots.stands_on(manifest, None if held is None else Version(*held)) is expected


def test_old_ones_go_but_never_the_way_from_a_kept_full_one(tmp_path: Path) -> None:
    for n in range(1, 11):
        delta = make_delta(n, base=None if n % 3 == 1 else n - 1)
        write_snapshot(tmp_path, delta, INFO, fulls_kept=2)
    manifests = snapshots.list_manifests(tmp_path)
    assert [m.sequence for m in manifests] == [7, 8, 9, 10]
    assert manifests[0].kind == "full"
    for manifest in manifests:
        read_snapshot(tmp_path, manifest)
    assert len(list(tmp_path.iterdir())) == 8  # no blob, no temporary name left behind


def test_a_blob_without_manifest_is_no_full_snapshot(tmp_path: Path) -> None:
    write_snapshot(tmp_path, make_delta(1), INFO, fulls_kept=1)
    orphan = tmp_path / "000000000002-full-00000000.arrow"
    orphan.write_bytes(b"left by a killed writer")
    stale = tmp_path / "000000000001-aabbccdd.tmp"
    stale.write_bytes(b"also")
    write_snapshot(tmp_path, make_delta(2, base=1), INFO, fulls_kept=1)
    assert [m.sequence for m in snapshots.list_manifests(tmp_path)] == [1, 2]
    write_snapshot(tmp_path, make_delta(3), INFO, fulls_kept=1)
    assert [m.sequence for m in snapshots.list_manifests(tmp_path)] == [3]
    assert not orphan.exists()
    assert not stale.exists()


def _truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 9)


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "says"),
    [(_truncate, "bytes"), (_flip, "sha256"), (Path.unlink, "No such file")],
    ids=["truncated", "flipped", "missing"],
)
def test_a_damaged_blob_is_refused(tmp_path: Path, damage, says: str) -> None:  # type: ignore[no-untyped-def]
    manifest = write_snapshot(tmp_path, make_delta(1, rows=50), INFO)
    damage(tmp_path / manifest.blob)
    with pytest.raises(SnapshotDamaged, match=says):
        read_snapshot(tmp_path, manifest)


@pytest.mark.parametrize("content", ["arrow", "noise", "stream"])
def test_a_blob_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    """Right size and checksum, wrong content: what another program could have written."""
    manifest = write_snapshot(tmp_path, make_delta(1), INFO)
    if content == "noise":
        raw = b"not arrow at all"
    else:
        sink = pa.BufferOutputStream()
        new = pa.ipc.new_file if content == "arrow" else pa.ipc.new_stream
        with new(sink, pa.schema([("x", pa.int8())])) as writer:
            writer.write_batch(pa.record_batch({"x": pa.array([1], pa.int8())}))
        raw = sink.getvalue().to_pybytes()
    (tmp_path / manifest.blob).write_bytes(raw)
    forged = manifest.model_copy(update={"blob_bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()})
    with pytest.raises(SnapshotDamaged, match="expected a snapshot's blob"):
        read_snapshot(tmp_path, forged)


def test_a_blob_that_disagrees_with_its_manifest_is_refused(tmp_path: Path) -> None:
    manifest = write_snapshot(tmp_path, make_delta(1), INFO)
    wrong = {**manifest.tables, "embedding": manifest.tables["embedding"].model_copy(update={"rows": 4})}
    with pytest.raises(SnapshotDamaged, match="expected tables"):
        read_snapshot(tmp_path, manifest.model_copy(update={"tables": wrong}))


@pytest.mark.parametrize("raw", [b"", b"{", b"null", b'{"name": 1}', b"\xff\xfe"])
def test_a_damaged_manifest_is_named_and_left_out(
    tmp_path: Path, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for n in (1, 2, 3):
        write_snapshot(tmp_path, make_delta(n), INFO, fulls_kept=9)
    (tmp_path / "000000000002.json").write_bytes(raw)
    assert [m.sequence for m in snapshots.list_manifests(tmp_path)] == [1, 3]
    assert "manifest_damaged sequence=2" in caplog.text
    with pytest.raises(SnapshotDamaged, match="expected a snapshot's manifest"):
        snapshots.read_manifest(tmp_path, 2)


def test_a_manifest_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    manifest = write_snapshot(tmp_path, make_delta(1), INFO)
    evil = manifest.model_copy(update={"blob": "000000000001-full-/../../etc/passwd"})
    (tmp_path / "000000000001.json").write_text(evil.model_dump_json())
    with pytest.raises(SnapshotDamaged, match="a blob beside it"):
        snapshots.read_manifest(tmp_path, 1)


def test_a_request_for_a_full_one_lasts_until_it_is_published(tmp_path: Path) -> None:
    assert not snapshots.full_requested(tmp_path)
    snapshots.request_full(tmp_path, "gap after 7")
    snapshots.request_full(tmp_path, "gap after 7")
    write_snapshot(tmp_path, make_delta(2, base=1), INFO)
    assert snapshots.full_requested(tmp_path)
    write_snapshot(tmp_path, make_delta(3), INFO)
    assert not snapshots.full_requested(tmp_path)


def test_metrics_that_are_not_finite_become_null(tmp_path: Path) -> None:
    info = INFO.model_copy(update={"metrics": {"auc": 0.75, "logloss": float("nan")}})
    write_snapshot(tmp_path, make_delta(1), info)
    assert snapshots.list_manifests(tmp_path)[0].metrics == {"auc": 0.75, "logloss": None}


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.5},
        {"correction": "magic"},
        {"arrivals_us": tuple(range(257))},
        {"correction": "log_odds", "sampling_rate": 0.5, "model": {"labels": ["click", "like"]}},
    ],
    ids=str,
)
def test_wrong_info_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SnapshotInfo(**{"name": "m", "created_us": 1, **wrong})  # type: ignore[arg-type]


def test_weights_that_do_not_fit_their_ids_are_refused(tmp_path: Path) -> None:
    ids = np.arange(3, dtype=np.uint64)
    delta = Delta(
        Version("i", 1), None, {"t": TableDelta(ids, np.zeros((2, 4), np.float32), ids[:0])}, {}, {}
    )
    with pytest.raises(ValueError, match=r"expected weights of shape \(3, dim\)"):
        write_snapshot(tmp_path, delta, INFO)
    assert snapshots.list_manifests(tmp_path) == []


def test_two_writers_get_two_numbers(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def publish(writer: str) -> None:
        try:
            for n in range(1, 21):
                write_snapshot(tmp_path, make_delta(n, base=n - 1, incarnation=writer), INFO)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=publish, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    manifests = snapshots.list_manifests(tmp_path)
    assert [m.sequence for m in manifests] == list(range(1, 61))
    for writer in "abc":
        mine = [m for m in manifests if m.version.incarnation == writer]
        assert [m.version.n for m in mine] == list(range(1, 21))
    for manifest in manifests:
        assert_same(
            read_snapshot(tmp_path, manifest),
            make_delta(manifest.version.n, manifest.version.n - 1, incarnation=manifest.version.incarnation),
        )


KILLED_WRITER = """
import sys
from pathlib import Path
import numpy as np
from cuckooflow.embedding_store.api import Delta, TableDelta, Version
from cuckooflow.models.snapshots import SnapshotInfo, newest_sequence, write_snapshot

folder = Path(sys.argv[1])
ids = np.arange(20_000, dtype=np.uint64)
while True:
    n = newest_sequence(folder) + 1
    base = None if n % 5 == 1 else Version("i", n - 1)
    rows = TableDelta(ids, np.full((len(ids), 16), n, np.float32), ids[:0])
    info = SnapshotInfo(name="m", created_us=n)
    write_snapshot(folder, Delta(Version("i", n), base, {"t": rows}, {}, {}), info)
"""


@pytest.mark.deep
@pytest.mark.fault
def test_a_writer_killed_anywhere_leaves_only_whole_snapshots(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    script = tmp_path / "writer.py"
    script.write_text(KILLED_WRITER)
    rng = np.random.default_rng(0)
    torn = 0
    for _ in range(20):
        if torn == 3:
            break
        before = snapshots.newest_sequence(folder)
        with subprocess.Popen([sys.executable, str(script), str(folder)]) as writer:
            deadline = time.monotonic() + 30
            while snapshots.newest_sequence(folder) < before + 2:
                assert writer.poll() is None, "the writer ended by itself"
                assert time.monotonic() < deadline, "the writer published nothing"
            # Where in the next snapshot the kill falls differs from round to round.
            target = time.monotonic() + rng.uniform(0, 0.02)
            while time.monotonic() < target:
                pass
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
        manifests = snapshots.list_manifests(folder)
        assert [m.sequence for m in manifests] == list(
            range(manifests[0].sequence, manifests[0].sequence + len(manifests))
        )
        assert manifests[0].kind == "full"
        for manifest in manifests:
            table = read_snapshot(folder, manifest).tables["t"]
            assert (table.weights == manifest.version.n).all()
        torn += len(list(folder.iterdir())) != 2 * len(manifests)
    assert torn == 3, "too few kills fell into a write; the test shows little"


def test_the_manifest_is_plain_json_that_older_readers_refuse_by_name(tmp_path: Path) -> None:
    manifest = write_snapshot(tmp_path, make_delta(1), INFO)
    text = (tmp_path / "000000000001.json").read_text()
    assert Manifest.model_validate_json(text) == manifest
    (tmp_path / "000000000001.json").write_text(text.replace('"name"', '"nom"'))
    with pytest.raises(SnapshotDamaged):
        snapshots.read_manifest(tmp_path, 1)
