"""OnlineJoin: impressions and actions, by shard, into examples.

A stateful DoFn around :class:`~cuckooflow.transforms.join_shard.JoinShard`. The runner's keyed state holds
everything that a shard needs; its memory lies in the process's hot tier and is made again from state when
its token is not the one in state. Windows close while elements are processed, by the in-band clock. Two
timers do the rest: ``recheck``, in processing time, when the input pauses, and ``end``, in event time,
when the input is over.
"""

from __future__ import annotations

import functools
import inspect
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagStateSpec,
    ReadModifyWriteStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.transforms.window import GlobalWindow

import cuckooflow
from cuckooflow.errors import CuckooflowError
from cuckooflow.transforms.coders import Keyed, RecordBatchCoder
from cuckooflow.transforms.hand_over import HandOver
from cuckooflow.transforms.in_band import Header, attach
from cuckooflow.transforms.join_options import STATE_CELLS, JoinOptions
from cuckooflow.transforms.join_outputs import ExamplesSchema
from cuckooflow.transforms.join_shard import JoinShard, ShardOutputs
from cuckooflow.transforms.join_state import HOT_TIER, Bag, CellRing, ShardMeta, packed, unpacked
from cuckooflow.transforms.metrics import count, counter
from cuckooflow.transforms.state_sizes import size_flat_state_directly

EXAMPLES = "examples"
LATE = "late"
UNMATCHED = "unmatched"
DEAD = "dead"
BALANCES = "balances"

_CELLS = tuple(f"cell_{i:02}" for i in range(STATE_CELLS))
_SPECS: dict[str, Any] = {
    "meta": ReadModifyWriteStateSpec("meta", BytesCoder()),
    "overflow": BagStateSpec("overflow", RecordBatchCoder()),
    **{name: BagStateSpec(name, RecordBatchCoder()) for name in _CELLS},
}
# The in-process runner keeps the timers of a fused stage by family name alone (seen with Beam 2.77): names
# must differ between the DoFns of a pipeline, or one DoFn's timers fire in another.
_RECHECK = TimerSpec("join_recheck", TimeDomain.REAL_TIME)
_END = TimerSpec("join_end", TimeDomain.WATERMARK)


@dataclass(frozen=True)
class _State:
    """The shard's state and timers, within one call."""

    meta: Any
    overflow: Bag
    cells: list[Bag]
    recheck: Any
    end: Any


def _with_state(*leading: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare all state and timers as parameters, as Beam wants them, and pass them as one :class:`_State`.

    Args:
        leading: the parameters before them, as :class:`inspect.Parameter`.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        timers = {"recheck": beam.DoFn.TimerParam(_RECHECK), "end": beam.DoFn.TimerParam(_END)}
        defaults = {name: beam.DoFn.StateParam(spec) for name, spec in _SPECS.items()} | timers
        names = [parameter.name for parameter in leading] + list(defaults)

        @functools.wraps(function)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False)) | kwargs
            cells = [given.pop(name) for name in _CELLS]
            rest = {name: given.pop(name) for name in ("meta", "overflow", *timers)}
            return function(self, state=_State(cells=cells, **rest), **given)

        any_place = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter("self", any_place), *leading]
        parameters += [inspect.Parameter(n, any_place, default=d) for n, d in defaults.items()]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return call

    return decorate


_ELEMENT = inspect.Parameter("element", inspect.Parameter.POSITIONAL_OR_KEYWORD)
_KEY = inspect.Parameter("key", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=beam.DoFn.KeyParam)


