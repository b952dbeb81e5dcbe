"""The scorer as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuckooflow.serving.client import ScorerClient


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cuckooflow.serving.serve", *arguments]


def told(address: Path) -> str:
    try:
        return address.read_text()
    except FileNotFoundError:  # the new process takes the former one's away before it writes its own
        return ""


@pytest.fixture
def process(publisher: Any, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    arguments = ("--name", "movies", "--snapshots", str(publisher.folder), "--listen", "127.0.0.1:0")
    address = tmp_path / "serve.address"
    address.write_text("127.0.0.1:1\n")  # a former process's
    with subprocess.Popen(command(*arguments, "--address-file", str(address))) as process:
        try:
            deadline = time.monotonic() + 60
            while told(address) in ("", "127.0.0.1:1\n"):
                assert process.poll() is None, "the scorer ended by itself"
                assert time.monotonic() < deadline
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_tells_its_address_serves_and_ends_with_zero(
    process: subprocess.Popen[bytes], publisher: Any, tmp_path: Path, number: signal.Signals
) -> None:
    url = f"http://{(tmp_path / 'serve.address').read_text().strip()}"
    with ScorerClient(url, "movies") as client:
        assert client.version() == 0
        if number == signal.SIGTERM:
            publisher.set(ann=1.0)
            publisher.publish()
            client.wait_ready(60)
            (score,) = client.predict([{"user_id": "ann"}]).values
            assert score == pytest.approx(publisher.expected(1, "ann"), abs=1e-6)
    process.send_signal(number)
    assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--listen", "0.0.0.0:80"), "expected a loopback address"),
        (("--time", "seconds"), "expected time[s]"),
        (("--nmae", "x"), "unrecognized arguments"),
    ],
)
def test_a_wrong_option_is_answered_with_two(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    base = command("--name", "m", "--snapshots", str(tmp_path))
    done = subprocess.run([*base, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert says in done.stderr
