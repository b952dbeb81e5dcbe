"""A store of several shards, each behind a server in this process, that can be thrown back to a checkpoint."""

from __future__ import annotations

from pathlib import Path

from cuckooflow.embedding_store.address import write_address
from cuckooflow.embedding_store.api import StoreConfig
from cuckooflow.embedding_store.security import ClientSecurity
from cuckooflow.embedding_store.server import StoreServer
from cuckooflow.embedding_store.sharded_client import ShardedClient
from cuckooflow.embedding_store.shards import Ownership, Shard
from cuckooflow.embedding_store.store import EmbeddedStore


class LocalShards:
    """Begins with empty shards. Not thread-safe.

    Args:
        config: of the store.
        folder: empty; the shards' data.
        of: how many.

    Attributes:
        client: of all shards.

    Raises:
        SpecError: the store cannot have so many.
    """

    def __init__(self, config: StoreConfig, folder: Path, of: int) -> None:
        for i in range(of):
            Ownership(config, Shard(i, of))
        self._folders = [folder / f"shard-{i}" for i in range(of)]
        self._stores: list[EmbeddedStore] = []
        self._servers: list[StoreServer] = []
        for i, data in enumerate(self._folders):
            self._stores.append(EmbeddedStore(config, data, Shard(i, of)))
            self._servers.append(self._served(i))
        addresses = [data / "address" for data in self._folders]
        self.client = ShardedClient(addresses, security=ClientSecurity())

    def checkpoint(self, i: int) -> None:
        """Have one shard write a checkpoint."""
        self._stores[i].checkpoint()

    def throw_back(self, i: int) -> None:
        """Replace one shard by what its last checkpoint holds; the client finds it again."""
        self._servers[i].shutdown()
        self._stores[i].close()
        self._stores[i] = EmbeddedStore.restore(self._folders[i])
        self._servers[i] = self._served(i)

    def close(self) -> None:
        """End all servers; what was trained is lost."""
        self.client.close()
        for server in self._servers:
            server.shutdown()
        for store in self._stores:
            store.close()

    def _served(self, i: int) -> StoreServer:
        server = StoreServer(self._stores[i], "127.0.0.1:0")
        write_address(self._folders[i] / "address", server.host, server.port)
        return server
