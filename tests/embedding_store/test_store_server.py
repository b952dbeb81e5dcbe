"""The store's process and its client: the same answers and the same named errors as embedded."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest

from cuckooflow.embedding_store.address import check_loopback, parse_address, write_address
from cuckooflow.embedding_store.api import (
    DenseConfig,
    Optimizer,
    Store,
    StoreConfig,
    TableConfig,
    TablePush,
    Version,
)
from cuckooflow.embedding_store.client import StoreClient, connect
from cuckooflow.embedding_store.server import StoreServer, serve
from cuckooflow.embedding_store.server_limits import ServerLimits
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.embedding_store.wire import SCHEMA, descriptor
from cuckooflow.errors import (
    BadShape,
    CuckooflowError,
    FullDeltaNeeded,
    InsecureListen,
    LimitExceeded,
    LogNotOpened,
    MarkMismatch,
    NonFiniteGradient,
    SpecError,
    StoreError,
    StoreUnavailable,
    UnknownTable,
    UnknownVersion,
    WrongIncarnation,
)
from cuckooflow.logs.contract import LogRange, Position

CONFIG = StoreConfig(
    (
        TableConfig("user", dim=5),
        TableConfig('odd "name"', dim=1, optimizer=Optimizer("sgd", 1.0), admission=2),
    ),
    (DenseConfig("w", (3, 2), init="glorot_uniform"), DenseConfig("bias", ())),
    buckets=8,
)


@pytest.fixture
def embedded():
    return EmbeddedStore(CONFIG)


@pytest.fixture
def server(embedded):
    server = StoreServer(embedded, "127.0.0.1:0", ServerLimits(call_bytes_max=4 << 20))
    yield server
    server.shutdown()


@pytest.fixture
def client(server):
    client = StoreClient(f"127.0.0.1:{server.port}", retry_s=5)
    yield client
    client.close()


def outcome(call):
    """What a call answers or raises, comparable."""
    try:
        return _plain(call())
    except CuckooflowError as error:
        return type(error), str(error), getattr(error, "marks", None)


def _plain(value):
    if isinstance(value, np.ndarray):
        return value.dtype.name, value.shape, value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value


def test_same_answers_and_same_errors(client, rng):
    """One history against the process and against an embedded store."""
    stores: list[Store] = [client, EmbeddedStore(CONFIG)]
    ids = np.array([0, 2**63, 2**64 - 1, *range(300)], np.uint64)
    empty = np.empty(0, np.uint64)

    def both(call, raised: type[Exception] | None = None) -> None:
        ours, theirs = (outcome(lambda s=store: call(s)) for store in stores)
        assert ours == theirs
        assert (ours[0] if isinstance(ours, tuple) and ours and isinstance(ours[0], type) else None) == raised

    def span(first, last, log="examples", incarnation="made-once", partition=0) -> LogRange:
        return LogRange(log, incarnation, partition, Position(*first), Position(*last))

    both(lambda s: s.config)
    both(lambda s: s.push(span((0, 0), (1, 0)), {}, {}, 0), LogNotOpened)
    both(lambda s: s.open_log("examples", "made-once", {0: Position(0), 1: Position(9, 4)}))
    both(lambda s: s.open_log("examples", "made-again", {0: Position(0)}), WrongIncarnation)
    both(lambda s: s.log_incarnation("examples"))
    both(lambda s: s.log_incarnation("nothing"))
    both(lambda s: s.marks("examples"))
    both(lambda s: s.marks("nothing"))
    for n in range(5):
        some = rng.choice(ids, 200)
        counts = rng.integers(1, 3, 200).astype(np.uint32) if n % 2 else None
        tables = {
            "user": TablePush(some, rng.normal(size=(200, 5)).astype(np.float32)),
            'odd "name"': TablePush(some, rng.normal(size=(200, 1)).astype(np.float32), counts),
        }
        dense = {"w": rng.normal(size=(3, 2)).astype(np.float32), "bias": np.array(0.5, np.float32)}
        for _ in range(2):
            both(lambda s, n=n, t=tables, d=dense: s.push(span((n, 0), (n + 1, 0)), t, d, 1_000 + n))
        both(lambda s: s.pull({"user": ids, 'odd "name"': ids}))
    both(lambda s: s.lookup({"user": empty}))
    both(lambda s: s.lookup({}))
    both(lambda s: s.dense())
    both(lambda s: s.marks("examples"))
    both(lambda s: s.push(span((7, 3), (9, 0)), {}, {}, 0), MarkMismatch)
    both(lambda s: s.push(span((9, 4), (9, 3), partition=1), {}, {}, 0), BadShape)
    both(lambda s: s.push(span((5, 0), (6, 0), incarnation="x"), {}, {}, 0), WrongIncarnation)
    both(lambda s: s.lookup({"nope": ids}), UnknownTable)
    both(lambda s: s.lookup({"user": ids.astype(np.uint32)}), BadShape)
    both(lambda s: s.lookup({"user": ids.reshape(3, -1)}), BadShape)
    nan = np.full((3, 2), np.nan, np.float32)
    both(lambda s: s.push(span((5, 0), (6, 0)), {}, {"w": nan}, 0), NonFiniteGradient)
    both(lambda s: s.delta("replica"), FullDeltaNeeded)
    both(lambda s: s.checkpoint(), StoreError)

    deltas = [store.delta("replica", full=True) for store in stores]
    ours, theirs = deltas
    assert (
        ours.version.incarnation
        == client.incarnation()
        != stores[1].incarnation()
        == theirs.version.incarnation
    )
    assert ours.version.n == theirs.version.n
    assert _plain(dict(ours.tables)) == _plain(dict(theirs.tables))
    assert _plain(dict(ours.dense)) == _plain(dict(theirs.dense))
    assert ours.marks == theirs.marks
    for store, delta in zip(stores, deltas, strict=True):
        store.ack("replica", delta.version)
        assert store.delta("replica").base == delta.version
        with pytest.raises(UnknownVersion):
            store.ack("replica", Version(delta.version.incarnation, 99))
        with pytest.raises(WrongIncarnation):
            store.ack("replica", Version("other", 1))
    mine, its = (dict(store.stats()) for store in stores)
    assert mine.pop("incarnation") != its.pop("incarnation")
    assert mine == its


def test_mark_mismatch_carries_its_marks(client):
    client.open_log("examples", "made-once", {0: Position(3, 1)})
    with pytest.raises(MarkMismatch) as caught:
        client.push(LogRange("examples", "made-once", 0, Position(0), Position(9)), {}, {}, 0)
    assert caught.value.marks == ((3, 1),)


def test_arrays_of_many_pieces(embedded, feeder):
    """Bigger than one piece on the wire, in both directions."""
    server = StoreServer(embedded, "127.0.0.1:0")
    try:
        client = connect(f"127.0.0.1:{server.port}")
        ids = np.arange(600_000, dtype=np.uint64)
        gradients = np.random.default_rng(0).normal(size=(len(ids), 5)).astype(np.float32)
        local = EmbeddedStore(CONFIG)
        for store in (client, local):
            feeder(store).push({"user": TablePush(ids, gradients)})
        np.testing.assert_array_equal(
            client.lookup({"user": ids})["user"], local.lookup({"user": ids})["user"]
        )
        delta = client.delta("replica", full=True)
        np.testing.assert_array_equal(delta.tables["user"].ids, ids)
        client.close()
    finally:
        server.shutdown()


def test_a_message_over_the_bound_is_refused_before_it_is_read(client):
    client.open_log("examples", "made-once", {0: Position(0)})
    for n, bound in ((600_000, 4 << 20), (20_000_000, 4 << 20), (40_000_000, 256 << 20)):
        with pytest.raises(LimitExceeded, match=f"at most {bound} bytes"):
            client.lookup({"user": np.zeros(n, np.uint64)})
    assert client.lookup({"user": np.zeros(1, np.uint64)})["user"].shape == (1, 5)


@pytest.mark.parametrize(
    ("verb", "metadata", "batches", "answer"),
    [
        ("no such verb", b'{"arrays":[]}', 0, "one of the verbs"),
        ("lookup", b"not json", 0, "head cannot be read"),
        ("lookup", b'{"arrays":[["[\\"ids\\",\\"user\\"]","object",[1]]]}', 0, "head cannot be read"),
        ("lookup", b'{"arrays":[["[\\"ids\\",\\"user\\"]","uint64",[-1]]]}', 0, "head cannot be read"),
        ("lookup", b'{"arrays":[["[\\"ids\\",\\"user\\"]","uint64",[4]]]}', 0, "ended within"),
        ("lookup", b'{"arrays":[["[\\"ids\\",\\"user\\"]","uint64",[1]]]}', 1, "longer than declared"),
        ("lookup", b'{"arrays":[["ids","uint64",[0]]]}', 0, "cannot be used"),
        ("push", b'{"arrays":[]}', 0, "cannot be used"),
        ("marks", b'{"arrays":[]}', 0, "cannot be used"),
        ("ack", b'{"arrays":[],"consumer":"x","version":5}', 0, "cannot be used"),
    ],
)
def test_malformed_messages_are_answered_and_change_nothing(server, client, verb, metadata, batches, answer):
    with flight.FlightClient(f"grpc://127.0.0.1:{server.port}") as raw:
        writer, reader = raw.do_exchange(descriptor(verb))
        with writer:
            writer.begin(SCHEMA)
            writer.write_metadata(metadata)
            for _ in range(batches):
                writer.write_batch(
                    pa.RecordBatch.from_arrays([pa.array([1] * 100, pa.uint8())], schema=SCHEMA)
                )
            writer.done_writing()
            assert answer in reader.read_chunk().app_metadata.to_pybytes().decode()
    assert client.marks("examples") == {}


@pytest.mark.parametrize("address", ["0.0.0.0:0", "10.1.2.3:80", "example.org:80", "[::]:0"])
def test_only_loopback(embedded, address, tmp_path):
    with pytest.raises(InsecureListen, match="loopback"):
        StoreServer(embedded, address)
    with pytest.raises(InsecureListen):
        serve(CONFIG, tmp_path / "store", address)
    assert not (tmp_path / "store").exists()
    with pytest.raises(InsecureListen):
        connect(address)


def test_addresses():
    check_loopback("localhost")
    assert parse_address("[::1]:80") == ("::1", 80)
    for wrong in ("", "localhost", "localhost:", ":80", "localhost:x", "localhost:70000"):
        with pytest.raises(SpecError, match="host:port"):
            parse_address(wrong)


def test_a_port_is_not_shared(server):
    with pytest.raises(StoreUnavailable, match="listen"):
        StoreServer(EmbeddedStore(CONFIG), f"127.0.0.1:{server.port}")


def test_nobody_there(tmp_path):
    for address in ("127.0.0.1:1", tmp_path / "address"):
        client = StoreClient(address, retry_s=0.2)
        with pytest.raises(StoreUnavailable, match=r"within 0\.2 s"):
            client.marks("examples")
        client.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            client.marks("examples")


def test_closing_ends_a_wait(tmp_path):
    client = StoreClient(tmp_path / "address", retry_s=120)
    raised: list[BaseException] = []

    def call() -> None:
        try:
            client.stats()
        except StoreUnavailable as error:
            raised.append(error)

    waiting = threading.Thread(target=call)
    waiting.start()
    client.close()
    waiting.join(30)
    assert raised and not waiting.is_alive()


def test_a_client_finds_a_store_that_moved(tmp_path):
    """Through the address file, with the marks of the last checkpoint, in another incarnation."""
    file = tmp_path / "address"
    client = StoreClient(file, retry_s=30)
    seen = set()
    for n in range(3):
        store = EmbeddedStore(CONFIG)
        server = StoreServer(store, "127.0.0.1:0")
        write_address(file, server.host, server.port)
        client.open_log("examples", "made-once", {0: Position(n)})
        assert client.marks("examples") == {0: (Position(n),)}
        seen.add(client.incarnation())
        server.shutdown()
    assert len(seen) == 3
    client.close()


def test_serve_until_stopped_with_checkpoints_between(tmp_path, feeder):
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            serve(CONFIG, tmp_path, checkpoint_interval_s=0.01, stop=stop)
        except BaseException as error:
            failures.append(error)

    serving = threading.Thread(target=run)
    serving.start()
    client = connect(tmp_path / "address")
    feed = feeder(client)
    try:
        feed.push({"user": TablePush(np.arange(10, dtype=np.uint64), np.ones((10, 5), np.float32))})
        _until(lambda: any(_marks_in(folder) == 1 for folder in tmp_path.glob("checkpoint-*")))
        feed.push()
    finally:
        stop.set()
        serving.join(60)
        client.close()
    assert not failures
    again = EmbeddedStore.restore(tmp_path)
    assert again.marks("examples") == {0: (Position(2),)}


def _marks_in(folder: Path) -> int:
    text = (folder / "manifest.json").read_text().replace("\\", "") if folder.exists() else ""
    return int('"0": [[1, 0]' in text)


def _until(condition, attempts: int = 3_000) -> None:
    pause = threading.Event()
    for _ in range(attempts):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("the condition did not come true in time")
