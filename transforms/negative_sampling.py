"""NegativeSampling: keep a share of the examples that are negative in every label.

Keep or drop is a hash of the join key and a seed, never a draw: a restarted or repeated job decides the
same, and so a late example can say whether the negative it corrects was kept. The share travels with every
example as ``_rate``; whoever trains or scores corrects by it (He et al., "Practical Lessons from
Predicting Clicks on Ads at Facebook", 2014, section 6.3).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow

from cuckooflow.errors import SpecError
from cuckooflow.transforms.balances import SAMPLING, balance_record
from cuckooflow.transforms.coders import Keyed
from cuckooflow.transforms.in_band import read_header
from cuckooflow.transforms.join_rows import sampling_fractions
from cuckooflow.transforms.state_sizes import size_flat_state_directly

_COUNTED = "counted"


def kept_negatives(hashes: npt.NDArray[np.uint64], rate: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which keys' negatives are kept.

    Args:
        hashes: (n,) uint64, the ``_hash`` column.

    Returns:
        (n,) bool; a share ``rate`` of all keys.
    """
    return sampling_fractions(hashes, seed) < rate


def sample_examples(batch: pa.RecordBatch, rate: float, seed: int) -> pa.RecordBatch:
    """The examples that stay, with ``_rate`` (float32) as their last column."""
    labels = [name for name in batch.schema.names if name.startswith("label_")]
    stays = kept_negatives(batch.column("_hash").to_numpy(), rate, seed)
    for name in labels:
        stays |= batch.column(name).to_numpy() != 0
    if not stays.all():
        batch = batch.filter(pa.array(stays))
    return _with_rate(batch, np.full(batch.num_rows, rate))


def sample_late(batch: pa.RecordBatch, rate: float, seed: int) -> pa.RecordBatch:
    """All late examples; ``_negative_kept`` now says whether the negative that each corrects is there.

    Its columns are those of the examples, ``_negative_kept`` and ``_rate``, of which share examples such as the
    one that it corrects were kept: 1 where that had another label.
    """
    kept = kept_negatives(batch.column("_hash").to_numpy(), rate, seed)
    negative = batch.column("_primary_negative").to_numpy(zero_copy_only=False)
    corrects = batch.column("_negative_kept").to_numpy(zero_copy_only=False)
    at = batch.schema.get_field_index("_negative_kept")
    batch = batch.set_column(at, batch.schema.field(at), pa.array(corrects & (kept | ~negative)))
    return _with_rate(batch.drop_columns(["_primary_negative"]), np.where(negative, rate, 1.0))


def _with_rate(batch: pa.RecordBatch, rates: npt.NDArray[np.float64]) -> pa.RecordBatch:
    return batch.append_column(pa.field("_rate", pa.float32()), pa.array(rates.astype(np.float32)))


