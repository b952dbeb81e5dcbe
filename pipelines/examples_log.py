"""A job's examples log from its beginning to where it ends now, for whoever measures on it."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from cuckooflow.logs.contract import Position
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.train.skips import read_skips
from cuckooflow.transforms.examples_reader import ExamplesReader

_ROWS_READ = 8_192


def read_examples(job: JobSpec) -> Iterator[pa.RecordBatch]:
    """Every example of the log once, as its trainer reads it, with range headers; the partitions take turns.

    Messages that hold no examples are left out: they are the trainer's dead letters.

    Raises:
        LogNotFound: there is no examples log.
    """
    log = job.address(job.logs.examples).open_reader()
    try:
        reader = ExamplesReader(log, job.training.dedupe_rows, read_skips(job, log.incarnation()))
        ends = {partition: Position(log.end_offset(partition)) for partition in log.partitions()}
        at = {partition: Position(log.start_offset(partition)) for partition in ends}
        while at:
            for partition, first in list(at.items()):
                if first >= ends[partition]:
                    del at[partition]
                    continue
                batch, header = reader.read(partition, first, ends[partition], max_rows=_ROWS_READ)
                if header.range.last == first:
                    del at[partition]
                    continue
                at[partition] = header.range.last
                yield batch
    finally:
        log.close()
