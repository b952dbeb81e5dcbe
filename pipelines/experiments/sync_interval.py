"""What it costs to serve old parameters: one pass, and beside the training a serving copy for each interval.

The training does not depend on how often it is copied, so all copies follow one and the same pass. Each is made when
the scored time begins, and again whenever a row's event time is an interval or more past the last time it was due; so
``frozen``, which is never made again, is the limit of long intervals. A copy holds the steps that were made by then:
rows that wait for their batch to fill are not learned yet.

Monolith (arXiv 2209.07663, section 3) asks the same of its own logs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cuckooflow.embedding_store.api import Floats
from cuckooflow.embedding_store.distinct import Lookup
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.models.base import distinct
from cuckooflow.models.registry import build_model, store_config
from cuckooflow.pipelines.experiments.learner import Learner
from cuckooflow.pipelines.experiments.one_pass import Refusals, one_pass
from cuckooflow.pipelines.experiments.outcome import Outcome
from cuckooflow.pipelines.experiments.scored import Scored, Scores, Variant, after_warm_up
from cuckooflow.pipelines.experiments.serving_copy import ServingCopy
from cuckooflow.pipelines.experiments.timeline import ELEMENT_ROWS, Timeline
from cuckooflow.transforms.training_rows import TrainingRows

FROZEN, EVERY_STEP = "frozen", "every step"
#: Touched rows that each table lists for copies that are made rarely, at 4 and 8 bytes each; past it a copy is made whole.
_BACKLOG_ROWS = 1 << 22
#: Where streaming features come from: of the copy, or not.
_FEATURES = {
    False: "Streaming features, if any, are as training saw them: only parameters are old.",
    True: "Streaming features are looked up in the copy, as a scorer does, and are as old.",
}


@dataclass(frozen=True)
class Interval:
    """How often a serving copy is made anew.

    Attributes:
        name: as the table shows it.
        us: event time between two copies, microseconds; 0: before every step; None: never.
    """

    name: str
    us: int | None


def sync_interval(
    timeline: Timeline,
    learner: Learner,
    intervals: Sequence[Interval],
    warm_up: float,
    own_features: bool = False,
    told: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Train once, and predict by copies of the model that are as old as each interval lets them be.

    Args:
        intervals: in the order of the table; ``frozen`` comes before them, and the training's own figures after.
        warm_up: share of the rows that are trained before anything is scored.
        own_features: streaming features too are as old as the copy; else only parameters are.
        told: given the number of rows trained, now and then.

    Raises:
        NoExamples: no row is left to score, or could be trained.
    """
    which = after_warm_up(timeline, warm_up)
    model = build_model(learner.spec, learner.features)
    config = replace(store_config(model, buckets=learner.buckets), delta_backlog_max=_BACKLOG_ROWS)
    store = EmbeddedStore(config)
    served = [
        _Served(interval, ServingCopy(interval.name, model, store, own_features), which, learner)
        for interval in (Interval(FROZEN, None), *intervals)
    ]
    own = Scores(model.labels, which, learner.correction)
    step_times_us: list[int] = []

    def before_push(rows: TrainingRows, probabilities: Floats) -> None:
        if rows.offsets[-1] < which.first:
            return
        step_times_us.append(int(rows.times_us[-1] - rows.times_us[0]))
        own.add(rows, probabilities)
        lookup = distinct(rows.encoded)
        for each in served:
            each.predict(rows, lookup)

    refused = Refusals()
    # A copy's features are those of the store's tables, which in a stream move on with every step.
    rows_at_once = learner.options.batch_size if own_features else ELEMENT_ROWS
    for out in one_pass(timeline, learner, model, store, before_push, element_rows=rows_at_once):
        refused.add(out)
        told(sum(tick.rows for tick in out.ticks))
    store.close()
    step_us = round(float(np.median(step_times_us))) if step_times_us else 0
    return Outcome(
        experiment="sync-interval",
        title="What serving older parameters costs",
        about=(
            "Every row is predicted before it is learned, by a copy of the model that is made anew every so often. "
            f"{_FEATURES[own_features]} "
            f"A step takes {learner.options.batch_size:,} rows, here {step_us / 1e6:,.1f} s of event time (median): "
            "copies that are made more often than that hold the same."
        ),
        variant="interval",
        reference=EVERY_STEP,
        variants=[*(each.variant() for each in served), own.variant(EVERY_STEP, interval_s=0.0, copies=None)],
        scored=which,
        refused=refused,
        facts={
            "step_s": step_us / 1e6,
            "batch_size": learner.options.batch_size,
            "features": "of the copy" if own_features else "as trained",
        },
    )


class _Served:
    """One interval's copy, when it is due, and its figures."""

    def __init__(self, interval: Interval, copy: ServingCopy, which: Scored, learner: Learner) -> None:
        self._interval = interval
        self._copy = copy
        self._due_us: int | None = which.from_us
        self._begin_us = which.from_us
        self._scores = Scores(learner.spec.labels, which, learner.correction)

    def predict(self, rows: TrainingRows, lookup: Lookup) -> None:
        """Rows of one step, in event time, while the store still is as it was before the step."""
        old: Floats | None = None
        newer = np.ones(len(rows), np.bool_)
        newest_us = int(rows.times_us[-1])
        if self._due_us is not None and newest_us >= self._due_us:
            newer = rows.times_us >= self._due_us
            if self._copy.syncs and not newer.all():
                old = self._copy.predict(rows, lookup)
            self._copy.sync()
            self._due_us = self._next_us(newest_us)
        probabilities = self._copy.predict(rows, lookup)
        if old is not None:
            probabilities = np.where(newer[:, None], probabilities, old)
        self._scores.add(rows, probabilities)

    def _next_us(self, now_us: int) -> int | None:
        every_us = self._interval.us
        if every_us is None:
            return None
        if every_us == 0:
            return now_us
        return self._begin_us + ((now_us - self._begin_us) // every_us + 1) * every_us

    def variant(self) -> Variant:
        every_us = self._interval.us
        every_s = None if every_us is None else every_us / 1e6
        return self._scores.variant(self._interval.name, interval_s=every_s, copies=self._copy.syncs)
