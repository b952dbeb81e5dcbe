"""The join's metrics as a runner's query gives them, against plain counts of what lies in its logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from cuckooflow.logs.local_log import LocalLogWriter
from cuckooflow.pipelines.join.pipeline import build_join
from cuckooflow.transforms.balances import EQUATIONS
from cuckooflow.transforms.front_ends import allow_sources
from cuckooflow.transforms.metric_names import NAMESPACE, known

REQUESTS = 300
#: Two messages that are no rows, a time that is none, an event that comes twice.
BROKEN = (b'{"request_id": "r0"', b"null")
MINUTE_MS = 60_000


@pytest.fixture(autouse=True)
def sources() -> Iterator[None]:
    allow_sources()
    yield


def run(films: Any) -> dict[str, dict[str, int]]:
    """Run the join to the end of its logs: kind -> name -> value."""
    pipeline = beam.Pipeline(FnApiRunner(), PipelineOptions(["--no_save_main_session"]))
    build_join(pipeline, films.job, "generator", stop_at_end=True)
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query()
    values: dict[str, dict[str, int]] = {}
    for kind in ("counters", "gauges"):
        mine = [m for m in found[kind] if m.key.metric.namespace == NAMESPACE]
        values[kind] = {}
        for metric in mine:  # a sink's counter is there once for each log that it writes
            values[kind].setdefault(metric.key.metric.name, 0)
            values[kind][metric.key.metric.name] += (
                metric.committed if kind == "counters" else metric.committed.value
            )
    assert not [m for m in found["distributions"] if m.key.metric.namespace == NAMESPACE]
    return values


def test_every_metric_is_what_lies_in_the_logs(films: Any) -> None:
    films.make_logs()
    impressions, actions = films.events(REQUESTS)
    shown = [*impressions, impressions[-1], {**impressions[0], "time": 0}]
    unmatched = {"request_id": "nobody", "item_id": "i1", "time": actions[-1]["time"], "action": "click"}
    late = {
        **{n: shown[0][n] for n in ("request_id", "item_id")},
        "time": shown[0]["time"] + 1,
        "action": "like",
    }
    films.append(shown, [*actions, unmatched, {**actions[-1], "action": "hover"}, late])
    with LocalLogWriter(films.job.path(films.job.logs.impressions.path), [1]) as writer:
        writer.append(1, BROKEN, 2 * 10**15)

    found = run(films)
    counters, gauges = found["counters"], found["gauges"]
    logs = films.job.logs
    examples, afterwards, missed, dead = (
        films.rows(log.path) for log in (logs.examples, logs.late, logs.unmatched, logs.dead_letters)
    )
    reasons = Counter(f"dead_letters_{letter['reason']}" for letter in dead)

    assert len(examples) == len(impressions)
    assert counters["join_examples_rows"] == counters["examples_rows_written"] == len(examples)
    assert counters["join_late_rows"] == len(afterwards) >= 1
    assert counters["join_unmatched_rows"] == len(missed) >= 1
    assert {name: n for name, n in counters.items() if name.startswith("dead_letters_")} == dict(reasons)
    assert sum(reasons.values()) == len(dead) >= 4
    assert counters["source_impressions_messages"] == len(shown) + len(BROKEN)
    assert counters["source_impressions_rows"] == len(shown) - 1
    assert counters["source_actions_rows"] == len(actions) + 3
    assert counters["source_pollers_opened"] == 1

    balance = {name.removeprefix("balance_"): v for name, v in gauges.items() if name.startswith("balance_")}
    assert balance["source_impressions_messages"] == len(shown) + len(BROKEN)
    assert balance["source_impressions_refused"] == len(BROKEN) + 1
    assert balance["join_impressions"] == len(shown) - 1
    assert balance["join_impressions_repeated"] == 1
    assert balance["join_examples"] == balance["sampling_examples"] == len(examples)
    assert balance["join_actions"] == len(actions) + 3
    assert balance["join_unmatched"] == len(missed)
    assert balance["join_late"] == len(afterwards)
    assert balance["join_impressions_dead"] + balance["join_actions_dead"] == len(dead) - len(BROKEN) - 1
    assert balance["join_shards"] == balance["sampling_shards"] == films.job.join.num_shards
    for stage, whole, parts in EQUATIONS:
        total = sum(balance.get(f"{stage}_{part}", 0) for part in parts)
        assert balance[f"{stage}_{whole}"] == total, stage
        assert balance[f"{stage}_imbalances"] == 0

    assert counters["join_elements"] >= films.job.join.num_shards
    assert counters["join_ticks"] >= 1
    assert 0 < counters["join_tick_us"] <= counters["join_busy_us"]
    assert counters["join_cold_reads_beyond_one_a_tick"] == 0
    assert counters["join_memory_rebuilt"] == 0
    assert counters["join_memory_hits"] > 0
    unknown = {name for kind in found.values() for name in kind if known(name) is None}
    wrong = {name for kind, names in found.items() for name in names if known(name).kind != kind[:-1]}
    assert (unknown, wrong) == (set(), set())
