"""A store's process: who may speak to it, how much at once, what it tells of itself, and how it ends."""

from __future__ import annotations

import datetime
import functools
import ipaddress
import json
import pickle
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cuckooflow.embedding_store.api import Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.client import StoreClient, connect
from cuckooflow.embedding_store.config_json import config_to_json
from cuckooflow.embedding_store.security import ClientSecurity, ServerSecurity
from cuckooflow.embedding_store.server import StoreServer, main, serve
from cuckooflow.embedding_store.server_limits import ServerLimits, Turns, established
from cuckooflow.embedding_store.shards import Shard
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.embedding_store.store_metrics import StoreMetrics
from cuckooflow.errors import (
    InsecureListen,
    LimitExceeded,
    SpecError,
    StoreOverloaded,
    StoreUnavailable,
    Unauthenticated,
)
from cuckooflow.logs.contract import LogRange, Position

CONFIG = StoreConfig((TableConfig("t", 2, Optimizer("sgd", 1.0), init_stddev=0.0),), buckets=8)
TOKEN = "correct-horse-battery-staple"
OTHER_TOKEN = "wrong-horse-battery-staple"
IDS = np.arange(10, dtype=np.uint64)


def push(at: int = 0):
    range_ = LogRange("examples", "made-once", 0, Position(at), Position(at + 1))
    return range_, {"t": TablePush(IDS, -np.ones((10, 2), np.float32))}, {}, 5_000_000


def self_signed() -> tuple[bytes, bytes]:
    """PEM of a new key and of its certificate for localhost and 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(pem, private, serialization.NoEncryption())
    return secret, certificate.public_bytes(pem)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    """``key.pem`` and a self-signed ``cert.pem`` for localhost and 127.0.0.1, and ``other.pem`` of another key."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("cert", "other"):
        key, certificate = self_signed()
        (folder / f"{name}.key").write_bytes(key)
        (folder / f"{name}.pem").write_bytes(certificate)
    return folder


@pytest.fixture
def server_security(certificates) -> ServerSecurity:
    return ServerSecurity(
        (certificates / "cert.pem").read_bytes(), (certificates / "cert.key").read_bytes(), TOKEN
    )


@pytest.fixture
def client_security(certificates) -> ClientSecurity:
    return ClientSecurity((certificates / "cert.pem").read_bytes(), TOKEN)


@contextmanager
def running(
    store: EmbeddedStore | None = None, listen: str = "127.0.0.1:0", **options
) -> Iterator[StoreServer]:
    server = StoreServer(store or EmbeddedStore(CONFIG), listen, **options)
    try:
        yield server
    finally:
        server.shutdown()


@contextmanager
def client_of(server: StoreServer, **options) -> Iterator[StoreClient]:
    client = StoreClient(f"127.0.0.1:{server.port}", **{"retry_s": 0.2, **options})
    try:
        yield client
    finally:
        client.close()


# --- TLS and the token ------------------------------------------------------------------------------


def test_encrypted_and_authenticated(server_security, client_security, certificates):
    """Also on an address that other machines reach."""
    whole = client_security
    for listen in ("127.0.0.1:0", "0.0.0.0:0"):
        with running(listen=listen, security=server_security) as server:
            with client_of(server, security=whole) as client:
                client.open_log("examples", "made-once", {0: Position(0)})
                assert client.push(*push()).applied == 8
                assert (client.lookup({"t": IDS})["t"] == 1).all()
            for token in (OTHER_TOKEN, None, TOKEN + "x", TOKEN[:-1]):
                security = ClientSecurity(whole.root_certificate, token)
                with (
                    client_of(server, security=security) as client,
                    pytest.raises(Unauthenticated, match="token"),
                ):
                    client.marks("examples")
            stranger = ClientSecurity((certificates / "other.pem").read_bytes(), TOKEN)
            for security in (stranger, ClientSecurity(None, TOKEN)):
                with client_of(server, security=security) as client, pytest.raises(StoreUnavailable):
                    client.marks("examples")


def test_a_token_alone_on_loopback():
    with running(security=ServerSecurity(token=TOKEN)) as server:
        with client_of(server, security=ClientSecurity(token=TOKEN)) as client:
            assert client.marks("x") == {}
        with client_of(server) as client, pytest.raises(Unauthenticated):
            client.marks("x")


