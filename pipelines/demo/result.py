"""What a demo run found out: the input of its report and of its last line."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cuckooflow.models.progressive import LabelMetrics
from cuckooflow.pipelines.curves import Curve, total
from cuckooflow.pipelines.demo.checks import Check
from cuckooflow.pipelines.demo.exposures import Exposures
from cuckooflow.pipelines.demo.progress import Observed
from cuckooflow.pipelines.demo.story import Told

LIVE, FROZEN, LR, MEAN = "live", "frozen at half", "logistic regression", "running mean"


@dataclass(frozen=True)
class DemoResult:
    """Everything that the report shows.

    Attributes:
        shown: the exposures that were replayed.
        observed: what was seen while the job ran.
        curves: model's name -> progressive figures by window of event time.
        frozen_us: event time from which the frozen model is compared.
        told: one user's ranking before and after; None if it could not be told.
        checks: with the balances and the counting table.
        first_served_fraction: share of the replay that was done when the scorer first answered.
        killed: what was killed -9 and when, microseconds since the epoch.
        started_us, replayed_us: when the replay began and ended, microseconds since the epoch.
        lines: of both logs.
        notes: what a reader must know about the data.
    """

    shown: Exposures
    observed: Observed
    curves: dict[str, Curve]
    frozen_us: int
    told: Told | None
    checks: tuple[Check, ...]
    first_served_fraction: float
    killed: tuple[tuple[str, int], ...]
    started_us: int
    replayed_us: int
    lines: int
    notes: tuple[str, ...]

    def figures(self) -> dict[str, LabelMetrics]:
        """Model -> figures over the windows in which all are compared.

        The live model's lack the rows whose figures the killed trainer had not written yet.
        """
        return {name: total(curve, self.frozen_us) for name, curve in self.curves.items()}

    def verdict(self) -> str:
        """Who was better in that half, said plainly."""
        figures = self.figures()
        live, lr, frozen = figures[LIVE], figures[LR], figures[FROZEN]
        better = "beats" if live.auc() > lr.auc() else "does NOT beat"
        text = f"The live model {better} logistic regression: AUC {live.auc():.4f} against {lr.auc():.4f}"
        text += f", log loss {live.log_loss():.4f} against {lr.log_loss():.4f}. "
        gain = live.auc() - frozen.auc()
        text += f"Learning on after half is worth {gain:+.4f} of AUC over the model frozen there "
        text += f"({frozen.auc():.4f})."
        return text

    def freshness_s(self, share: float) -> float:
        """Quantile of the seconds from an action's append to its effect being served; NaN without any."""
        samples = self.observed.freshness_s()
        return float(np.quantile(samples, share)) if len(samples) else math.nan

    def freshness_p50_s(self) -> float:
        """The median of it."""
        return self.freshness_s(0.5)
