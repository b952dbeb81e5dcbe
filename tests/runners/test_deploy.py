"""The container templates name the versions and settings that the local cluster is tested with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cuckooflow.runners.cluster import versions
from cuckooflow.runners.cluster.flink import SETTINGS
from cuckooflow.runners.cluster.kafka import MESSAGE_MAX_BYTES

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "runners" / "deploy"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return found


@pytest.fixture(scope="module")
def dockerfile() -> list[list[str]]:
    """Instructions, as words."""
    text = (DEPLOY / "worker.Dockerfile").read_text()
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def test_images_have_the_versions_of_the_code(services: dict[str, Any]) -> None:
    flink = f"flink:{versions.FLINK}-scala_2.12-java17"
    assert services["kafka"]["image"] == f"apache/kafka:{versions.KAFKA}"
    assert services["jobmanager"]["image"] == services["taskmanager"]["image"] == flink
    line, runner = versions.FLINK_LINE, versions.BEAM_FLINK_RUNNER
    assert services["jobserver"]["image"] == f"apache/beam_flink{line}_job_server:{runner}"
    assert versions.FLINK.startswith(f"{line}.")


def test_flink_has_the_settings_of_the_local_cluster(services: dict[str, Any]) -> None:
    for role in ("jobmanager", "taskmanager"):
        properties = yaml.safe_load(services[role]["environment"]["FLINK_PROPERTIES"])
        assert {name: properties.get(name) for name in SETTINGS} == dict(SETTINGS)
        for name in ("state.checkpoints.dir", "state.savepoints.dir"):
            assert properties[name].startswith("file:///state/")
        assert "state:/state" in services[role]["volumes"]


def test_kafka_takes_the_same_messages(services: dict[str, Any]) -> None:
    assert services["kafka"]["environment"]["KAFKA_MESSAGE_MAX_BYTES"] == MESSAGE_MAX_BYTES
    assert services["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_workers_are_beside_their_taskmanager(services: dict[str, Any]) -> None:
    workers = services["workers"]
    assert workers["network_mode"] == "service:taskmanager"
    assert (DEPLOY / workers["build"]["context"] / workers["build"]["dockerfile"]).is_file()


def test_the_image_holds_what_the_wheel_is_made_of(dockerfile: list[list[str]]) -> None:
    copied = {word.rstrip("/") for words in dockerfile if words[0] == "COPY" for word in words[1:-1]}
    packages = {init.parent.name for init in ROOT.glob("*/__init__.py")} - {"benchmarks"}
    requirements = set(re.findall(r"requirements[\w-]*\.txt", (ROOT / "setup.py").read_text()))
    assert copied - {"--from=build", "/wheels"} == {"setup.py", "pyproject.toml", *requirements, *packages}


def test_the_image_has_the_python_and_the_pool_of_the_package(dockerfile: list[list[str]]) -> None:
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["target-version"]
    images = {words[1] for words in dockerfile if words[0] == "FROM"}
    assert images == {f"python:{ruff[2]}.{ruff[3:]}-slim"}
    assert "cuckooflow-worker-pool = " in (ROOT / "setup.py").read_text()
    (entry,) = (words for words in dockerfile if words[0] == "ENTRYPOINT")
    assert entry[1] == '["cuckooflow-worker-pool",'