@pytest.mark.parametrize("missing", ["certificate", "token"])
def test_past_loopback_both_are_needed(server_security, client_security, missing, tmp_path):
    half = ServerSecurity(
        None if missing == "certificate" else server_security.certificate,
        None if missing == "certificate" else server_security.key,
        None if missing == "token" else TOKEN,
    )
    for listen in ("0.0.0.0:0", "[::]:0", "store.example.org:80"):
        with pytest.raises(InsecureListen, match="without both TLS and a token"):
            StoreServer(EmbeddedStore(CONFIG), listen, security=half)
        with pytest.raises(InsecureListen):
            serve(CONFIG, tmp_path / "store", listen, security=half)
    assert not (tmp_path / "store").exists()
    half_client = ClientSecurity(
        None if missing == "certificate" else client_security.root_certificate,
        None if missing == "token" else TOKEN,
    )
    for addresses in ("store.example.org:80", ["127.0.0.1:80", "10.0.0.1:80"]):
        with pytest.raises(InsecureListen):
            connect(addresses, security=half_client)
        connect(addresses, security=client_security).close()
    (tmp_path / "address").write_text("10.0.0.1:80\n")
    with pytest.raises(InsecureListen):
        connect(tmp_path / "address", retry_s=0, security=half_client).marks("x")
    with pytest.raises(InsecureListen):
        serve(CONFIG, tmp_path / "store", http="0.0.0.0:0", security=server_security)


def test_where_a_token_comes_from(tmp_path, monkeypatch, certificates):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    assert ServerSecurity.load(token_file=file).token == ClientSecurity.load(token_file=file).token == TOKEN
    assert ClientSecurity.load() == ClientSecurity() == ClientSecurity(None, None)
    monkeypatch.setenv("CUCKOOFLOW_STORE_TOKEN_FILE", str(file))
    assert ServerSecurity.load().token == TOKEN
    monkeypatch.setenv("CUCKOOFLOW_STORE_TOKEN", OTHER_TOKEN)
    monkeypatch.setenv("CUCKOOFLOW_STORE_ROOT_CERTIFICATE", str(certificates / "cert.pem"))
    found = ClientSecurity.load()
    assert (found.token, found.root_certificate) == (OTHER_TOKEN, (certificates / "cert.pem").read_bytes())
    assert ServerSecurity.load(token_file=file).token == TOKEN
    # It is not shown, and what goes to other processes does not hold it.
    assert OTHER_TOKEN not in repr(found)
    client = functools.partial(connect, "127.0.0.1:1")
    assert OTHER_TOKEN.encode() not in pickle.dumps(client)
    client().close()
    for wrong in ("short", "has a blank within it", "not-ascii-zeichen-äöü"):
        monkeypatch.setenv("CUCKOOFLOW_STORE_TOKEN", wrong)
        with pytest.raises(SpecError, match="printable ASCII") as caught:
            ClientSecurity.load()
        assert wrong not in str(caught.value)
    with pytest.raises(SpecError, match="cannot be read"):
        ServerSecurity.load(token_file=tmp_path / "none")
    with pytest.raises(SpecError, match="received one of them"):
        ServerSecurity.load(certificate=file)


def test_certificates_that_are_none_are_named(tmp_path, certificates):
    certificate, key, other = (certificates / name for name in ("cert.pem", "cert.key", "other.pem"))
    assert ServerSecurity.load(certificate, key).certificate == certificate.read_bytes()
    text = tmp_path / "text"
    text.write_text("no certificate\n")
    secret = serialization.load_pem_private_key(key.read_bytes(), None)
    encrypted = tmp_path / "encrypted"
    encrypted.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    for pair in (
        (other, key),
        (text, key),
        (certificate, text),
        (certificate, certificate),
        (certificate, encrypted),
    ):
        with pytest.raises(SpecError, match="expected a certificate chain") as caught:
            ServerSecurity.load(*pair)
        assert str(pair[0]) in str(caught.value) and str(pair[1]) in str(caught.value)
    for wrong in (text, key):
        with pytest.raises(SpecError, match=f"expected a root certificate as PEM in {wrong}"):
            ClientSecurity.load(wrong)
    with pytest.raises(SpecError, match="cannot be read"):
        ServerSecurity.load(certificate, tmp_path / "none")


