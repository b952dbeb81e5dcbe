"""The alert rules: over metrics that are exported, right by Prometheus's own tool, each with a runbook entry."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cuckooflow.serving.metrics import ScorerMetrics
from cuckooflow.serving.replica import Replica
from cuckooflow.transforms.metric_names import METRICS, Metric
from tests.serving.conftest import publisher

__all__ = ["publisher"]

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "runners" / "deploy"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
#: A member of each family.
WORDS = {"log": "actions", "partition": "3", "reason": "malformed", "stage": "join", "count": "examples"}
LABELS = 'job_name="films",job_id="1",operator_name="a",subtask_index="0",task_attempt_num="2"'
#: Flink's own of a job, which the test on a real Flink looks for too.
OF_FLINK = {
    f"flink_jobmanager_job_{name}"
    for name in ("uptime", "numRestarts", "numberOfCompletedCheckpoints", "numberOfFailedCheckpoints")
}


FILES = ("alerts.yaml", "alerts_training.yaml")


def rules(*files: str) -> list[dict[str, Any]]:
    groups = [
        group for file in files or FILES for group in yaml.safe_load((DEPLOY / file).read_text())["groups"]
    ]
    return [rule for group in groups for rule in group["rules"]]


def exported(metric: Metric) -> str:
    """As Flink's reporter shows it."""
    name = metric.name.format(**{word: WORDS[word] for word in re.findall(r"\{(\w+)\}", metric.name)})
    return f"flink_taskmanager_job_task_operator_cuckooflow_{name}{{{LABELS}}} 1.0"


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool") or shutil.which("promtool", path=ROOT / ".cache" / "bin")
    if found is None:
        pytest.skip("promtool is not installed; apt install prometheus, or put it into .cache/bin")
    return found


def test_an_alert_names_only_metrics_that_are_exported(
    scraped: Callable[[str], list[Any]], alert_metrics: dict[str, set[str]]
) -> None:
    known = {sample.name for sample in scraped("\n".join(map(exported, METRICS)))} | OF_FLINK
    assert {alert: names - known for alert, names in alert_metrics.items() if names - known} == {}
    assert all(alert_metrics.values())


def test_an_alert_of_training_names_only_what_a_scorer_shows(publisher: Any) -> None:
    publisher.set(ann=1.0)
    publisher.publish()
    replica = Replica(publisher.folder, lambda: 10**15)
    replica.poll()
    metrics = ScorerMetrics()
    metrics.watch(replica, lambda: 10**15)
    known = {sample.name for family in metrics.registry.collect() for sample in family.samples} | {"up"}
    for rule in rules("alerts_training.yaml"):
        names = set(re.findall(r"\b(cuckooflow_\w+|up)\b", rule["expr"]))
        assert names and names <= known, rule["alert"]


def test_words_in_names_become_labels(scraped: Callable[[str], list[Any]]) -> None:
    found = {sample.name: sample.labels for sample in scraped("\n".join(map(exported, METRICS)))}
    common = {"job_name": "films", "job_id": "1", "operator_name": "a", "subtask_index": "0"}
    assert found["cuckooflow_source_partition_lag_messages"] == {**common, "log": "actions", "partition": "3"}
    assert found["cuckooflow_source_lag_messages"] == {**common, "log": "actions"}
    assert found["cuckooflow_source_polls"] == common
    assert found["cuckooflow_dead_letters"] == {**common, "reason": "malformed"}
    assert found["cuckooflow_balance_imbalances"] == {**common, "stage": "join"}
    assert found["cuckooflow_balance_join_examples"] == common


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_links_to_what_the_operator_does(rule: dict[str, Any]) -> None:
    page, anchor = rule["annotations"]["runbook"].split("#")
    assert (ROOT / page).read_text() == RUNBOOK
    entries = dict(re.findall(r"^## (\w+)\n\n(.+?)(?=^## |\Z)", RUNBOOK, re.M | re.S))
    assert anchor == rule["alert"].lower()
    assert entries[rule["alert"]].startswith("Operator action:")
    assert rule["labels"]["severity"] in ("page", "ticket")


def test_the_runbook_has_no_entry_without_an_alert() -> None:
    assert set(re.findall(r"^## (\w+)$", RUNBOOK, re.M)) == {rule["alert"] for rule in rules()}


def test_prometheus_takes_the_configuration(promtool: str) -> None:
    for words in (("config", "prometheus.yaml"), *(("rules", file) for file in FILES)):
        done = subprocess.run(
            [promtool, "check", *words], cwd=DEPLOY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_on_its_fault_alone(promtool: str, tmp_path: Path) -> None:
    for file in FILES:
        shutil.copy(DEPLOY / file, tmp_path)
        shutil.copy(Path(__file__).with_name(f"test_{file}"), tmp_path / "test.yaml")
        words = [promtool, "test", "rules", "test.yaml"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
