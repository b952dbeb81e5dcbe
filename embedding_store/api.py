"""What a store is told and what it answers; the same for the embedded form and the process.

A *push* is one contiguous range of one log partition with the gradients its rows caused. It is
applied exactly once: each logical bucket of ids keeps one mark per (log, partition), the position
up to which pushes are applied, and check and update are one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store.kinds import AsOf, CounterPush, RecentPush, RowsAt
from cuckooflow.logs.contract import LogRange, Position

Ids = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Optimizer:
    """How gradients become weights. Applied by the store; gradients are summed over a push.

    Attributes:
        kind: one of

            - ``sgd``: no slots.
            - ``adagrad``: one slot a weight (Duchi, Hazan and Singer, 2011).
            - ``adam``: two slots a weight and a step count a row; for a table the step counts that
              row's own updates (Kingma and Ba, 2015).
            - ``ftrl``: FTRL-Proximal, slots z and n for each weight (McMahan et al., "Ad Click
              Prediction: a View from the Trenches", 2013, algorithm 1). n begins at
              ``initial_accumulator`` (0 in the paper), and z where the formula gives the row's initial
              weights, so that the first step starts from them; an initial weight of 0 has z = 0, as
              in the paper.
            - ``rowwise_adagrad``: one accumulator a row, of the mean over its columns of the squared
              gradient, so a row is little larger than its weights. Tables only.
        learning_rate: step size, default 0.05; FTRL's alpha.
        initial_accumulator: where the accumulators of Adagrad, row-wise Adagrad and FTRL begin, default
            0.1. A larger one makes the first steps smaller.
        beta1, beta2, epsilon: Adam's, defaults as in Kingma and Ba (2015); epsilon 1e-7. Adagrad
            divides by sqrt(accumulator) without an epsilon.
        beta: FTRL's, default 1.0 as in the paper; a larger one makes the first steps smaller.
        l1: FTRL's, default 0: a weight is exactly 0 while its abs(z) is at most this, in units of a
            summed gradient.
        l2: FTRL's, default 0: pulls every weight towards 0 at each of its steps, within the formula. See
            :attr:`TableConfig.l2` for the other optimizers.
    """

    kind: Literal["sgd", "adagrad", "adam", "ftrl", "rowwise_adagrad"] = "adagrad"
    learning_rate: float = 0.05
    initial_accumulator: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0


@dataclass(frozen=True)
class TableConfig:
    """A table: of embeddings, or of one of the kinds in :mod:`cuckooflow.embedding_store.kinds`.

    Attributes:
        name: unique within the store.
        dim: weights (``embedding``), sums (``counter``) or ids (``recent``) a row, 1 to 1024.
        optimizer: see :class:`Optimizer`.
        init_stddev: a new row's weights are normal(0, init_stddev), drawn from (seed, id, column)
            alone; 0 gives zeros. A lookup of an id without a row answers the same values.
        seed: of the initial values.
        admission: an id gets a row once it has occurred this often; default 1, at once. At most 255.
        slot_admission: slot number -> admission, where a slot's differs; the slot is the id's
            high :data:`SLOT_BITS` bits.
        admission_mode: how an admission n over 1 is meant.

            - ``exact``, the default: with the n-th occurrence. Occurrences are counted as long as the
              filter has room; the stat ``filter_forgotten`` says how many counts it gave up.
            - ``probabilistic``: each occurrence gives the id a row with probability 1/n (the paper's
              variant, arXiv 2209.07663, section 2.1.1), so after n on average, the first one included.
              The draw is a hash of (seed, id, which occurrence it is): occurrences that are counted
              again after a restore decide the same, in whichever pushes they come.
        filter_bytes: memory for ids without a row, default 8 MiB, at least one cell a logical bucket; used
            only where some admission is over 1. Checkpoints grow by as much. Exact mode counts
            ``filter_bytes * 7 / 64`` ids (917 thousand by default), then forgets those that have not
            occurred for the longest, so rare ids need more memory to get in. Probabilistic mode needs
            no room an id: it has ``filter_bytes / 4`` counters that ids share, and 64 KiB will do.
        clip_norm: bound of the L2 norm of a row's gradient, after duplicates in a push are summed; a
            longer one is shortened to it. Default 0: no bound.
        l2: adds ``l2 * weight`` to the gradient of the rows that are in a push, after clipping, so that
            the pull towards 0 does not depend on how large the gradient is. Default 0. Rows that are
            not in the push stay as they are.
        kind: ``embedding``; ``counter``: sums that decay in event time, 16 + 8 dim bytes a row; ``recent``:
            the newest dim ids with their times, 16 dim bytes a row. Those two make a row with an id's
            first push; optimizer, initial values and admission are not theirs and stay at their defaults.
        half_lives_us: of a counter: one for all sums or one a sum, microseconds; 0: never decays.
        ttl_us: a row that no push touched for longer than this, in event time, is evicted; default 0, never.
            The clock is the newest event time pushed to the store, to any table. Never early; late by at
            most 1/16384 of the longest ttl in the table, and until the sweep that goes on with every
            push comes around (every quarter of the shortest ttl, where pushes touch enough rows), or
            ``evict_expired`` is called. Until then a lookup may still answer its weights; a push takes an
            expired id for a new one, swept or not.
        slot_ttl_us: slot number -> ttl_us, where a slot's differs; 0 for never.
        memory_limit_bytes: bound of the table's rows, index and filter together; default 0, none. It is kept
            also while the index grows; a restore may start over it, and then takes in no new ids.
        memory_policy: what happens to an id without a row at the limit. ``refuse_new_ids``, the default: it
            gets none and its gradients are dropped, counted as ``refused_new_ids``.
            ``evict_least_recent``: of 16 rows drawn at random, or of the at most 10 in the id's index buckets
            where those are full, the one touched longest ago makes room, counted as ``evicted_memory``.
    """

    name: str
    dim: int
    optimizer: Optimizer = Optimizer()
    init_stddev: float = 1e-3
    seed: int = 0
    admission: int = 1
    slot_admission: Mapping[int, int] = field(default_factory=dict)
    admission_mode: Literal["exact", "probabilistic"] = "exact"
    filter_bytes: int = 8 << 20
    clip_norm: float = 0.0
    l2: float = 0.0
    kind: Literal["embedding", "counter", "recent"] = "embedding"
    half_lives_us: tuple[int, ...] = ()
    ttl_us: int = 0
    slot_ttl_us: Mapping[int, int] = field(default_factory=dict)
    memory_limit_bytes: int = 0
    memory_policy: Literal["refuse_new_ids", "evict_least_recent"] = "refuse_new_ids"


@dataclass(frozen=True)
class DenseConfig:
    """A dense parameter: an array that every push may update.

    Attributes:
        name: unique within the store.
        shape: of the array.
        optimizer: see :class:`Optimizer`; Adam's step counts the pushes that carried a gradient.
        init: ``zeros``, ``ones`` or ``glorot_uniform`` (limit sqrt(6 / (fan_in + fan_out)), drawn from
            (seed, name) alone).
        seed: of the initial value.
    """

    name: str
    shape: tuple[int, ...]
    optimizer: Optimizer = Optimizer(kind="adam", learning_rate=1e-3)
    init: Literal["zeros", "ones", "glorot_uniform"] = "zeros"
    seed: int = 0


#: A feature id carries its slot (which feature it belongs to) in this many high bits.
SLOT_BITS = 12


@dataclass(frozen=True)
class StoreConfig:
    """The whole store.

    Attributes:
        tables, dense: what it holds.
        buckets: number of logical buckets, fixed at creation, default 64.
        delta_backlog_max: how many touched rows and tombstones each table lists for consumers of deltas that
            did not acknowledge yet, default 2^26, at 4 and 8 bytes each. Past it the oldest are
            forgotten, and a consumer that stands before them must take a full delta. Less than the rows
            of the table makes every consumer take full ones once all rows are touched between two acks.
            Ids evicted since the newest checkpoint are listed too, for the next one.
    """

    tables: tuple[TableConfig, ...]
    dense: tuple[DenseConfig, ...] = ()
    buckets: int = 64
    delta_backlog_max: int = 1 << 26


@dataclass(frozen=True)
class TablePush:
    """Gradients for one table.

    Attributes:
        ids: (n,) uint64; duplicates allowed, they are summed and then applied once.
        gradients: (n, dim) float32.
        counts: (n,) uint32, how often each entry occurred, for admission; None means once each.
    """

    ids: Ids
    gradients: Floats
    counts: npt.NDArray[np.uint32] | None = None


#: What a push may hold for a table, by the table's kind.
AnyPush = TablePush | CounterPush | RecentPush


class Pulled(NamedTuple):
    """What :meth:`Store.pull` found.

    Attributes:
        rows: table name -> (n, dim) float32.
        dense: parameter name -> value.
        clock: how many pushes with gradients each shard had applied; -1: nothing was read from it.
    """

    rows: dict[str, Floats]
    dense: dict[str, Floats]
    clock: tuple[int, ...]


class ReadAt(NamedTuple):
    """When the rows were read that the gradients of a push are of.

    Attributes:
        clock: as :class:`Pulled` has it.
        staleness_max: pushes of others that each shard may have applied since; None: as many as there are.
    """

    clock: tuple[int, ...]
    staleness_max: int | None = None


class PushAnswer(NamedTuple):
    """Of the store's buckets, how many took the range now and how many had it already.

    Attributes:
        staleness: pushes with gradients that the shard applied between the reading of the rows and this one, the most
            of any shard that took it; 0 where it was not told when they were read.
    """

    applied: int
    skipped: int
    staleness: int = 0


class Version(NamedTuple):
    """A version of the store's content: n counts within one incarnation of the store."""

    incarnation: str
    n: int


@dataclass(frozen=True)
class TableDelta:
    """Rows of one table: (n,) ids and their (n, dim) weights, and the ids whose rows are gone.

    Of a counter or recent table, weights are (n, 0) and ``state`` is (n, bytes) uint8, little-endian: a
    counter's first and last time, int64, and its sums as of the last, float64; a recent table's pairs of id,
    uint64, and time, int64, newest first.

    ``tombstones``: (m,) ids evicted since the base that have no row now, each once; none in a full delta.
    """

    ids: Ids
    weights: Floats
    tombstones: Ids
    state: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Delta:
    """What changed since ``base``, or everything where ``base`` is None.

    Attributes:
        version: this delta's version.
        base: what it stands on; None for a full one.
        tables: table name -> rows.
        dense: parameter name -> value, all of them.
        marks: log -> partition -> the lowest mark over the buckets when the delta was taken.
    """

    version: Version
    base: Version | None
    tables: Mapping[str, TableDelta]
    dense: Mapping[str, Floats]
    marks: Mapping[str, Mapping[int, Position]]


class Store(Protocol):
    """The store's verbs. Thread-safe: calls from many threads are serialised where they must be."""

    @property
    def config(self) -> StoreConfig: ...

    def incarnation(self) -> str:
        """Changes with every creation and every restore."""
        ...

    def open_log(self, log: str, incarnation: str, starts: Mapping[int, Position]) -> None:
        """Record a log's incarnation and start positions, durably, before the first push.

        Idempotent for partitions already open in this incarnation: their marks stay as they are.

        Raises:
            WrongIncarnation: the log is open in another incarnation.
            BadShape: a name is empty, or a partition or position is no whole number from 0 to 2^63-1.
        """
        ...

    def lookup(self, ids: Mapping[str, Ids]) -> dict[str, Floats]:
        """Table name -> (n, dim) float32 weights for its (n,) uint64 ids; one round trip for all tables.

        An id without a row answers its initial values, and makes none. Duplicates are answered each.

        Raises:
            UnknownTable.
            BadShape: ids of another dtype or shape, or a table of another kind: see :meth:`lookup_at`.
            LimitExceeded: of a store's process: more ids or bytes than one call may have.
        """
        ...

    def dense(self) -> dict[str, Floats]:
        """All dense parameters."""
        ...

    def pull(self, ids: Mapping[str, Ids]) -> Pulled:
        """:meth:`lookup` and :meth:`dense` in one round trip: what a training step needs."""
        ...

    def lookup_at(self, ids: Mapping[str, Ids], as_of_us: AsOf = None, with_dense: bool = False) -> RowsAt:
        """Rows of tables of any kind, and dense parameters where asked for, in one round trip.

        Counters and recent tables answer as of ``as_of_us``; embeddings and dense parameters as they are now.

        Raises:
            UnknownTable, BadShape.
        """
        ...

    def push(
        self,
        range_: LogRange,
        tables: Mapping[str, AnyPush],
        dense: Mapping[str, Floats],
        event_time_us: int,
        read: ReadAt | None = None,
    ) -> PushAnswer:
        """Apply the gradients of a range, exactly once.

        Buckets whose mark is ``range_.first`` take it, those with a mark at or past ``range_.last``
        skip it; if any bucket is elsewhere, nothing is applied.

        Args:
            range_: where in the log the gradients come from; an empty push moves the marks as well.
            tables: table name -> its push, of the table's kind.
            dense: parameter name -> float32 gradient of its shape; one that is left out stays as it is.
            event_time_us: the newest event time in the range, microseconds since the epoch; what expires
                goes by the newest one of all pushes.
            read: when the rows were read; default: not told, and never too long ago.

        Raises:
            LogNotOpened, WrongIncarnation, UnknownTable, BadShape, NonFiniteGradient, MarkMismatch.
                These mean: nothing was applied.
            StaleRows: nothing was applied; of a store in shards: by those that have applied too much since. The others
                took the range, and will skip it when it comes with gradients of fresh rows.
        """
        ...

    def marks(self, log: str) -> dict[int, tuple[Position, ...]]:
        """Partition -> the distinct marks over the buckets, ascending. Empty for an unopened log."""
        ...

    def log_incarnation(self, log: str) -> str | None:
        """The incarnation that ``open_log`` recorded, or None."""
        ...

    def delta(self, consumer: str, full: bool = False) -> Delta:
        """What was touched since this consumer's last ack; rows touched meanwhile come again later.

        Raises:
            FullDeltaNeeded: this consumer never acknowledged anything in this incarnation, or what was touched
                since its last ack is over ``delta_backlog_max``.
        """
        ...

    def ack(self, consumer: str, version: Version) -> None:
        """The consumer has that delta safely; the next one stands on it."""
        ...

    def checkpoint(self) -> str:
        """Write a checkpoint into the store's data folder; its name."""
        ...

    def evict_expired(self) -> dict[str, int]:
        """Evict every row whose time-to-live is over, now; table name -> how many. Pushes go on meanwhile."""
        ...

    def stats(self) -> dict[str, object]:
        """Rows, bytes, load factor, admissions refused, evictions per table; pushes applied; incarnation."""
        ...

    def close(self) -> None: ...
