"""The embedding store: cuckoo-hash tables trained by pushes of log ranges. No Beam, no TensorFlow.

README.md in this folder begins with ten lines that use it.
"""

from cuckooflow.embedding_store.api import (
    Delta,
    DenseConfig,
    Optimizer,
    PushAnswer,
    Store,
    StoreConfig,
    TableConfig,
    TableDelta,
    TablePush,
    Version,
)
from cuckooflow.embedding_store.client import StoreClient, connect
from cuckooflow.embedding_store.kinds import CounterPush, CounterRows, RecentPush, RecentRows, RowsAt
from cuckooflow.embedding_store.read_store import ReadStore
from cuckooflow.embedding_store.resharding import reshard
from cuckooflow.embedding_store.sharded_client import ShardedClient
from cuckooflow.embedding_store.shards import Shard
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.logs.contract import LogRange, Position

__all__ = [
    "CounterPush",
    "CounterRows",
    "Delta",
    "DenseConfig",
    "EmbeddedStore",
    "LogRange",
    "Optimizer",
    "Position",
    "PushAnswer",
    "ReadStore",
    "RecentPush",
    "RecentRows",
    "RowsAt",
    "Shard",
    "ShardedClient",
    "Store",
    "StoreClient",
    "StoreConfig",
    "TableConfig",
    "TableDelta",
    "TablePush",
    "Version",
    "connect",
    "open_store",
    "reshard",
]
