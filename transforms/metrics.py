"""Telling metrics to the runner, by the names of :mod:`~cuckooflow.transforms.metric_names`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from apache_beam.metrics import Metrics

from cuckooflow.transforms.metric_names import NAMESPACE


@cache
def counter(name: str) -> Any:
    """The Beam counter of this name."""
    return Metrics.counter(NAMESPACE, name)


@cache
def gauge(name: str) -> Any:
    """The Beam gauge of this name."""
    return Metrics.gauge(NAMESPACE, name)


def count(counted: Mapping[str, int]) -> None:
    """Add to counters, name -> by how much; within a bundle. By 0 too: a counter should be there before it moves."""
    for name, by in counted.items():
        counter(name).inc(by)


def show(figures: Mapping[str, int]) -> None:
    """Set gauges, name -> value; within a bundle."""
    for name, value in figures.items():
        gauge(name).set(value)
