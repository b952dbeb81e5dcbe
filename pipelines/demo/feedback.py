"""From exposures to the two event logs: actions with delays, repeats, malformed rows, in order of arrival.

Delays are seeded and heavy-tailed, of two kinds. *Reaction*: from the impression to the action, part of the
action's event time; some exceed the label's window. *Transport*: from the action to its arrival in
the log; some exceed the window's close (late), a few even the late horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cuckooflow.pipelines.demo.exposures import Exposures

Int64s = npt.NDArray[np.int64]

#: The types of actions, in the order of :attr:`Sent.action`'s numbers.
CLICK, LIKE, UNKNOWN = 0, 1, 2
ACTION_TYPES = ("click", "like", "share")

#: What :attr:`Sent.request` says of a row that names no impression that was shown.
NEVER_SHOWN = -1

_KINDS_MALFORMED = 7


@dataclass(frozen=True)
class FeedbackOptions:
    """How people react, and how their reactions travel.

    Attributes:
        click_median_s, like_median_s: middle of the log-normal reaction times, default 15 s and 150 s.
        spread: its shape (standard deviation of the logarithm), default 1.1: 1 % of likes
            take over half an hour.
        transport_mean_s: of the ordinary transport delay, exponential; default 3 s.
        slow_share: share of actions with a slow transport, default 1 %.
        slow_scale_s, slow_shape: a slow transport takes scale * (1 + Pareto(shape)); default 20 minutes
            and 0.8, so that some come after their window and a few after the late horizon.
        repeat_share: share of rows of either log that are sent twice, default 0.5 %.
        repeat_mean_s: mean time to the second arrival, exponential; default 60 s.
        malformed: extra rows of each log that are not valid events, default 42.
        unknown_type, never_shown: extra actions of a type that the job does not know, and of an
            impression that was never shown; default 15 each.
        seed: of everything drawn here.
    """

    click_median_s: float = 15.0
    like_median_s: float = 150.0
    spread: float = 1.1
    transport_mean_s: float = 3.0
    slow_share: float = 0.01
    slow_scale_s: float = 1200.0
    slow_shape: float = 0.8
    repeat_share: float = 0.005
    repeat_mean_s: float = 60.0
    malformed: int = 42
    unknown_type: int = 15
    never_shown: int = 15
    seed: int = 7


@dataclass(frozen=True)
class Sent:
    """One log's messages in order of arrival, n rows, and what its maker knows about them.

    Attributes:
        lines: (n,) large_string, one JSON event each, or something malformed.
        arrival_us: (n,) int64, ascending; when it reaches the log, on the event time axis.
        valid: (n,) bool; False for a malformed row, of which nothing below counts.
        impression: (n,) int64, row of the exposures that it is about, or ``NEVER_SHOWN``.
        time_s: (n,) int64, its event time.
        action: (n,) int64, number in ``ACTION_TYPES``; zeros for impressions.
    """

    lines: pa.LargeStringArray
    arrival_us: Int64s
    valid: npt.NDArray[np.bool_]
    impression: Int64s
    time_s: Int64s
    action: Int64s

    def __len__(self) -> int:
        return len(self.arrival_us)


@dataclass(frozen=True)
class DemoEvents:
    """Both logs, as they would have arrived."""

    impressions: Sent
    actions: Sent


def make_events(shown: Exposures, options: FeedbackOptions = FeedbackOptions()) -> DemoEvents:
    """The impressions log and the actions log of these exposures."""
    rng = np.random.default_rng(options.seed)
    return DemoEvents(_impressions(shown, options, rng), _actions(shown, options, rng))


def _impressions(shown: Exposures, options: FeedbackOptions, rng: np.random.Generator) -> Sent:
    n = len(shown)
    again = rng.integers(0, n, round(options.repeat_share * n))
    row = np.concatenate([np.arange(n), again])
    arrival = shown.time_s[row].astype(np.float64)
    arrival[n:] += rng.exponential(options.repeat_mean_s, len(again))
    return _sent(
        lines=_impression_lines(shown).take(pa.array(row)),
        arrival_s=arrival,
        impression=row,
        time_s=shown.time_s[row],
        action=np.zeros(len(row), np.int64),
        malformed=options.malformed,
        rng=rng,
    )


def _actions(shown: Exposures, options: FeedbackOptions, rng: np.random.Generator) -> Sent:
    clicks, likes = np.flatnonzero(shown.clicked), np.flatnonzero(shown.liked)
    unknown = rng.choice(clicks, min(options.unknown_type, len(clicks)), replace=False)
    row = np.concatenate([clicks, likes, unknown])
    action = np.repeat([CLICK, LIKE, UNKNOWN], [len(clicks), len(likes), len(unknown)])
    median = np.array([options.click_median_s, options.like_median_s, options.click_median_s])[action]
    reaction = np.maximum(1, median * np.exp(options.spread * rng.normal(size=len(row)))).astype(np.int64)
    time = shown.time_s[row] + reaction
    transport = rng.exponential(options.transport_mean_s, len(row))
    slow = rng.random(len(row)) < options.slow_share
    transport[slow] = options.slow_scale_s * (1 + rng.pareto(options.slow_shape, slow.sum()))
    arrival = time + transport

    again = rng.integers(0, len(row), round(options.repeat_share * len(row)))
    lost = rng.integers(0, len(row), min(options.never_shown, len(row)))
    source = np.concatenate([np.arange(len(row)), again, lost])
    arrival = arrival[source]
    arrival[len(row) : len(row) + len(again)] += rng.exponential(options.repeat_mean_s, len(again))
    named = row[source]
    named[len(source) - len(lost) :] = NEVER_SHOWN
    return _sent(
        lines=_action_lines(shown, named, row[source], time[source], action[source]),
        arrival_s=arrival,
        impression=named,
        time_s=time[source],
        action=action[source],
        malformed=options.malformed,
        rng=rng,
    )


def _sent(
    lines: pa.LargeStringArray,
    arrival_s: npt.NDArray[np.float64],
    impression: Int64s,
    time_s: Int64s,
    action: Int64s,
    malformed: int,
    rng: np.random.Generator,
) -> Sent:
    """Add malformed copies of some rows beside them, and bring all into the order of their arrival."""
    damaged = np.sort(rng.integers(0, len(lines), malformed if len(lines) else 0))
    broken = [_break(lines[int(at)].as_py(), kind % _KINDS_MALFORMED) for kind, at in enumerate(damaged)]
    row = np.concatenate([np.arange(len(lines)), damaged])
    valid = np.arange(len(row)) < len(lines)
    arrival_us = (1e6 * arrival_s[row]).astype(np.int64)
    order = np.argsort(arrival_us, kind="stable")
    everything = pa.concat_arrays([lines, pa.array(broken, pa.large_string())])
    return Sent(
        lines=everything.take(pa.array(order)),
        arrival_us=arrival_us[order],
        valid=valid[order],
        impression=impression[row][order],
        time_s=time_s[row][order],
        action=action[row][order],
    )


def _break(line: str, kind: int) -> str:
    """A row that no valid event can be made of; ``kind`` is one of the ways in which events go wrong."""
    head, _, rest = line.partition('"time":')
    tail = rest.lstrip("0123456789")
    return (
        line[: len(line) // 2],
        "null",
        "GET /health HTTP/1.1",
        f'{head}"time":"yesterday"{tail}',
        f'{head}"time":0{tail}',
        f'{head}"time":4102444800{tail}',  # the year 2100
        line.replace('"item_id":"', '"item_id":null,"was":"'),
    )[kind]


def _impression_lines(shown: Exposures) -> pa.LargeStringArray:
    users, items = shown.users, shown.items
    user_part = [
        f'"user_id":"{u["user_id"]}","age":{u["age"]},"gender":"{u["gender"]}","occupation":"{u["occupation"]}"}}'
        for u in users.to_pylist()
    ]
    item_part = [_item_json(item) for item in items.to_pylist()]
    return _join(
        '{"request_id":"r',
        shown.request,
        '",',
        _taken(item_part, shown.item),
        ',"time":',
        shown.time_s,
        ',"position":',
        shown.position,
        ",",
        _taken(user_part, shown.user),
    )


def _item_json(item: dict[str, object]) -> str:
    genres = item["genres"]
    assert isinstance(genres, list)
    listed = ",".join(f'"{genre}"' for genre in genres)
    year = "null" if item["release_year"] is None else str(item["release_year"])
    return f'"item_id":"{item["item_id"]}","genres":[{listed}],"release_year":{year}'


def _action_lines(
    shown: Exposures, named: Int64s, row: Int64s, time_s: Int64s, action: Int64s
) -> pa.LargeStringArray:
    request = pc.if_else(pa.array(named == NEVER_SHOWN), "lost", "r")
    return _join(
        '{"request_id":"',
        request,
        shown.request[row],
        '","item_id":"',
        _taken(shown.items["item_id"].to_pylist(), shown.item[row]),
        '","time":',
        time_s,
        ',"action":"',
        _taken(ACTION_TYPES, action),
        '"}',
    )


def _taken(texts: list[str] | tuple[str, ...], at: Int64s) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string()).take(pa.array(at))


def _join(*parts: str | Int64s | pa.Array) -> pa.LargeStringArray:
    """Rows of text from constants, numbers and columns of text, joined without a loop over rows."""
    columns = [
        pa.scalar(part, pa.large_string())
        if isinstance(part, str)
        else (pa.array(part) if isinstance(part, np.ndarray) else part).cast(pa.large_string())
        for part in parts
    ]
    return pc.binary_join_element_wise(*columns, pa.scalar("", pa.large_string()))
