"""How the logs are polled."""

from __future__ import annotations

from dataclasses import dataclass

from cuckooflow.errors import SpecError


@dataclass(frozen=True)
class PollOptions:
    """How the logs are polled.

    Attributes:
        num_shards: keyed parallelism, fixed for the life of a job, default 8. Costs one element a
            shard and poll.
        max_skew_us: how far out of order a partition's event times may be, default 1 minute. Costs
            freshness: every window closes that much later.
        max_lead_us: a partition whose watermark is further ahead of the slowest one that has more to
            read is paused, default 1 day.
        max_future_skew_us: an event time further past its append time is a dead letter, default 1 hour.
        live: whether a partition that was read to its end and stays silent for ``idle_after_us`` may
            move the clock to now minus the skew, default false. Only for events of the present.
        idle_after_us: see ``live``; default 10 s. Silence begins anew where a call of either log found no broker,
            or took more than a quarter of it: who writes may not have reached theirs either.
        stop_at_end: where a partition's end is as the job starts, nothing follows, default false. A
            sealed log ends in any case.
        max_messages: of all partitions together in one poll, default 65,536. Costs memory.
        max_bytes: of one partition in one poll, default 8 MiB. Costs memory.
        max_poll_bytes: of all partitions together in one poll, default 32 MiB, each taking its part and at
            least 1 MiB. Costs memory; a smaller one costs throughput, as each poll makes an element a shard.
        heartbeat_us: with nothing new, each shard still gets an element this often, default 1 s. No more often
            does an idle partition alone move the clock.
        heartbeat_max_us: where nothing has come for long, that grows to a tenth of the silence, up to this; default
            5 s. A longer one costs freshness of what closes after a long silence; a shorter one work while idle.
        balance_interval_us: how often what was read is reported, default 1 s.
        figures_interval_us: how often lag and watermarks are told as metrics, default 5 s. Costs a question to
            the broker for each partition that is not read to its end.
        replay_speed: event time per wall second, such as 60; rows are held back until it is their turn. Default
            none: as fast as they are read. Only for events of the past, so not with ``live``. Costs parsing
            each message twice.
        unavailable_for_us: how long a log's broker may be away before the poll raises, default 5 minutes. Until
            then its partitions hold the clock.
    """

    num_shards: int = 8
    max_skew_us: int = 60_000_000
    max_lead_us: int = 86_400_000_000
    max_future_skew_us: int = 3_600_000_000
    live: bool = False
    idle_after_us: int = 10_000_000
    stop_at_end: bool = False
    max_messages: int = 65_536
    max_bytes: int = 8 << 20
    max_poll_bytes: int = 32 << 20
    heartbeat_us: int = 1_000_000
    heartbeat_max_us: int = 5_000_000
    balance_interval_us: int = 1_000_000
    figures_interval_us: int = 5_000_000
    replay_speed: float | None = None
    unavailable_for_us: int = 300_000_000

    def __post_init__(self) -> None:
        bounds = {
            "num_shards": 1, "max_skew_us": 0, "max_lead_us": 0, "max_future_skew_us": 0, "idle_after_us": 0,
            "max_messages": 1, "max_bytes": 1, "max_poll_bytes": 1, "heartbeat_us": 1, "heartbeat_max_us": 1,
            "unavailable_for_us": 0, "balance_interval_us": 0, "figures_interval_us": 0,
        }  # fmt: skip
        wrong = [
            f"{n} >= {low}, received {getattr(self, n)}"
            for n, low in bounds.items()
            if getattr(self, n) < low
        ]
        if self.replay_speed is not None and (self.live or not 0 < self.replay_speed < float("inf")):
            received = f"{self.replay_speed}{' and live' if self.live else ''}"
            wrong.append(f"replay_speed above 0 and not live, received {received}")
        if wrong:
            raise SpecError(f"expected {'; '.join(wrong)}")
