"""Embedded stores that pipelines of this process reach by name.

A DoFn is pickled, a store is not: it gets a picklable factory. For a store process that is
``functools.partial(connect, "host:port")``; for one embedded in this process, :func:`shared_store`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

from cuckooflow.embedding_store.api import Store
from cuckooflow.errors import StoreUnavailable

_lock = threading.Lock()
_stores: dict[str, Store] = {}


def share_store(name: str, store: Store) -> Callable[[], Store]:
    """Make a store reachable in this process; the factory to give to a transform. Replaces the name."""
    with _lock:
        _stores[name] = store
    return functools.partial(shared_store, name)


def unshare_store(name: str) -> None:
    """Forget the name; the store itself stays open. Idempotent."""
    with _lock:
        _stores.pop(name, None)


def shared_store(name: str) -> Store:
    """The store of this name.

    Raises:
        StoreUnavailable: this process shares none; an embedded store serves one process only.
    """
    with _lock:
        if name not in _stores:
            raise StoreUnavailable(
                f"expected an embedded store named {name!r} in this process, received none; workers in "
                "other processes need a store process: give the transform functools.partial(connect, address)"
            )
        return _stores[name]
