"""Flink: a JobManager and a TaskManager, from the jars in Python's package of them."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cuckooflow.errors import DownloadFailed
from cuckooflow.runners.cluster import versions
from cuckooflow.runners.cluster.cache import cached_folder, checked, tool
from cuckooflow.runners.cluster.part import Part
from cuckooflow.runners.cluster.place import Place
from cuckooflow.runners.cluster.ports import LOOPBACK
from cuckooflow.runners.cluster.processes import Command

#: 230 MB over a slow line, and the package's own metadata step.
DOWNLOAD_TIMEOUT_S = 900.0
_ANSWER_TIMEOUT_S = 3.0

#: What Flink's own scripts would open to it on Java 17.
_EXPORTS = (
    "java.base/sun.net.util",
    "java.rmi/sun.rmi.registry",
    "java.security.jgss/sun.security.krb5",
)
_OPENS = (
    *("lang", "net", "io", "nio", "lang.reflect", "text", "time", "util"),
    *("util.concurrent", "util.concurrent.atomic", "util.concurrent.locks"),
)
_MODULES = (
    *(f"--add-exports={module}=ALL-UNNAMED" for module in _EXPORTS),
    *(f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _OPENS),
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
)
#: What holds wherever these jobs run on Flink; the container templates have the same.
SETTINGS: Mapping[str, object] = {
    # Keyed state on disk, a checkpoint writes what is new; a job may ask for another.
    "state.backend.type": "rocksdb",
    "state.backend.incremental": True,
    # State is written once and soon cleared: what is dropped before its buffer is full is never written out.
    "state.backend.rocksdb.memory.write-buffer-ratio": 0.8,
    "state.checkpoints.num-retained": 3,
    "heartbeat.interval": 2_000,
    "heartbeat.timeout": 10_000,
    "restart-strategy.type": "fixed-delay",
    "restart-strategy.fixed-delay.attempts": 100,
    "restart-strategy.fixed-delay.delay": "2s",
    # The job server's jar brings Flink's classes of another patch version: the cluster's own come first.
    "classloader.resolve-order": "parent-first",
    # How old what `job status` shows may be, in ms.
    "metrics.fetcher.update-interval": 2_000,
    "metrics.reporter.prom.factory.class": "org.apache.flink.metrics.prometheus.PrometheusReporterFactory",
}
_LOGGING = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = Console
appender.console.name = Console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %-5p %c{1} - %m%n
"""


def flink_home(cache: Path) -> Path:
    """The folder with ``lib`` and ``plugins``; fetched when it is not in the cache.

    Raises:
        DownloadFailed: pip could not get the package.
        DownloadDamaged: it is not the pinned one.
    """
    return cached_folder(cache, f"flink-{versions.FLINK}-{versions.FLINK_SHA256[:12]}", _fetch)


def _fetch(folder: Path) -> None:
    wanted = f"{versions.FLINK_PACKAGE}=={versions.FLINK}"
    options = ["--no-deps", "--no-cache-dir", "--disable-pip-version-check", "-q", "-d", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, wanted],
        capture_output=True,
        text=True,
        timeout=DOWNLOAD_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise DownloadFailed(f"expected pip to fetch {wanted}, it said: {done.stderr.strip()[-2_000:]}")
    (archive,) = folder.iterdir()
    checked(archive, versions.FLINK_SHA256)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    archive.unlink()
    (root,) = folder.iterdir()
    for name in ("lib", "plugins"):
        (root / "deps" / name).rename(folder / name)


class JobManager(Part):
    name = "jobmanager"
    ports = ("flink-rest", "flink-rpc", "jobmanager-metrics")
    ready_timeout_s = 60.0

    def command(self, place: Place) -> Command:
        options = {"jobmanager.memory.heap.size": "512m", "parallelism.default": 1}
        entry = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        return _java(place, self.name, ["-Xmx512m"], entry, options)

    def fetch(self, place: Place) -> None:
        flink_home(place.cache)

    def answers(self, place: Place) -> bool:
        return _rest(place, "/overview") is not None

    def address(self, place: Place) -> str:
        return f"http://{LOOPBACK}:{place.ports['flink-rest']}"


