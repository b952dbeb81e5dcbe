"""TrainStep: the examples log into the store, one gradient step a batch.

A thin shell around :class:`~cuckooflow.transforms.trainer.Trainer`, one for each partition. Trainers
live in a registry of the worker's process, not in the DoFn, which the worker swaps between bundles;
nothing is lost with them, since each begins where the store's mark stands. Keyed state holds only the range
from where the source began to the furthest element that came, so that a timer on another worker knows up to
where to train. One timer in processing time
pushes what waits when the input pauses; one at the end of the input pushes the rest and makes sure that the
store has all of it.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow

import cuckooflow
from cuckooflow.embedding_store.api import Store
from cuckooflow.errors import CuckooflowError
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.models.base import Model
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import build_model
from cuckooflow.models.spec import ModelSpec
from cuckooflow.transforms import coders as coders  # registers the RecordBatch coder
from cuckooflow.transforms.log_again import RangeReader
from cuckooflow.transforms.metric_names import STALENESS, STEPS, STEPS_STALE
from cuckooflow.transforms.metrics import count
from cuckooflow.transforms.ranges import read_range_header
from cuckooflow.transforms.state_sizes import size_flat_state_directly
from cuckooflow.transforms.trainer import Trainer
from cuckooflow.transforms.training_options import TrainingOptions
from cuckooflow.transforms.training_output import Output
from cuckooflow.transforms.training_rows import Correction, LateLabels

TICKS = "ticks"
METRICS = "metrics"
DEAD = "dead"
PREDICTIONS = "predictions"


@dataclass(frozen=True)
class TrainConfig:
    """Everything a worker needs to train.

    Attributes:
        store: opens the store; picklable, see :mod:`cuckooflow.transforms.shared_stores`.
        model, features: what is trained.
        reader: opens the examples log for re-reading; None where nothing can be read again, then a gap
            is an error.
        options: see :class:`TrainingOptions`.
        correction: of negative sampling, default none.
        late_labels: what late positives do, default: they take back.
        predictions: give out every row's probabilities, default off. For measurements.
    """

    store: Callable[[], Store]
    model: ModelSpec
    features: Sequence[FeatureSpec]
    reader: Callable[[], RangeReader] | None = None
    options: TrainingOptions = field(default_factory=TrainingOptions)
    correction: Correction = "none"
    late_labels: LateLabels = field(default_factory=LateLabels)
    predictions: bool = False


class TrainStep(beam.PTransform):
    """``(partition, RecordBatch)`` with range headers -> tagged outputs.

    Input: elements as :class:`ReadExamples` gives them, keyed by the partition of the log.

    Outputs, as attributes of the result:
        ``ticks``: :class:`~cuckooflow.transforms.training_output.Tick`, one an element; feed it to
            ``EmitSnapshots``.
        ``metrics``: dicts, see :class:`~cuckooflow.transforms.training_output.Output`.
        ``dead``: RecordBatches of dead letters.
        ``predictions``: RecordBatches, see :class:`Output`; nothing unless asked for.

    Args:
        config: see :class:`TrainConfig`.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, elements: beam.PCollection) -> Any:
        fn = _TrainFn(self._config, uuid.uuid4().hex, cuckooflow.__version__)
        return (
            elements
            | "TypePartitions" >> beam.Map(_keyed).with_output_types(tuple[int, pa.RecordBatch])
            | "Train" >> beam.ParDo(fn).with_outputs(TICKS, METRICS, DEAD, PREDICTIONS)
        )


def _keyed(element: tuple[int, pa.RecordBatch]) -> tuple[int, pa.RecordBatch]:
    return element


def _plain(range_: LogRange) -> tuple[Any, ...]:
    return (range_.log, range_.incarnation, range_.partition, *range_.first, *range_.last)


def _range(plain: tuple[Any, ...]) -> LogRange:
    log, incarnation, partition = plain[:3]
    return LogRange(log, incarnation, partition, Position(*plain[3:5]), Position(*plain[5:]))


@dataclass
class _Partition:
    """A partition's trainer and who may use it now."""

    trainer: Trainer
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class _Run:
    """What the trainers of one transform share within a process."""

    store: Store
    model: Model
    partitions: dict[int, _Partition] = field(default_factory=dict)


_registry: dict[str, _Run] = {}
_registry_lock = threading.Lock()


