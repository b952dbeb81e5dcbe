"""Refuses to train from a log that deletes messages before a restored store would ask for them."""

from __future__ import annotations

from collections.abc import Mapping

from cuckooflow.errors import RetentionTooShort
from cuckooflow.logs.contract import LogReader, Position, RetainingReader


def check_retention(
    reader: LogReader, starts: Mapping[int, Position], checkpoint_us: int, now_us: int
) -> None:
    """Hold how long a log keeps messages against how old those are that may be asked for.

    A store that lost its memory goes back to its last checkpoint and reads on from there, so what was appended
    since must still be there; and what it has not trained yet must be there when its turn comes.

    Args:
        reader: of the examples log. One that cannot say how long it keeps messages is not checked.
        starts: partition -> the store's mark; one that has none begins with what is kept.
        checkpoint_us: between two checkpoints of the store.
        now_us: the wall clock, microseconds since the epoch.

    Raises:
        RetentionTooShort: naming both.
        OffsetOutOfRange: what is needed has been deleted.
    """
    kept_us = reader.retention_us() if isinstance(reader, RetainingReader) else None
    if kept_us is None:
        return
    needed_us, why = checkpoint_us, "the store's checkpoints are as far apart"
    for partition, start in starts.items():
        batch = reader.read(partition, start.offset, max_messages=1)
        if len(batch) and now_us - int(batch.append_us[0]) > needed_us:
            needed_us = now_us - int(batch.append_us[0])
            why = f"message {int(batch.offsets[0])} of partition {partition}, which is to be trained next, is as old"
    if kept_us <= needed_us:
        raise RetentionTooShort(
            f"expected {reader.name} to keep messages for more than {needed_us / 1e6:,.0f} s, as {why}; it keeps "
            f"them for {kept_us / 1e6:,.0f} s: raise the topic's retention.ms"
        )
