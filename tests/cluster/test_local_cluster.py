"""All parts of the local cluster: up, seen, killed, and ended, by the Python interface and by command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cuckooflow.errors import SpecError
from cuckooflow.runners.cluster import ALL_PARTS, ClusterOptions, LocalCluster
from cuckooflow.runners.cluster.cache import default_cache
from cuckooflow.runners.cluster.job_server import merged_jar
from cuckooflow.runners.flink_rest import FlinkRest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def own(tmp_path: Path, flink: LocalCluster) -> Iterator[LocalCluster]:
    """A cluster of this test alone."""
    del flink  # asked for its skip, and so that nothing is fetched twice
    cluster = LocalCluster(tmp_path / "own")
    yield cluster
    cluster.down()


def states(cluster: LocalCluster) -> dict[str, str]:
    return {part.name: part.state for part in cluster.status()}


def kill_9(cluster: LocalCluster, part: str) -> int:
    pid = cluster.pid(part)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return pid


def test_up_again_starts_nothing(flink: LocalCluster) -> None:
    addresses = flink.addresses()
    pids = {part: flink.pid(part) for part in ALL_PARTS}
    assert flink.up() == addresses
    assert {part: flink.pid(part) for part in ALL_PARTS} == pids
    assert all((addresses.kafka, addresses.flink_rest, addresses.job_endpoint, addresses.worker_pool))
    assert states(flink) == dict.fromkeys(ALL_PARTS, "up")


@pytest.mark.fault
@pytest.mark.deep
def test_killed_parts_are_seen_and_come_back_where_and_as_they_were(
    tmp_path: Path, own: LocalCluster
) -> None:
    given = tmp_path / "official.jar"
    shutil.copy(merged_jar(default_cache()), given)
    asked = LocalCluster(own.folder, options=ClusterOptions(task_slots=2, job_server_jar=given))
    parts = ("jobmanager", "taskmanager", "jobserver")
    before = asked.up(parts)
    assert states(own) == {**dict.fromkeys(ALL_PARTS, "down"), **dict.fromkeys(parts, "up")}
    assert before.kafka is None
    assert before.flink_rest is not None
    rest = FlinkRest(before.flink_rest)

    def as_asked() -> bool:
        command = Path(f"/proc/{own.pid('jobserver')}/cmdline").read_bytes()
        return rest.get("/overview")["slots-total"] == 2 and str(given).encode() in command

    assert as_asked()
    kill_9(own, "taskmanager")
    assert states(own)["taskmanager"] == "dead"
    assert states(own)["jobmanager"] == "up"
    for part in ("jobmanager", "jobserver"):
        kill_9(own, part)
    assert own.up(parts) == before  # without options: what was asked for is kept
    assert as_asked()
    resource_id = (own.folder / "taskmanager" / "resource-id").read_text()
    assert [manager["id"] for manager in rest.get("/taskmanagers")["taskmanagers"]] == [resource_id]


def test_a_part_without_what_it_needs_is_refused(own: LocalCluster) -> None:
    with pytest.raises(SpecError, match="taskmanager needs jobmanager"):
        own.up(["taskmanager"])
    assert set(states(own).values()) == {"down"}


def test_workers_see_the_built_wheel_and_nothing_of_the_checkout(flink: LocalCluster) -> None:
    pool = Path(f"/proc/{flink.pid('workers')}")
    environment = dict(
        line.split(b"=", 1) for line in (pool / "environ").read_bytes().split(b"\0") if b"=" in line
    )
    assert b"PYTHONPATH" not in environment
    folder = (pool / "cwd").readlink()
    assert list(folder.iterdir()) == []
    python = (pool / "cmdline").read_bytes().split(b"\0")[0].decode()
    code = (
        "import cuckooflow, sys, importlib.metadata as m; from cuckooflow.runners.cluster.maven import pins; "
        "from cuckooflow.embedding_store import _native; "
        "print(cuckooflow.__file__, len(pins('kafka')), 'pytest' in {d.name for d in m.distributions()})"
    )
    seen = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    where, pinned, has_pytest = seen.stdout.split()
    assert Path(where).is_relative_to(Path(python).parent.parent / "lib")
    assert int(pinned) > 0
    assert has_pytest == "False"


def test_flink_reports_to_prometheus(flink: LocalCluster) -> None:
    address = next(part.address for part in flink.status() if part.name == "taskmanager")
    with urllib.request.urlopen(f"http://{address}", timeout=10) as answer:
        assert b"flink_taskmanager_Status_JVM_Memory_Heap_Used" in answer.read()


def test_by_command(tmp_path: Path, flink: LocalCluster, cli: Cli) -> None:
    del flink
    folder = tmp_path / "by-command"
    started = cli("cluster", "up", "--dir", folder, "--parts", "kafka")
    try:
        assert started.returncode == 0, started.stderr
        assert "cluster: kafka pid=" in started.stdout
        seen = cli("cluster", "status", "--dir", folder, "--json")
        parts = {part["name"]: part for part in json.loads(seen.stdout)}
        assert seen.returncode == 0
        assert parts["kafka"]["state"] == "up"
        assert parts["workers"]["state"] == "down"
        assert str(parts["kafka"]["pid"]) in started.stdout
        assert parts["kafka"]["address"] in started.stdout
        assert Path(parts["kafka"]["log"]).stat().st_size > 0
        os.kill(parts["kafka"]["pid"], signal.SIGKILL)
        dead = cli("cluster", "status", "--dir", folder)
        assert dead.returncode == 1
        assert "dead" in dead.stdout
    finally:
        ended = cli("cluster", "down", "--dir", folder)
    assert ended.stdout == "ended: kafka\n"
    assert cli("cluster", "down", "--dir", folder).stdout == "ended: nothing ran\n"
    refused = cli("cluster", "up", "--dir", folder, "--parts", "kafak")
    assert refused.returncode == 2
    assert "received kafak" in refused.stderr
