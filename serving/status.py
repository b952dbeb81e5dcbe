"""What a scorer tells about itself, as JSON values."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from cuckooflow.errors import NoSnapshot
from cuckooflow.serving.replica import Applied, Replica

#: Freshness is summed up over so many of the last snapshots.
_FRESHNESS_SNAPSHOTS = 64


def model_status(replica: Replica) -> dict[str, object]:
    """TensorFlow Serving's answer to ``GET /v1/models/NAME``, with ``snapshot`` and ``freshness_s`` besides.

    The version is the snapshot's number; before the first one it is ``"0"`` in state ``LOADING``.
    """
    try:
        manifest = replica.served().manifest
    except NoSnapshot as error:
        state = {"error_code": "UNAVAILABLE", "error_message": str(error)}
        return {"model_version_status": [{"version": "0", "state": "LOADING", "status": state}]}
    history = replica.history()
    return {
        "model_version_status": [
            {
                "version": str(manifest.sequence),
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ],
        "snapshot": _snapshot(history[-1]) | {"rows": {n: t.rows for n, t in manifest.tables.items()}},
        "freshness_s": _quantiles(
            [s for applied in history[-_FRESHNESS_SNAPSHOTS:] for s in applied.freshness_s]
        ),
    }


def snapshot_history(replica: Replica, after: int = 0) -> dict[str, object]:
    """The last applied snapshots with a number past ``after``, oldest first."""
    return {
        "snapshots": [
            _snapshot(applied) for applied in replica.history() if applied.manifest.sequence > after
        ]
    }


def _snapshot(applied: Applied) -> dict[str, object]:
    manifest = applied.manifest
    return {
        "sequence": manifest.sequence,
        "kind": manifest.kind,
        "version": list(manifest.version),
        "marks": manifest.marks,
        "event_time_us": manifest.event_time_us,
        "created_us": manifest.created_us,
        "applied_us": applied.applied_us,
        "sampling_rate": manifest.sampling_rate,
        "metrics": manifest.metrics,
        "freshness_s": _quantiles(applied.freshness_s),
    }


def _quantiles(samples: Sequence[float]) -> dict[str, float | int | None]:
    """Number of samples, median and 90th percentile; nulls where there are none."""
    if len(samples) < 2:
        only = samples[0] if samples else None
        return {"samples": len(samples), "p50": only, "p90": only}
    tenths = statistics.quantiles(samples, n=10, method="inclusive")
    return {"samples": len(samples), "p50": statistics.median(samples), "p90": tenths[8]}