class NegativeSampling(beam.PTransform):
    """``{"examples": ..., "late": ...}`` -> the same, sampled, and ``balances``.

    Input: the two outputs of :class:`~cuckooflow.transforms.online_join.OnlineJoin`, in a dict. Output: a dict
    with ``examples`` and ``late``, ``(shard, RecordBatch)``, and ``balances``, dicts (see
    :mod:`~cuckooflow.transforms.balances`). A batch of which nothing stays is not given out.

    Args:
        rate: the share of negatives that is kept, (0, 1]. Costs accuracy where negatives are not many.
        seed: of the hash that decides.
        balance_interval_us: how often the balance is reported, by the poller's clock, default 1 s.
        recheck_us: after so long without input a timer reports it, default 2 s.
        now_us: the wall clock, for setting that timer.

    Raises:
        SpecError: the rate is outside its range.
    """

    def __init__(
        self,
        rate: float,
        seed: int,
        balance_interval_us: int = 1_000_000,
        recheck_us: int = 2_000_000,
        now_us: Callable[[], int] | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 < rate <= 1.0:
            raise SpecError(f"negative_sampling.rate: expected above 0 and at most 1, received {rate}")
        self._rate = rate
        self._seed = seed
        self._count = _CountFn(balance_interval_us, recheck_us, now_us or _wall_clock_us)

    def expand(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        # Only the counts are keyed: the examples stay in the stage that made them, and are written from it.
        sample = beam.ParDo(_SampleFn(self._rate, self._seed)).with_output_types(Keyed)
        sampled = inputs["examples"] | "Sample" >> sample.with_outputs(_COUNTED, main="examples")
        sampled[_COUNTED].element_type = beam.typehints.Tuple[int, bytes]
        balances = sampled[_COUNTED] | "Count" >> beam.ParDo(self._count).with_output_types(dict[str, Any])
        late = inputs["late"] | "Late" >> beam.Map(_late, self._rate, self._seed).with_output_types(Keyed)
        return {"examples": sampled["examples"], "late": late, "balances": balances}


def _late(element: tuple[int, pa.RecordBatch], rate: float, seed: int) -> tuple[int, pa.RecordBatch]:
    return element[0], sample_late(element[1], rate, seed)


def _wall_clock_us() -> int:
    return time.time_ns() // 1_000


class _SampleFn(beam.DoFn):
    def __init__(self, rate: float, seed: int) -> None:
        self._rate = rate
        self._seed = seed

    def process(self, element: tuple[int, pa.RecordBatch]) -> Iterator[Any]:
        """Sample a batch, and tell of it, also of one without rows."""
        shard, batch = element
        sampled = sample_examples(batch, self._rate, self._seed)
        counted = (batch.num_rows, sampled.num_rows, read_header(batch).polled_us)
        if sampled.num_rows:
            yield shard, sampled
        yield TaggedOutput(_COUNTED, (shard, json.dumps(counted).encode()))


class _CountFn(beam.DoFn):
    COUNTS = ReadModifyWriteStateSpec("counts", BytesCoder())
    # Other names than the join's: see there.
    RECHECK = TimerSpec("sampling_recheck", TimeDomain.REAL_TIME)
    END = TimerSpec("sampling_end", TimeDomain.WATERMARK)

    def __init__(self, interval_us: int, recheck_us: int, now_us: Callable[[], int]) -> None:
        self._interval_us = interval_us
        self._recheck_us = recheck_us
        self._now_us = now_us

    def setup(self) -> None:
        size_flat_state_directly()

    def process(
        self,
        element: tuple[int, bytes],
        counts: Any = beam.DoFn.StateParam(COUNTS),
        recheck: Any = beam.DoFn.TimerParam(RECHECK),
        end: Any = beam.DoFn.TimerParam(END),
    ) -> Iterator[Any]:
        """Count what was sampled."""
        shard, counted = element
        state = _read(counts)
        rows, kept, polled_us = json.loads(counted)
        state["examples"] += rows
        state["kept"] += kept
        state["sampled_out"] += rows - kept
        state["polled_us"] = max(state["polled_us"], polled_us)
        state["unreported"] |= int(rows > 0)
        due = state["polled_us"] - state["balance_us"] >= self._interval_us
        self._arm(state, recheck, end)
        if due and state["unreported"]:
            yield self._report(shard, state, final=False)
        counts.write(json.dumps(state).encode())

    def _arm(self, state: dict[str, int], recheck: Any, end: Any) -> None:
        now_us = self._now_us()
        if state["recheck_at_us"] < now_us + self._recheck_us // 2:
            state["recheck_at_us"] = now_us + self._recheck_us
            recheck.set(state["recheck_at_us"] / 1e6)
        if not state["end_armed"]:
            state["end_armed"] = 1
            end.set(GlobalWindow().max_timestamp())

    @on_timer(RECHECK)
    def on_recheck(
        self, key: int = beam.DoFn.KeyParam, counts: Any = beam.DoFn.StateParam(COUNTS)
    ) -> Iterator[Any]:
        """The input paused: report what has not been."""
        state = _read(counts)
        state["recheck_at_us"] = 0
        if state["unreported"]:
            yield self._report(key, state, final=False)
        counts.write(json.dumps(state).encode())

    @on_timer(END)
    def on_end(
        self, key: int = beam.DoFn.KeyParam, counts: Any = beam.DoFn.StateParam(COUNTS)
    ) -> Iterator[Any]:
        """The input is over: the last balance."""
        state = _read(counts)
        yield self._report(key, state, final=True)
        counts.write(json.dumps(state).encode())

    def _report(self, shard: int, state: dict[str, int], final: bool) -> dict[str, Any]:
        state["balance_us"] = state["polled_us"]
        state["unreported"] = 0
        shown = {name: state[name] for name in ("examples", "kept", "sampled_out")}
        return balance_record(SAMPLING, shard, shown, None, state["polled_us"], final)


def _read(counts: Any) -> dict[str, int]:
    blob = counts.read()
    if blob is not None:
        state: dict[str, int] = json.loads(blob)
        return state
    names = ("examples", "kept", "sampled_out", "polled_us", "balance_us")
    return dict.fromkeys((*names, "unreported", "recheck_at_us", "end_armed"), 0)
