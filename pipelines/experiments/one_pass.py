"""One pass over examples in event time: each is predicted before it is learned, by the trainer and the store themselves.

Nothing waits for time to pass, so every batch but the last is full, and the same examples give the same figures again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from cuckooflow.embedding_store.api import Floats, Store
from cuckooflow.models.base import Model
from cuckooflow.pipelines.experiments.learner import Learner
from cuckooflow.pipelines.experiments.timeline import ELEMENT_ROWS, Timeline
from cuckooflow.transforms.trainer import Trainer
from cuckooflow.transforms.training_output import Output
from cuckooflow.transforms.training_rows import TrainingRows

#: So long a batch may fill up and a store go unasked: for ever.
_NEVER_US = 1 << 62


@dataclass
class Refusals:
    """Rows that could not be trained.

    Attributes:
        rows: how many.
        reason: of the first of them.
    """

    rows: int = 0
    reason: str | None = None

    def add(self, out: Output) -> None:
        """Count those of one element."""
        for dead in out.dead:
            self.rows += dead.num_rows
            if self.reason is None and dead.num_rows:
                self.reason = dead.column("detail")[0].as_py()


BeforePush = Callable[[TrainingRows, Floats], None]


def one_pass(
    timeline: Timeline,
    learner: Learner,
    model: Model,
    store: Store,
    before_push: BeforePush | None = None,
    predictions: bool = False,
    element_rows: int = ELEMENT_ROWS,
) -> Generator[Output, None, None]:
    """Train all examples, element by element; what the trainer gives back of each.

    Args:
        model: built of the learner's spec.
        store: with the model's tables. Where it stands past the beginning, the pass goes on from there.
        before_push, predictions: see :class:`~cuckooflow.transforms.trainer.Trainer`.
        element_rows: rows that the trainer is given at once. The store's tables of streaming features move on after
            each; what is trained does not depend on it.

    Raises:
        StoreError: the store refused, or is gone.
    """
    options = learner.options.model_copy(
        update={
            "max_delay_us": _NEVER_US,
            "marks_interval_us": _NEVER_US,
            "metrics_interval_us": 0,
            "counting": False,
            "overlap": False,
        }
    )
    trainer = Trainer(
        store,
        model,
        lambda: timeline,
        options,
        learner.correction,
        predictions,
        learner.late_labels,
        before_push,
    )
    try:
        for element in timeline.elements(element_rows):
            yield trainer.accept(element)
    finally:
        trainer.close()
