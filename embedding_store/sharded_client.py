"""A store of several shards as one: ids are dealt out to their shards, answers gathered in parallel.

What holds over all shards:

- A push goes to every shard, also to those that own none of its ids, for each keeps marks of its own. It is
  checked whole before anything is sent, so a batch that is refused for its content was applied nowhere. Where
  some shards stand elsewhere the others have taken the range all the same; they skip it when it comes again.
- A partition is open where every shard has opened it; its marks are the distinct marks of all shards.
- A delta is one delta of each shard. Each of its rows is one version; shards are a moment apart.

**Versions.** The incarnation of the whole is a hash of the shards' incarnations, so a restored shard changes it.
A delta's version is (that hash and a token of this client, a count of this client); the client keeps what
each count stands for, the (incarnation, n) of every shard, and acks at every shard what it gave. With the
token in it, two clients that take deltas for one consumer at once, of whose versions neither contains the
other, can never be taken for each other. The price: a consumer whose client was made anew takes a full delta.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store.api import (
    AnyPush,
    Delta,
    Floats,
    Ids,
    Pulled,
    PushAnswer,
    ReadAt,
    StoreConfig,
    Version,
)
from cuckooflow.embedding_store.client import CALL_S_MAX, RETRY_S, StoreClient
from cuckooflow.embedding_store.kinds import AsOf, RowsAt
from cuckooflow.embedding_store.native_core import checked_ids
from cuckooflow.embedding_store.range_checks import checked_event_time, checked_range, checked_starts
from cuckooflow.embedding_store.security import ClientSecurity
from cuckooflow.embedding_store.shard_layout import Dealt, Layout, of_places
from cuckooflow.embedding_store.shard_merging import joined, lowest, summed
from cuckooflow.embedding_store.shards import Shard
from cuckooflow.errors import (
    BadShape,
    ConfigDiffers,
    CuckooflowError,
    FullDeltaNeeded,
    MarkMismatch,
    SpecError,
    StoreUnavailable,
    UnknownVersion,
    WrongIncarnation,
    WrongShard,
)
from cuckooflow.logs.contract import LogRange, Position

T = TypeVar("T")

#: Calls under way at once, over all shards; more wait for a thread.
THREADS_A_SHARD = 4
THREADS_MAX = 64
#: Deltas of one consumer that it may still ack: the newest.
GIVEN_MAX = 16


class ShardedClient:
    """A client of every shard of a store, with the verbs and the named errors of the store.

    Thread-safe. Every shard's call is retried as :class:`~cuckooflow.embedding_store.client.StoreClient` does;
    an error says which shard it is of.

    Args:
        addresses: of shard 0, 1, ...: ``host:port`` or an address file each.
        retry_s, call_s_max, security: as of ``StoreClient``.

    Raises:
        SpecError: an address is wrong, or there is none.
        InsecureListen: a host is not this machine, and TLS or the token is missing.
    """

    def __init__(
        self,
        addresses: Sequence[str | Path],
        retry_s: float = RETRY_S,
        call_s_max: float = CALL_S_MAX,
        security: ClientSecurity | None = None,
    ) -> None:
        if not addresses:
            raise SpecError("expected the address of each shard, received none. Name them in their order.")
        security = ClientSecurity.load() if security is None else security
        self._addresses = [str(address) for address in addresses]
        self._clients = [StoreClient(address, retry_s, call_s_max, security) for address in addresses]
        self._of = len(self._clients)
        self._pool = ThreadPoolExecutor(min(THREADS_MAX, THREADS_A_SHARD * self._of), "store-shard")
        self._token = secrets.token_hex(4)
        self._counter = itertools.count(1)
        self._lock = threading.Lock()
        self._layout: Layout | None = None
        self._consumers: dict[str, _Consumer] = {}
        self._closed = False

    @property
    def config(self) -> StoreConfig:
        """The store's configuration; asked for once, from every shard.

        Raises:
            ConfigDiffers: the shards have different ones.
            WrongShard: the addresses are not those of all shards in their order.
        """
        return self._known().config

    def incarnation(self) -> str:
        """Of the whole: changes with every creation and every restore of any shard."""
        return _whole(self._on_all(lambda client: client.incarnation()))

    def open_log(self, log: str, incarnation: str, starts: Mapping[int, Position]) -> None:
        """See :meth:`~cuckooflow.embedding_store.api.Store.open_log`; on every shard."""
        checked = checked_starts(log, incarnation, starts)
        self._on_all(lambda client: client.open_log(log, incarnation, checked))

    def lookup(self, ids: Mapping[str, Ids]) -> dict[str, Floats]:
        """See :meth:`~cuckooflow.embedding_store.api.Store.lookup`."""
        dealt = self._deal(ids)
        asked = [i for i in range(self._of) if any(len(of.ids[i]) for of in dealt.values())]
        answers = self._on(asked, lambda i, client: client.lookup(_of_shard(dealt, i)))
        return self._gathered(dealt, answers)

    def dense(self) -> dict[str, Floats]:
        """All dense parameters."""
        layout = self._known()
        owners = [i for i, owned in enumerate(layout.owned) if owned.dense]
        return layout.in_order(_merged(self._on(owners, lambda _, client: client.dense()).values()))

    def pull(self, ids: Mapping[str, Ids]) -> Pulled:
        """Rows and all dense parameters; those of one shard are of one moment."""
        layout, dealt = self._known(), self._deal(ids)
        asked = [
            i
            for i, owned in enumerate(layout.owned)
            if owned.dense or any(len(of.ids[i]) for of in dealt.values())
        ]
        answers = self._on(asked, lambda i, client: client.pull(_of_shard(dealt, i)))
        rows = self._gathered(dealt, {i: answer.rows for i, answer in answers.items()})
        clock = tuple(answers[i].clock[0] if i in answers else -1 for i in range(self._of))
        return Pulled(rows, layout.in_order(_merged(answer.dense for answer in answers.values())), clock)

    def lookup_at(self, ids: Mapping[str, Ids], as_of_us: AsOf = None, with_dense: bool = False) -> RowsAt:
        """See :meth:`~cuckooflow.embedding_store.api.Store.lookup_at`; rows of one shard are of one moment."""
        layout, dealt = self._known(), self._deal(ids)
        layout.checker.check_times(ids, as_of_us)
        asked = [
            i
            for i, owned in enumerate(layout.owned)
            if (with_dense and owned.dense) or any(len(of.ids[i]) for of in dealt.values())
        ]

        def ask(i: int, client: StoreClient) -> RowsAt:
            own = as_of_us
            if isinstance(as_of_us, Mapping):
                own = {name: as_of_us[name][of.places[i]] for name, of in dealt.items() if name in as_of_us}
            return client.lookup_at(_of_shard(dealt, i), own, with_dense)

        return layout.gathered_at(dealt, self._on(asked, ask))

    def push(
        self,
        range_: LogRange,
        tables: Mapping[str, AnyPush],
        dense: Mapping[str, Floats],
        event_time_us: int,
        read: ReadAt | None = None,
    ) -> PushAnswer:
        """See :meth:`~cuckooflow.embedding_store.api.Store.push`; buckets are counted over all shards.

        A :class:`~cuckooflow.errors.MarkMismatch` holds the distinct marks of all shards that refused; the
        others have taken the range, or had it. So it is with a :class:`~cuckooflow.errors.StaleRows`. After any other
        error of some shard it may have been taken by some as well: push it again, from :meth:`marks`.
        """
        layout = self._known()
        range_, event_time_us = checked_range(range_), checked_event_time(event_time_us)
        layout.checker.prepare(tables, dense)
        if read is not None and len(read.clock) != self._of:
            raise BadShape(f"expected the clock of {self._of} shards, received {read.clock}")
        dealt = self._deal({name: push.ids for name, push in tables.items()})

        def send(i: int, client: StoreClient) -> PushAnswer:
            own = {
                name: of_places(tables[name], of.places[i]) for name, of in dealt.items() if len(of.ids[i])
            }
            own_read = None if read is None else read._replace(clock=(read.clock[i],))
            return client.push(range_, own, layout.owned[i].own_dense(dense), event_time_us, own_read)

        answers = self._on(range(self._of), send).values()
        return PushAnswer(
            sum(a.applied for a in answers),
            sum(a.skipped for a in answers),
            max(a.staleness for a in answers),
        )

    def marks(self, log: str) -> dict[int, tuple[Position, ...]]:
        """Partition -> the distinct marks over all shards, ascending; only what every shard has opened."""
        by_shard = self._on_all(lambda client: client.marks(log))
        opened = set.intersection(*(set(marks) for marks in by_shard))
        return {
            partition: tuple(sorted({mark for marks in by_shard for mark in marks[partition]}))
            for partition in sorted(opened)
        }

    def log_incarnation(self, log: str) -> str | None:
        """The incarnation that ``open_log`` recorded on every shard, or None where one has none.

        Raises:
            WrongIncarnation: the shards have recorded different ones.
        """
        found = self._on_all(lambda client: client.log_incarnation(log))
        if len({incarnation for incarnation in found if incarnation is not None}) > 1:
            raise WrongIncarnation(
                f"expected one incarnation of log {log!r} over all shards, received {found}: the log was "
                "recreated while a shard was away. Restore shards that were trained on one log."
            )
        return None if None in found else found[0]

    def delta(self, consumer: str, full: bool = False) -> Delta:
        """See :meth:`~cuckooflow.embedding_store.api.Store.delta`.

        Raises:
            FullDeltaNeeded: some shard has no base for this consumer, was restored, or gave a newer one to
                another client; or this client was made after the consumer's last ack.
        """
        known = self._consumers.get(consumer)
        base = None if full or known is None else known.acknowledged
        if not full and base is None:
            raise FullDeltaNeeded(
                f"consumer {consumer!r} acknowledged nothing through this client, so a delta has nothing to "
                "stand on. Ask for a full one."
            )
        parts = self._on_all(lambda client: client.delta(consumer, full))
        if base is not None:
            for i, (part, held) in enumerate(zip(parts, base.shards, strict=True)):
                if part.base is None or part.base.incarnation != held.incarnation or part.base.n > held.n:
                    raise FullDeltaNeeded(
                        f"{self._name(i)}: expected a delta for {consumer!r} on {held} or before it, received one "
                        f"on {part.base}: another client took deltas for it. Ask for a full one."
                    )
        version = Version(
            f"{_whole(part.version.incarnation for part in parts)}-{self._token}", next(self._counter)
        )
        given = _Given(version, tuple(part.version for part in parts))
        with self._lock:
            self._consumers.setdefault(consumer, _Consumer()).give(given)
        return Delta(
            version=version,
            base=None if base is None else base.version,
            tables={name: joined([part.tables[name] for part in parts]) for name in parts[0].tables},
            dense=self._known().in_order(_merged(part.dense for part in parts)),
            marks=lowest([part.marks for part in parts]),
        )

    def ack(self, consumer: str, version: Version) -> None:
        """The consumer has that delta safely; every shard is told.

        Raises:
            UnknownVersion: no such version was given to this consumer lately.
            WrongIncarnation: it was given by another client, or a shard was restored since.
        """
        version = Version(*version)
        with self._lock:
            known = self._consumers.get(consumer)
            given = None if known is None else known.given.get(version.n)
            if not version.incarnation.endswith(f"-{self._token}"):
                raise WrongIncarnation(
                    f"expected a version that this client gave, received {version}: it was given by another "
                    "client, or by one shard. Ask for a full delta."
                )
            if known is None or given is None or given.version != version:
                raise UnknownVersion(
                    f"expected one of the last {GIVEN_MAX} versions that were given to consumer {consumer!r}, "
                    f"received {version}. Ack the version that delta() answered."
                )
            # Before the shards know: one that missed it gives more than is needed, and never less.
            known.acknowledge(given)
        self._on(range(self._of), lambda i, client: client.ack(consumer, given.shards[i]))

    def rows(self, table: str) -> tuple[Ids, Floats]:
        """All rows of a table, (n,) ids and (n, dim) weights; those of one shard are of one moment."""
        ids, weights = zip(*self._on_all(lambda client: client.rows(table)), strict=True)
        return np.concatenate(ids), np.concatenate(weights)

    def states(self, table: str) -> tuple[Ids, npt.NDArray[np.uint8]]:
        """All rows of a counter or recent table and their state; those of one shard are of one moment."""
        ids, states = zip(*self._on_all(lambda client: client.states(table)), strict=True)
        return np.concatenate(ids), np.concatenate(states)

    def evict_expired(self) -> dict[str, int]:
        """See :meth:`~cuckooflow.embedding_store.store.EmbeddedStore.evict_expired`; over all shards."""
        parts = self._on_all(lambda client: client.evict_expired())
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    def checkpoint(self) -> str:
        """Write a checkpoint on every shard, at once; their names, in the order of the shards."""
        return " ".join(self._on_all(lambda client: client.checkpoint()))

    def stats(self) -> dict[str, object]:
        """Of the whole: as a store's, numbers summed up, load factors over all shards; ``shards``: each one's.

        ``event_time_us`` is the newest; ``pushes_applied`` the fewest of any shard.
        """
        shards = self._on_all(lambda client: client.stats())
        times = [stats["event_time_us"] for stats in shards if stats["event_time_us"] is not None]
        applied: Any = [stats["pushes_applied"] for stats in shards]
        tables: Any = [stats["tables"] for stats in shards]
        return {
            "incarnation": _whole(str(stats["incarnation"]) for stats in shards),
            "pushes_applied": min(applied),
            "event_time_us": max(times, default=None),  # type: ignore[type-var]
            "tables": {name: summed([of[name] for of in tables]) for name in tables[0]},
            "shards": shards,
        }

    def close(self) -> None:
        """Close every connection and end the waits of calls under way. Idempotent."""
        self._closed = True
        for client in self._clients:
            client.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- which shard has what ---------------------------------------------------------------------

    def _known(self) -> Layout:
        if self._layout is None:
            configs = self._on_all(lambda client: client.config)
            shards = self._on_all(lambda client: client.shard())
            for i, (config, shard) in enumerate(zip(configs, shards, strict=True)):
                if shard != Shard(i, self._of):
                    raise WrongShard(
                        f"expected {Shard(i, self._of)} at {self._addresses[i]}, received {shard}. Name the "
                        "addresses of all shards in their order."
                    )
                if config != configs[0]:
                    raise ConfigDiffers(
                        f"expected one configuration over all shards, received another from {self._name(i)} than "
                        f"from {self._name(0)}. Name shards of one store."
                    )
            self._layout = Layout(configs[0], self._of)
        return self._layout

    def _deal(self, ids: Mapping[str, Ids]) -> dict[str, Dealt]:
        layout = self._known()
        for name in ids:
            layout.checker.number(name)
        return {name: layout.deal(checked_ids(name, values)) for name, values in ids.items()}

    def _gathered(
        self, dealt: Mapping[str, Dealt], answers: Mapping[int, Mapping[str, Floats]]
    ) -> dict[str, Floats]:
        checker = self._known().checker
        found = {}
        for name, of in dealt.items():
            dim = checker.tables[checker.number(name)].dim
            rows = np.empty((sum(map(len, of.ids)), dim), np.float32)
            for i, answer in answers.items():
                rows[of.places[i]] = answer[name]
            found[name] = rows
        return found

    # --- calls in parallel ------------------------------------------------------------------------

    def _on_all(self, call: Callable[[StoreClient], T]) -> list[T]:
        return list(self._on(range(self._of), lambda _, client: call(client)).values())

    def _on(self, shards: Iterable[int], call: Callable[[int, StoreClient], T]) -> dict[int, T]:
        """Shard -> what the call answers there; all have ended when this returns or raises."""
        futures: dict[int, Future[T]] = {}
        try:
            for i in shards:
                futures[i] = self._pool.submit(call, i, self._clients[i])
        except RuntimeError:
            self._raise_closed()
        answers: dict[int, T] = {}
        failed: dict[int, Exception] = {}
        for i, future in futures.items():
            try:
                answers[i] = future.result()
            except CancelledError:  # by close()
                self._raise_closed()
            except Exception as error:
                failed[i] = error
        if failed:
            self._raise(failed)
        return answers

    def _raise(self, failed: Mapping[int, Exception]) -> NoReturn:
        others = [i for i, error in failed.items() if not isinstance(error, MarkMismatch)]
        i = others[0] if others else next(iter(failed))
        error = failed[i]
        if not isinstance(error, CuckooflowError):
            raise error
        message = f"{self._name(i)}: {error}"
        if len(failed) > 1:
            others_failed = ", ".join(str(k) for k in failed if k != i)
            message += f" Also failed: shards {others_failed}."
        if isinstance(error, MarkMismatch):
            marks = {mark for e in failed.values() if isinstance(e, MarkMismatch) for mark in e.marks}
            raise MarkMismatch(message, sorted(marks)) from error
        raise type(error)(message) from error

    def _name(self, i: int) -> str:
        return f"{Shard(i, self._of)} at {self._addresses[i]}"

    def _raise_closed(self) -> NoReturn:
        raise StoreUnavailable("this client of the store's shards is closed. Make another.") from None


@dataclasses.dataclass(frozen=True)
class _Given:
    """A version of the whole, and the versions of the shards that it stands for."""

    version: Version
    shards: tuple[Version, ...]


class _Consumer:
    """What a consumer was given, and what it has."""

    def __init__(self) -> None:
        self.given: OrderedDict[int, _Given] = OrderedDict()
        self.acknowledged: _Given | None = None

    def give(self, given: _Given) -> None:
        self.given[given.version.n] = given
        if len(self.given) > GIVEN_MAX:
            self.given.popitem(last=False)

    def acknowledge(self, given: _Given) -> None:
        if self.acknowledged is None or self.acknowledged.version.n < given.version.n:
            self.acknowledged = given


def _whole(incarnations: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(incarnations).encode()).hexdigest()[:16]


def _of_shard(dealt: Mapping[str, Dealt], i: int) -> dict[str, Ids]:
    return {name: of.ids[i] for name, of in dealt.items()}


def _merged(parts: Iterable[Mapping[str, Floats]]) -> dict[str, Floats]:
    return {name: value for part in parts for name, value in part.items()}
