"""What collisions cost: one pass over a collisionless table, and one over a hashed table of each size.

Monolith (arXiv 2209.07663, section 3) asks the same of its own data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cuckooflow.embedding_store.api import Ids
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.models.base import Model
from cuckooflow.models.registry import build_model, store_config
from cuckooflow.pipelines.experiments.hashed import hashed_ids, hashed_model
from cuckooflow.pipelines.experiments.learner import Learner
from cuckooflow.pipelines.experiments.one_pass import Refusals, one_pass
from cuckooflow.pipelines.experiments.outcome import Outcome
from cuckooflow.pipelines.experiments.scored import Scored, Scores, Variant, after_warm_up
from cuckooflow.pipelines.experiments.timeline import Timeline

COLLISIONLESS = "collisionless"


@dataclass(frozen=True)
class Size:
    """How many rows a hashed table has, those of all features together.

    Attributes:
        name: as the table shows it.
        rows: that many; None: a share of the rows that the collisionless table had in the end.
        share: of those.
    """

    name: str
    rows: int | None = None
    share: float = 1.0

    def of(self, ids: int) -> int:
        """Rows, where the collisionless table had so many; at least 1."""
        return max(1, round(self.share * ids)) if self.rows is None else self.rows


def collisions(
    timeline: Timeline,
    learner: Learner,
    sizes: Sequence[Size],
    warm_up: float,
    told: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Train once for each size, and once with a row for each id.

    Args:
        sizes: in the order of the table; the collisionless one comes before them.
        warm_up: share of the rows that are trained before anything is scored.
        told: given the number of rows trained, now and then, in each of the passes.

    Raises:
        NoExamples: no row is left to score, or could be trained.
    """
    which = after_warm_up(timeline, warm_up)
    model = build_model(learner.spec, learner.features)
    refused = Refusals()
    scores, ids = _train(timeline, learner, model, which, refused, told)
    variants = [_variant(COLLISIONLESS, scores, len(ids), 0.0)]
    for size in sizes:
        rows = size.of(len(ids))
        scores, _ = _train(timeline, learner, hashed_model(learner, rows), which, refused, told)
        variants.append(_variant(size.name, scores, rows, sharing(ids, rows)))
    return Outcome(
        experiment="collisions",
        title="What collisions cost",
        about=(
            "Every row is predicted before it is learned. A hashed table has a fixed number of rows for the ids of all "
            f"features together, and several ids share one; the collisionless one had {len(ids):,} rows in the end. "
            "Hashed tables know no admission and no expiry."
        ),
        variant="table",
        reference=COLLISIONLESS,
        variants=variants,
        scored=which,
        refused=refused,
        facts={"ids": len(ids), "batch_size": learner.options.batch_size},
    )


def _variant(name: str, scores: Scores, rows: int, share: float) -> Variant:
    return Variant(name, [scores.curves()], {"table_rows": rows, "ids_that_share": share})


def sharing(ids: Ids, size: int) -> float:
    """The share of distinct ids that have no row of their own in a hashed table."""
    if not len(ids):
        return 0.0
    _, place, count = np.unique(hashed_ids(ids, size), return_inverse=True, return_counts=True)
    return float((count[place] > 1).mean())


def _train(
    timeline: Timeline,
    learner: Learner,
    model: Model,
    which: Scored,
    refused: Refusals,
    told: Callable[[int], None],
) -> tuple[Scores, Ids]:
    """One pass over a store of its own: its figures, and the ids that have rows in the end."""
    store = EmbeddedStore(store_config(model, buckets=learner.buckets))
    scores = Scores(model.labels, which, learner.correction)
    for out in one_pass(timeline, learner, model, store, scores.add):
        refused.add(out)
        told(sum(tick.rows for tick in out.ticks))
    # Every table of a model is looked up with the same ids.
    ids, _ = store.rows(model.tables[0].name)
    store.close()
    return scores, ids