class TaskManager(Part):
    name = "taskmanager"
    ports = ("taskmanager-metrics",)
    needs = ("jobmanager",)
    #: A JobManager that came back is heard of by heartbeat.
    ready_timeout_s = 90.0

    #: What is not Java's own heap: RocksDB lives in the managed part. Without Flink's scripts all are needed.
    _MEMORY = {
        "framework.heap.size": "128m",
        "framework.off-heap.size": "128m",
        "task.heap.size": "768m",
        "task.off-heap.size": "0m",
        "managed.size": "768m",
        "network.min": "96m",
        "network.max": "96m",
        "jvm-metaspace.size": "384m",
        "jvm-overhead.min": "192m",
        "jvm-overhead.max": "192m",
    }

    def command(self, place: Place) -> Command:
        # A name for each start: the JobManager lists a lost one until its heartbeat times out.
        name = f"taskmanager-{secrets.token_hex(4)}"
        options: dict[str, object] = {
            "taskmanager.resource-id": name,
            "taskmanager.host": LOOPBACK,
            "taskmanager.bind-host": LOOPBACK,
            "taskmanager.numberOfTaskSlots": place.options.task_slots,
            "taskmanager.cpu.cores": 2.0,
        }
        options |= {f"taskmanager.memory.{key}": value for key, value in self._MEMORY.items()}
        memory = ["-Xmx896m", "-XX:MaxDirectMemorySize=512m", "-XX:MaxMetaspaceSize=384m"]
        entry = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        command = _java(place, self.name, memory, entry, options)
        (place.folder / self.name / "resource-id").write_text(name)
        return command

    def fetch(self, place: Place) -> None:
        flink_home(place.cache)

    def answers(self, place: Place) -> bool:
        wanted = (place.folder / self.name / "resource-id").read_text()
        listed = _rest(place, "/taskmanagers")
        return listed is not None and any(found["id"] == wanted for found in listed["taskmanagers"])

    def address(self, place: Place) -> str:
        return f"{LOOPBACK}:{place.ports['taskmanager-metrics']}/metrics"


def _java(place: Place, role: str, memory: list[str], entry: str, options: Mapping[str, object]) -> Command:
    home = place.folder / role
    home.mkdir(exist_ok=True)
    flink = flink_home(place.cache)
    state = place.folder / "flink"
    (state / "tmp").mkdir(parents=True, exist_ok=True)
    every: dict[str, object] = {
        **SETTINGS,
        "jobmanager.rpc.address": LOOPBACK,
        "jobmanager.rpc.port": place.ports["flink-rpc"],
        "jobmanager.bind-host": LOOPBACK,
        "rest.address": LOOPBACK,
        "rest.bind-address": LOOPBACK,
        "rest.port": place.ports["flink-rest"],
        "state.checkpoints.dir": (state / "checkpoints").as_uri(),
        "state.savepoints.dir": (state / "savepoints").as_uri(),
        "io.tmp.dirs": state / "tmp",
        "metrics.latency.interval": 0,
        "metrics.reporter.prom.port": place.ports[f"{role}-metrics"],
    }
    every.update(options)
    shown = {key: str(value).lower() if isinstance(value, bool) else value for key, value in every.items()}
    (home / "flink-conf.yaml").write_text("".join(f"{key}: {value}\n" for key, value in shown.items()))
    (home / "log4j.properties").write_text(_LOGGING)
    words = [tool("java", "Java 17"), *_MODULES, *memory]
    words += [f"-Dlog4j.configurationFile={home / 'log4j.properties'}", "-cp", f"{flink / 'lib'}/*"]
    return Command(
        [*words, entry, "--configDir", str(home)], home, {"FLINK_PLUGINS_DIR": str(flink / "plugins")}
    )


def _rest(place: Place, path: str) -> Any:
    """What Flink's REST answers; None while it does not."""
    url = f"http://{LOOPBACK}:{place.ports['flink-rest']}{path}"
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_TIMEOUT_S) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None
