"""The three forms of a store, which answer alike: in the process, by one server, by two shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cuckooflow.embedding_store.api import StoreConfig
from cuckooflow.embedding_store.client import connect
from cuckooflow.embedding_store.server import StoreServer
from cuckooflow.embedding_store.shards import WHOLE, Shard
from cuckooflow.embedding_store.store import EmbeddedStore

#: Form -> the shards that are served.
_SERVED = {"embedded": (), "served": (WHOLE,), "sharded": (Shard(0, 2), Shard(1, 2))}
FORMS = tuple(_SERVED)


@contextmanager
def store_form(form: str, config: StoreConfig) -> Iterator[Any]:
    """A new store of one of :data:`FORMS`, closed at the end."""
    servers = [StoreServer(EmbeddedStore(config, shard=shard), "127.0.0.1:0") for shard in _SERVED[form]]
    addresses = [f"127.0.0.1:{server.port}" for server in servers]
    store: Any = connect(addresses) if addresses else EmbeddedStore(config)
    try:
        yield store
    finally:
        store.close()
        for server in servers:
            server.shutdown()
