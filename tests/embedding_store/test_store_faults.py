"""The store's process, killed and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest

from cuckooflow.embedding_store.api import Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.client import StoreClient, connect
from cuckooflow.embedding_store.config_json import config_to_json
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.embedding_store.wire import SCHEMA, descriptor
from cuckooflow.errors import MarkMismatch, StoreUnavailable
from cuckooflow.logs.contract import LogRange, Position

CONFIG = StoreConfig((TableConfig("t", dim=2, optimizer=Optimizer("sgd", 1.0), init_stddev=0.0),))
IDS = np.arange(500, dtype=np.uint64)


def start(folder: Path, interval_s: float = 3600.0, *more: str) -> subprocess.Popen[bytes]:
    (folder / "store.json").write_text(config_to_json(CONFIG))
    command = [
        sys.executable,
        "-m",
        "cuckooflow.embedding_store.server",
        "--config",
        str(folder / "store.json"),
    ]
    command += ["--data", str(folder / "data"), "--checkpoint-interval-s", str(interval_s), *more]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def push_to(store, n: int):
    """The n-th message's push: minus one to every row."""
    range_ = LogRange("examples", "made-once", 0, Position(n), Position(n + 1))
    return store.push(range_, {"t": TablePush(IDS, np.full((500, 2), -1.0, np.float32))}, {}, n)


def metrics(data: Path) -> str:
    http = (data / "http_address").read_text().strip()
    with urllib.request.urlopen(f"http://{http}/metrics", timeout=30) as answer:
        return answer.read().decode()


@pytest.mark.fault
def test_killed_and_restarted_it_stands_at_its_last_checkpoint(tmp_path):
    process = start(tmp_path)
    client = connect(tmp_path / "data" / "address")
    try:
        first = client.incarnation()
        client.open_log("examples", "made-once", {0: Position(0)})
        for n in range(3):
            push_to(client, n)
        client.checkpoint()
        for n in range(3, 5):
            push_to(client, n)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL

        process = start(tmp_path)
        # The same client finds it, at another port.
        assert client.marks("examples") == {0: (Position(3),)}
        assert client.incarnation() != first
        assert (client.lookup({"t": IDS})["t"] == 3).all()
        with pytest.raises(MarkMismatch) as caught:
            push_to(client, 5)
        assert caught.value.marks == ((3, 0),)
        for n in range(3, 6):
            push_to(client, n)
        assert (client.lookup({"t": IDS})["t"] == 6).all()

        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        client.close()
    # SIGTERM wrote a checkpoint, so nothing has to be trained again.
    store = EmbeddedStore.restore(tmp_path / "data")
    assert store.marks("examples") == {0: (Position(6),)}
    assert (store.lookup({"t": IDS})["t"] == 6).all()


@pytest.mark.fault
def test_killed_anywhere_it_restarts_whole(tmp_path):
    """Killed while it writes checkpoints as fast as it can, over and over: rows and marks always agree."""
    client = connect(tmp_path / "data" / "address")
    at = 0
    for kill in range(4):
        process = start(tmp_path, interval_s=0.001)
        try:
            client.open_log("examples", "made-once", {0: Position(0)})
            (mark,) = client.marks("examples")[0]
            assert mark.offset <= at
            assert (client.lookup({"t": IDS})["t"] == mark.offset).all()
            for at in range(mark.offset, mark.offset + 20 + 13 * kill):
                push_to(client, at)
            at += 1
        finally:
            process.kill()
            process.wait()
    client.close()


@pytest.mark.fault
def test_a_client_that_stands_still_does_not_keep_it_from_ending(tmp_path, wait_for):
    """One call has begun and never goes on; SIGTERM ends the process all the same, with its checkpoint."""
    process = start(tmp_path, 3600.0, "--finish-s-max", "0.5", "--http", "127.0.0.1:0")
    client = connect(tmp_path / "data" / "address")
    try:
        client.open_log("examples", "made-once", {0: Position(0)})
        push_to(client, 0)
        address = (tmp_path / "data" / "address").read_text().strip()
        with flight.FlightClient(f"grpc://{address}") as raw:
            writer, _ = raw.do_exchange(descriptor("push"))
            writer.begin(SCHEMA)
            wait_for(
                lambda: "cuckooflow_store_calls_working 1.0" in metrics(tmp_path / "data"), "a call under way"
            )
            process.terminate()
            assert process.wait(30) == 0
            with contextlib.suppress(pa.ArrowException):
                writer.close()
    finally:
        process.kill()
        process.wait()
        client.close()
    store = EmbeddedStore.restore(tmp_path / "data")
    assert store.marks("examples") == {0: (Position(1),)}
    store.close()


#: Serves, and gets SIGTERM in a thread that is not the one that handles it, as when it comes just before a wait begins.
SIGNALLED_ELSEWHERE = """
import signal, sys, threading, time
from pathlib import Path
from cuckooflow.embedding_store.api import StoreConfig, TableConfig
from cuckooflow.embedding_store.server import serve

def terminate():
    while not (Path(sys.argv[1]) / "address").exists():
        time.sleep(0.01)
    time.sleep(0.2)  # the main thread waits by now
    signal.raise_signal(signal.SIGTERM)

threading.Thread(target=terminate).start()
serve(StoreConfig((TableConfig("t", 2),)), Path(sys.argv[1]), checkpoint_interval_s=3600.0)
"""


@pytest.mark.fault
def test_a_signal_that_does_not_wake_the_main_thread_is_noticed(tmp_path):
    done = subprocess.run([sys.executable, "-c", SIGNALLED_ELSEWHERE, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == 0
    assert EmbeddedStore.restore(tmp_path).marks("examples") == {}


@pytest.mark.fault
def test_a_process_that_hangs_is_given_up_by_name(tmp_path):
    """Stopped, not killed: connections stay, and nobody answers."""
    process = start(tmp_path)
    client = StoreClient(tmp_path / "data" / "address", retry_s=30)
    try:
        client.open_log("examples", "made-once", {0: Position(0)})
        os.kill(process.pid, signal.SIGSTOP)
        hasty = StoreClient(tmp_path / "data" / "address", retry_s=0, call_s_max=0.5)
        with pytest.raises(StoreUnavailable, match="did not answer 'marks'"):
            hasty.marks("examples")
        with pytest.raises(StoreUnavailable, match="did not answer 'push'"):
            push_to(hasty, 0)
        os.kill(process.pid, signal.SIGCONT)
        push_to(client, 0)
        assert client.marks("examples") == {0: (Position(1),)}
        hasty.close()
    finally:
        process.kill()
        process.wait()
        client.close()


@pytest.mark.fault
def test_a_wrong_start_is_told_and_exits_with_one(tmp_path):
    config = tmp_path / "store.json"
    config.write_text("{}")
    command = [sys.executable, "-m", "cuckooflow.embedding_store.server", "--config", str(config)]
    done = subprocess.run(
        [*command, "--data", str(tmp_path / "data")], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert b"expected a store configuration" in done.stderr
    assert b"Traceback" not in done.stderr