def _partition(run_id: str, config: TrainConfig, partition: int) -> _Partition:
    with _registry_lock:
        run = _registry.get(run_id)
        if run is None:
            run = _registry[run_id] = _Run(config.store(), build_model(config.model, config.features))
        if partition not in run.partitions:
            trainer = Trainer(
                run.store,
                run.model,
                config.reader,
                config.options,
                config.correction,
                config.predictions,
                config.late_labels,
            )
            run.partitions[partition] = _Partition(trainer)
        return run.partitions[partition]


def _forget(run_id: str, partition: int) -> None:
    """The partition has ended: let its memory go. The store is its owner's to close."""
    with _registry_lock:
        run = _registry.get(run_id)
        if run is None:
            return
        ended = run.partitions.pop(partition, None)
        if not run.partitions:
            del _registry[run_id]
    if ended is not None:
        ended.trainer.close()


class _TrainFn(beam.DoFn):
    SEEN = ReadModifyWriteStateSpec("seen", beam.coders.FastPrimitivesCoder())
    FLUSH = TimerSpec("flush", TimeDomain.REAL_TIME)
    END = TimerSpec("end", TimeDomain.WATERMARK)

    def __init__(self, config: TrainConfig, run_id: str, version: str) -> None:
        self._config = config
        self._run_id = run_id
        self._version = version

    def setup(self) -> None:
        size_flat_state_directly()
        if self._version != cuckooflow.__version__:
            raise CuckooflowError(
                f"expected cuckooflow {self._version} on this worker, as on the submitter, received "
                f"{cuckooflow.__version__}; install the submitter's version"
            )

    def process(
        self,
        element: tuple[int, pa.RecordBatch],
        seen: Any = beam.DoFn.StateParam(SEEN),
        flush: Any = beam.DoFn.TimerParam(FLUSH),
        end: Any = beam.DoFn.TimerParam(END),
    ) -> Iterator[Any]:
        key, batch = element
        partition = _partition(self._run_id, self._config, key)
        with partition.lock:
            out = partition.trainer.accept(batch)
            waiting = partition.trainer.waiting
        header = read_range_header(batch)
        reached = max(header.range.last, _range(known).last) if (known := seen.read()) else header.range.last
        seen.write(_plain(header.range._replace(first=header.start, last=reached)))
        end.set(GlobalWindow().max_timestamp())
        if waiting:
            flush.set(time.time() + self._config.options.max_delay_us / 1e6)
        yield from self._tagged(out)

    @on_timer(FLUSH)
    def on_flush(
        self, key: int = beam.DoFn.KeyParam, seen: Any = beam.DoFn.StateParam(SEEN)
    ) -> Iterator[Any]:
        """The input paused for as long as a row may wait, since each element sets this timer anew."""
        yield from self._late(key, seen.read(), ended=False)

    @on_timer(END)
    def on_end(self, key: int = beam.DoFn.KeyParam, seen: Any = beam.DoFn.StateParam(SEEN)) -> Iterator[Any]:
        """The input ended: push the rest, and see that the store has everything."""
        yield from self._late(key, seen.read(), ended=True)
        seen.clear()
        _forget(self._run_id, key)

    def _late(self, key: int, seen: tuple[Any, ...] | None, ended: bool) -> Iterator[Any]:
        if seen is None:  # the end has come already
            return
        partition = _partition(self._run_id, self._config, key)
        now_us = time.time_ns() // 1000
        with partition.lock:
            trainer = partition.trainer
            outs = [trainer.reach(_range(seen)), trainer.finish(now_us) if ended else trainer.flush(now_us)]
        for out in outs:
            yield from self._tagged(out)

    def _tagged(self, out: Output) -> Iterator[Any]:
        count(
            {
                "rows_trained": sum(tick.rows for tick in out.ticks),
                "training_dead_letters": sum(batch.num_rows for batch in out.dead),
                **{name: out.counted[name] for name in (STEPS, STALENESS, STEPS_STALE)},
            }
        )
        tagged: tuple[tuple[str, Sequence[Any]], ...] = (
            (TICKS, out.ticks),
            (METRICS, out.metrics),
            (DEAD, out.dead),
            (PREDICTIONS, out.predictions),
        )
        for name, values in tagged:
            for value in values:
                yield beam.pvalue.TaggedOutput(name, value)