# --- bounds -----------------------------------------------------------------------------------------


def test_rows_of_a_call_are_bounded():
    with running(limits=ServerLimits(rows_max=100)) as server, client_of(server) as client:
        assert client.lookup({"t": np.arange(100, dtype=np.uint64)})["t"].shape == (100, 2)
        with pytest.raises(LimitExceeded, match="at most 100 ids in one call, received 101"):
            client.lookup({"t": np.arange(101, dtype=np.uint64)})


@pytest.fixture
def slow(monkeypatch):
    """Lookups wait until told: (one has begun, go on)."""
    begun, go_on = threading.Semaphore(0), threading.Event()
    original = EmbeddedStore.lookup

    def lookup(self, ids):
        begun.release()
        assert go_on.wait(60)
        return original(self, ids)

    monkeypatch.setattr(EmbeddedStore, "lookup", lookup)
    yield begun, go_on
    go_on.set()


def in_threads(calls) -> list[threading.Thread]:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def test_calls_and_queue_are_bounded_and_the_refused_come_again(slow, wait_for):
    begun, go_on = slow
    limits = ServerLimits(calls_max=2, queue_max=1, turn_wait_s_max=60)
    answers: list[object] = []
    with running(limits=limits) as server, ExitStack() as stack:
        patient = stack.enter_context(client_of(server, retry_s=60))
        hasty = stack.enter_context(client_of(server, retry_s=0))
        look = [lambda: answers.append(patient.lookup({"t": IDS})["t"].shape)]
        threads = in_threads(2 * look)
        for _ in range(2):
            assert begun.acquire(timeout=60)
        threads += in_threads(look)
        wait_for(lambda: server.turns.waiting == 1, "a call that waits")
        # Two at work, one waits: any verb of a further call is refused at once, and tried again by the patient.
        with pytest.raises(StoreOverloaded, match="2 calls are worked on and 1 wait"):
            hasty.marks("x")
        threads += in_threads([lambda: answers.append(patient.marks("x"))])
        go_on.set()
        for thread in threads:
            thread.join(60)
        assert sorted(map(str, answers)) == ["(10, 2)", "(10, 2)", "(10, 2)", "{}"]
        assert (server.turns.waiting, server.turns.working) == (0, 0)


def test_a_turn_is_not_waited_for_without_end(slow):
    begun, go_on = slow
    with (
        running(limits=ServerLimits(calls_max=1, turn_wait_s_max=0.05)) as server,
        client_of(server, retry_s=0) as client,
    ):
        threads = in_threads([lambda: client.lookup({"t": IDS})])
        assert begun.acquire(timeout=60)
        with pytest.raises(StoreOverloaded, match=r"none ended within 0\.05 s"):
            client.marks("x")
        go_on.set()
        threads[0].join(60)


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="connections are counted on Linux only")
def test_connections_are_bounded(wait_for):
    with running(limits=ServerLimits(connections_max=3)) as server, client_of(server, retry_s=0) as client:
        assert client.marks("x") == {}
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            wait_for(lambda: established(server.port) == 4, "four connections")
            assert client.marks("x") == {}  # it was there before
            late = StoreClient(f"localhost:{server.port}", retry_s=0)  # a connection of its own
            with pytest.raises(StoreOverloaded, match="at most 3 connections, received one more"):
                late.marks("x")
        wait_for(lambda: established(server.port) <= 3, "connections that ended")
        assert late.marks("x") == {}
        late.close()


def test_bounds_are_sound():
    for wrong in ({"calls_max": 0}, {"rows_max": 0}, {"queue_max": -1}, {"turn_wait_s_max": -1.0}):
        with pytest.raises(SpecError, match=next(iter(wrong))):
            ServerLimits(**wrong)