class OnlineJoin(beam.PTransform):
    """``(shard, RecordBatch)`` with in-band headers -> tagged outputs.

    Input: elements as :class:`~cuckooflow.transforms.read_logs.ReadLogs` gives them.

    Outputs, as attributes of the result, columns as
    :class:`~cuckooflow.transforms.join_outputs.ExamplesSchema` says:
        ``examples``: ``(shard, RecordBatch)``, in event-time order within a shard (``complete``); one without rows
            comes with a later balance that no examples came with, so that what follows learns the poller's clock.
        ``late``: ``(shard, RecordBatch)``.
        ``unmatched``: ``(shard, RecordBatch)``.
        ``dead``: RecordBatches of dead letters.
        ``balances``: dicts, see :mod:`~cuckooflow.transforms.balances`.

    Args:
        options: see :class:`JoinOptions`.
        job: name of the job; with the stage and the shard it names the memory of a shard.
        impressions, actions: the declared columns, without the event time, as the source gives them.
        now_us: the wall clock, for setting the re-check timer; no outcome depends on it.
        hand_over: where a backfill ended and this join goes on; None: it begins with its logs.

    Raises:
        SpecError: a column that the options name is not declared, or the hand-over is of another join.
    """

    def __init__(
        self,
        options: JoinOptions,
        job: str,
        impressions: pa.Schema,
        actions: pa.Schema,
        now_us: Callable[[], int] | None = None,
        hand_over: HandOver | None = None,
    ) -> None:
        super().__init__()
        self.schema = ExamplesSchema(options, impressions, actions)
        self.schema.check()
        if hand_over is not None:
            hand_over.check(options)
        self._hand_over = hand_over
        self._job = job
        self._now_us = now_us or _wall_clock_us

    def expand(self, elements: Any) -> Any:
        stage = f"{self.label}-{uuid.uuid4().hex}"
        fn = _JoinFn(self.schema, self._job, stage, self._now_us, cuckooflow.__version__, self._hand_over)
        outputs = (
            elements
            | "TypeShards" >> beam.Map(_keyed).with_output_types(Keyed)
            | "Join"
            >> beam.ParDo(fn)
            .with_output_types(Keyed)
            .with_outputs(LATE, UNMATCHED, DEAD, BALANCES, main=EXAMPLES)
        )
        for tag in (LATE, UNMATCHED):
            outputs[tag].element_type = Keyed
        outputs[DEAD].element_type = pa.RecordBatch
        outputs[BALANCES].element_type = dict[str, Any]
        return outputs


def _keyed(element: tuple[int, pa.RecordBatch]) -> tuple[int, pa.RecordBatch]:
    return element


def _wall_clock_us() -> int:
    return time.time_ns() // 1_000


