"""The cache of downloads: an entry is whole or made anew, and what is not the pinned file is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cuckooflow.errors import DownloadDamaged, SpecError, ToolMissing
from cuckooflow.runners.cluster.cache import cached_folder, checked, default_cache, tool
from cuckooflow.runners.cluster.place import ClusterOptions
from cuckooflow.runners.cluster.ports import free_port, is_free


def test_an_entry_is_filled_once_and_one_that_was_cut_short_again(tmp_path: Path) -> None:
    filled: list[Path] = []

    def fill(folder: Path) -> None:
        filled.append(folder)
        assert list(folder.iterdir()) == []
        (folder / "file").write_text("whole")

    def cut_short(folder: Path) -> None:
        (folder / "half").write_text("ha")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        cached_folder(tmp_path, "entry", cut_short)
    for _ in range(2):
        entry = cached_folder(tmp_path, "entry", fill)
        assert (entry / "file").read_text() == "whole"
        assert not (entry / "half").exists()
    assert len(filled) == 1


def test_a_file_that_is_not_the_pinned_one_is_refused_by_both_digests(tmp_path: Path) -> None:
    file = tmp_path / "archive.tar.gz"
    file.write_bytes(b"other bytes")
    received = hashlib.sha256(b"other bytes").hexdigest()
    checked(file, received)
    with pytest.raises(
        DownloadDamaged, match=f"archive.tar.gz: expected sha-256 {'0' * 64}, received {received}"
    ):
        checked(file, "0" * 64)


def test_the_cache_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUCKOOFLOW_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("CUCKOOFLOW_CACHE")
    assert default_cache() == Path.home() / ".cache" / "cuckooflow"


def test_a_missing_program_is_named() -> None:
    with pytest.raises(ToolMissing, match="expected Java 17 as 'no-such-java' on the PATH"):
        tool("no-such-java", "Java 17")


def test_a_port_is_free_and_never_one_of_outgoing_connections() -> None:
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    taken: set[int] = set()
    for _ in range(20):
        port = free_port(taken)
        assert port not in taken
        assert port < first_ephemeral
        assert is_free(port)
        taken.add(port)


def test_options_that_name_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="expected a job server jar, found no file"):
        ClusterOptions(job_server_jar=tmp_path / "absent.jar")
    with pytest.raises(SpecError, match="one task slot or more, received 0"):
        ClusterOptions(task_slots=0)
