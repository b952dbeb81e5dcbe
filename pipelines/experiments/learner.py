"""What an experiment trains: a job's model, features and options, without its processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.spec import ModelSpec
from cuckooflow.pipelines import options
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.transforms.training_options import TrainingOptions
from cuckooflow.transforms.training_rows import Correction, LateLabels


@dataclass(frozen=True)
class Learner:
    """What is trained, and how.

    Attributes:
        spec, features: the model.
        options: of the training; of them an experiment takes the batch size and the lag. It never waits, so
            every batch but the last is a full one.
        correction: of negative sampling, default none.
        late_labels: what late positives do, default: they take back.
        buckets: logical buckets of the store, default 64.
    """

    spec: ModelSpec
    features: Sequence[FeatureSpec]
    options: TrainingOptions
    correction: Correction = "none"
    late_labels: LateLabels = field(default_factory=LateLabels)
    buckets: int = 64

    @property
    def streaming(self) -> bool:
        """Whether some feature follows from earlier examples."""
        return any(feature.streaming for feature in self.features)


def learner_of(job: JobSpec) -> Learner:
    """A job's."""
    return Learner(
        spec=job.model,
        features=tuple(job.features),
        options=options.training_options(job),
        correction=options.correction(job),
        late_labels=options.late_labels(job),
        buckets=job.store.buckets,
    )
