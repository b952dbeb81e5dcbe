"""What a source tells of its logs: lag, watermarks, partitions that stand still."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cuckooflow.errors import LogUnavailable
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.transforms.columns import Column, EventSchema
from cuckooflow.transforms.poll_core import PollCore, PollOptions, PollSource

S = 1_000_000
T0 = 1_700_000_000
NOW_US = (T0 + 1_000) * S
SKEW_S = 10
KEY = {"k": Column(type="string"), "t": Column(type="time", unit="s")}
SHOWN = EventSchema(columns=KEY, time="t", key=("k",))
DONE = EventSchema(columns={**KEY, "what": Column(type="string")}, time="t", key=("k",), action_type="what")


class Away:
    """A reader whose broker may be away."""

    def __init__(self, reader: LocalLog) -> None:
        self._reader = reader
        self.away = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._reader, name)
        return self._unavailable if self.away and name in ("read", "end_offset") else found

    @staticmethod
    def _unavailable(*_: Any, **__: Any) -> None:
        raise LogUnavailable("no broker answers")


class Source:
    """Three partitions of impressions, one of actions."""

    def __init__(self, path: Path) -> None:
        self.impressions = Away(LocalLog.create(path / "impressions", 3))
        self.actions = LocalLog.create(path / "actions")
        self._writers = {
            "impressions": LocalLogWriter(path / "impressions"),
            "actions": LocalLogWriter(path / "actions"),
        }

    def append(self, log: str, partition: int, *times_s: int) -> None:
        messages = [json.dumps({"k": f"k{t}", "t": T0 + t, "what": "click"}).encode() for t in times_s]
        self._writers[log].append(partition, messages, NOW_US)

    def core(self, **options: Any) -> PollCore:
        given = PollOptions(num_shards=1, max_skew_us=SKEW_S * S, figures_interval_us=0, **options)
        return PollCore(PollSource(self.impressions, SHOWN), PollSource(self.actions, DONE), given)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def test_lag_and_watermarks_by_partition(source: Source) -> None:
    source.append("impressions", 0, *range(100, 110))
    source.append("impressions", 1, 50, 40)
    source.append("actions", 0, *range(100, 130))
    core = source.core(max_messages=8)
    told = [core.poll(NOW_US).figures for _ in range(8)]
    first, last = told[0], told[-1]
    lags = [sum(v for n, v in f.items() if n.endswith("s_lag_messages")) for f in told]
    assert lags == [34, 26, 18, 10, 2, 0, 0, 0]  # 42 messages, 8 a poll
    assert first["source_impressions_timeless_partitions"] >= 1
    assert "source_impressions_watermark_lag_ms" not in first

    assert last["source_impressions_timeless_partitions"] == 1  # nothing is in the third
    source.append("impressions", 2, 70)
    last = core.poll(NOW_US).figures
    expected = {0: 1_000 - (109 - SKEW_S), 1: 1_000 - (50 - SKEW_S), 2: 1_000 - (70 - SKEW_S)}
    for partition, lag_s in expected.items():
        assert last[f"source_impressions_partition_{partition}_watermark_lag_ms"] == lag_s * 1_000
    assert last["source_impressions_watermark_lag_ms"] == expected[1] * 1_000
    assert last["source_impressions_oldest_partition"] == 1
    assert last["source_impressions_timeless_partitions"] == 0
    assert last["source_actions_watermark_lag_ms"] == (1_000 - (129 - SKEW_S)) * 1_000


def test_partitions_that_wait_for_a_slower_one(source: Source) -> None:
    source.append("impressions", 0, 0, 1, 2, 3)
    source.append("impressions", 1, 500, 501)
    source.append("impressions", 2, 0)
    source.append("actions", 0, 0)
    core = source.core(max_messages=4, max_lead_us=100 * S, max_bytes=1)
    paused = [core.poll(NOW_US).figures["source_impressions_paused_partitions"] for _ in range(4)]
    assert max(paused) == 1


def test_idle_partitions_are_counted_live_alone(source: Source) -> None:
    for log, partition in (("impressions", 0), ("impressions", 1), ("impressions", 2), ("actions", 0)):
        source.append(log, partition, 900)
    for live, expected in ((True, 2), (False, 0)):
        core = source.core(live=live, idle_after_us=5 * S)
        for after_s in (0, 1, 2):
            core.poll(NOW_US + after_s * S)
        source.append("impressions", 0, 950)
        told = core.poll(NOW_US + 7 * S).figures
        assert told["source_impressions_idle_partitions"] == expected
        assert told["source_actions_idle_partitions"] == expected // 2


def test_a_broker_that_is_away(source: Source) -> None:
    source.append("impressions", 0, 900)
    core = source.core()
    assert core.poll(NOW_US).figures["source_impressions_unavailable_s"] == 0
    source.impressions.away = True
    core.poll(NOW_US + S)
    told = core.poll(NOW_US + 21 * S).figures
    assert told["source_impressions_unavailable_s"] == 20
    assert told["source_actions_unavailable_s"] == 0
    assert "source_impressions_lag_messages" not in told  # it is not known, and 0 would be a lie
    assert "source_impressions_partition_0_watermark_lag_ms" in told
    source.impressions.away = False
    core.poll(NOW_US + 22 * S)
    assert core.poll(NOW_US + 23 * S).figures["source_impressions_unavailable_s"] == 0


def test_figures_are_told_in_their_interval(source: Source) -> None:
    source.append("impressions", 0, 900)
    core = PollCore(
        PollSource(source.impressions, SHOWN),
        PollSource(source.actions, DONE),
        PollOptions(figures_interval_us=5 * S),
    )
    told = [
        bool(core.poll(NOW_US + at_s * S).figures.keys() & {"source_impressions_lag_messages"})
        for at_s in range(7)
    ]
    assert told == [True, False, False, False, False, True, False]
