"""Options of OnlineJoin: what is joined, for how long it waits, and what it may keep in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cuckooflow.errors import SpecError

#: Labels are bits of one 64-bit word.
LABELS_MAX = 64
#: How the actions of a label become its value.
LabelValue = Literal["flag", "count", "sum", "max"]
#: State cells that the DoFn declares; ``state_buckets`` uses the first so many of them.
STATE_CELLS = 32


@dataclass(frozen=True)
class Label:
    """One label of an example.

    Attributes:
        name: the example's column is ``label_<name>``.
        action: the action type that sets it; several labels may name one type.
        window_us: how long after the impression the action counts, microseconds, inclusive.
        value: ``flag`` (default; uint8, 1 where there was such an action), ``count`` (uint32, how many),
            ``sum`` or ``max`` (float64, of a column of the actions). 0 where there was none. All but ``flag``
            need ``emit = complete``, as an eager example goes out with its first action.
        column: of the actions, for ``sum`` and ``max``: a number of 0 or more, else the action is a dead letter.
    """

    name: str
    action: str
    window_us: int
    value: LabelValue = "flag"
    column: str | None = None


@dataclass(frozen=True)
class JoinOptions:
    """How actions find their impressions.

    Attributes:
        key: columns, in both logs, that name one impression. More columns cost hashing.
        action_type: the actions' column that holds the type.
        labels: at least one; types that no label names are dead letters. The longest window is
            :attr:`window_us`: every impression waits that long for its example (``complete``), and
            state holds it.
        action_id: the actions' column that tells two actions of one type on one impression apart.
            Default none: the action's time does; so it does where the column is null.
        late_horizon_us: how long after the window an action still makes a late example, microseconds,
            default 1 day. Costs state: impressions are kept for ``2 x window + late_horizon``.
        emit: ``complete`` (default) gives one example an impression, when its window closes;
            ``eager`` gives a positive as soon as both have arrived, and costs an index of the open impressions.
        num_shards: keyed parallelism, default 8, fixed for the life of a job (it is in the state's keys).
        max_lead_us: how far ahead of the clock event times may be, microseconds, default 1 day: the
            source's ``max_lead`` plus its ``max_skew``. Rows further ahead wait in an overflow cell. A
            larger value makes the state cells wider.
        state_buckets: state cells in the ring by event time, 4 to 32, default 16. More cells are each
            smaller, so a cold read is cheaper; each costs about a microsecond an element.
        cache_bytes: memory for closed impressions, a shard, default 64 MiB. Past it the longest closed
            are dropped from memory and read back from state when late actions need them, one state cell a
            tick; the actions of other cells wait. Not counted: 21 to 32 bytes a kept impression for the key
            filter, and what is still open.
        tick_us: how often, by the poller's clock, late actions are looked up together, microseconds,
            default 1 s. Costs their freshness; a shorter one costs reads of state.
        balance_interval_us: how often the balances are reported, microseconds, default 1 s.
        recheck_us: after so long without input a timer looks up the late actions that are still
            queued and reports the balances, microseconds, default 2 s.
        held_elements_max: elements a shard holds back while a gap in their chain is open, default 256.
    """

    key: tuple[str, ...]
    action_type: str
    labels: tuple[Label, ...]
    action_id: str | None = None
    late_horizon_us: int = 86_400_000_000
    emit: Literal["complete", "eager"] = "complete"
    num_shards: int = 8
    max_lead_us: int = 86_400_000_000
    state_buckets: int = 16
    cache_bytes: int = 64 << 20
    tick_us: int = 1_000_000
    balance_interval_us: int = 1_000_000
    recheck_us: int = 2_000_000
    held_elements_max: int = 256

    def __post_init__(self) -> None:
        names = [label.name for label in self.labels]
        faults = []
        if not self.key or len(set(self.key)) != len(self.key):
            faults.append(f"key: expected one or more different columns, received {self.key!r}")
        if not 1 <= len(self.labels) <= LABELS_MAX or len(set(names)) != len(names):
            faults.append(f"labels: expected 1 to {LABELS_MAX} different names, received {names!r}")
        faults += [
            f"labels.{label.name}.window_us: expected 0 or more, received {label.window_us}"
            for label in self.labels
            if label.window_us < 0
        ]
        for label in self.labels:
            if (label.column is not None) != (label.value in ("sum", "max")):
                faults.append(
                    f"labels.{label.name}: expected a column with sum and max and with nothing else, received "
                    f"value {label.value!r} and column {label.column!r}"
                )
            if label.value != "flag" and self.emit == "eager":
                faults.append(
                    f"labels.{label.name}.value: expected 'flag' with emit 'eager', received {label.value!r}"
                )
        if self.emit not in ("complete", "eager"):
            faults.append(f"emit: expected 'complete' or 'eager', received {self.emit!r}")
        if not 4 <= self.state_buckets <= STATE_CELLS:
            faults.append(f"state_buckets: expected 4 to {STATE_CELLS}, received {self.state_buckets}")
        for name in ("late_horizon_us", "max_lead_us", "tick_us", "balance_interval_us"):
            if getattr(self, name) < 0:
                faults.append(f"{name}: expected 0 or more, received {getattr(self, name)}")
        for name in ("num_shards", "cache_bytes", "recheck_us", "held_elements_max"):
            if getattr(self, name) < 1:
                faults.append(f"{name}: expected 1 or more, received {getattr(self, name)}")
        if faults:
            raise SpecError("join options are wrong; mend: " + "; ".join(faults))

    @property
    def window_us(self) -> int:
        """The longest label window: an impression at ``i`` closes at ``i + window_us``."""
        return max(label.window_us for label in self.labels)

    @property
    def reuse_us(self) -> int:
        """A key that comes again within so long of its impression, at another time, is refused."""
        return self.window_us + self.late_horizon_us

    @property
    def bucket_us(self) -> int:
        """Event time that one state cell spans, so that the ring spans all that is kept and the lead."""
        span = self.window_us + self.reuse_us + self.max_lead_us
        return -(-span // (self.state_buckets - 3)) or 1

    @property
    def keep_us(self) -> int:
        """A cell is cleared when the clock is so far past its end.

        Two windows and the horizon, so that a key that comes again is recognised; one cell more, so
        that what depended on a cleared cell has itself been sealed (see ``join_core``).
        """
        return self.window_us + self.reuse_us + self.bucket_us
