"""Refuses a start of the join that would write more examples again than their reader recognises.

A join that goes on from a checkpoint writes again what it had written since. The reader of the examples log
drops a row whose identity occurs in the D rows before it, so a copy must not lie further behind its original
than that. What was written since is what the log holds with append times from then on; a copy may lie twice
as far behind, because a replay need not keep the order and new rows may come between.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from cuckooflow.errors import ReplayTooLong
from cuckooflow.logs.address import LogAddress
from cuckooflow.logs.contract import LogReader
from cuckooflow.transforms.batch_bytes import decode_stream

#: How far the clocks of the source's and the sinks' machines may be apart.
CLOCK_SKEW_US = 10_000_000
#: Offsets that are looked at together, from the end backward; they double up to the last.
_BLOCK_FIRST, _BLOCK_LAST = 64, 16_384
#: Rows are counted up to so many times D; past that there is no need to know.
_COUNTED_MAX = 10
#: A copy's distance, in what was written since the checkpoint.
_DISTANCE = 2


@dataclass(frozen=True)
class ReplayBound:
    """What a start of the join is held against.

    Attributes:
        examples: the log that it writes.
        dedupe_rows: D of the log's readers.
    """

    examples: LogAddress
    dedupe_rows: int

    def check(self, state: bytes | None) -> None:
        """Before a poller opens with the state of a :class:`~cuckooflow.transforms.poll_core.PollCore`.

        Args:
            state: None for a start from the beginning, which writes everything again that the log holds.

        Raises:
            ReplayTooLong: naming the D that is needed.
            LogUnavailable: the examples log's broker does not answer.
        """
        polled_us = None if state is None else json.loads(state)["last_element_us"]
        since_us = None if polled_us is None else polled_us - CLOCK_SKEW_US
        reader = self.examples.open_reader()
        try:
            rows = rows_since(reader, since_us, _COUNTED_MAX * max(1, self.dedupe_rows))
        finally:
            reader.close()
        partition, most = max(rows.items(), key=lambda entry: entry[1])
        if _DISTANCE * most > self.dedupe_rows:
            start = (
                "starts from the beginning of its logs" if state is None else "goes on from its checkpoint"
            )
            raise ReplayTooLong(
                f"expected at most {self.dedupe_rows // _DISTANCE} rows of {self.examples}/{partition} to be written "
                f"again, the join {start} and would write {most}; set training.dedupe_rows to "
                f"{_DISTANCE * most} or more, for the trainer too, or begin with an examples log and a store anew"
            )


def rows_since(reader: LogReader, since_us: int | None, enough: int) -> Mapping[int, int]:
    """Rows in each partition of an examples log that were appended at ``since_us`` or later.

    Args:
        since_us: None counts all.
        enough: where a partition has more, counting stops past this number.
    """
    return {partition: _rows(reader, partition, since_us, enough) for partition in reader.partitions()}


def _rows(reader: LogReader, partition: int, since_us: int | None, enough: int) -> int:
    start, stop = reader.start_offset(partition), reader.end_offset(partition)
    rows, step = 0, _BLOCK_FIRST
    while stop > start and rows <= enough:
        begin = max(start, stop - step)
        newer = False
        for batch in reader.read_range(partition, begin, stop):
            for append_us, value in zip(batch.append_us.tolist(), batch.values, strict=True):
                if since_us is None or append_us >= since_us:
                    newer = True
                    rows += _rows_of(value.as_buffer())
        if not newer and since_us is not None:
            break
        stop, step = begin, min(2 * step, _BLOCK_LAST)
    return rows


def _rows_of(value: pa.Buffer | None) -> int:
    """Rows of a message; what is none has none."""
    if value is None:
        return 0
    try:
        return int(decode_stream(value).num_rows)
    except (pa.ArrowException, OSError, ValueError):
        return 0
