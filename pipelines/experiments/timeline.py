"""Examples in event time, in memory: the one partition that an experiment trains.

The order is that of ``_time``; of equal times, that of the log. An example's position is its place in this order.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.errors import NoExamples, SpecError, TooManyExamples
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.pipelines.examples_log import read_examples
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.transforms.dead_letters import no_dead_letters
from cuckooflow.transforms.ranges import RangeHeader, attach_range

#: The name of the log that positions belong to, and its incarnation.
LOG, INCARNATION = "experiment", "in event time"
#: Rows of an element.
ELEMENT_ROWS = 8_192


class Timeline:
    """A log of one partition, a row a message. Immutable.

    Args:
        rows: examples with ``_time``, in ascending order; ``_offset`` and ``_row`` are given anew.

    Attributes:
        times_us: (n,) int64 event times.
        dead_letters: none: every row could be read.
    """

    def __init__(self, rows: pa.Table) -> None:
        count = rows.num_rows
        kept = rows.drop_columns([name for name in ("_offset", "_row") if name in rows.column_names])
        kept = kept.replace_schema_metadata(None)
        kept = kept.append_column("_offset", pa.array(np.arange(count)))
        self._rows = kept.append_column("_row", pa.array(np.zeros(count, np.int32)))
        self.dead_letters: pa.RecordBatch = no_dead_letters()
        self.times_us: npt.NDArray[np.int64] = rows.column("_time").to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return self._rows.num_rows

    def elements(self, rows: int = ELEMENT_ROWS) -> Iterator[pa.RecordBatch]:
        """All of it as TrainStep's input, in elements of so many rows; the last ends the partition."""
        last = len(self)
        for start in range(0, last, rows):
            stop = min(start + rows, last)
            yield attach_range(*self._piece(start, stop, end=stop == last))

    def read(
        self, partition: int, first: Position, last: Position | None, max_rows: int
    ) -> tuple[pa.RecordBatch, RangeHeader]:
        """Read again, see :class:`~cuckooflow.transforms.log_again.RangeReader`."""
        del partition
        stop = len(self) if last is None else last.offset
        return self._piece(first.offset, min(stop, first.offset + max_rows))

    def _piece(self, start: int, stop: int, end: bool = False) -> tuple[pa.RecordBatch, RangeHeader]:
        (batch,) = self._rows.slice(start, stop - start).combine_chunks().to_batches()
        range_ = LogRange(LOG, INCARNATION, 0, Position(start), Position(stop))
        return batch, RangeHeader(range_, Position(0), polled_us=0, end=end)


def read_timeline(job: JobSpec, rows_max: int, from_us: int | None, until_us: int | None) -> Timeline:
    """A job's examples log, its partitions merged by event time.

    Args:
        rows_max: examples that may be held; some hundred bytes each, twice while they are sorted.
        from_us, until_us: event time, half open, microseconds; None: no bound.

    Raises:
        LogNotFound: there is no examples log.
        NoExamples: it holds none of that time.
        TooManyExamples: it holds more than ``rows_max`` of it.
        SpecError: a column has types that do not go together.
    """
    parts: list[pa.Table] = []
    count = 0
    low, high = (
        (-(1 << 63) if from_us is None else from_us),
        ((1 << 63) - 1 if until_us is None else until_us),
    )
    for batch in read_examples(job):
        if not batch.num_rows:
            continue
        times = batch.column("_time").to_numpy()
        wanted = pa.array((times >= low) & (times < high))
        part = pa.Table.from_batches([batch]).replace_schema_metadata(None).filter(wanted)
        if part.num_rows:
            parts.append(part)
            count += part.num_rows
        if count > rows_max:
            raise TooManyExamples(
                f"expected at most {rows_max:,} examples, received more; choose a time with --from and --to, or raise "
                "--rows-max, at some hundred bytes of memory each"
            )
    if not parts:
        raise NoExamples(
            f"expected examples of that time in {job.address(job.logs.examples).name}, found none; run the join first, "
            "or choose another time"
        )
    try:
        rows = pa.concat_tables(parts, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SpecError(
            f"expected one type for each column over the examples, received several ({error}); choose a time with one "
            "of them, with --from and --to"
        ) from None
    order = np.argsort(rows.column("_time").to_numpy(), kind="stable")
    return Timeline(rows.take(pa.array(order)))
