"""A store's health and metrics over HTTP: ``GET /healthz`` and ``GET /metrics``. Loopback only.

One request at a time, each with a time limit: this is for a scraper and a prober, not for traffic.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from cuckooflow.embedding_store.address import check_loopback, parse_address
from cuckooflow.errors import StoreUnavailable

log = logging.getLogger(__name__)

#: How long a client may take to send its request, and to read the answer.
REQUEST_S_MAX = 2.0


class StatusServer:
    """Answers from construction until :meth:`close`.

    Args:
        listen: ``host:port``, loopback; port 0 takes a free one, which :attr:`address` then tells.
        registry: what ``/metrics`` shows.
        health: what ``/healthz`` shows; code 200 where its ``status`` is ``serving``, else 503.

    Raises:
        InsecureListen: the address can be reached from other machines.
        StoreUnavailable: the address is taken.
    """

    def __init__(
        self, listen: str, registry: CollectorRegistry, health: Callable[[], Mapping[str, object]]
    ) -> None:
        host, port = parse_address(listen)
        check_loopback(host)

        class Handler(_Handler):
            pass

        Handler.registry = registry
        Handler.health = staticmethod(health)
        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise StoreUnavailable(
                f"expected to listen at {listen} for HTTP, received: {error}. Stop what listens there, or use port 0."
            ) from error
        self.address = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="store-status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer what is under way and stop."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(HTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        del request
        log.warning("event=status_request_failed peer=%s", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_S_MAX
    registry: CollectorRegistry
    health: Callable[[], Mapping[str, object]]

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._answer(200, CONTENT_TYPE_LATEST, generate_latest(self.registry))
        elif self.path == "/healthz":
            health = self.health()
            code = 200 if health["status"] == "serving" else 503
            self._answer(code, "application/json", json.dumps(health).encode() + b"\n")
        else:
            self._answer(404, "text/plain", b"expected /healthz or /metrics\n")

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Requests are not logged: a scraper comes every few seconds."""
