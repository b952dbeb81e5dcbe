"""The peers of benchmarks/store.py: what they need is fetched and compiled into ``.cache/peers``.

libcuckoo, Boost's flat map and Redis are unpacked from their Debian packages without being installed, TensorFlow
Recommenders Addons gets a virtual environment of its own. A peer that cannot be had is absent with a
reason; nothing here touches the package that is measured.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "peers"
SOURCE = ROOT / "benchmarks" / "native" / "store_peers.cc"
HEADERS = ("libcuckoo-dev", "libboost1.81-dev")
REDIS = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1")
TFRA = ("tensorflow==2.16.2", "tensorflow-recommenders-addons==0.8.1", "setuptools<80")
DIM = 32
LEARNING_RATE = 0.05
ACCUMULATOR = 0.1

Ids = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]


class PeerMissing(Exception):
    """A peer cannot be had here; the message says why."""


def setup_flags() -> list[str]:
    """The options that setup.py compiles the store's native core with."""
    found = re.search(r"^flags = (\[.*\])$", (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert found is not None, "setup.py names its compiler's options in one line: flags = [...]"
    flags: list[str] = json.loads(found.group(1))
    return flags


class NativePeers:
    """libcuckoo, the flat map and the dense gather, compiled as the store is.

    Raises:
        PeerMissing: no compiler, or the packages cannot be fetched.
    """

    def __init__(self) -> None:
        compiler = shutil.which("g++")
        if compiler is None:
            raise PeerMissing("libcuckoo, flat map, gather: there is no g++ here")
        include = _unpacked("headers", HEADERS) / "usr" / "include"
        # What Python adds to setup.py's options for any extension, as far as it matters to speed.
        self.flags = ["-std=c++17", "-DNDEBUG", *setup_flags()]
        text = SOURCE.read_bytes() + " ".join(self.flags).encode()
        target = CACHE / f"store_peers-{hashlib.sha256(text).hexdigest()[:16]}.so"
        if not target.exists():
            command = [compiler, *self.flags, "-fPIC", "-shared", "-isystem", str(include), str(SOURCE)]
            beside = target.with_suffix(f".{os.getpid()}")
            done = subprocess.run([*command, "-o", str(beside)], capture_output=True, text=True)
            if done.returncode:
                raise PeerMissing(f"libcuckoo, flat map, gather: g++ failed: {done.stderr[-500:]}")
            beside.replace(target)
        self.library = ctypes.CDLL(str(target))  # releases the GIL around each call

    def table(self, kind: str) -> NativeTable:
        """An empty table: ``cuckoo`` or ``flat``."""
        return NativeTable(self.library, kind)

    def dense(self, rows: int) -> DenseRows:
        """A dense array of rows."""
        return DenseRows(self.library, rows)


class _Handle:
    def __init__(self, library: ctypes.CDLL, kind: str, *arguments: ctypes.c_int64) -> None:
        new = library[f"{kind}_new"]
        new.restype = ctypes.c_void_p
        self._handle = ctypes.c_void_p(new(*arguments))
        self._free = library[f"{kind}_free"]

    def free(self) -> None:
        """Give the memory back."""
        self._free(self._handle)


class NativeTable(_Handle):
    """A peer's table of :data:`DIM` weights and as many Adagrad slots a row, new rows zero. Batches in C++."""

    def __init__(self, library: ctypes.CDLL, kind: str) -> None:
        super().__init__(library, kind)
        self._lookup, self._push = library[f"{kind}_lookup"], library[f"{kind}_push"]

    def lookup(self, ids: Ids, out: Floats) -> None:
        """(n,) ids to (n, DIM) weights."""
        self._lookup(self._handle, _at(ids), ctypes.c_int64(len(ids)), _at(out))

    def push(self, ids: Ids, gradients: Floats) -> None:
        """One Adagrad step for each of (n,) ids with its (n, DIM) gradient."""
        self._push(self._handle, _at(ids), _at(gradients), ctypes.c_int64(len(ids)))


class DenseRows(_Handle):
    """(rows, DIM) float32 in huge pages: what any table's lookup costs at least."""

    def __init__(self, library: ctypes.CDLL, rows: int) -> None:
        super().__init__(library, "dense", ctypes.c_int64(rows))
        self._gather = library["dense_gather"]

    def gather(self, rows: npt.NDArray[np.uint32], out: Floats) -> None:
        """(n,) row numbers to (n, DIM) weights."""
        self._gather(self._handle, _at(rows), ctypes.c_int64(len(rows)), _at(out))


def _at(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def redis_command() -> tuple[list[str], dict[str, str]]:
    """What starts a Redis server, and its environment.

    Raises:
        PeerMissing: it cannot be fetched.
    """
    installed = shutil.which("redis-server")
    if installed is not None:
        return [installed], dict(os.environ)
    folder = _unpacked("redis", REDIS)
    libraries = next((folder / "usr" / "lib").glob("*-linux-gnu"))
    return [str(folder / "usr/bin/redis-server")], {**os.environ, "LD_LIBRARY_PATH": str(libraries)}


def tfra_rates(rows: int, batch: int, seconds: float, install: bool) -> dict[str, float]:
    """Lookups/s and upserts/s of TensorFlow Recommenders Addons' table, in a process of its own.

    Raises:
        PeerMissing: its environment is absent (and ``install`` false) or cannot be made.
    """
    python = environment("tfra", TFRA, install)
    script = ROOT / "benchmarks" / "store_tfra.py"
    done = subprocess.run(
        [str(python), str(script), str(rows), str(batch), str(seconds)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
    )
    if done.returncode:
        raise PeerMissing(f"TFRA: it failed: {done.stderr[-300:]}")
    rates: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return rates


def environment(name: str, packages: tuple[str, ...], install: bool) -> Path:
    """The interpreter of a peer's own virtual environment.

    Raises:
        PeerMissing: it is absent (and ``install`` false) or cannot be made.
    """
    folder = CACHE / name
    python = folder / "bin/python"
    if (folder / ".installed").exists():
        return python
    if not install:
        raise PeerMissing(f"{name}: no environment in the cache; a run without --quick makes it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    uv = Path(sys.executable).parent / "uv"
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(uv), "pip", "install", "-q", "--compile-bytecode", "-p", str(python), *packages],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerMissing(f"{name}: {error}") from error
        if done.returncode:
            raise PeerMissing(f"{name}: {done.stderr[-300:]}")
    (folder / ".installed").touch()
    return python


def _unpacked(name: str, packages: tuple[str, ...]) -> Path:
    """Debian packages, fetched and unpacked once, not installed."""
    folder = CACHE / name
    if (folder / ".unpacked").exists():
        return folder
    if shutil.which("apt-get") is None:
        raise PeerMissing(f"{', '.join(packages)}: there is no apt-get here")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fetched = subprocess.run(["apt-get", "download", *packages], cwd=folder, capture_output=True, text=True)
    if fetched.returncode:
        raise PeerMissing(f"{', '.join(packages)}: {fetched.stderr.strip()[-300:]}")
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg", "-x", package.name, "."], cwd=folder, check=True, capture_output=True)
        package.unlink()
    (folder / ".unpacked").touch()
    return folder
