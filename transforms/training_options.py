"""The ``training`` section of a job."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Why these two do not go together.
ONE_BEHIND = "with overlap the rows of a batch miss the push before it: expected staleness_max of 1 or more, received 0"


class TrainingOptions(BaseModel):
    """How examples become pushes.

    Attributes:
        batch_size: rows of a step, default 256, 1 to 65,536. 64 to 512 learn best in one pass; 4,096 costs
            about .01 AUC and is faster.
        max_delay_us: how long a row waits for its batch to fill, microseconds, default 2 s. Shorter is
            fresher; ragged batches scale their step, but cost a round trip each.
        counting: keep exact counts of every feature id's occurrences; default off. Costs a table.
        overlap: while a batch computes, push the one before it and fetch the next one's rows; default off. Hides the
            store's time; the rows are then one batch older. Costs a thread.
        staleness_max: pushes of other batches that a shard may have applied since a batch's rows were read from it;
            default none: as many as there are. A batch that missed more is computed anew from fresh rows, where shards
            refused it. Costs these steps; the more trainers, the more of them.
        marks_interval_us: how often the store is asked where it stands, microseconds, default 5 s: so
            long may a restored store stay behind. Also asked before a bounded input is called finished.
        metrics_window_us: width of an event-time window of the progressive figures, default 1 h.
        metrics_interval_us: how often they are emitted, microseconds, default 2 s.
        fill_rows_max: rows read at once when a gap is filled from the log, default 16,384.
        held_elements_max: elements that may wait for one before them, default 16. Past it, or after
            ``max_delay_us``, what is missing is read from the log.
        lag_us: what streaming features know of the past ends so long before a row, in event time, microseconds;
            default 1 minute. Their updates wait in memory as long.
        pending_rows_max: rows that may wait so, default 4 million, at some 100 to 300 bytes each; past it training
            stops with :class:`~cuckooflow.errors.PendingTooMany`.
        push_attempts_max: pushes of a range that may be refused in a row before the step gives up;
            default 64. Every refusal says where to cut, so more means that another trainer races, or that
            ``staleness_max`` is too low for so many trainers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=256, ge=1, le=65_536)
    max_delay_us: int = Field(default=2_000_000, ge=0)
    counting: bool = False
    overlap: bool = False
    staleness_max: int | None = Field(default=None, ge=0)
    marks_interval_us: int = Field(default=5_000_000, ge=0)
    metrics_window_us: int = Field(default=3_600_000_000, ge=1_000_000)
    metrics_interval_us: int = Field(default=2_000_000, ge=0)
    fill_rows_max: int = Field(default=16_384, ge=1, le=1_000_000)
    held_elements_max: int = Field(default=16, ge=0, le=1_000)
    lag_us: int = Field(default=60_000_000, ge=1)
    pending_rows_max: int = Field(default=4_000_000, ge=1)
    push_attempts_max: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _one_behind(self) -> TrainingOptions:
        if self.overlap and self.staleness_max == 0:
            raise ValueError(ONE_BEHIND)
        return self
