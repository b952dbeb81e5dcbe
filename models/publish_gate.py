"""The publish gate: snapshots are held back while the newest progressive figures are out of bounds.

Training goes on behind a closed gate, so that it may recover; replicas keep what they have. That the gate is closed stands in
one small file beside the snapshots, for whoever looks at the folder and for the next publisher: with too few rows to
judge by, a gate stays as it was.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cuckooflow.embedding_store.durable import write_durably
from cuckooflow.models.progressive import LabelMetrics

_log = logging.getLogger(__name__)
_FILE = "gate_closed.json"
#: Records that are kept of a label at most, however few rows each has.
_RECORDS_MAX = 16_384


class GateSpec(BaseModel):
    """Bounds on a label's progressive figures: each row counts as it was predicted before it was learned.

    Attributes:
        rows: the figures are over at least so many of the newest rows, default 10,000. More are surer and slower.
        auc_min: least area under the ROC curve.
        log_loss_max: greatest log loss, natural logarithm.
        calibration_min, calibration_max: of the sum of predictions over the sum of labels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(default=10_000, ge=1)
    auc_min: float | None = Field(default=None, ge=0, le=1)
    log_loss_max: float | None = Field(default=None, gt=0)
    calibration_min: float | None = Field(default=None, gt=0)
    calibration_max: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _has_a_bound(self) -> GateSpec:
        bounds = (self.auc_min, self.log_loss_max, self.calibration_min, self.calibration_max)
        if all(bound is None for bound in bounds):
            raise ValueError(
                "expected auc_min, log_loss_max, calibration_min or calibration_max, found none of them"
            )
        return self

    def broken(self, figures: LabelMetrics) -> list[str]:
        """The bounds that these figures break; one that is not a number breaks none."""
        checks = (
            ("auc", figures.auc(), self.auc_min, None),
            ("log loss", figures.log_loss(), None, self.log_loss_max),
            ("calibration", figures.calibration(), self.calibration_min, self.calibration_max),
        )
        found = []
        for name, value, least, most in checks:
            if least is not None and value < least:
                found.append(f"{name} {value:.4f} is below {least:g}")
            if most is not None and value > most:
                found.append(f"{name} {value:.4f} is above {most:g}")
        return found


class ClosedGate(BaseModel):
    """What the file says.

    Attributes:
        since_us: when it closed, microseconds since the epoch, UTC.
        reasons: which figure of which label is out of its bounds.
    """

    model_config = ConfigDict(frozen=True)

    since_us: int
    reasons: tuple[str, ...]


def read_closed_gate(folder: Path) -> ClosedGate | None:
    """Whether the gate of a folder is closed, and why. A damaged file is a closed gate."""
    try:
        return ClosedGate.model_validate_json((folder / _FILE).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        return ClosedGate(
            since_us=0, reasons=(f"unknown: {folder / _FILE} is damaged: {error.errors()[0]['msg']}",)
        )


class PublishGate:
    """Not thread-safe.

    Args:
        folder: of the snapshots.
        bounds: label -> its bounds; without any the gate is open.
    """

    def __init__(self, folder: Path, bounds: Mapping[str, GateSpec]) -> None:
        self._folder = folder
        self._bounds = dict(bounds)
        self._newest: dict[str, deque[LabelMetrics]] = {label: deque(maxlen=_RECORDS_MAX) for label in bounds}
        self._closed = read_closed_gate(folder)

    @property
    def closed(self) -> ClosedGate | None:
        """Since when and why it is closed; None: it is open."""
        return self._closed

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record of progressive figures."""
        newest = self._newest.get(record["label"])
        if newest is None:
            return
        newest.append(LabelMetrics.from_json(record))
        rows = sum(figures.rows for figures in newest)
        while rows - newest[0].rows >= self._bounds[record["label"]].rows:
            rows -= newest.popleft().rows

    def look(self, now_us: int) -> bool:
        """Close or open it by the newest figures; whether it is open."""
        broken: list[str] = []
        unknown = False
        for label, bounds in self._bounds.items():
            figures = LabelMetrics()
            for record in self._newest[label]:
                figures.merge(record)
            if figures.rows < bounds.rows:
                unknown = True
            else:
                broken += [f"{label}: {what}" for what in bounds.broken(figures)]
        if broken:
            self._close(now_us, tuple(broken))
        elif self._closed is not None and not unknown:
            self._open(now_us)
        return self._closed is None

    def _close(self, now_us: int, reasons: tuple[str, ...]) -> None:
        if self._closed is None:
            _log.error("event=publish_gate_closed folder=%s reasons=%r", self._folder, reasons)
        elif self._closed.reasons == reasons:
            return
        self._closed = ClosedGate(
            since_us=now_us if self._closed is None else self._closed.since_us, reasons=reasons
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        write_durably(self._folder / _FILE, self._closed.model_dump_json().encode() + b"\n")

    def _open(self, now_us: int) -> None:
        assert self._closed is not None
        closed_s = (now_us - self._closed.since_us) / 1e6
        _log.warning("event=publish_gate_opened folder=%s closed_s=%.1f", self._folder, closed_s)
        self._closed = None
        (self._folder / _FILE).unlink(missing_ok=True)
