"""What an example costs in CPU time: one trainer with a store's process, and two trainers with two shards.

Every trainer and every shard is a process of its own, as in a job; what counts is the CPU time of all of them
between the first and the last element, over the rows that were trained.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cpu_time import cpu_s
from benchmarks.train_rows import FEATURES, MODEL, generate
from benchmarks.train_steps import ELEMENT_ROWS, one_thread
from cuckooflow.embedding_store.client import connect
from cuckooflow.embedding_store.config_json import config_to_json
from cuckooflow.models.registry import build_model, store_config
from cuckooflow.transforms.trainer import Trainer
from cuckooflow.transforms.training_options import TrainingOptions

ROOT = Path(__file__).resolve().parent.parent
START_S_MAX = 120.0
TURNS_MAX = 3
#: Shards' processes and trainers' processes.
Job = tuple[list[subprocess.Popen[str]], list[subprocess.Popen[str]]]


def cpu_us_per_example(rows: int, batch: int, repeats: int) -> tuple[float, float]:
    """Microseconds of CPU: one trainer on one shard, and two on two; medians of turns of ``rows`` for each trainer."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        jobs = [stack.enter_context(_job(Path(folder) / str(count), count, rows, batch)) for count in (1, 2)]
        for _, trainers in jobs:
            for trainer in trainers:
                _said(trainer, "ready")
        found = [[_turn(job) / (rows * len(job[1])) for job in jobs] for _ in range(repeats)]
    one, two = (statistics.median(turn[k] for turn in found) * 1e6 for k in (0, 1))
    return one, two


def _turn(job: Job) -> float:
    """CPU seconds of all processes of a job while each of its trainers takes its rows."""
    processes, trainers = [process for part in job for process in part], job[1]
    pids = [process.pid for process in processes]
    before = cpu_s(pids)
    for trainer in trainers:
        assert trainer.stdin is not None
        trainer.stdin.write("go\n")
        trainer.stdin.flush()
    for trainer in trainers:
        _said(trainer, "done")
    return cpu_s(pids) - before


@contextlib.contextmanager
def _job(home: Path, count: int, rows: int, batch: int) -> Iterator[Job]:
    """Shards and trainers, started; a trainer says when it is ready."""
    home.mkdir()
    config = home / "store.json"
    config.write_text(config_to_json(store_config(build_model(MODEL, FEATURES))))
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(_store(config, home / str(k), k, count)) for k in range(count)]
        addresses = [home / str(k) / "address" for k in range(count)]
        deadline = time.monotonic() + START_S_MAX
        while not all(address.exists() for address in addresses):
            if time.monotonic() > deadline:
                raise TimeoutError(f"expected {count} shards to serve within {START_S_MAX:g} s")
            time.sleep(0.02)
        words = [str(rows), str(batch), *map(str, addresses)]
        yield stores, [stack.enter_context(_trainer([str(k), *words])) for k in range(count)]


@contextlib.contextmanager
def _store(config: Path, data: Path, shard: int, of: int) -> Iterator[subprocess.Popen[str]]:
    words = ["--config", str(config), "--data", str(data), "--shard", str(shard), "--of", str(of)]
    # A checkpoint in the middle would cost one of the runs more than the other.
    words += ["--checkpoint-interval-s", "3600"]
    with _running(["cuckooflow.embedding_store.server", *words]) as process:
        yield process


@contextlib.contextmanager
def _trainer(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    with _running(["benchmarks.train_shards", *words]) as process:
        yield process


@contextlib.contextmanager
def _running(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _said(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if line != word:
        raise RuntimeError(
            f"expected a trainer to say {word}, received {line!r} and exit code {process.poll()}"
        )


def main(arguments: list[str]) -> None:
    """A trainer: partition, rows, batch, the shards' address files; trains that many rows for every line it is given."""
    partition, rows, batch = map(int, arguments[:3])
    one_thread()
    store = connect([Path(address) for address in arguments[3:]])
    trainer = Trainer(
        store, build_model(MODEL, FEATURES), None, TrainingOptions(batch_size=batch, overlap=True)
    )
    made = generate((TURNS_MAX * rows) + ELEMENT_ROWS, seed=10 + partition)
    elements = made.elements(ELEMENT_ROWS, partition)
    trainer.accept(next(elements))  # compiles the step
    trainer.flush(0)
    print("ready", flush=True)
    for _ in sys.stdin:
        for element in itertools.islice(elements, rows // ELEMENT_ROWS):
            trainer.accept(element)
        trainer.flush(0)
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
