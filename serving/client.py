"""A client of the scorer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from cuckooflow import errors
from cuckooflow.errors import BadRequest, CuckooflowError, NoSnapshot, ScorerUnavailable

_READY_POLL_S = 0.05


@dataclass(frozen=True)
class Predictions:
    """Scores of one request.

    Attributes:
        values: one for each instance: a probability, or label -> probability where the model has
            several labels.
        model_version: number of the snapshot that scored.
        request_id: under which the rows were logged; None where they were not.
    """

    values: list[Any]
    model_version: int
    request_id: str | int | None


class ScorerClient:
    """Asks a scorer. Thread-safe; keeps connections open until :meth:`close`.

    Args:
        url: of the scorer, such as ``http://127.0.0.1:8501``.
        name: of the model.
        timeout_s: of one call, default 10 s.
    """

    def __init__(self, url: str, name: str, timeout_s: float = 10.0) -> None:
        self._path = f"/v1/models/{name}"
        # Proxies of the environment are for the world outside; a scorer is on this machine.
        self._http = httpx.Client(base_url=url, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> ScorerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def predict(
        self,
        instances: Sequence[Mapping[str, object] | str | float | bool],
        *,
        log_impressions: bool = False,
        request_id: str | int | None = None,
        time: object = None,
    ) -> Predictions:
        """Score rows.

        Args:
            instances: column name -> value for each row, or bare values for a model of one column.
            log_impressions: have the scorer write the rows to the impressions log before it answers.
            request_id: of the logged rows, to name in their actions; None: the scorer makes one.
            time: event time of the rows, as the impressions log writes it; None: now.

        Raises:
            BadRequest: the scorer cannot read the request; its message says why.
            NoSnapshot: it has no model yet.
            ScorerOverloaded: it is busy.
            LogError: the rows could not be logged; nothing was answered.
            ScorerUnavailable: it did not answer, or failed. A request that logs may have been logged.
        """
        body: dict[str, object] = {"instances": list(instances)}
        if log_impressions:
            body["log_impressions"] = True
        if request_id is not None:
            body["request_id"] = request_id
        if time is not None:
            body["time"] = time
        response = self._call("POST", f"{self._path}:predict", json=body)
        answer = response.json()
        return Predictions(
            values=answer["predictions"],
            model_version=int(response.headers["X-Model-Version"]),
            request_id=answer.get("request_id"),
        )

    def status(self) -> dict[str, Any]:
        """State, version, newest snapshot and freshness; see :mod:`cuckooflow.serving.status`."""
        return dict(self._call("GET", self._path).json())

    def version(self) -> int:
        """Number of the served snapshot; 0 before the first."""
        return int(self.status()["model_version_status"][0]["version"])

    def snapshots(self, after: int = 0) -> list[dict[str, Any]]:
        """The last applied snapshots with a number past ``after``, oldest first."""
        response = self._call("GET", f"{self._path}/snapshots", params={"after": after})
        return list(response.json()["snapshots"])

    def wait_ready(self, timeout_s: float, version: int = 1) -> int:
        """Wait until a snapshot of at least this number is served; the number.

        Raises:
            NoSnapshot: it was not within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        reached = 0
        while True:
            try:
                reached = self.version()
            except ScorerUnavailable as error:
                last: object = error
            else:
                last = f"version {reached}"
                if reached >= version:
                    return reached
            if time.monotonic() >= deadline:
                raise NoSnapshot(
                    f"expected version {version} within {timeout_s:g} s, received {last}; look at the trainer's "
                    "and the scorer's logs"
                )
            time.sleep(_READY_POLL_S)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._http.close()

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise ScorerUnavailable(
                f"expected an answer from {self._http.base_url}, received {type(error).__name__}: {error}; is the "
                "scorer up?"
            ) from error
        if response.is_success:
            return response
        raise _error(response)


def _error(response: httpx.Response) -> CuckooflowError:
    """The named error that the scorer answered with."""
    try:
        answer = response.json()
        message, code = str(answer["error"]), str(answer["code"])
    except (ValueError, KeyError, TypeError):
        message, code = response.text[:200], ""
    kind = getattr(errors, code, None)
    if response.status_code == 500 or not (isinstance(kind, type) and issubclass(kind, CuckooflowError)):
        fallback = BadRequest if response.status_code < 500 else ScorerUnavailable
        return fallback(f"HTTP {response.status_code}: {message}")
    return kind(message)
