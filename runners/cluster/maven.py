"""Jars by name from Maven, each with its pinned SHA-256."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from xml.sax.saxutils import escape

from cuckooflow.errors import DownloadDamaged, DownloadFailed
from cuckooflow.runners.cluster.cache import cached_folder, sha256, tool

#: The plugin that copies an artifact with all that it depends on.
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies"

#: How long one call of Maven may take: some 160 jars over a slow line.
MAVEN_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Artifact:
    """A Maven artifact; ``excluded`` are ``group:artifact`` of what must not come with it."""

    group: str
    name: str
    version: str
    excluded: tuple[str, ...] = ()


def jars(cache: Path, name: str, artifacts: Sequence[Artifact]) -> Path:
    """The folder that holds artifacts and all their dependencies; fetched when it is not in the cache.

    Args:
        name: of the folder, and of the pins in ``pins/NAME.sha256``: exactly these jars must come.

    Raises:
        ToolMissing: Maven is not installed.
        DownloadFailed: Maven could not get them.
        DownloadDamaged: a jar is not the pinned one, is missing, or is one too many.
    """
    pom = _pom(artifacts)
    pinned = pins(name)
    key = hashlib.sha256(f"{pom}{sorted(pinned.items())}".encode()).hexdigest()[:12]

    def fetch(folder: Path) -> None:
        maven = tool("mvn", "Apache Maven 3.6 or newer")
        with tempfile.TemporaryDirectory(prefix="cuckooflow-pom-") as project:
            (Path(project) / "pom.xml").write_text(pom)
            command = [maven, "-q", "-B", _COPY, f"-DoutputDirectory={folder}"]
            done = subprocess.run(
                command, cwd=project, capture_output=True, text=True, timeout=MAVEN_TIMEOUT_S, check=False
            )
        if done.returncode:
            raise DownloadFailed(
                f"expected Maven to fetch {name}, it ended with exit code {done.returncode}: "
                f"{(done.stdout + done.stderr).strip()[-2_000:]}"
            )
        _check(folder, name, pinned)

    return cached_folder(cache, f"{name}-{key}", fetch)


def pins(name: str) -> dict[str, str]:
    """File name -> SHA-256 in hexadecimal, of every jar that belongs to ``name``."""
    text = (resources.files("cuckooflow.runners.cluster") / "pins" / f"{name}.sha256").read_text()
    return {file: digest for digest, file in (line.split() for line in text.splitlines())}


def _check(folder: Path, name: str, pinned: dict[str, str]) -> None:
    found = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    wrong = sorted(file for file in pinned.keys() | found.keys() if pinned.get(file) != found.get(file))
    if wrong:
        first = wrong[0]
        shutil.rmtree(folder)
        raise DownloadDamaged(
            f"{name}: {len(wrong)} of {len(pinned)} jars are not the pinned ones; {first}: expected sha-256 "
            f"{pinned.get(first, 'no such jar')}, received {found.get(first, 'no such jar')}; empty Maven's "
            f"local repository of it and try again"
        )


def _pom(artifacts: Sequence[Artifact]) -> str:
    return "\n".join(
        [
            '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>',
            "<groupId>cuckooflow</groupId><artifactId>jars</artifactId><version>1</version>",
            "<packaging>pom</packaging><dependencies>",
            *map(_dependency, artifacts),
            "</dependencies></project>",
        ]
    )


def _dependency(artifact: Artifact) -> str:
    excluded = "".join(
        "<exclusion><groupId>{}</groupId><artifactId>{}</artifactId></exclusion>".format(
            *map(escape, pair.split(":"))
        )
        for pair in artifact.excluded
    )
    return (
        f"<dependency><groupId>{escape(artifact.group)}</groupId>"
        f"<artifactId>{escape(artifact.name)}</artifactId><version>{escape(artifact.version)}</version>"
        f"<exclusions>{excluded}</exclusions></dependency>"
    )
