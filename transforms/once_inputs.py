"""What a poller does differently for inputs that hand messages out once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from cuckooflow.errors import ReadOnceLog
from cuckooflow.logs.contract import LogReader, MessageBatch, OnceReader
from cuckooflow.transforms.hand_over import HandOver
from cuckooflow.transforms.poll_options import PollOptions
from cuckooflow.transforms.source_counts import SourceCounts


def take_receipts(readers: Mapping[int, OnceReader], counts: SourceCounts) -> dict[int, tuple[str, ...]]:
    """Log -> receipts of what was read since the last poll, where something waits; repeats are counted."""
    found: dict[int, tuple[str, ...]] = {}
    for log, reader in readers.items():
        receipts = reader.receipts()
        counts.add_redelivered(log, receipts.repeated)
        if receipts.ids or receipts.waiting:
            found[log] = receipts.ids
    return found


def check_once(reader: LogReader, options: PollOptions, hand_over: HandOver | None) -> None:
    """Refuse what needs a log that can be read again.

    Raises:
        ReadOnceLog: naming it.
    """
    asked = {
        "stop_at_end": options.stop_at_end,
        "replay_speed": options.replay_speed is not None,
        "a hand-over": hand_over is not None,
    }
    wrong = [name for name, given in asked.items() if given]
    if wrong and isinstance(reader, OnceReader):
        raise ReadOnceLog(
            f"expected a log that can be read again for {' and '.join(wrong)}, received {reader.incarnation()}"
        )


def labelled(rows: pa.RecordBatch, name: str, batch: MessageBatch) -> pa.RecordBatch:
    """Rows with their message's label in the place of its offset."""
    assert batch.labels is not None
    at = rows.schema.get_field_index(name)
    labels = batch.labels[np.searchsorted(batch.offsets, rows.column(at).to_numpy())]
    return rows.set_column(at, rows.schema.field(at), pa.array(labels, pa.int64()))
