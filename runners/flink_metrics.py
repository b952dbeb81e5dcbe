"""What Beam's metrics of a running job are, through Flink's REST.

Beam's Flink runner gives each metric to the operator of its stage, as ``OPERATOR.NAMESPACE_NAME``, and Flink keeps
one for each subtask. Here those of all subtasks and stages are added up: right for counters, and for gauges that
one subtask alone sets.
"""

from __future__ import annotations

import re
import time
import urllib.parse
from collections.abc import Iterator, Sequence

from cuckooflow.runners.flink_rest import FlinkRest

#: The JobManager fetches metrics when it is asked for them, and answers with what it had.
FETCH_TIMEOUT_S = 12.0
_POLL_S = 0.5
#: Names of one question: they lie in its URL.
_NAMES_AT_ONCE = 30


def job_metrics(rest: FlinkRest, job: str, namespace: str) -> dict[str, int]:
    """The metrics of a namespace, name -> sum; empty where the JobManager has none within a bound.

    They are as old as the JobManager's last look, at most its ``metrics.fetcher.update-interval``.

    Raises:
        FlinkUnavailable, FlinkJobNotFound: from the REST.
    """
    vertices = [vertex["id"] for vertex in rest.get(f"/jobs/{job}")["vertices"]]
    in_namespace = re.compile(rf".*\.{re.escape(namespace)}[._](\w+)")
    deadline = time.monotonic() + FETCH_TIMEOUT_S
    _names(rest, job, vertices)  # has it look
    time.sleep(_POLL_S)
    while True:
        found: dict[str, int] = {}
        for vertex, names in _names(rest, job, vertices):
            wanted = {name: match[1] for name in names if (match := in_namespace.fullmatch(name))}
            for some in _pieces(sorted(wanted)):
                asked = ",".join(urllib.parse.quote(name, safe="") for name in some)
                path = f"/jobs/{job}/vertices/{vertex}/subtasks/metrics?agg=sum&get={asked}"
                for metric in rest.get(path):
                    name = wanted[metric["id"]]
                    found[name] = found.get(name, 0) + int(metric["sum"])
        if found or time.monotonic() > deadline:
            return found
        time.sleep(_POLL_S)


def _names(rest: FlinkRest, job: str, vertices: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The names of every vertex's metrics."""
    return [
        (vertex, [metric["id"] for metric in rest.get(f"/jobs/{job}/vertices/{vertex}/subtasks/metrics")])
        for vertex in vertices
    ]


def _pieces(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(names), _NAMES_AT_ONCE):
        yield names[first : first + _NAMES_AT_ONCE]
