"""Calls and answers as bytes: whole, bounded, aligned, the same whichever way they travel."""

from __future__ import annotations

import numpy as np
import pyarrow.flight as flight
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cuckooflow.embedding_store.api import StoreConfig, TableConfig
from cuckooflow.embedding_store.client import GET_BYTES_MAX, StoreClient
from cuckooflow.embedding_store.server import StoreServer
from cuckooflow.embedding_store.server_limits import ServerLimits
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.embedding_store.wire import (
    PIECE_BYTES,
    WHOLE_BYTES_MAX,
    from_ticket,
    messages,
    receive,
    receive_got,
    to_ticket,
)
from cuckooflow.errors import LimitExceeded, StoreError, StoreOverloaded

DIM = 8
CONFIG = StoreConfig((TableConfig("t", dim=DIM, init_stddev=0.5),))

arrays = st.dictionaries(
    st.text(max_size=5),
    st.one_of(
        hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6))
        for dtype in (np.uint64, np.int64, np.uint32, np.uint8, np.float32)
    ),
    max_size=4,
)
heads = st.dictionaries(
    st.text(max_size=5).filter(lambda name: name != "arrays"), st.one_of(st.integers(), st.text()), max_size=3
)


class Chunk:
    """A record batch and its metadata, as Flight's readers give them."""

    def __init__(self, piece) -> None:
        self.data, metadata = piece if isinstance(piece, tuple) else (piece, None)
        self.app_metadata = None if metadata is None else Metadata(metadata)


class Metadata(bytes):
    size = property(len)

    def to_pybytes(self) -> bytes:
        return bytes(self)


class Reader:
    def __init__(self, pieces) -> None:
        self._pieces = iter(pieces)

    def read_chunk(self) -> Chunk:
        return Chunk(next(self._pieces))


def assert_same(found, expected) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.aligned


@given(st.text(max_size=8), heads, arrays)
def test_what_is_sent_is_received(verb, head, sent):
    assert from_ticket(to_ticket(verb, head, sent), 1 << 20)[:2] == (verb, head)
    assert_same(from_ticket(to_ticket(verb, head, sent), 1 << 20)[2], sent)
    found, received = receive(Reader(messages(head, sent)), 1 << 20)
    assert found == head
    assert_same(received, sent)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_arrays_of_several_pieces(extra):
    sent = {"a": np.arange(2 * PIECE_BYTES + extra).astype(np.uint8), "b": np.ones(3, np.float32)}
    assert len(list(messages({}, sent))) == 3 + (extra > 0)
    assert_same(receive(Reader(messages({}, sent)), 1 << 30)[1], sent)


@given(heads, arrays.filter(lambda sent: sum(array.nbytes for array in sent.values())))
def test_bounds_are_on_what_is_declared(head, sent):
    total = sum(array.nbytes for array in sent.values())
    for read in (
        lambda bound: from_ticket(to_ticket("v", head, sent), bound),
        lambda bound: receive(Reader(messages(head, sent)), bound),
    ):
        read(total)
        with pytest.raises(LimitExceeded, match=f"at most {total - 1} bytes"):
            read(total - 1)


@pytest.mark.parametrize(
    ("ticket", "says"),
    [
        (b"", "ended before its head"),
        (b"1234567", "ended before its head"),
        (np.array([2, 5], "<u4").tobytes() + b"ab{}", "absent or too long"),
        (np.array([2, 5 << 20], "<u4").tobytes() + b"ab" + b" " * (5 << 20), "absent or too long"),
        (np.array([1, 3], "<u4").tobytes() + b"v{]}", "head cannot be read"),
        (np.array([1, 2], "<u4").tobytes() + b"v{}", "head cannot be read"),
        (np.array([1, 2], "<u4").tobytes() + b"v[]", "head cannot be read"),
        (to_ticket("marks", {}, {"a": np.ones(2, np.uint8)})[:-1], "holds 1 bytes of arrays and declares 2"),
        (to_ticket("marks", {}, {}) + b"x", "holds 1 bytes of arrays and declares 0"),
        (to_ticket("no such verb", {}, {}), "one of the verbs"),
        (to_ticket("lookup", {}, {'["ids","t"]': np.ones(2, np.float32)}), "dtype uint64"),
    ],
)
def test_malformed_tickets_are_answered_by_name(ticket, says):
    server = StoreServer(EmbeddedStore(CONFIG), "127.0.0.1:0")
    try:
        with flight.FlightClient(f"grpc://127.0.0.1:{server.port}") as raw:
            assert says in receive_got(raw.do_get(flight.Ticket(ticket)), 0)[0]["message"]
            # It serves on.
            marks = raw.do_get(flight.Ticket(to_ticket("marks", {"log": "x"}, {})))
            assert receive_got(marks, 0)[0] == {"marks": {}}
    finally:
        server.shutdown()


