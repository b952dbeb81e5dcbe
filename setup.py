"""Build: the native core, and the mapping of top-level folders to ``cuckooflow.<folder>``."""

from __future__ import annotations

import re
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

ROOT = Path(__file__).parent
FOLDERS = ("logs", "embedding_store", "models", "transforms", "serving", "runners", "pipelines")


def packages() -> dict[str, str]:
    """Import name -> folder, for every folder that holds an ``__init__.py``."""
    found = {"cuckooflow": "cuckooflow"}
    for folder in FOLDERS:
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            path = init.parent.relative_to(ROOT).as_posix()
            found["cuckooflow." + path.replace("/", ".")] = path
    return found


def pinned(file: str = "requirements.txt") -> dict[str, str]:
    """Distribution -> its pinned requirement."""
    lines = (ROOT / file).read_text().splitlines()
    found = [line for line in lines if line and not line.startswith("#")]
    return {re.split(r"[\[=]", line)[0]: line for line in found}


#: What logs, store and command line need; everything else is the extra ``pipelines``.
LIGHT = ("numpy", "pyarrow", "pydantic", "PyYAML", "typer", "rich", "prometheus-client")


version = re.search(r'__version__ = "(.+)"', (ROOT / "cuckooflow/__init__.py").read_text())
assert version is not None
requirements = pinned()
# Without -fno-math-errno a square root is a call where it could be a vector instruction.
flags = ["-O3", "-fno-math-errno", "-Wall", "-Wextra"]

setup(
    name="cuckooflow",
    version=version.group(1),
    description="Real-time recommendation training as stateful streaming pipelines",
    license="Apache-2.0",
    python_requires=">=3.11,<3.12",
    packages=list(packages()),
    package_dir=packages(),
    package_data={"cuckooflow": ["py.typed"], "cuckooflow.runners.cluster": ["pins/*.sha256"]},
    install_requires=[requirements[name] for name in LIGHT],
    extras_require={
        "pipelines": [line for name, line in requirements.items() if name not in LIGHT],
        "kafka": [requirements[name] for name in ("kafka-python", "crc32c")],
        "pubsub": [requirements["google-cloud-pubsub"]],
        "confluent": list(pinned("requirements-confluent.txt").values()),
    },
    entry_points={
        "console_scripts": [
            "cuckooflow = cuckooflow.pipelines.cli:main",
            "cuckooflow-worker-pool = cuckooflow.runners.worker_pool:main",
        ]
    },
    ext_modules=[
        Pybind11Extension(
            "cuckooflow.embedding_store._native",
            sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "embedding_store/native").glob("*.cc")),
            depends=sorted(
                p.relative_to(ROOT).as_posix() for p in (ROOT / "embedding_store/native").glob("*.h")
            ),
            cxx_std=17,
            extra_compile_args=flags,
        )
    ],
    cmdclass={"build_ext": build_ext},
    zip_safe=False,
)
