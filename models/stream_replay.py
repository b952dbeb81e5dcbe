"""Counter and recent rows as they were after each of some pending events, without a loop over events.

What a table of the store answers, read as of every row's last update, is a state; events that are not in it yet follow in log
order. Of many questions each says how many of those events it may see. The answers are the store's
own (see :mod:`cuckooflow.embedding_store.kinds`): equal to pushing that many events and looking up as of the question's time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store.kinds import NEVER_US, CounterRows, RecentRows, Times

Places = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def replay_counters(
    rows: CounterRows,
    half_lives_us: Sequence[int],
    event_place: Places,
    event_order: Places,
    event_us: Times,
    amounts: npt.NDArray[np.float32],
    place: Places,
    visible: Places,
    as_of_us: Times,
) -> CounterRows:
    """Answers of a counter table.

    Args:
        rows: of k keys, as of their last updates.
        half_lives_us: one a sum.
        event_place, event_order, event_us, amounts: (m,) and (m, dim): of each event its key's place in ``rows``,
            its number in the log, ascending and not negative, its time, and what it adds.
        place, visible, as_of_us: (q,): of each question its key's place in ``rows``, how many event numbers it
            sees (all below ``visible``), and as of when.
    """
    # A row is one event more: its sums at the time of its last update, before all others.
    known = np.flatnonzero(rows.last_us != NEVER_US)
    key = np.concatenate([known, event_place])
    order = np.concatenate([np.full(len(known), -1), event_order])
    sort = np.lexsort((order, key))
    key, order = key[sort], order[sort]
    last = np.concatenate([rows.last_us[known], event_us])[sort]
    first = np.concatenate([rows.first_us[known], event_us])[sort]
    own = last.copy()
    _scan(key, lambda to, frm, same: _extend(to, frm, same, first, last))
    rates = np.array([1.0 / us if us else 0.0 for us in half_lives_us])
    distinct, column = np.unique(rates, return_inverse=True)
    sums = np.concatenate([rows.sums[known], amounts]).astype(np.float64)[sort]
    sums *= _decay(last - own, distinct, column)

    def add(to: slice, frm: slice, same: Bools) -> None:
        age = np.where(same, last[to] - last[frm], 0)
        sums[to] += np.where(same[:, None], sums[frm] * _decay(age, distinct, column), 0.0)

    _scan(key, add)
    at, found = _newest_visible(key, order, place, visible)
    found &= as_of_us >= _taken(first, at, found)
    last_us = _taken(last, at, found)
    answer = np.zeros((len(place), sums.shape[1]))
    age = np.maximum(as_of_us - last_us, 0)[found]
    answer[found] = sums[at[found]] * _decay(age, distinct, column)
    return CounterRows(answer.astype(np.float32), _taken(first, at, found), last_us)


def replay_recents(
    rows: RecentRows,
    event_place: Places,
    event_order: Places,
    event_us: Times,
    values: npt.NDArray[np.uint64],
    place: Places,
    visible: Places,
    as_of_us: Times,
) -> RecentRows:
    """Answers of a recent table; arguments as of :func:`replay_counters`, ``values``: (m,) uint64."""
    length = rows.values.shape[1]
    row, column = np.nonzero(rows.times_us != NEVER_US)
    key = np.concatenate([row, event_place])
    # The newest entry of a row comes first in it and is the last of its events.
    order = np.concatenate([-1 - column, event_order])
    time = np.concatenate([rows.times_us[row, column], event_us])
    value = np.concatenate([rows.values[row, column], values])
    sort = np.lexsort((order, time, key))
    key, order, time, value = key[sort], order[sort], time[sort], value[sort]
    begin = np.searchsorted(key, place)
    at = _last_until(key, time, place, _newest_us(rows, event_order, event_us, place, visible))
    found_values = np.zeros((len(place), length), np.uint64)
    found_us = np.full((len(place), length), NEVER_US, np.int64)
    filled = np.zeros(len(place), np.int64)
    asking = np.flatnonzero(at >= begin)
    # Back from the newest entry that may be seen; where times are out of order, some before it may not.
    while len(asking):
        here = at[asking]
        seen = order[here] < visible[asking]
        who, entry = asking[seen], here[seen]
        found_values[who, filled[who]] = value[entry]
        found_us[who, filled[who]] = time[entry]
        filled[who] += 1
        at[asking] -= 1
        asking = asking[(filled[asking] < length) & (at[asking] >= begin[asking])]
    # As in a table: what is kept is the newest of all, and what is later than asked is left out of that.
    later = found_us > as_of_us[:, None]
    found_values[later], found_us[later] = 0, NEVER_US
    compact = np.argsort(found_us == NEVER_US, axis=1, kind="stable")
    return RecentRows(
        np.take_along_axis(found_values, compact, axis=1), np.take_along_axis(found_us, compact, axis=1)
    )


def _newest_us(
    rows: RecentRows, event_order: Places, event_us: Times, place: Places, visible: Places
) -> Times:
    """(q,) No entry that a question sees is newer than this."""
    newest = np.concatenate([[NEVER_US], np.maximum.accumulate(event_us)])
    return np.maximum(newest[np.searchsorted(event_order, visible)], rows.times_us[place, 0])


def _last_until(key: Places, time: Times, place: Places, until_us: Times) -> Places:
    """Of each question the last entry of its key with a time up to ``until_us``; entries ascend by key and time."""
    distinct, rank = np.unique(time, return_inverse=True)
    span = len(distinct) + 1
    until = np.searchsorted(distinct, until_us, side="right")
    return np.searchsorted(key * span + rank + 1, place * span + until, side="right") - 1


def _newest_visible(key: Places, order: Places, place: Places, visible: Places) -> tuple[Places, Bools]:
    """Of each question the newest event of its key that it sees, and whether there is one."""
    if not len(key):
        return np.zeros(len(place), np.int64), np.zeros(len(place), np.bool_)
    span = max(int(order.max()), int(visible.max(initial=0))) + 2
    at = np.searchsorted(key * span + order + 1, place * span + visible, side="right") - 1
    found = at >= 0
    at = at.clip(min=0)
    return at, found & (key[at] == place)


def _taken(times: Times, at: Places, found: Bools) -> Times:
    result = np.full(len(at), NEVER_US, np.int64)
    result[found] = times[at[found]]
    return result


def _decay(age_us: Times, rates: npt.NDArray[np.float64], column: Places) -> npt.NDArray[np.float64]:
    """(n, dim): what is left after (n,) microseconds."""
    left: npt.NDArray[np.float64] = np.exp2(-age_us[:, None] * rates)[:, column]
    return left


def _extend(to: slice, frm: slice, same: Bools, first: Times, last: Times) -> None:
    first[to] = np.where(same, np.minimum(first[to], first[frm]), first[to])
    last[to] = np.where(same, np.maximum(last[to], last[frm]), last[to])


def _scan(key: Places, combine: Callable[[slice, slice, Bools], None]) -> None:
    """A running combination within each run of equal keys, in log2(longest run) steps (Hillis and Steele, 1986)."""
    if not len(key):
        return
    longest = int(np.bincount(key).max())
    distance = 1
    while distance < longest:
        to, frm = slice(distance, None), slice(None, -distance)
        combine(to, frm, key[to] == key[frm])
        distance *= 2