def whose(array: np.ndarray) -> object:
    """What holds an array's memory; None where numpy does."""
    holder: object = array
    while isinstance(holder, np.ndarray):
        holder = holder.base
    return holder


def test_small_and_large_calls_are_answered_alike(rng):
    """Small ones travel in a ticket, large ones as a stream, larger ones are looked up by several threads."""
    store = EmbeddedStore(CONFIG)
    server = StoreServer(store, "127.0.0.1:0", ServerLimits(lookup_threads=3))
    client = StoreClient(f"127.0.0.1:{server.port}")
    try:
        for n in (0, 1, 2_047, 2_048, 2_049, 20_000, GET_BYTES_MAX // 8, GET_BYTES_MAX // 8 + 1, 100_000):
            ids = rng.integers(0, 2**64, n, np.uint64)
            rows = client.lookup({"t": ids})["t"]
            assert rows.shape == (n, DIM)
            np.testing.assert_array_equal(rows, EmbeddedStore(CONFIG).lookup({"t": ids})["t"])
            if 1 << 18 < 4 * DIM * n <= PIECE_BYTES:
                assert rows.flags.aligned and whose(rows) is not None, "copied out of its message"
    finally:
        client.close()
        server.shutdown()


def test_limits_hold_for_either_way():
    server = StoreServer(EmbeddedStore(CONFIG), "127.0.0.1:0", ServerLimits(call_bytes_max=800, queue_max=0))
    client = StoreClient(f"127.0.0.1:{server.port}", retry_s=0)
    try:
        assert client.lookup({"t": np.zeros(100, np.uint64)})["t"].shape == (100, DIM)
        for n in (101, GET_BYTES_MAX // 8 + 1):
            with pytest.raises(LimitExceeded, match="at most 800 bytes"):
                client.lookup({"t": np.zeros(n, np.uint64)})
        with server.turns:
            server.turns.working = 64
            with pytest.raises(StoreOverloaded):
                client.marks("x")
            server.turns.working = 1
        with pytest.raises(StoreError, match="expected one of the verbs"):
            client._call("no such verb")
    finally:
        client.close()
        server.shutdown()


def test_answers_to_a_get_about_the_size_from_which_they_come_in_pieces(rng):
    """Of a table whose rows are so large that its calls are small all the same."""
    config = StoreConfig((TableConfig("t", dim=256, init_stddev=0.5),))
    server = StoreServer(EmbeddedStore(config), "127.0.0.1:0")
    try:
        with flight.FlightClient(f"grpc://127.0.0.1:{server.port}") as raw:
            for n in (16, 17, 2_047, 2_048, 2_049, 9_000):
                ids = rng.integers(0, 2**64, n, np.uint64)
                got = raw.do_get(flight.Ticket(to_ticket("lookup", {}, {'["ids","t"]': ids})))
                assert (b"head" in (got.schema.metadata or {})) == (1024 * n <= WHOLE_BYTES_MAX)
                head, answer = receive_got(got, 1024 * n)
                assert head == {} and list(answer) == ['["rows","t"]']
                rows = answer['["rows","t"]']
                np.testing.assert_array_equal(rows, EmbeddedStore(config).lookup({"t": ids})["t"])
                assert rows.flags.aligned
                with pytest.raises(LimitExceeded):
                    ticket = flight.Ticket(to_ticket("lookup", {}, {'["ids","t"]': ids}))
                    receive_got(raw.do_get(ticket), 1024 * n - 1)
    finally:
        server.shutdown()
