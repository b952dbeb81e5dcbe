"""Balances of a stage's shards as gauges, by a real runner's metrics."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from cuckooflow.transforms.balances import balance_record
from cuckooflow.transforms.show_balances import ShowBalances

NOW_US = 1_000_000_000


def shown(*records: dict[str, Any]) -> dict[str, int]:
    pipeline = beam.Pipeline(FnApiRunner(), PipelineOptions(["--no_save_main_session"]))
    # One call gives all of them, so that they come in this order.
    given = pipeline | beam.Create([0]) | beam.FlatMap(lambda _: records)
    _ = given | ShowBalances(records[0]["stage"], now_us=lambda: NOW_US)
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query()
    values = {m.key.metric.name: m.committed.value for m in found["gauges"]}
    return values | {m.key.metric.name: m.committed for m in found["counters"]}


def record(
    shard: int, kept: int, dropped: int, clock_us: int | None = None, polled_us: int = 0, **more: Any
) -> Any:
    counts = {"examples": kept + dropped, "kept": kept, "sampled_out": dropped}
    return balance_record("sampling", shard, counts, clock_us, polled_us, more.pop("final", False), **more)


def test_the_newest_of_each_shard_counts() -> None:
    found = shown(
        record(0, 1, 1, polled_us=1),
        record(1, 5, 0),
        record(0, 3, 4, polled_us=9),
        record(0, 2, 2, polled_us=5),
    )
    expected = {
        "balance_sampling_examples": 12,
        "balance_sampling_kept": 8,
        "balance_sampling_sampled_out": 4,
        "balance_sampling_shards": 2,
        "balance_sampling_imbalances": 0,
    }
    assert expected.items() <= found.items()
    assert found["balance_sampling_records"] == 3  # one was overtaken


def test_figures_add_up_and_the_oldest_clock_counts() -> None:
    held = [{"join_elements_held": n} for n in (2, 5)]
    found = shown(
        record(0, 1, 0, clock_us=NOW_US - 3_000_000, figures=held[0]),
        record(1, 1, 0, clock_us=NOW_US - 7_000_000, figures=held[1]),
    )
    assert found["join_elements_held"] == 7
    assert found["sampling_clock_lag_ms"] == 7_000
    assert "sampling_clock_lag_ms" not in shown(record(1, 1, 0), record(0, 1, 0, clock_us=NOW_US))


def test_what_does_not_add_up_is_counted() -> None:
    counts = {"examples": 3, "kept": 1, "sampled_out": 1}
    assert shown(balance_record("sampling", 0, counts, None, 0, False))["balance_sampling_imbalances"] == 1
