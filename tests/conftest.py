"""What every test shares: the order (fast first), hypothesis settings, where the real data lies."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import yaml
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from cuckooflow.logs.pubsub_testing import PubSubFake
    from cuckooflow.runners.cluster import LocalCluster

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

#: What one process runs after the other, as its tests share something that takes long to make: fixture -> group.
_SHARED = {"local_cluster": "cluster", "feed": "backfill"}
_LATER = ("cluster", "readme", "slow", "prism", "fault")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; then what takes longest in one process, so that the others do the rest meanwhile."""

    def place(item: pytest.Item) -> int:
        if "local_cluster" in item.fixturenames:  # type: ignore[attr-defined]
            return _LATER.index("cluster") + 1
        return max((i for i, name in enumerate(_LATER, 1) if item.get_closest_marker(name)), default=0)

    items.sort(key=place)
    for item in items:
        shared = [group for name, group in _SHARED.items() if name in item.fixturenames]  # type: ignore[attr-defined]
        group = shared[0] if shared else f"{item.path.stem}-{place(item)}"
        item.add_marker(pytest.mark.xdist_group(group))


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Runs the command line in a process of its own: ``cli("validate", path)``."""

    def run(
        *words: object, stdin: str | None = None, timeout_s: float = 240
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cuckooflow.pipelines.cli", *map(str, words)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "COLUMNS": "200", "TF_CPP_MIN_LOG_LEVEL": "2"},
        )

    return run


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
def pubsub() -> Iterator[PubSubFake]:
    """Google's fake of Pub/Sub, shared: use subscriptions of your own. Skips, with the reason, where it was not built."""
    from cuckooflow.logs.pubsub_testing import PubSubFake

    binary = ROOT / ".cache" / "bin" / "pubsub-fake"
    if not binary.exists():
        pytest.skip("Google's fake of Pub/Sub is not built; with Go on the machine: make pubsub-fake")
    fake = PubSubFake(binary)
    yield fake
    fake.close()


@pytest.fixture(scope="session")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A local cluster of this session, of which nothing runs yet; the test is skipped without Java and Maven."""
    from cuckooflow.runners.cluster import LocalCluster

    missing = [name for name in ("java", "mvn") if shutil.which(name) is None]
    if missing:
        pytest.skip(
            f"no local cluster here: {' and '.join(missing)} not on the PATH; install Java 17 and Maven"
        )
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.down()


@pytest.fixture(scope="session")
def kafka(local_cluster: LocalCluster) -> str:
    """Bootstrap address of a Kafka broker that the whole session shares: use topics of your own."""
    address = local_cluster.up(["kafka"]).kafka
    assert address is not None
    _await_groups(address)
    return address


def _await_groups(bootstrap: str, timeout_s: float = 60.0) -> None:
    """Until a new broker keeps offsets of consumer groups, which it makes the topic for when it is first asked."""
    from kafka import errors
    from kafka.admin import KafkaAdminClient

    not_yet = (
        errors.CoordinatorNotAvailableError,
        errors.CoordinatorLoadInProgressError,
        errors.NotCoordinatorError,
    )

    client = KafkaAdminClient(bootstrap_servers=bootstrap)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                client.list_group_offsets("nobody")
                return
            except not_yet:
                assert time.monotonic() < deadline, f"no consumer groups within {timeout_s:g} s"
                time.sleep(0.1)
    finally:
        client.close()


@pytest.fixture(scope="session")
def flink(local_cluster: LocalCluster) -> LocalCluster:
    """The session's cluster with every part up. Use job names of your own, and leave no job behind."""
    local_cluster.up()
    return local_cluster


class Sample(NamedTuple):
    """A value as Prometheus keeps it."""

    name: str
    labels: dict[str, str]
    value: float


@pytest.fixture(scope="session")
def scraped() -> Callable[[str], list[Sample]]:
    """What a Prometheus with runners/deploy/prometheus.yaml makes of a page in its text format."""
    config = yaml.safe_load((ROOT / "runners" / "deploy" / "prometheus.yaml").read_text())
    (scrape,) = [config for config in config["scrape_configs"] if config["job_name"] == "flink"]
    rules = scrape["metric_relabel_configs"]

    def relabelled(labels: dict[str, str]) -> dict[str, str]:
        for rule in rules:
            if rule.get("action") == "labeldrop":
                labels = {name: v for name, v in labels.items() if not re.fullmatch(rule["regex"], name)}
                continue
            source = ";".join(labels.get(name, "") for name in rule["source_labels"])
            match = re.fullmatch(rule["regex"], source)
            if match:
                template = rule.get("replacement", "${1}")
                value = re.sub(r"\$\{(\d+)\}", lambda group, m=match: m[int(group[1])], template)
                labels = {**labels, rule["target_label"]: value}
        return labels

    def scrape_page(page: str) -> list[Sample]:
        samples = []
        for line in page.splitlines():
            found = re.fullmatch(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", line)
            if found is None or line.startswith("#"):
                continue
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found[2] or ""))
            labels = relabelled({"__name__": found[1], **labels})
            samples.append(Sample(labels.pop("__name__"), labels, float(found[3])))
        return samples

    return scrape_page


@pytest.fixture(scope="session")
def alert_metrics() -> dict[str, set[str]]:
    """Alert -> the metrics that its expression names."""
    groups = yaml.safe_load((ROOT / "runners" / "deploy" / "alerts.yaml").read_text())["groups"]
    name = re.compile(r"\b(?:cuckooflow|flink)_\w+")
    return {rule["alert"]: set(name.findall(rule["expr"])) for group in groups for rule in group["rules"]}
