"""The scorer's process: a thread that follows the snapshots, and an HTTP server.

SIGTERM and SIGINT end it: no new connections, requests under way are answered, exit code 0.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import logging
import secrets
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from cuckooflow.embedding_store.native_core import RowFormat
from cuckooflow.errors import SpecError
from cuckooflow.logs.address import LogAddress
from cuckooflow.serving.app import AppOptions, make_app
from cuckooflow.serving.impressions import ImpressionOptions
from cuckooflow.serving.metrics import ScorerMetrics
from cuckooflow.serving.mirror import follow_log
from cuckooflow.serving.replica import Replica
from cuckooflow.serving.scorer import Scorer
from cuckooflow.serving.times import TimeFormat

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    """A scorer's process.

    Attributes:
        name: of the model, in the path of its requests.
        snapshots: folder that it follows; may not exist yet.
        mirror_of: a log of snapshots that is copied into that folder, which then is this scorer's own; None: others
            publish there.
        listen: ``host:port``, loopback only; port 0 takes a free one. Default 127.0.0.1:8501.
        address_file: gets ``host:port`` once requests are answered; None: nowhere. Put a proxy with TLS and
            authentication before it where others should reach it.
        impressions: what ``log_impressions`` does; default: refused.
        poll_interval_s: how often it looks for a new snapshot, default 0.05 s. Costs a file lookup each.
        rows: how the replica keeps weights: ``float32`` (default), ``float16`` or ``int8``; errors and bytes in
            :class:`~cuckooflow.embedding_store.read_store.ReadStore`.
        rows_max: rows of one request, default 10,000.
        body_bytes_max, requests_max, threads: see :class:`~cuckooflow.serving.app.AppOptions`.
        shutdown_seconds_max: how long requests under way may take after SIGTERM, default 10 s.
    """

    name: str
    snapshots: Path
    listen: str = "127.0.0.1:8501"
    address_file: Path | None = None
    mirror_of: LogAddress | None = None
    impressions: ImpressionOptions = field(default_factory=ImpressionOptions)
    poll_interval_s: float = 0.05
    rows: RowFormat = "float32"
    rows_max: int = 10_000
    body_bytes_max: int = 16 << 20
    requests_max: int = 64
    threads: int = 1
    shutdown_seconds_max: int = 10


class ScorerServer:
    """A scorer over HTTP; :meth:`run` blocks. Binds its port when it is made.

    Raises:
        SpecError: ``listen`` is not a loopback address with a port, or the port is taken.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._socket = _bind(options.listen)
        host, port = self._socket.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._metrics = ScorerMetrics()
        self._replica = Replica(options.snapshots, _clock_us, self._metrics.applied, rows=options.rows)
        self._metrics.watch(self._replica, _clock_us)
        self._scorer = Scorer(self._replica, _clock_us, options.impressions, options.rows_max)
        self._stop = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="replica", daemon=True)
        self._mirror = threading.Thread(target=self._copy, name="mirror", daemon=True)
        app = make_app(
            self._scorer,
            self._replica,
            self._metrics,
            self._alive,
            AppOptions(
                name=options.name,
                body_bytes_max=options.body_bytes_max,
                requests_max=options.requests_max,
                threads=options.threads,
            ),
            self._lifespan,
        )
        config = uvicorn.Config(
            app,
            lifespan="on",
            log_config=None,
            access_log=False,
            limit_concurrency=16 * options.requests_max,
            timeout_graceful_shutdown=options.shutdown_seconds_max,
        )
        self._server = uvicorn.Server(config)

    def run(self) -> None:
        """Serve until :meth:`stop`, or in the main thread until SIGTERM or SIGINT."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """End :meth:`run` in another thread, after the requests under way."""
        self._server.should_exit = True

    def _follow(self) -> None:
        try:
            self._replica.follow(self._stop, self._options.poll_interval_s)
        except BaseException:
            _log.exception("event=replica_failed action=restart_the_scorer")
            raise

    def _copy(self) -> None:
        assert self._options.mirror_of is not None
        try:
            follow_log(
                self._options.mirror_of,
                self._options.snapshots,
                self._stop,
                self._options.poll_interval_s,
                self._metrics.mirror_failures.inc,
            )
        except BaseException:
            _log.exception("event=mirror_failed action=restart_the_scorer")
            raise

    def _alive(self) -> bool:
        return self._follower.is_alive() and (self._options.mirror_of is None or self._mirror.is_alive())

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._follower.start()
        if self._options.mirror_of is not None:
            self._mirror.start()
        if self._options.address_file is not None:
            _write_whole(self._options.address_file, self.address)
        _log.info("event=serving name=%s address=%s", self._options.name, self.address)
        try:
            yield
        finally:
            self._stop.set()
            self._follower.join(self._options.shutdown_seconds_max)
            if self._options.mirror_of is not None:
                self._mirror.join(self._options.shutdown_seconds_max)
            self._scorer.close()


def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT, then return; for the main thread of a process.

    Raises:
        SpecError: ``listen`` is not a loopback address with a port, or the port is taken.
    """
    if options.address_file is not None:
        options.address_file.unlink(missing_ok=True)  # a former process's would be believed
    server = ScorerServer(options)
    # uvicorn handles both signals while it runs and raises them again afterwards; with the default
    # handlers that would end the process as killed instead of with code 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    server.run()