# --- health, metrics and the end --------------------------------------------------------------------


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values by the names of the labels...) -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextmanager
def served(data: Path, **options) -> Iterator[tuple[threading.Event, list[BaseException]]]:
    stop, failures = threading.Event(), []

    def run() -> None:
        try:
            serve(CONFIG, data, stop=stop, **options)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield stop, failures
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def test_health_and_metrics(tmp_path, wait_for):
    with served(tmp_path, http="127.0.0.1:0", shard=Shard(0, 1), limits=ServerLimits(rows_max=50)) as (
        _,
        failed,
    ):
        wait_for(lambda: failed or (tmp_path / "address").exists(), "a store that serves")
        http = (tmp_path / "http_address").read_text().strip()
        client = connect(tmp_path / "address")
        client.open_log("examples", "made-once", {0: Position(0)})
        client.push(*push())
        client.push(*push())
        client.lookup({"t": IDS})
        with pytest.raises(LimitExceeded):
            client.lookup({"t": np.arange(51, dtype=np.uint64)})
        code, health = get(http, "/healthz")
        assert code == 200
        assert json.loads(health) == {
            "status": "serving",
            "shard": [0, 1],
            "incarnation": client.incarnation(),
        }
        assert ("cuckooflow_store_checkpoint_age_seconds",) not in samples(get(http, "/metrics")[1])
        client.checkpoint()
        # Times are observed once the answer is sent.
        timed = [("cuckooflow_store_call_seconds_count", verb) for verb in ("push", "lookup", "checkpoint")]
        wait_for(
            lambda: [samples(get(http, "/metrics")[1]).get(name) for name in timed] == [2, 2, 1],
            "the times of all calls",
        )
        code, text = get(http, "/metrics")
        assert code == 200
        found = samples(text)
        for expected in {
            ("cuckooflow_store_calls_total", "push"): 2,
            ("cuckooflow_store_calls_total", "lookup"): 1,
            ("cuckooflow_store_errors_total", "LimitExceeded", "lookup"): 1,
            ("cuckooflow_store_rows_total", "push"): 20,
            ("cuckooflow_store_rows_total", "lookup"): 10,
            ("cuckooflow_store_sent_bytes_total",): 80,
            ("cuckooflow_store_pushes_applied",): 1,
            ("cuckooflow_store_event_time_seconds",): 5,
            ("cuckooflow_store_table_rows", "t"): 10,
            ("cuckooflow_store_table_refused_new_ids_total", "t"): 0,
            ("cuckooflow_store_checkpoint_seconds_count",): 1,
            ("cuckooflow_store_checkpoints_failed_total",): 0,
            ("cuckooflow_store_calls_working",): 0,
            ("cuckooflow_store_calls_waiting",): 0,
        }.items():
            assert (expected[0], found.get(expected[0])) == expected
        assert found[("cuckooflow_store_received_bytes_total",)] == 2 * (80 + 80) + 80 + 51 * 8
        assert 0 < found[("cuckooflow_store_table_load_factor", "t")] < 1
        assert found[("cuckooflow_store_checkpoint_age_seconds",)] >= 0
        assert get(http, "/other")[0] == 404
        client.close()
    assert not failed
    assert not (tmp_path / "http_address").exists()


def test_metrics_tell_what_is_given_up_and_all_that_stats_tell(feeder):
    """Whoever watches metrics alone must see gradients that were dropped and rows that went away."""
    config = StoreConfig(
        (
            TableConfig("refuses", 64, memory_limit_bytes=1 << 20),
            TableConfig("evicts", 64, memory_limit_bytes=1 << 20, memory_policy="evict_least_recent"),
            TableConfig("forgets", 1, admission=2, filter_bytes=1 << 10),
            TableConfig("expires", 1, ttl_us=10),
        )
    )
    store = EmbeddedStore(config)
    store.delta("replica", full=True)
    feed = feeder(store)
    for n in range(2):
        ids = np.arange(5_000 * n, 5_000 * n + 5_000, dtype=np.uint64)
        pushes = {of.name: TablePush(ids, np.ones((5_000, of.dim), np.float32)) for of in config.tables}
        feed.push(pushes, event_time_us=1_000 * n)
    store.evict_expired()
    metrics = StoreMetrics()
    metrics.watch(store, Turns(ServerLimits()), None)
    found = samples(generate_latest(metrics.registry).decode())
    counts = {"not_admitted", "filter_forgotten", "refused_new_ids", "evicted_expired", "evicted_memory"}
    for table, stats in store.stats()["tables"].items():
        for name, value in stats.items():
            if name != "slots":
                shown = f"cuckooflow_store_table_{name}{'_total' if name in counts else ''}"
                assert (table, name, found.get((shown, table))) == (table, name, value)
    for table, name in (
        ("refuses", "refused_new_ids"),
        ("evicts", "evicted_memory"),
        ("forgets", "filter_forgotten"),
        ("expires", "evicted_expired"),
    ):
        assert found[f"cuckooflow_store_table_{name}_total", table] > 0
    assert found["cuckooflow_store_table_tombstones", "expires"] > 0


