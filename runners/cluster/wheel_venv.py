"""A virtual environment that holds the built wheel and its dependencies, and nothing of the checkout.

A worker that imports the checkout proves nothing about what a user installs: a file that the wheel
lacks is found all the same. So where cuckooflow runs from a checkout, its workers run from a wheel of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cuckooflow
from cuckooflow.errors import DownloadFailed
from cuckooflow.runners.cluster.cache import STAMP, cached_folder

#: Compiling the native core and fetching what TensorFlow and Beam bring along, over a slow line.
BUILD_TIMEOUT_S = 1_200.0
#: An environment that nobody used for so long is removed when a new one is made.
KEPT_S = 24 * 3_600.0

_PREFIX = "workers-"
_SETUP = ("setup.py", "pyproject.toml")
_NOT_SOURCE = ("__pycache__", ".so", ".pyc")


def checkout() -> Path | None:
    """The checkout that this cuckooflow is imported from; None if it is installed from a wheel."""
    root = Path(cuckooflow.__file__).resolve().parent.parent
    return root if all((root / name).is_file() for name in _SETUP) else None


def wheel_venv(cache: Path, root: Path) -> Path:
    """The environment of a checkout as it is now; made when it is not in the cache.

    Raises:
        DownloadFailed: the wheel could not be built, or its dependencies could not be had.
    """
    digest = hashlib.sha256(sys.version.encode())
    for file in _sources(root):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    entry = cached_folder(cache, _PREFIX + digest.hexdigest()[:16], lambda folder: _make(folder, root))
    os.utime(entry / STAMP)
    return entry


def _make(folder: Path, root: Path) -> None:
    _remove_unused(folder.parent)
    with tempfile.TemporaryDirectory(prefix="cuckooflow-wheel-") as work:
        source, out = Path(work) / "source", Path(work) / "out"
        for file in _sources(root):
            copy = source / file.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy)
        _lay_compiled_core(root, source)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        _run([*pip, "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(out), str(source)])
        (wheel,) = out.glob("*.whl")
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([*_installer(folder), f"{wheel}[pipelines]"])


def _sources(root: Path) -> Iterator[Path]:
    """Every file that the wheel is made of, in a fixed order."""
    yield from (root / name for name in _SETUP)
    yield from sorted(root.glob("requirements*.txt"))
    for package in sorted(init.parent for init in root.glob("*/__init__.py")):
        for file in sorted(package.rglob("*")):
            if file.is_file() and not file.name.endswith(_NOT_SOURCE) and "__pycache__" not in file.parts:
                yield file


def _lay_compiled_core(root: Path, source: Path) -> None:
    """Where the checkout's own build is up to date, setuptools finds it and compiles nothing again."""
    import sysconfig

    native = root / "embedding_store" / "native"
    name = f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    compiled = root / "embedding_store" / name
    if not compiled.is_file() or any(
        file.stat().st_mtime > compiled.stat().st_mtime for file in native.glob("*.*")
    ):
        return
    build = source / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    place = build / "cuckooflow" / "embedding_store"
    place.mkdir(parents=True)
    shutil.copy2(compiled, place / name)


def _installer(folder: Path) -> list[str]:
    """uv where it is at hand, which takes seconds; else pip."""
    python = folder / "bin" / "python"
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is None:
        return [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    # As pip does by itself: an import of TensorFlow takes less than half the time then.
    return [uv, "pip", "install", "-q", "--compile-bytecode", "-p", str(python)]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    if done.returncode:
        raise DownloadFailed(
            f"expected an environment for the workers, but {' '.join(command)} ended with exit code "
            f"{done.returncode}: {(done.stdout + done.stderr).strip()[-2_000:]}"
        )


def _remove_unused(cache: Path) -> None:
    for stamp in cache.glob(f"{_PREFIX}*/{STAMP}"):
        if time.time() - stamp.stat().st_mtime > KEPT_S and not _runs_something(stamp.parent):
            shutil.rmtree(stamp.parent, ignore_errors=True)


def _runs_something(venv: Path) -> bool:
    needle = f"{venv}/".encode()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if needle in file.read_bytes():
                return True
        except OSError:
            continue
    return False