class _JoinFn(beam.DoFn):
    def __init__(
        self,
        schema: ExamplesSchema,
        job: str,
        stage: str,
        now_us: Callable[[], int],
        version: str,
        hand_over: HandOver | None,
    ) -> None:
        self._schema = schema
        self._job = job
        self._stage = stage
        self._now_us = now_us
        self._version = version
        self._hand_over = hand_over
        self._no_examples = pa.RecordBatch.from_pylist([], schema=schema.examples)

    def setup(self) -> None:
        size_flat_state_directly()
        if self._version != cuckooflow.__version__:
            raise CuckooflowError(
                f"expected cuckooflow {self._version} on this worker, as on the submitter, received "
                f"{cuckooflow.__version__}; install the submitter's version"
            )

    @_with_state(_ELEMENT)
    def process(self, element: tuple[int, pa.RecordBatch], state: _State) -> Iterator[Any]:
        """Join an element's rows, and close what its watermarks allow."""
        shard, batch = element
        begin = time.perf_counter_ns()
        place = HOT_TIER.place(self._job, self._stage, shard)
        with place.lock:
            place.memory = memory = self._memory(place.memory, shard, state)
            out = memory.accept(batch)
            self._write(state, memory)
            self._arm(state, memory)
        counter("join_elements").inc()
        self._count(out, begin)
        yield from self._tagged(shard, out)

    @on_timer(_RECHECK)
    @_with_state(_KEY)
    def on_recheck(self, key: int, state: _State) -> Iterator[Any]:
        """The input paused."""
        begin = time.perf_counter_ns()
        place = HOT_TIER.place(self._job, self._stage, key)
        with place.lock:
            if place.over:  # a runner may fire it after the other one
                return
            place.memory = memory = self._memory(place.memory, key, state)
            out = memory.recheck()
            self._write(state, memory)
            if memory.late_deferred:
                self._arm(state, memory)
        self._count(out, begin)
        yield from self._tagged(key, out)

    @on_timer(_END)
    @_with_state(_KEY)
    def on_end(self, key: int, state: _State) -> Iterator[Any]:
        """The input is over."""
        begin = time.perf_counter_ns()
        place = HOT_TIER.place(self._job, self._stage, key)
        with place.lock:
            memory = self._memory(place.memory, key, state)
            out = memory.finish()
            self._write(state, memory)
            place.memory, place.over = None, memory.over
        self._count(out, begin)
        yield from self._tagged(key, out)

    def _memory(self, memory: JoinShard | None, shard: int, state: _State) -> JoinShard:
        """The shard's memory, as state says it is."""
        used = state.cells[: self._schema.options.state_buckets]
        blob = state.meta.read()
        meta, clock = unpacked(blob) if blob is not None else (b"", b"")
        saved = None if blob is None else ShardMeta.from_bytes(meta)
        if memory is not None and saved is not None and memory.token == saved.token:
            memory.cells.bind(used, state.overflow)
            counter("join_memory_hits").inc()
            return memory
        ring = CellRing(used, state.overflow, self._schema.options.bucket_us)
        if saved is None:
            return JoinShard(shard, self._schema, ring, None, self._hand_over)
        counter("join_memory_rebuilt").inc()
        return JoinShard(shard, self._schema, ring, (saved, clock), self._hand_over)

    def _write(self, state: _State, memory: JoinShard) -> None:
        meta, clock = memory.save()
        state.meta.write(packed(meta.to_bytes(), clock))  # one cell: each is two requests to the runner

    def _arm(self, state: _State, memory: JoinShard) -> None:
        """Set the timers where there is something for them; not with every element, as each set is sent."""
        if not memory.end_armed:
            state.end.set(GlobalWindow().max_timestamp())
            memory.end_armed = True
        if memory.late_queued or memory.unreported:
            recheck_us = self._schema.options.recheck_us
            now_us = self._now_us()
            if memory.recheck_at_us < now_us + recheck_us // 2:
                memory.recheck_at_us = now_us + recheck_us
                state.recheck.set(memory.recheck_at_us / 1e6)

    def _count(self, out: ShardOutputs, begin_ns: int) -> None:
        """What a call did, and took: a fixed number of counters, whatever came."""
        took_us = (time.perf_counter_ns() - begin_ns) // 1_000
        rows = {
            f"join_{name}_rows": sum(batch.num_rows for batch in getattr(out.rows, name))
            for name in (EXAMPLES, LATE, UNMATCHED, DEAD)
        }
        ticked_us = took_us if out.counted.get("join_ticks") else 0
        untouched = {"join_memory_hits": 0, "join_memory_rebuilt": 0}  # there from the first call on
        count(out.counted | rows | untouched | {"join_busy_us": took_us, "join_tick_us": ticked_us})

    def _tagged(self, shard: int, out: ShardOutputs) -> Iterator[Any]:
        header = Header((), {}, out.polled_us)  # paces the stages after this one
        for name in (EXAMPLES, LATE, UNMATCHED, DEAD):
            for batch in getattr(out.rows, name):
                if name == EXAMPLES:
                    yield shard, attach(batch, header)
                elif name == DEAD:
                    yield TaggedOutput(DEAD, batch)
                else:
                    yield TaggedOutput(name, (shard, attach(batch, header)))
        for record in out.balances:
            yield TaggedOutput(BALANCES, record)
            # For the stages after this one to report theirs.
            if record["counts"]["examples"] and not record["final"] and not out.rows.examples:
                yield shard, attach(self._no_examples, header)