def test_stopping_answers_calls_under_way_and_writes_a_checkpoint(tmp_path, monkeypatch, wait_for):
    begun, go_on = threading.Event(), threading.Event()
    original = EmbeddedStore.push

    def slow_push(self, *arguments):
        begun.set()
        assert go_on.wait(60)
        return original(self, *arguments)

    monkeypatch.setattr(EmbeddedStore, "push", slow_push)
    answers: list[object] = []
    with served(tmp_path, http="127.0.0.1:0") as (stop, failed):
        client = connect(tmp_path / "address")
        client.open_log("examples", "made-once", {0: Position(0)})
        http = (tmp_path / "http_address").read_text().strip()
        pushing = threading.Thread(target=lambda: answers.append(client.push(*push())))
        pushing.start()
        assert begun.wait(60)
        stop.set()
        wait_for(lambda: not (tmp_path / "address").exists(), "a store that stops")
        code, health = get(http, "/healthz")
        assert (code, json.loads(health)["status"]) == (503, "stopping")
        go_on.set()
        pushing.join(60)
    assert not failed
    assert answers == [(8, 0, 0)]
    client.close()
    again = EmbeddedStore.restore(tmp_path)
    assert again.marks("examples") == {0: (Position(1),)}
    assert (again.lookup({"t": IDS})["t"] == 1).all()
    again.close()


@pytest.mark.fault
def test_the_process_with_everything_on(tmp_path, certificates):
    """TLS, token by environment, shard, HTTP, bounds: by the command line, ended by SIGTERM with 0."""
    (tmp_path / "store.json").write_text(config_to_json(CONFIG))
    (tmp_path / "token").write_text(TOKEN)
    command = [
        sys.executable,
        "-m",
        "cuckooflow.embedding_store.server",
        "--config",
        str(tmp_path / "store.json"),
    ]
    command += ["--data", str(tmp_path / "data"), "--shard", "1", "--of", "2", "--http", "127.0.0.1:0"]
    command += [
        "--tls-certificate",
        str(certificates / "cert.pem"),
        "--tls-key",
        str(certificates / "cert.key"),
    ]
    command += ["--token-file", str(tmp_path / "token"), "--rows-max", "100"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        security = ClientSecurity((certificates / "cert.pem").read_bytes(), TOKEN)
        client = connect(tmp_path / "data" / "address", security=security)
        client.open_log("examples", "made-once", {0: Position(0)})
        assert client.shard() == Shard(1, 2)
        with pytest.raises(LimitExceeded):
            client.lookup({"t": np.zeros(101, np.uint64)})
        range_, _, dense, time_us = push()
        assert client.push(range_, {}, dense, time_us).applied == 4
        assert get((tmp_path / "data" / "http_address").read_text().strip(), "/healthz")[0] == 200
        client.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    again = EmbeddedStore.restore(tmp_path / "data")
    assert again.marks("examples") == {0: (Position(1),)}
    again.close()


def test_a_wrong_command_line_is_told(tmp_path, caplog):
    assert main(["--data", str(tmp_path)]) == 1
    assert "expected a configuration or a store in" in caplog.text
    (tmp_path / "store.json").write_text(config_to_json(CONFIG))
    assert main(["--data", str(tmp_path), "--shard", "8", "--of", "9"]) == 1
    assert "expected 1 to 8 shards" in caplog.text
    assert main(["--data", str(tmp_path), "--listen", "0.0.0.0:0"]) == 1
    assert "InsecureListen" in caplog.text
