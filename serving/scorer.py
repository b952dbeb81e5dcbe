"""From a predict request to scores, by the newest snapshot. No HTTP here.

One request is scored by one version: rows and dense parameters are read together, and the manifest is the
one of that version, also if a snapshot is applied meanwhile.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.embedding_store.api import Floats, Ids, Version
from cuckooflow.embedding_store.kinds import AsOf, RowsAt
from cuckooflow.errors import BadRequest
from cuckooflow.models.features import input_columns
from cuckooflow.models.registry import predict_batch
from cuckooflow.models.snapshots import Manifest
from cuckooflow.serving.columns import decode_column
from cuckooflow.serving.impressions import ImpressionLog, ImpressionOptions
from cuckooflow.serving.replica import Replica, Served
from cuckooflow.serving.request import PredictRequest, parse_request, request_batch, response_body


@dataclass(frozen=True)
class Answer:
    """A scored request.

    Attributes:
        body: JSON, as TensorFlow Serving answers.
        sequence: number of the snapshot that scored.
        num_rows: rows that were scored.
        logged: rows that were written to the impressions log.
    """

    body: bytes
    sequence: int
    num_rows: int
    logged: int


def corrected(probabilities: npt.ArrayLike, sampling_rate: float) -> npt.NDArray[np.float64]:
    """Undo the sampling of negatives: log odds shifted by ln(sampling_rate).

    With negatives kept at rate r the odds that a model learns are 1/r times the true ones (He et al.,
    "Practical Lessons from Predicting Clicks on Ads at Facebook", 2014, section 6.3).

    >>> corrected([0.5, 1.0, 0.0], 0.25).round(3).tolist()
    [0.2, 1.0, 0.0]
    """
    p = np.asarray(probabilities, np.float64)
    scaled = p * sampling_rate
    return np.asarray(scaled / (1.0 - p + scaled), np.float64)


#: A snapshot that is applied between the two look-ups of one request makes it look again, at most so often; then the
#: streaming features are of the version before.
_TRIES_MAX = 4


class Scorer:
    """Scores requests. Thread-safe.

    Args:
        replica: what is served.
        clock_us: the wall clock, microseconds since the epoch: the event time of requests that do not
            bring theirs.
        impressions: where and how impressions are written; None: nowhere, with the usual names.
        rows_max: rows of one request, at most, default 10,000.
    """

    def __init__(
        self,
        replica: Replica,
        clock_us: Callable[[], int],
        impressions: ImpressionOptions | None = None,
        rows_max: int = 10_000,
    ) -> None:
        self._replica = replica
        self._clock_us = clock_us
        self._options = options = impressions or ImpressionOptions()
        self._rows_max = rows_max
        self._log = ImpressionLog(options.log, options.partition) if options.log else None

    def predict(self, body: bytes) -> Answer:
        """Score a request's body.

        Raises:
            NoSnapshot: nothing is served yet.
            BadRequest: the body is not a predict request, or does not fit the model.
            LogError: the rows were to be logged and could not; nothing was answered.
        """
        served = self._replica.served()
        columns = input_columns(served.model.encoder.features)
        request = parse_request(body, columns, self._rows_max)
        if request.log_impressions and self._log is None:
            raise BadRequest("log_impressions: this scorer was started without an impressions log")
        request_id = self._request_id(request, served.manifest)
        event_columns = (self._options.request_column, self._options.time_column)
        times, times_us = self._times(request)
        batch = request_batch(request, columns, served.manifest.columns, event_columns, times_us)
        raw, version = _predict(served, batch)
        manifest = served.manifests.get(version, served.manifest)
        scores = self._correct(raw, manifest)
        extra: dict[str, object] = {}
        if request.log_impressions:
            extra["request_id"] = self._write(request, request_id, times, manifest)
        return Answer(
            body=response_body(scores, request.columnar, extra),
            sequence=manifest.sequence,
            num_rows=request.num_rows,
            logged=request.num_rows if request.log_impressions else 0,
        )

    def close(self) -> None:
        """Release the impressions log. Idempotent."""
        if self._log is not None:
            self._log.close()

    def _correct(self, raw: Mapping[str, Floats], manifest: Manifest) -> dict[str, npt.NDArray[np.float64]]:
        rate = manifest.sampling_rate if manifest.correction == "log_odds" else 1.0
        return {label: corrected(p, rate) for label, p in raw.items()}

    def _times(self, request: PredictRequest) -> tuple[list[object], list[int]]:
        """Each row's event time, its own, the request's, or now: as the log writes it, and in microseconds."""
        format_ = self._options.time_format
        default = format_.from_us(self._clock_us()) if request.time is None else request.time
        own = request.columns.get(self._options.time_column, ())
        times = [default if time is None else time for time in own] or [default]
        times_us = []
        for row, time in enumerate(times):
            try:
                times_us.append(format_.to_us(time))
            except (ValueError, OverflowError) as error:
                raise BadRequest(f"time of row {row}: {error}") from error
        return (times, times_us) if own else (times * request.num_rows, times_us * request.num_rows)

    def _request_id(self, request: PredictRequest, manifest: Manifest) -> object:
        """The request's own id, checked, or a new one, of the type that the log's column has."""
        column = self._options.request_column
        kind = manifest.columns.get(column, "string")
        if request.request_id is None:
            return secrets.token_hex(16) if kind == "string" else secrets.randbits(63)
        decode_column(column, kind, [request.request_id])
        return request.request_id

    def _write(
        self, request: PredictRequest, request_id: object, times: list[object], manifest: Manifest
    ) -> object:
        assert self._log is not None
        options = self._options
        rows = []
        for at, time in enumerate(times):
            given = {name: values[at] for name, values in request.columns.items() if values[at] is not None}
            row = {options.request_column: request_id, **given, options.time_column: time}
            rows.append({**row, options.version_column: manifest.sequence})
        self._log.append(rows, self._clock_us())
        return request_id


def _predict(served: Served, batch: pa.RecordBatch) -> tuple[dict[str, Floats], Version]:
    """Label -> raw probabilities, and the one version that rows and dense parameters were of.

    Raises:
        BadRequest: a column has a type that a feature cannot take.
    """
    for _ in range(_TRIES_MAX):
        versions: list[Version] = []

        def pull(
            ids: Mapping[str, Ids], versions: list[Version] = versions
        ) -> tuple[dict[str, Floats], dict[str, Floats]]:
            rows, dense, version = served.store.pull(ids)
            assert version is not None  # a store is served after its first delta
            versions.append(version)
            return rows, dense

        def lookup_at(
            ids: Mapping[str, Ids], as_of_us: AsOf = None, versions: list[Version] = versions
        ) -> RowsAt:
            rows, version = served.store.pull_at(ids, as_of_us)
            assert version is not None
            versions.append(version)
            return rows

        answer = predict_batch(served.model, batch, pull, lookup_at)
        if len(set(versions)) == 1:
            break
    return answer, versions[-1]
