"""The names of metrics: told apart, written down, and of kinds that every runner's reporter shows."""

from __future__ import annotations

import re
from pathlib import Path

from cuckooflow.transforms.dead_letters import PARSE_REASONS
from cuckooflow.transforms.metric_names import METRICS, known

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "metrics.md"


def test_every_metric_is_in_the_documentation_as_it_is_here() -> None:
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \| (.+) \|$", DOCS.read_text(), re.M)
    assert rows == [(m.name, m.kind, m.unit, m.help) for m in METRICS]


def test_names_are_found_again() -> None:
    names = {
        "source_polls": "source_polls",
        "source_impressions_lag_messages": "source_{log}_lag_messages",
        "source_actions_partition_12_watermark_lag_ms": "source_{log}_partition_{partition}_watermark_lag_ms",
        "balance_join_shards": "balance_{stage}_shards",
        "balance_join_impressions_waiting": "balance_join_{count}",
        **{f"dead_letters_{reason}": "dead_letters_{reason}" for reason in PARSE_REASONS},
    }
    found = {name: known(name) for name in names}
    assert {name: metric and metric.name for name, metric in found.items()} == names
    assert known("source_clicks_messages") is None


def test_names_fit_what_a_reporter_takes() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(re.fullmatch(r"[a-z]([a-z_]|\{[a-z]+\})*", metric.name) for metric in METRICS)
    assert {metric.kind for metric in METRICS} == {"counter", "gauge"}
