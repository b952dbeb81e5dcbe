"""What a lost shard costs: one of n is restored from a checkpoint of k hours ago, and training goes on.

With replay off the shard's marks are moved on without the examples in between, as a store does that has no log to read
again: Monolith (arXiv 2209.07663, section 3) accepts that. With replay on the trainer finds the marks behind and reads what
is missing again, as it always does. Both run beside a pass in which nothing happens, over the same shards.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cuckooflow.embedding_store.api import Store
from cuckooflow.embedding_store.shards import Ownership, Shard
from cuckooflow.errors import NoExamples
from cuckooflow.logs.contract import LogRange
from cuckooflow.models.registry import build_model, store_config
from cuckooflow.pipelines.curves import curve_of_records
from cuckooflow.pipelines.experiments.learner import Learner
from cuckooflow.pipelines.experiments.local_shards import LocalShards
from cuckooflow.pipelines.experiments.one_pass import Refusals, one_pass
from cuckooflow.pipelines.experiments.outcome import Outcome
from cuckooflow.pipelines.experiments.scored import Scored, Variant, scored
from cuckooflow.pipelines.experiments.timeline import INCARNATION, LOG, Timeline
from cuckooflow.transforms.feature_feed import features_log

UNDISTURBED, REPLAY_OFF, REPLAY_ON = "undisturbed", "replay off", "replay on"


@dataclass(frozen=True)
class Loss:
    """Which shard is lost, and how much of it.

    Attributes:
        shards: how many there are.
        shard: which one is restored, from 0.
        back_us: its checkpoint is so old, event time, microseconds.
        next_us: so long after it the rows are scored.
    """

    shards: int
    shard: int
    back_us: int
    next_us: int


@dataclass(frozen=True)
class _Course:
    """When things happen, in steps made before: the checkpoint, the loss, the end."""

    saved: int
    lost: int
    end: int


def reliability(
    timeline: Timeline,
    learner: Learner,
    loss: Loss,
    warm_up: float,
    told: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Three passes: undisturbed, with replay off, with replay on.

    Args:
        warm_up: share of the rows that are trained before the shard is lost; to whole steps.
        told: given the number of rows trained, now and then, in each of the passes.

    Raises:
        NoExamples: there are none from before the checkpoint, or after the loss, or none could be trained.
        SpecError: the job's store cannot have so many shards.
    """
    batch = learner.options.batch_size
    lost = int(len(timeline) * warm_up) // batch
    which = scored(timeline, lost * batch, len(timeline))
    last = int(np.searchsorted(timeline.times_us, which.from_us + loss.next_us))
    end = -(-last // batch)
    which = scored(timeline, which.first, min(end * batch, len(timeline)))
    saved = int(np.searchsorted(timeline.times_us, which.from_us - loss.back_us)) // batch
    if saved == 0 or lost == saved:
        raise NoExamples(
            f"expected a step of {batch:,} examples before and after a checkpoint {loss.back_us / 3.6e9:g} h before the loss "
            f"of the shard at example {which.first:,}, found steps {saved:,} and {lost - saved:,}; take a longer time, "
            "another --warm-up or other --hours"
        )
    passes = _Passes(timeline, learner, loss, _Course(saved, lost, end), which, told)
    variants = [passes.run(UNDISTURBED), passes.run(REPLAY_OFF), passes.run(REPLAY_ON)]
    owned = Ownership(passes.config, Shard(loss.shard, loss.shards))
    return Outcome(
        experiment="reliability",
        title="What a lost shard costs",
        about=(
            f"Every row is predicted before it is learned. Shard {loss.shard} of {loss.shards} is lost where the scored rows "
            f"begin, and restored from a checkpoint {loss.back_us / 3.6e9:g} h old. With replay off it lacks its part of the "
            "steps in between for good; with replay on the trainer makes them again first."
        ),
        variant="restored",
        reference=UNDISTURBED,
        variants=variants,
        scored=which,
        refused=passes.refused,
        facts={
            "shards": loss.shards,
            "shard": loss.shard,
            "back_s": loss.back_us / 1e6,
            "batch_size": batch,
            "dense_parameters_of_shard": sorted(owned.dense),
        },
    )


class _Passes:
    """The passes of one experiment, each over shards of its own."""

    def __init__(
        self,
        timeline: Timeline,
        learner: Learner,
        loss: Loss,
        course: _Course,
        which: Scored,
        told: Callable[[int], None],
    ) -> None:
        options = learner.options.model_copy(update={"metrics_window_us": max(which.window_us, 1_000_000)})
        self._timeline = timeline
        self._learner = replace(learner, options=options)
        self._loss = loss
        self._course = course
        self._told = told
        self._model = build_model(learner.spec, learner.features)
        self.config = store_config(self._model, buckets=learner.buckets)
        self.refused = Refusals()

    def run(self, name: str) -> Variant:
        """One pass, to the end of the scored rows."""
        with (
            tempfile.TemporaryDirectory(prefix="cuckooflow-shards-") as folder,
            closing(LocalShards(self.config, Path(folder), self._loss.shards)) as shards,
        ):
            return self._pass(name, shards)

    def _pass(self, name: str, shards: LocalShards) -> Variant:
        course, records = self._course, list[dict[str, Any]]()
        missing = again = 0
        # An element is a step, so that between two of them everything before is pushed.
        batch = self._learner.options.batch_size
        steps = one_pass(self._timeline, self._learner, self._model, shards.client, element_rows=batch)
        with closing(steps):
            for made, out in enumerate(steps, 1):
                self.refused.add(out)
                self._told(sum(tick.rows for tick in out.ticks))
                if made > course.lost:
                    records += out.metrics
                if made == course.saved:
                    shards.checkpoint(self._loss.shard)
                if made == course.lost and name != UNDISTURBED:
                    shards.throw_back(self._loss.shard)
                    again = rows_behind(shards.client)
                    if name == REPLAY_OFF:
                        missing, again = again, 0
                        _skip(shards.client, int(self._timeline.times_us[course.lost * batch]))
                if made == course.end:
                    break
        curves = {label: curve_of_records(records, label) for label in self._model.labels}
        return Variant(name, [curves], {"rows_missing": missing, "rows_again": again})


def rows_behind(store: Store) -> int:
    """How many examples the parts of a store that stand lowest lack of those that stand highest."""
    marks = store.marks(LOG)[0]
    return marks[-1].offset - marks[0].offset


def _skip(store: Store, now_us: int) -> None:
    """Move what stands behind to where the others stand, without the examples in between."""
    for log in (LOG, features_log(LOG)):
        for behind, ahead in itertools.pairwise(store.marks(log).get(0, ())):
            store.push(LogRange(log, INCARNATION, 0, behind, ahead), {}, {}, now_us)
