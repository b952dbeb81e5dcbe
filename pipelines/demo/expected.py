"""What must come out of the join, from what the demo itself sent: the other side of its balance check.

Written from the rules of the join, not with its code: here everything is known at once, as plain columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cuckooflow.pipelines.demo.feedback import ACTION_TYPES, NEVER_SHOWN, DemoEvents, Sent

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_NEVER_US = -(1 << 62)


@dataclass(frozen=True)
class Rules:
    """What of the job spec decides outcomes, in microseconds.

    Attributes:
        windows_us: action type -> how long after its impression it counts.
        late_horizon_us: how long after the close an action still makes a late example.
        max_skew_us: how far a partition's watermark stays behind its newest event.
    """

    windows_us: dict[str, int]
    late_horizon_us: int
    max_skew_us: int

    @property
    def window_us(self) -> int:
        """When an impression's window closes: the longest of the labels'."""
        return max(self.windows_us.values())


@dataclass(frozen=True)
class Outcomes:
    """Outcomes in numbers of rows, when the clock stands at ``clock_us`` and nothing more comes.

    Attributes:
        clock_us: the lowest watermark of both logs after all their lines.
        examples, impressions_waiting, impressions_dead, impressions_repeated: together, the
            impressions log's lines.
        used, late, unmatched, actions_dead, actions_repeated: what becomes of the actions log's lines
            once every window has closed; together, all of them.
        open: name of one of the above -> how many of those rows still wait for the clock: until it passes,
            the join may count them as waiting.
    """

    clock_us: int
    examples: int
    impressions_waiting: int
    impressions_dead: int
    impressions_repeated: int
    used: int
    late: int
    unmatched: int
    actions_dead: int
    actions_repeated: int
    open: dict[str, int]


def expected_outcomes(events: DemoEvents, rules: Rules) -> Outcomes:
    """Every line's outcome, for input logs of one partition each and the ``complete`` mode."""
    shown, acted = events.impressions, events.actions
    before_shown, shown_clock = _watermarks(shown, rules.max_skew_us)
    before_acted, acted_clock = _watermarks(acted, rules.max_skew_us)
    clock_us = min(shown_clock, acted_clock)

    on_time = shown.valid & (before_shown < 1_000_000 * shown.time_s + rules.window_us)
    keys, first = np.unique(shown.impression[on_time], return_index=True)
    time_us = 1_000_000 * shown.time_s[on_time][first]
    closed = time_us + rules.window_us <= clock_us

    # (n,) time of each action's impression, _NEVER_US where there is none.
    at = np.minimum(np.searchsorted(keys, acted.impression), len(keys) - 1)
    has = (acted.impression != NEVER_SHOWN) & (keys[at] == acted.impression)
    impression_us = np.where(has, time_us[at], _NEVER_US)
    outcome = _action_outcomes(acted, before_acted, impression_us, rules)
    acted_us = 1_000_000 * acted.time_s
    delay_us = acted_us - impression_us
    theirs = has & (delay_us >= 0) & (delay_us <= rules.window_us)
    closed_us = np.where(theirs, impression_us, acted_us) + rules.window_us
    # A late one is taken when the clock has passed its own watermark; one past every horizon, at once.
    waits_until = np.where(before_acted >= closed_us, before_acted + 1, closed_us)
    past_us = acted_us + rules.window_us + rules.late_horizon_us
    waits_until = np.where(before_acted >= past_us, _NEVER_US, waits_until)
    still_open = waits_until > clock_us
    repeats = on_time.copy()
    repeats[np.flatnonzero(on_time)[first]] = False
    closes_us = 1_000_000 * shown.time_s + rules.window_us
    open_rows = {name: int((rows & still_open).sum()) for name, rows in outcome.items() if name != "dead"}
    return Outcomes(
        clock_us=clock_us,
        examples=int(closed.sum()),
        impressions_waiting=int((~closed).sum()),
        impressions_dead=int((~on_time).sum()),
        impressions_repeated=int(repeats.sum()),
        used=int(outcome["used"].sum()),
        late=int(outcome["late"].sum()),
        unmatched=int(outcome["unmatched"].sum()),
        actions_dead=int(outcome["dead"].sum()),
        actions_repeated=int(outcome["repeated"].sum()),
        open={
            "impressions_repeated": int((repeats & (closes_us > clock_us)).sum()),
            "used": open_rows["used"],
            "late": open_rows["late"],
            "unmatched": open_rows["unmatched"],
            "actions_repeated": open_rows["repeated"],
        },
    )


def _watermarks(sent: Sent, max_skew_us: int) -> tuple[Int64s, int]:
    """The log's watermark just before each line, and after the last one."""
    times = np.where(sent.valid, 1_000_000 * sent.time_s - max_skew_us, _NEVER_US)
    after = np.maximum.accumulate(times)
    return np.concatenate([[_NEVER_US], after[:-1]]), int(after[-1])


def _action_outcomes(acted: Sent, before: Int64s, impression_us: Int64s, rules: Rules) -> dict[str, Bools]:
    """Outcome -> (n,) whether it is that row's; each row has one."""
    windows = np.array([rules.windows_us.get(name, -1) for name in ACTION_TYPES])[acted.action]
    dead = ~acted.valid | (windows < 0)
    delay = 1_000_000 * acted.time_s - impression_us
    close = impression_us + rules.window_us
    matched = ~dead & (impression_us != _NEVER_US) & (delay >= 0) & (delay <= windows)
    matched &= before < close + rules.late_horizon_us
    on_time = matched & (before < close)

    # The first on-time copy of an action counts, else the first late one; copies after it are repeats.
    order = np.lexsort((~on_time, acted.time_s, acted.action, acted.impression, ~matched))
    repeat_in_order = np.zeros(len(acted), np.bool_)
    repeat_in_order[1:] = _all_equal(order, acted.impression, acted.action, acted.time_s)
    repeated = np.zeros(len(acted), np.bool_)
    repeated[order] = repeat_in_order
    repeated &= matched
    return {
        "used": on_time & ~repeated,
        "late": matched & ~on_time & ~repeated,
        "unmatched": ~dead & ~matched,
        "dead": dead,
        "repeated": repeated,
    }


def _all_equal(order: Int64s, *columns: Int64s) -> Bools:
    """Whether each row but the first, in this order, equals the one before it in all columns."""
    equal = np.ones(len(order) - 1, np.bool_)
    for column in columns:
        equal &= column[order][1:] == column[order][:-1]
    return equal
