"""What it costs to serve old parameters: one pass, and beside the training a serving copy for each interval.

The training does not depend on how often it is copied, so all copies follow one and the same pass. Each is made when
the scored time begins, and again whenever a row's event time is an interval or more past the last time it was due; so
``frozen``, which is never made again, is the limit of long intervals. A copy holds the steps that were made by then:
rows that wait for their batch to fill are not learned yet.

Monolith (arXiv 2209.07663, section 3) asks the same of its own logs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cuckooflow.embedding_store.api import Floats
from cuckooflow.embedding_store.distinct import Lookup
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.models.base import distinct
from cuckooflow.models.registry import build_model, store_config
from cuckooflow.pipelines.curves import Curve
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
    phases: int = 1,
    told: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Train once, and predict by copies of the model that are as old as each interval lets them be.

    Args:
        intervals: in the order of the table; ``frozen`` comes before them, and the training's own figures after.
        warm_up: share of the rows that are trained before anything is scored.
        own_features: streaming features too are as old as the copy; else only parameters are.
        phases: copies of each interval, made at evenly spread times within it, of which the mean is told. How well a
            copy predicts depends on the time of day at which it was made, too.
        told: given the number of rows trained, now and then.

    Raises:
        NoExamples: no row is left to score, or could be trained.
    """
    which = after_warm_up(timeline, warm_up)
    model = build_model(learner.spec, learner.features)
    config = replace(store_config(model, buckets=learner.buckets), delta_backlog_max=_BACKLOG_ROWS)
    store = EmbeddedStore(config)
    served: dict[Interval, list[_Phase]] = {}
    for interval in (Interval(FROZEN, None), *intervals):
        count = phases if interval.us else 1
        served[interval] = [
            _Phase(
                interval.us,
                n / count,
                ServingCopy(f"{interval.name}/{n}", model, store, own_features),
                which,
                Scores(model.labels, which, learner.correction),
            )
            for n in range(count)
        ]
    own = Scores(model.labels, which, learner.correction)
    step_times_us: list[int] = []

    def before_push(rows: TrainingRows, probabilities: Floats) -> None:
        if rows.offsets[-1] < which.first:
            return
        step_times_us.append(int(rows.times_us[-1] - rows.times_us[0]))
        own.add(rows, probabilities)
        step = _Step(len(step_times_us), rows, distinct(rows.encoded))
        for each in itertools.chain.from_iterable(served.values()):
            each.predict(step)

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
            "copies that are made more often than that hold hardly anything newer."
        ),
        variant="interval",
        reference=EVERY_STEP,
        variants=[
            *(_variant(interval, of) for interval, of in served.items()),
            Variant(EVERY_STEP, [own.curves()], {"interval_s": 0.0, "copies": None}),
        ],
        scored=which,
        refused=refused,
        facts={
            "step_s": step_us / 1e6,
            "batch_size": learner.options.batch_size,
            "phases": phases,
            "features": "of the copy" if own_features else "as trained",
        },
    )


@dataclass
class _Step:
    """The rows of one step, while the store still is as it was before it.

    Attributes:
        number: of the step.
        found: number of a step -> what copies that were made right before that one say of these rows; they are all the same.
    """

    number: int
    rows: TrainingRows
    lookup: Lookup
    found: dict[int, Floats] = field(default_factory=dict)


class _Phase:
    """One of an interval's copies, when it is due, and its figures.

    Args:
        share: of the interval that has passed already when the scored rows begin, 0 up to 1.
    """

    def __init__(
        self, every_us: int | None, share: float, copy: ServingCopy, which: Scored, scores: Scores
    ) -> None:
        self._every_us = every_us
        self._copy = copy
        self._due_us: int | None = which.from_us
        self._begin_us = which.from_us - round((every_us or 0) * share)
        self._scores = scores
        self._made = -1

    def predict(self, step: _Step) -> None:
        """Predict and score the rows of a step."""
        self._scores.add(step.rows, self._by_newest(step))

    def curves(self) -> dict[str, Curve]:
        """See :meth:`Scores.curves`."""
        return self._scores.curves()

    def _by_newest(self, step: _Step) -> Floats:
        """(B, L) probabilities by the copy that was the newest when each row came."""
        times_us, due_us = step.rows.times_us, self._due_us
        if due_us is None or times_us[-1] < due_us:
            return self._by_copy(step)
        old = self._by_copy(step) if self._made >= 0 and times_us[0] < due_us else None
        self._copy.sync()
        self._made = step.number
        self._due_us = self._next_us(int(times_us[-1]))
        new = self._by_copy(step)
        return new if old is None else np.where((times_us >= due_us)[:, None], new, old)

    @property
    def copies(self) -> int:
        """How often it was made."""
        return self._copy.syncs

    def _by_copy(self, step: _Step) -> Floats:
        if self._made not in step.found:
            step.found[self._made] = self._copy.predict(step.rows, step.lookup)
        return step.found[self._made]

    def _next_us(self, now_us: int) -> int | None:
        if not self._every_us:
            return None if self._every_us is None else now_us
        return self._begin_us + ((now_us - self._begin_us) // self._every_us + 1) * self._every_us


def _variant(interval: Interval, phases: Sequence[_Phase]) -> Variant:
    every_s = None if interval.us is None else interval.us / 1e6
    copies = sum(phase.copies for phase in phases)
    return Variant(
        interval.name, [phase.curves() for phase in phases], {"interval_s": every_s, "copies": copies}
    )
