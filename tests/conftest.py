"""What every test shares: the order (fast first), hypothesis settings, where the real data lies."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile(
    "cuckooflow",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
    # The same examples everywhere; `make explore` looks for others.
    derandomize="CUCKOOFLOW_EXPLORE" not in os.environ,
)
settings.load_profile("cuckooflow")

_LAST = ("slow", "prism", "cluster", "fault", "readme")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then slow ones, runners, faults, and the README."""

    def place(item: pytest.Item) -> int:
        return max((i for i, name in enumerate(_LAST, 1) if item.get_closest_marker(name)), default=0)

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; the test is skipped, with the reason, where it is absent."""
    folder = Path(os.environ.get("CUCKOOFLOW_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set CUCKOOFLOW_DATA to the folder that holds kuairand/")
    return folder


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Waits until a condition holds; fails by name after a bound."""

    def wait(condition: Callable[[], object], what: str, timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="session")
def prism() -> Path:
    """Beam's Prism binary; the test is skipped, with the reason, where it is not installed."""
    from cuckooflow.runners.prism import INSTALL, find_prism

    binary = find_prism()
    if binary is None:
        pytest.skip(f"Prism is not installed; run make prism, or: {INSTALL}")
    return binary


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap address of a Kafka broker that the whole session shares: use topics of your own."""
    from cuckooflow.runners.cluster import LocalCluster

    missing = [name for name in ("java", "mvn") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no Kafka here: {' and '.join(missing)} not on the PATH; install Java 17 and Maven")
    cluster = LocalCluster(tmp_path_factory.mktemp("kafka"))
    try:
        address = cluster.up(["kafka"]).kafka
        assert address is not None
        yield address
    finally:
        cluster.down()