def _clock_us() -> int:
    return time.time_ns() // 1_000


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    expected = "expected a loopback address and a port such as 127.0.0.1:8501"
    if not (port.isascii() and port.isdigit() and int(port) < 65_536):
        raise SpecError(f"listen: {expected}, received {listen!r}")
    try:
        loopback = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise SpecError(f"listen: {expected}, received {listen!r}") from None
    if not loopback.is_loopback:
        raise SpecError(
            f"listen: {expected}, received {listen!r}; a scorer has no TLS and no login of its own, put a proxy "
            "that has them before it"
        )
    family = socket.AF_INET6 if loopback.version == 6 else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's algorithm off only where it reads TCP here;
    # with it on, every answer waits 40 ms for the client's delayed acknowledgement.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((str(loopback), int(port)))
    except OSError as error:
        bound.close()
        raise SpecError(
            f"listen: expected a free port, received {listen!r} ({error.strerror}); stop what listens there, or "
            "use port 0 to take a free one"
        ) from error
    return bound


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m cuckooflow.serving.serve``; the same without a job spec."""
    parser = argparse.ArgumentParser(prog="cuckooflow.serving.serve", description=__doc__)
    parser.add_argument("--name", required=True, help="of the model")
    parser.add_argument("--snapshots", required=True, type=Path, help="folder that is followed")
    parser.add_argument("--listen", default=ServeOptions.listen, help="default %(default)s")
    parser.add_argument("--address-file", type=Path, help="gets host:port once requests are answered")
    parser.add_argument(
        "--rows",
        choices=("float32", "float16", "int8"),
        default=ServeOptions.rows,
        help="default %(default)s",
    )
    parser.add_argument(
        "--impressions", help="log that log_impressions writes: a folder, or kafka://host:port/topic"
    )
    parser.add_argument("--impressions-partition", type=int, default=0, help="default %(default)s")
    parser.add_argument("--time", default="time[s]", help="how that log writes times, default %(default)s")
    given = parser.parse_args(arguments)
    try:
        time_format = TimeFormat.from_type(given.time)
    except ValueError as error:
        parser.error(f"--time: {error}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    impressions = ImpressionOptions(
        log=given.impressions, partition=given.impressions_partition, time_format=time_format
    )
    options = ServeOptions(
        name=given.name,
        snapshots=given.snapshots,
        listen=given.listen,
        address_file=given.address_file,
        rows=given.rows,
        impressions=impressions,
    )
    try:
        serve(options)
    except SpecError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
