"""The scorer under load, while snapshots of what a trainer learns are applied.

Run as a program it is that trainer: it trains and publishes into a folder until its input ends.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.cpu_time import cpu_s
from benchmarks.train_rows import COLUMNS, FEATURES, MODEL, Rows, generate
from cuckooflow.serving.client import ScorerClient

REQUEST_ROWS = 100
CONNECTIONS = 4
#: Examples that are trained and published every second.
TRAINED_ROWS = 4_096
_TRAINED_ROUNDS = 120
#: Rows of which requests are made, beside those that are trained.
_ASKED_ROWS = 20_000
_NAME = "bench"
_READY_S = 120.0
_WARM_UP_S = 2.0
_MODULE = "benchmarks.freshness_scorer"

Say = Callable[[str], None]


def scorer_load(seconds: float, say: Say) -> tuple[float, float]:
    """Predictions for each second of the scorer's CPU; milliseconds within which 99 % of requests at half that load are answered."""
    with tempfile.TemporaryDirectory(prefix="cuckooflow-bench-") as work:
        folder = Path(work)
        snapshots, log = folder / "snapshots", folder / "log"
        with process(log, "-m", _MODULE, str(snapshots)), _scorer(folder) as (pid, address):
            bodies = _bodies(generate(_ASKED_ROWS, seed=7))
            ask(address, bodies, _WARM_UP_S)
            begin, before = time.monotonic(), cpu_s([pid])
            answered = len(ask(address, bodies, seconds))
            took_s, used_s = time.monotonic() - begin, cpu_s([pid]) - before
            per_cpu_s = answered * REQUEST_ROWS / used_s
            say(
                f"scorer: {answered / took_s:,.0f} requests/s by {CONNECTIONS} connections, {used_s / took_s:.2f} of a core, "
                f"{per_cpu_s:,.0f} predictions for each second of its CPU"
            )
            first = _version(address)
            rate = per_cpu_s / REQUEST_ROWS / 2
            latencies_ms = 1e3 * np.array(ask(address, bodies, seconds, rate))
            applied = _version(address) - first
            middle, high = np.quantile(latencies_ms, (0.5, 0.99))
            say(
                f"scorer at {rate:,.0f} requests/s: {middle:.2f} ms, 99 % within {high:.2f} ms, worst "
                f"{latencies_ms.max():.2f} ms, while {applied} snapshots were applied"
            )
            if applied < seconds / 4:
                raise RuntimeError(
                    f"expected a snapshot about every second of {seconds:g}, {applied} were applied"
                )
    return per_cpu_s, float(high)


@contextmanager
def _scorer(folder: Path) -> Iterator[tuple[int, str]]:
    """The scorer's process over ``snapshots`` in a folder, once it has one: pid and host:port."""
    file = folder / "scorer"
    words = [
        "--name",
        _NAME,
        "--snapshots",
        folder / "snapshots",
        "--listen",
        "127.0.0.1:0",
        "--address-file",
        file,
    ]
    with process(folder / "log", "-m", "cuckooflow.serving.serve", *words) as running:
        address = told_address(file, running)
        with ScorerClient(f"http://{address}", _NAME) as client:
            client.wait_ready(_READY_S)
        yield running.pid, address


@contextmanager
def process(log: Path, *words: object) -> Iterator[subprocess.Popen[bytes]]:
    """One of Python, until its input ends; what it says goes into a file."""
    with log.open("ab") as opened:
        running = subprocess.Popen(
            [sys.executable, *map(str, words)], stdin=subprocess.PIPE, stdout=opened, stderr=opened
        )
    try:
        yield running
    finally:
        assert running.stdin is not None
        running.stdin.close()
        running.terminate()
        running.wait()


def told_address(file: Path, running: subprocess.Popen[bytes]) -> str:
    """What a process writes into a file once it answers: host:port.

    Raises:
        RuntimeError: it did not.
    """
    deadline = time.monotonic() + _READY_S
    while not file.exists():
        if running.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"expected an address in {file}, the process told none")
        time.sleep(0.05)
    return file.read_text().strip()


def _bodies(rows: Rows) -> list[bytes]:
    """Requests, columns as lists."""
    whole = len(rows) // REQUEST_ROWS * REQUEST_ROWS
    return [
        json.dumps(
            {
                "inputs": {
                    column: rows.values[at : at + REQUEST_ROWS, k].tolist()
                    for k, column in enumerate(COLUMNS)
                }
            }
        ).encode()
        for at in range(0, whole, REQUEST_ROWS)
    ]


def ask(address: str, bodies: Sequence[bytes], seconds: float, rate: float | None = None) -> list[float]:
    """Seconds that each request took, from when it was due; without a rate each follows the one before it."""
    found: list[list[float]] = [[] for _ in range(CONNECTIONS)]
    failed: list[BaseException] = []
    begin = time.monotonic()

    def ask_by(which: int) -> None:
        host, port = address.split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10.0)
        try:
            for n in range(which, sys.maxsize, CONNECTIONS):
                due = time.monotonic() if rate is None else begin + n / rate
                if due >= begin + seconds:
                    break
                time.sleep(max(0.0, due - time.monotonic()))
                connection.request("POST", f"/v1/models/{_NAME}:predict", bodies[n % len(bodies)])
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != http.client.OK:
                    raise RuntimeError(f"expected predictions, received {answer.status}: {body[:500]!r}")
                found[which].append(time.monotonic() - due)
        except BaseException as error:
            failed.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=ask_by, args=(which,)) for which in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return [took for of_one in found for took in of_one]


def _version(address: str) -> int:
    with ScorerClient(f"http://{address}", _NAME) as client:
        return client.version()


def train_and_publish(snapshots: Path) -> None:
    """Until standard input ends: train :data:`TRAINED_ROWS` every second, then publish."""
    from benchmarks.train_steps import one_thread
    from cuckooflow.embedding_store.store import EmbeddedStore
    from cuckooflow.models.registry import build_model, store_config
    from cuckooflow.transforms.snapshot_publisher import SnapshotOptions, SnapshotPublisher
    from cuckooflow.transforms.trainer import Trainer
    from cuckooflow.transforms.training_options import TrainingOptions

    one_thread()
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), ended.set()), daemon=True).start()
    model = build_model(MODEL, FEATURES)
    store = EmbeddedStore(store_config(model), None)
    trainer = Trainer(store, model, None, TrainingOptions(batch_size=256))
    columns = dict.fromkeys(COLUMNS, "int64")
    publisher = SnapshotPublisher(
        store, SnapshotOptions(snapshots, _NAME, MODEL, FEATURES, columns, interval_us=1)
    )
    for element in generate(_TRAINED_ROUNDS * TRAINED_ROWS).elements(TRAINED_ROWS):
        for tick in trainer.accept(element).ticks:
            publisher.tick(replace(tick, polled_us=time.time_ns() // 1_000))
        if ended.wait(1.0):
            return
    ended.wait()


if __name__ == "__main__":
    train_and_publish(Path(sys.argv[1]))
