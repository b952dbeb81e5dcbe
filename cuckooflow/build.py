"""Which cuckooflow this is, to the byte of its Python: two processes of one job must agree on it.

A version says what was released; between releases it stays the same while the code changes. What one
process pickles another can read only if both hold the same code.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cuckooflow import __version__

#: What the wheel holds beside this package.
PACKAGES = ("embedding_store", "logs", "models", "pipelines", "runners", "serving", "transforms")


@cache
def build() -> str:
    """The version and a digest of every Python file, such as ``0.1.0+3f1c9a0b2d4e``."""
    digest = hashlib.sha256()
    for name in ("cuckooflow", *(f"cuckooflow.{package}" for package in PACKAGES)):
        spec = find_spec(name)
        for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
            found = folder.glob("*.py") if name == "cuckooflow" else folder.rglob("*.py")
            for file in sorted(found):
                digest.update(f"{name}/{file.relative_to(folder).as_posix()}\0".encode())
                digest.update(file.read_bytes() + b"\0")
    return f"{__version__}+{digest.hexdigest()[:12]}"
