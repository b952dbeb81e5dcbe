"""Flink SQL's interval left join beside ours: the same JSON records from Kafka, examples into Kafka, the same parallelism."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.join_events import Events, Shape
from benchmarks.join_live import FIRST, LAST, LiveJob
from cuckooflow.logs.address import KafkaAddress
from cuckooflow.runners.cluster.cache import cached_folder, default_cache, tool
from cuckooflow.runners.cluster.ports import free_port

_ROOT = Path(__file__).resolve().parent.parent
_CONNECTOR = "org.apache.flink:flink-sql-connector-kafka:3.2.0-1.19"
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:2.8:copy"
_INSTALL_TIMEOUT_S = 900.0
#: Of one run, start-up included; the rate up to then counts where it has not ended.
_BOUND_S = 120.0
BACKENDS = ("hashmap", "rocksdb")


class NotHere(Exception):
    """PyFlink or its Kafka connector cannot be had."""


def flink_sql_events_per_s(job: LiveJob, made: Events, shape: Shape, parallelism: int) -> dict[str, float]:
    """State backend -> events/s of the records in the job's input topics, which are JSON.

    Raises:
        NotHere: the reason.
    """
    home = _environment()
    (jar,) = home.glob("*.jar")
    addresses = {log: job.address(log) for log in ("impressions", "actions", "examples")}
    kafka = addresses["impressions"]
    assert isinstance(kafka, KafkaAddress)
    found: dict[str, float] = {}
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory(prefix="cuckooflow-sql-") as checkpoints:
            words = {
                "bootstrap": kafka.bootstrap,
                **{log: address.name for log, address in addresses.items()},
                "jar": jar,
                "backend": backend,
                "checkpoints": checkpoints,
                "events": made.count,
                "window-s": shape.window_us // 1_000_000,
                "skew-s": shape.skew_us // 1_000_000,
                "parallelism": parallelism,
                "rest-port": free_port([]),
                "first": FIRST,
                "last": LAST,
                "bound-s": _BOUND_S,
            }
            script = Path(__file__).with_name("join_flink_sql_job.py")
            done = subprocess.run(
                [
                    home / "venv" / "bin" / "python",
                    script,
                    *(f"--{name}={value}" for name, value in words.items()),
                ],
                capture_output=True,
                text=True,
                timeout=_BOUND_S + 120.0,
                check=False,
            )
        if done.returncode:
            raise NotHere(f"Flink SQL with {backend} state failed: {_why(done.stdout + done.stderr)}")
        found[backend] = json.loads(done.stdout.splitlines()[-1])["events_per_s"]
        print(f"Flink SQL, {backend} state: {found[backend]:,.0f} events/s", *done.stdout.splitlines()[:-1])
    return found


def _why(output: str) -> str:
    """The innermost cause that Java told, else the last lines that are not of its stack."""
    lines = [line for line in output.splitlines() if line and not line.startswith(("\tat ", "\t..."))]
    causes = [line for line in lines if line.startswith("Caused by:")]
    return causes[-1] if causes else "\n".join(lines)[-1_000:]


def _environment() -> Path:
    """A folder with PyFlink's environment in ``venv``, and the connector's jar; made where it is not in the cache."""

    def make(folder: Path) -> None:
        venv = folder / "venv"
        _run([sys.executable, "-m", "venv", str(venv)])
        uv = Path(sys.executable).parent / "uv"
        pip = [str(uv), "pip", "install", "-q", "--compile-bytecode", "-p", str(venv / "bin" / "python")]
        _run([*pip, "-r", str(_ROOT / "requirements-flink.txt")])
        _run([tool("mvn", "Apache Maven 3.6 or newer"), "-q", "-B", _COPY, f"-Dartifact={_CONNECTOR}",
              f"-DoutputDirectory={folder}"])  # fmt: skip

    return cached_folder(default_cache(), f"flink-sql-{_CONNECTOR.rpartition(':')[2]}", make)


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
    if done.returncode:
        raise NotHere(f"{' '.join(words)}: {(done.stdout + done.stderr).strip()[-1_500:]}")
