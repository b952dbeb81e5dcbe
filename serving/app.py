"""The scorer's HTTP interface: TensorFlow Serving's REST predict, status, metrics and health.

=======================================  =====================================================
``POST /v1/models/NAME:predict``         scores; see :mod:`cuckooflow.serving.request`
``GET /v1/models/NAME``                  state and version
``GET /v1/models/NAME/snapshots``        the last applied snapshots; ``?after=N`` for those past N
``GET /metrics``                         Prometheus
``GET /healthz``                         200 while the process does its work
=======================================  =====================================================

Every error is JSON: ``{"error": "...", "code": "..."}``, the code a name of :mod:`cuckooflow.errors`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cuckooflow.errors import BadRequest, CuckooflowError, LogError, NoSnapshot, ScorerOverloaded, SpecError
from cuckooflow.serving.metrics import ScorerMetrics
from cuckooflow.serving.replica import Replica
from cuckooflow.serving.scorer import Scorer
from cuckooflow.serving.status import model_status, snapshot_history

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AppOptions:
    """Bounds of the HTTP interface.

    Attributes:
        name: of the model, in the path.
        body_bytes_max: a larger body is refused with 413, default 16 MiB. Costs memory per request.
        body_seconds_max: a body that takes longer to arrive is refused with 408, default 30 s.
        requests_max: requests under way; one more is refused with 503, default 64.
        threads: requests scored at the same time, the others wait, default 1: scoring holds Python's lock for most of
            its time, so that with two a request takes half as much CPU again, and no more are answered in a second.
    """

    name: str
    body_bytes_max: int = 16 << 20
    body_seconds_max: float = 30.0
    requests_max: int = 64
    threads: int = 1


def make_app(
    scorer: Scorer,
    replica: Replica,
    metrics: ScorerMetrics,
    healthy: Callable[[], bool],
    options: AppOptions,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
) -> Starlette:
    """The application; run it with one event loop.

    Args:
        healthy: whether the replica's thread is alive.
        lifespan: runs around it, as Starlette takes it.
    """
    endpoints = _Endpoints(scorer, replica, metrics, healthy, options)
    return Starlette(
        routes=[
            Route("/v1/models/{name}:predict", endpoints.predict, methods=["POST"]),
            Route("/v1/models/{name}/snapshots", endpoints.snapshots, methods=["GET"]),
            Route("/v1/models/{name}", endpoints.status, methods=["GET"]),
            Route("/metrics", endpoints.metrics, methods=["GET"]),
            Route("/healthz", endpoints.health, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )


class _Refused(Exception):
    """A request that was not even read."""

    def __init__(self, code: int, error: CuckooflowError) -> None:
        super().__init__(str(error))
        self.code = code
        self.error = error


class _Endpoints:
    def __init__(
        self,
        scorer: Scorer,
        replica: Replica,
        metrics: ScorerMetrics,
        healthy: Callable[[], bool],
        options: AppOptions,
    ) -> None:
        self._scorer = scorer
        self._replica = replica
        self._metrics = metrics
        self._healthy = healthy
        self._options = options
        self._under_way = 0
        self._threads = ThreadPoolExecutor(options.threads, thread_name_prefix="score")

    async def predict(self, request: Request) -> Response:
        started = time.perf_counter()
        if self._under_way >= self._options.requests_max:
            response = _error(
                503,
                ScorerOverloaded(
                    f"expected at most {self._options.requests_max} requests under way; send fewer at once"
                ),
            )
        else:
            self._under_way += 1
            try:
                response = await self._predict(request)
            finally:
                self._under_way -= 1
        self._metrics.seconds.observe(time.perf_counter() - started)
        self._metrics.requests.labels(str(response.status_code)).inc()
        return response

    async def _predict(self, request: Request) -> Response:
        if request.path_params["name"] != self._options.name:
            return self._unknown_model(request)
        try:
            body = await self._body(request)
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(self._threads, self._scorer.predict, body)
        except _Refused as refused:
            return _error(refused.code, refused.error)
        except (BadRequest, SpecError) as error:
            return _error(400, error)
        except NoSnapshot as error:
            return _error(503, error)
        except LogError as error:
            _log.error("event=impressions_not_logged error=%s", error)
            return _error(503, error)
        except Exception as error:
            _log.exception("event=predict_failed")
            return _error(500, CuckooflowError(f"{type(error).__name__}; the scorer's log has the details"))
        self._metrics.rows.inc(answer.num_rows)
        self._metrics.logged.inc(answer.logged)
        headers = {"X-Model-Version": str(answer.sequence)}
        return Response(answer.body, media_type="application/json", headers=headers)

    async def _body(self, request: Request) -> bytes:
        bound = self._options.body_bytes_max
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._options.body_seconds_max):
                async for part in request.stream():
                    size += len(part)
                    if size > bound:
                        raise _Refused(413, BadRequest(f"expected a body of at most {bound} bytes"))
                    parts.append(part)
        except TimeoutError:
            raise _Refused(
                408, BadRequest(f"expected the whole body within {self._options.body_seconds_max:g} s")
            ) from None
        except ClientDisconnect:
            raise _Refused(400, BadRequest("the client left before its whole body had arrived")) from None
        return b"".join(parts)

    async def status(self, request: Request) -> Response:
        if request.path_params["name"] != self._options.name:
            return self._unknown_model(request)
        return JSONResponse(model_status(self._replica))

    async def snapshots(self, request: Request) -> Response:
        if request.path_params["name"] != self._options.name:
            return self._unknown_model(request)
        after = request.query_params.get("after", "0")
        if not (after.isascii() and after.isdigit() and len(after) <= 18):
            return _error(400, BadRequest(f"after: expected a snapshot's number, received {after[:40]!r}"))
        return JSONResponse(snapshot_history(self._replica, int(after)))

    async def metrics(self, _: Request) -> Response:
        return Response(
            generate_latest(self._metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def health(self, _: Request) -> Response:
        if self._healthy():
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "the replica's thread has ended; restart the scorer"}, 503)

    def _unknown_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        return _error(404, BadRequest(f"this scorer serves {self._options.name!r}, received {name[:80]!r}"))


def _error(code: int, error: CuckooflowError) -> Response:
    headers = {"Retry-After": "1"} if code == 503 else None
    return JSONResponse({"error": str(error), "code": type(error).__name__}, code, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the same form."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path[:200]}"
    return JSONResponse({"error": message, "code": "BadRequest"}, error.status_code, error.headers)
