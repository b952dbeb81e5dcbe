"""Progressive figures over event time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cuckooflow.models.progressive import LabelMetrics

#: Figures by start of their window of event time, microseconds.
Curve = dict[int, LabelMetrics]


def curve_of_records(records: Iterable[Mapping[str, Any]], label: str) -> Curve:
    """The curve that progressive metrics records, as the trainer writes them, add up to."""
    curve: Curve = {}
    for record in records:
        if record.get("kind") == "progressive" and record["label"] == label:
            curve.setdefault(record["window_start_us"], LabelMetrics()).merge(LabelMetrics.from_json(record))
    return dict(sorted(curve.items()))


def total(curve: Curve, from_us: int = 0) -> LabelMetrics:
    """All windows that start at ``from_us`` or later, as one."""
    whole = LabelMetrics()
    for start, figures in curve.items():
        if start >= from_us:
            whole.merge(figures)
    return whole
